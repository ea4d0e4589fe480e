//! Differences that no case can show, because an upstream must fail for them: the test `upstreams` does.

use crate::plane::Kind;

/// What a data plane decides otherwise, and what forces it to.
#[derive(Clone, Copy, Debug)]
pub struct Forced {
    pub kind: Kind,
    pub because: &'static str,
    pub verdict: &'static str,
    /// What the other one decides.
    pub instead_of: &'static str,
}

/// A connection that had carried other requests before breaks before the answer to a GET of a route without `retries`.
pub const OLD_CONNECTION: Forced = Forced {
    kind: Kind::Envoy,
    because: "Envoy does not tell an old connection, which the upstream may have closed just then, from a new one; the \
              gateway sends a GET again that breaks on an old one, even without `retries`",
    verdict: "502 upstream_failed",
    instead_of: "pass",
};

/// As many connections cannot be made as the route has `retries`, and one more.
pub const UNCONNECTED: Forced = Forced {
    kind: Kind::Envoy,
    because: "Envoy counts a connection that cannot be made among a route's `retries`; the gateway, and Envoy where there \
              are none, tries three",
    verdict: "503 upstream_unreachable",
    instead_of: "pass",
};

/// An address that was left out fails the request that tries it, and another request comes.
pub const TRIAL: Forced = Forced {
    kind: Kind::Envoy,
    because: "Envoy gives an address that was left out requests as before once its time is over; the gateway has one try \
              it, and leaves it out again if that fails",
    verdict: "502 upstream_failed",
    instead_of: "503 upstream_unreachable",
};

/// A request that had no place at its upstream, or no address there, comes a second time as it was signed.
pub const NONCE_SPENT: Forced = Forced {
    kind: Kind::Envoy,
    because: "Envoy looks for an address that serves, and whether too much is in flight there, when the shared state has \
              been asked, and the gateway before: who is refused by Envoy has spent a nonce, and signs anew",
    verdict: "401 nonce_replayed",
    instead_of: "pass",
};

pub const ALL: [Forced; 4] = [OLD_CONNECTION, UNCONNECTED, TRIAL, NONCE_SPENT];

impl Forced {
    /// What that data plane decides otherwise.
    pub fn of(&self, kind: Kind) -> Option<&'static str> {
        (kind == self.kind).then_some(self.verdict)
    }
}
