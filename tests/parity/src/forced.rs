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

pub const ALL: [Forced; 2] = [OLD_CONNECTION, UNCONNECTED];

impl Forced {
    /// What that data plane decides otherwise.
    pub fn of(&self, kind: Kind) -> Option<&'static str> {
        (kind == self.kind).then_some(self.verdict)
    }
}
