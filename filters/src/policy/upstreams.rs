//! The services behind the edge, and how the edge knows that they serve.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document, ms, n};
use super::mistake::Mistake;
use super::upstream_tls;
use super::{Address, UpstreamSecurity};

/// A service behind the edge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `HOST:PORT`, used in turn; the host is an IP address or a DNS name. All A and AAAA records of a name are used, 64
    /// at most.
    pub addresses: Vec<Address>,
    /// Milliseconds between two lookups of the names in `addresses`. While lookups fail, the last result is used.
    /// A value below 500 means 500.
    #[serde(default = "ms::<30_000>")]
    pub resolve_interval_ms: u64,
    /// What is spoken there. A gRPC service needs `h2` or `h2c`.
    #[serde(default)]
    pub protocol: At<Protocol>,
    /// How the connections are protected: `off` for plain HTTP, or the settings of TLS.
    pub tls: UpstreamSecurity,
    /// Whether it receives `Authorization` as the client sent it: for a service that verifies tokens by itself. Only for
    /// routes with `jwt`, which has verified the token, and never in plain text off this host. Whoever reads the
    /// upstream's logs may see tokens that are still valid.
    #[serde(default)]
    pub forward_authorization: At<bool>,
    /// Milliseconds until a connection must stand, TLS included.
    #[serde(default = "ms::<1_000>")]
    pub connect_timeout_ms: u64,
    /// Milliseconds an idle connection is kept for reuse. Less than the upstream keeps it: a request that
    /// meets a closing connection cannot be repeated when it moves money.
    #[serde(default = "ms::<10_000>")]
    pub idle_timeout_ms: u64,
    /// Milliseconds for a whole answer, on routes that state no `timeout_ms` of their own. Where a route shares requests
    /// among several upstreams each has its own time. A copy (`mirror`) has the time of its original.
    pub timeout_ms: Option<At<u64>>,
    /// Most requests in flight; more are refused at once with 503.
    #[serde(default = "n::<1_024>")]
    pub max_in_flight: u32,
    /// Most WebSockets open; more are refused at once with 503. They take no place of `max_in_flight`.
    #[serde(default = "n::<1_024>")]
    pub max_websockets: u32,
    /// Most repeats under way at once, in percent of the requests in flight there, 3 at least: so that repeats do not
    /// bury an upstream that fails. 0 to 100; 0 is none at all, whatever `retries` of a route says, but for what
    /// meets a connection that the upstream had closed by then.
    #[serde(default = "n::<20>")]
    pub retry_budget_percent: u32,
    /// Probes that find an address that does not serve before a request does; absent: none.
    pub health: Option<Health>,
    /// When an address that fails requests is left out for a while.
    #[serde(default)]
    pub outlier: Outlier,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 in plain text, without an upgrade (prior knowledge).
    H2c,
}

impl Protocol {
    /// Whether one connection carries many requests.
    pub fn multiplexes(self) -> bool {
        match self {
            Self::Http1 => false,
            Self::H2 | Self::H2c => true,
        }
    }
}

/// Active health checks: `GET path` must be answered with 200.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The path to ask for.
    pub path: String,
    /// Milliseconds between two probes of an address.
    #[serde(default = "ms::<5_000>")]
    pub interval_ms: u64,
    /// Milliseconds a probe may take.
    #[serde(default = "ms::<1_000>")]
    pub timeout_ms: u64,
    /// Failures in a row after which an address gets no more requests.
    #[serde(default = "n::<3>")]
    pub unhealthy_after: u32,
    /// Successes in a row after which it gets them again.
    #[serde(default = "n::<2>")]
    pub healthy_after: u32,
}

/// The circuit breaker of each address. Only what the edge sees itself counts: connections refused, broken or
/// without an answer in time; whatever is answered is no failure. When every address is left out, requests are refused
/// with 503. After its time the gateway has one request try an address, and leaves it out again if that fails; Envoy
/// gives it requests as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Failures in a row after which an address is left out; 0: never.
    pub failures: u32,
    /// Milliseconds that it is left out.
    pub eject_ms: u64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { failures: 3, eject_ms: 10_000 }
    }
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    for (name, At { value: upstream, location }) in &document.upstreams {
        if upstream.addresses.is_empty() {
            mistakes.push(Mistake::at(*location, format!("upstream `{name}` has no address")));
        }
        if let Some(tls) = upstream.tls.tls() {
            upstream_tls::check(name, tls, mistakes);
        }
        let wrong = match (upstream.protocol.value, upstream.tls.tls()) {
            (Protocol::H2, None) => Some("`protocol: h2` needs TLS; without it write `protocol: h2c`"),
            (Protocol::H2c, Some(_)) => Some("`protocol: h2c` is without TLS; with it write `protocol: h2`"),
            (Protocol::Http1, _) | (Protocol::H2, Some(_)) | (Protocol::H2c, None) => None,
        };
        if upstream.forward_authorization.value && exposes_tokens(upstream) {
            let message = format!(
                "upstream `{name}`: `forward_authorization` would send tokens unencrypted; give it TLS, or an address on \
                 this host"
            );
            mistakes.push(Mistake::of(&upstream.forward_authorization, message));
        }
        if let Some(wrong) = wrong {
            mistakes.push(Mistake::of(&upstream.protocol, format!("upstream `{name}`: {wrong}")));
        }
        if upstream.retry_budget_percent > 100 {
            let message = format!("upstream `{name}`: `retry_budget_percent` is at most 100");
            mistakes.push(Mistake::at(*location, message));
        }
        if let Some(health) = &upstream.health
            && !health.path.starts_with('/')
        {
            let message = format!("upstream `{name}`: the `path` of `health` begins with /");
            mistakes.push(Mistake::at(*location, message));
        }
    }
}

/// Whether tokens can be read on the way to the upstream.
fn exposes_tokens(upstream: &Upstream) -> bool {
    upstream.tls.tls().is_none() && !upstream.addresses.iter().all(Address::is_loopback)
}

/// Upstreams whose requests leave this host unencrypted.
pub(super) fn unencrypted(document: &Document) -> Vec<Mistake> {
    let plain = document.upstreams.iter().filter(|(_, upstream)| upstream.value.tls.tls().is_none());
    let exposed = plain.filter_map(|(name, upstream)| {
        let address = upstream.value.addresses.iter().find(|address| !address.is_loopback())?;
        let message = format!(
            "upstream `{name}`: `tls: off` sends requests to `{address}` unencrypted, and anyone on the way can read and \
             change them"
        );
        Some(Mistake::of(upstream, message))
    });
    exposed.collect()
}
