//! What a policy may say that the gateway can do and Envoy cannot.

use super::Route;
use super::StaleCrl;
use super::document::{At, Document};
use super::mistake::Mistake;
use crate::state::Counted;

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
    found.extend(document.routes.iter().filter_map(|at| streams_and_asks(document, at)));
    found.sort_by_key(|mistake| (mistake.line, mistake.column));
    found
}

/// A route that forwards bodies as they arrive, and asks shared state before. Envoy's module cannot hold a body back while
/// it waits for the answer and let the rest through later.
fn streams_and_asks(document: &Document, at: &At<Route>) -> Option<Mistake> {
    let filters = document.filters_of(&at.value);
    filters.shape.as_ref()?.streams()?;
    let limits = |limits: &crate::rate_limit::Config| {
        limits.limits.iter().any(|limit| limit.counted == Counted::Shared)
    };
    let (filter, instead) = if filters.tenant.is_some() && !document.plans.is_empty() {
        ("tenant", "write `except: [tenant]`")
    } else if filters.quota.is_some() {
        ("quota", "write `except: [quota]`")
    } else if filters.concurrency.is_some() {
        ("concurrency", "write `except: [concurrency]`")
    } else if filters.rate_limit.as_ref().is_some_and(limits) {
        ("rate_limit", "write `counted: here`")
    } else {
        return None;
    };
    let message = format!(
        "route `{}`: in Envoy no route with `max_body_bytes` above 65536 can ask shared state, and `{filter}` does; \
         {instead}, or serve the route by the gateway",
        at.value.name
    );
    Some(Mistake::of(at, message))
}
