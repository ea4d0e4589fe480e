//! The services behind the edge, and how the edge knows that they serve.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document, ms, n};
use super::mistake::Mistake;
use super::{Reference, StaleCrl};

/// A service behind the edge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// IP addresses and ports, used in turn.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<SocketAddr>,
    pub tls: UpstreamTls,
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

/// Mutual TLS to an upstream. There is no way to switch verification off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that the upstream's certificate must carry.
    pub server_name: At<String>,
    /// The CAs that sign it, PEM.
    pub ca: At<Reference>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing. A certificate that is
    /// on a list gets no request. For requests the gateway looks at the upstream's own certificate, for probes and
    /// copies at its chain too; Envoy always at the chain, of which every CA must then have its list.
    pub crl: Option<At<Reference>>,
    /// What becomes of the upstream while a list is past its `nextUpdate`. Envoy refuses it always, so `allow` is not
    /// for Envoy.
    #[serde(default)]
    pub stale_crl: At<StaleCrl>,
    /// The edge's own chain, PEM.
    pub certificate: At<Reference>,
    /// The edge's own key, PEM.
    pub key: At<Reference>,
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    for (name, At { value: upstream, location }) in &document.upstreams {
        if upstream.addresses.is_empty() {
            mistakes.push(Mistake::at(*location, format!("upstream `{name}` has no address")));
        }
        check_server_name(&upstream.tls.server_name, mistakes);
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

/// Whether a certificate can be verified for it.
pub(super) fn check_server_name(name: &At<String>, mistakes: &mut Vec<Mistake>) {
    const MOST: usize = 253;
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let text = name.value.as_str();
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    if text.trim().is_empty() {
        mistakes.push(Mistake::of(
            name,
            "`server_name` is empty: the upstream's certificate could not be verified",
        ));
    } else if !is_address && (text.len() > MOST || !text.split('.').all(is_label)) {
        let message = format!("`server_name` is a whole DNS name or an IP address, and `{text}` is neither");
        mistakes.push(Mistake::of(name, message));
    }
}
