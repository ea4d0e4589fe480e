//! Where nonces and limits are kept.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document, ms};
use super::mistake::Mistake;
use super::upstream_tls::check_server_name;
use super::{MutualTls, Reference, StaleCrl};
use crate::state::LimitsWhenAway;

/// Where nonces and limits are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// In the memory of this process.
    #[serde(default)]
    pub memory: Memory,
    /// In a Redis that every gateway and every state service of the fleet shares; absent: each has its own memory.
    pub redis: Option<At<Redis>>,
    /// Where `gateway state` offers its memory to Envoy's workers; absent: it does not.
    pub service: Option<At<StateService>>,
    /// What becomes of limits while the shared state (Redis, or for Envoy the state service) is away. Nonces are refused then, always.
    #[serde(default)]
    pub limits_when_away: LimitsWhenAway,
}

/// A Redis (7 or later; one primary, not a cluster) that keeps nonces and limits. Its `maxmemory-policy` must be
/// `noeviction`: a nonce that is evicted can be replayed. What was signed before it began to remember is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where its address is written: `redis://host:port/0` on this host, otherwise
    /// `rediss://user:password@host:port/0`.
    pub url: At<Reference>,
    /// The CAs that sign its certificate, PEM; absent: the system's.
    pub ca: Option<At<Reference>>,
    /// What every key begins with: edges with the same prefix share their state.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// Milliseconds until a connection must stand.
    #[serde(default = "ms::<1_000>")]
    pub connect_timeout_ms: u64,
    /// Milliseconds that one answer may take, after which Redis counts as away.
    #[serde(default = "ms::<50>")]
    pub timeout_ms: u64,
}

fn prefix() -> String {
    "torana:".to_owned()
}

/// The state service: nonces, limits and the issuers' keys for every Envoy worker of this policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateService {
    /// IP address and port. Exactly one of `address` and `socket`.
    #[schemars(with = "Option<String>")]
    pub address: Option<SocketAddr>,
    /// The path of a Unix socket; who may open it is asked nothing else.
    pub socket: Option<String>,
    /// Mutual TLS; may be absent on loopback only. A socket has none.
    pub tls: Option<StateTls>,
    /// Milliseconds that one answer may take, after which the service counts as away.
    #[serde(default = "ms::<100>")]
    pub timeout_ms: u64,
}

impl StateService {
    /// Whether who asks is known, by the socket that it may open or by its certificate.
    pub fn knows_its_clients(&self) -> bool {
        self.socket.is_some() || self.tls.is_some()
    }
}

/// Both ends of the mutual TLS between Envoy and the state service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateTls {
    /// The service's chain, PEM.
    pub certificate: At<Reference>,
    /// The service's key, PEM.
    pub key: At<Reference>,
    /// The CAs that sign its clients' certificates, PEM.
    pub client_ca: At<Reference>,
    /// The DNS names of which a client's certificate must bear one, compared whole: Envoy's own. Those CAs may know
    /// others, and the service tells every client's secret.
    pub allowed_clients: At<Vec<String>>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing.
    pub crl: Option<At<Reference>>,
    /// What becomes of clients while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// What Envoy shows and believes when it connects.
    pub client: MutualTls,
}

/// Bounds of the in-memory state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Most things remembered at once. When it is full of things that are still needed, requests that need
    /// more are refused with 503: nothing is forgotten early.
    pub max_entries: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { max_entries: 2_000_000 }
    }
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    if let Some(redis) = &document.state.redis
        && (redis.value.prefix.len() > 64 || !redis.value.prefix.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        mistakes.push(Mistake::of(redis, "`prefix` is at most 64 visible characters"));
    }
    let Some(service) = &document.state.service else { return };
    let StateService { address, socket, tls, timeout_ms: _ } = &service.value;
    let mut wrong = |message: &str| mistakes.push(Mistake::of(service, message));
    match (address, socket, tls) {
        (Some(_), Some(_), _) | (None, None, _) => {
            wrong("the state service needs exactly one of `address` and `socket`");
        }
        (None, Some(_), Some(_)) => wrong("the state service's `socket` has no `tls`"),
        (Some(address), None, None) if !address.ip().is_loopback() => {
            wrong("the state service needs `tls` off the host: it hands out nonces, limits and keys");
        }
        (Some(_), None, _) | (None, Some(_), None) => {}
    }
    if let Some(tls) = tls {
        check_server_name(&tls.client.server_name, mistakes);
        let names = &tls.allowed_clients;
        if names.value.is_empty()
            || names.value.iter().any(|name| name.trim().is_empty() || name.contains('*'))
        {
            let message =
                "`allowed_clients` are whole DNS names, one at least: of the certificate in `client`, say";
            mistakes.push(Mistake::of(names, message));
        }
    }
}
