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
    /// What `/readiness` answers while requests are refused because Redis is unavailable, is full or may evict nonces. It
    /// says what is refused and why in either case.
    #[serde(default)]
    pub readiness_when_away: ReadinessWhenAway,
}

/// Whether an instance that refuses requests because of Redis stays in the load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessWhenAway {
    /// 200. All instances share the Redis: taking all of them out would also end the routes that need no nonce.
    #[default]
    Ready,
    /// 503. For fleets where single instances lose Redis, or where a load balancer sends clients to another region.
    NotReady,
}

/// A Redis (7 or later) that keeps nonces and limits: one primary, the primary that Redis Sentinel names, or a Redis
/// Cluster. Its `maxmemory-policy` must be `noeviction`, also with a `maxmemory` of 0: a nonce that is evicted can be
/// replayed, so nonces are refused under any other policy. Signed requests from before a restart or a failover of Redis are
/// refused for about 11 s, because it may have lost the last nonces. The user needs the permissions `+@read +@write
/// +@scripting +@connection +info +time +cluster +role` on keys that begin with `prefix`, in a Cluster with `{prefix}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where its address is written: `redis://host:port/0` on this host, otherwise
    /// `rediss://user:password@host:port/0`. A file is followed: after a change of the password, connections with the old
    /// one serve until a connection with the new one is open. With `sentinel` these are the addresses of the Sentinels,
    /// with `cluster` those of some nodes, one a line, with the user, password and database of Redis.
    pub url: At<Reference>,
    /// Redis Sentinel names the primary.
    pub sentinel: Option<At<Sentinel>>,
    /// The Redis is a Redis Cluster. All keys of one `prefix` are in one slot, because a batch is one atomic script: a
    /// Cluster gives failover, not more capacity. Batches are refused while that slot moves to another node.
    #[serde(default)]
    pub cluster: bool,
    /// The CAs that sign its certificate, PEM; absent: the system's.
    #[schemars(with = "Option<super::reference::FileReference>")]
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

/// Sentinels that name the primary of a Redis. They use TLS where Redis does, and their addresses for it must then be
/// names that its certificate has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sentinel {
    /// The name by which Sentinels know the primary, as in `sentinel monitor NAME`.
    pub master: String,
    /// The user at the Sentinels; absent: the default user.
    pub user: Option<String>,
    /// The password at the Sentinels; absent: they ask for none. A file is followed.
    pub password: Option<At<Reference>>,
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
    #[schemars(with = "super::reference::FileReference")]
    pub certificate: At<Reference>,
    /// The service's key, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub key: At<Reference>,
    /// The CAs that sign its clients' certificates, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub client_ca: At<Reference>,
    /// The DNS names of which a client's certificate must bear one, compared whole: Envoy's own. Those CAs may know
    /// others, and the service tells every client's secret.
    pub allowed_clients: At<Vec<String>>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing.
    #[schemars(with = "Option<super::reference::FileReference>")]
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

fn check_redis(redis: &At<Redis>, mistakes: &mut Vec<Mistake>) {
    let Redis { prefix, sentinel, cluster, .. } = &redis.value;
    if prefix.len() > 64 || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        mistakes.push(Mistake::of(redis, "`prefix` is at most 64 visible characters"));
    }
    // Redis takes `{}` for part of the name, and spreads the keys.
    if *cluster && (prefix.is_empty() || prefix.starts_with('}')) {
        let message = "with `cluster: true`, `prefix` has at least one character and does not begin with `}`";
        mistakes.push(Mistake::of(redis, message));
    }
    let Some(sentinel) = sentinel else { return };
    if *cluster {
        mistakes.push(Mistake::of(sentinel, "write either `sentinel` or `cluster: true`"));
    }
    if sentinel.value.master.trim().is_empty() {
        let message =
            "`sentinel.master` is empty: write the name in the Sentinels' line `sentinel monitor NAME`";
        mistakes.push(Mistake::of(sentinel, message));
    }
    if sentinel.value.user.is_some() && sentinel.value.password.is_none() {
        mistakes.push(Mistake::of(sentinel, "`sentinel.user` needs `sentinel.password`"));
    }
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    if let Some(redis) = &document.state.redis {
        check_redis(redis, mistakes);
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
