//! What a policy may say that the gateway can do and Envoy cannot.

use super::StaleCrl;
use super::document::{At, Document};
use super::mistake::Mistake;

/// All of it, in the order of the file.
pub(super) fn beyond(document: &Document) -> Vec<Mistake> {
    let of_clients = document.listeners.iter().filter_map(|listener| {
        let clients = listener.value.tls.client_certificates.as_ref()?;
        Some((&clients.crl, &clients.stale_crl))
    });
    let upstreams = document.upstreams.values().filter_map(|upstream| upstream.value.tls.tls());
    let service = document.state.service.iter().filter_map(|service| service.value.tls.as_ref());
    let of_service = service.map(|tls| (&tls.client.crl, &tls.client.stale_crl));
    let believed = upstreams.map(|tls| (&tls.crl, &tls.stale_crl)).chain(of_service);
    let mut found: Vec<Mistake> = of_clients
        .chain(believed)
        .filter_map(|(crl, stale)| match (crl, stale) {
            (Some(_), At { value: StaleCrl::Allow, .. }) => Some(Mistake::of(
                stale,
                "`stale_crl: allow` is for the gateway: Envoy believes no list that is past its time, and `gateway envoy` \
                 refuses the policy",
            )),
            (Some(_), At { value: StaleCrl::Refuse, .. }) | (None, _) => None,
        })
        .collect();
    found.sort_by_key(|mistake| (mistake.line, mistake.column));
    found
}
