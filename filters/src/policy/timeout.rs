//! How long the upstreams of a route may take for a whole answer.

use super::document::{At, Document};
use super::{Route, Upstream};

impl Route {
    /// What an upstream has where neither it nor the route states a `timeout_ms`.
    pub(super) const TIMEOUT_MS: u64 = 5_000;

    /// Milliseconds that one of its upstreams may take for the whole answer.
    pub(super) fn timeout_ms(&self, upstream: &Upstream) -> u64 {
        let of_upstream = upstream.timeout_ms.as_ref().map(|stated| stated.value);
        self.timeout_ms.or(of_upstream).unwrap_or(Self::TIMEOUT_MS)
    }

    /// Its upstreams, by name and in the order of its shares, as far as the document has them.
    pub(super) fn upstreams_of<'d>(
        &'d self,
        document: &'d Document,
    ) -> impl Iterator<Item = (&'d str, &'d At<Upstream>)> {
        let shares = self.upstreams.iter().map(|share| &share.value.upstream);
        let names = shares.chain(self.upstream.as_ref().map(|upstream| &upstream.value));
        names.filter_map(|name| document.upstreams.get_key_value(name)).map(|(name, at)| (name.as_str(), at))
    }
}
