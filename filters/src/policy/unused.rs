//! What a policy defines and nothing in it uses: a name that was misspelt, a partner who waits, or what is left over.

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Client, Upstream};
use crate::FilterSet;

/// Upstreams, issuers and clients that no route uses. `routes` are the filters in effect on each.
pub(super) fn unused(document: &Document, routes: &[FilterSet]) -> Vec<Mistake> {
    let upstreams = document.upstreams.iter().filter(|(name, _)| {
        !document.routes.iter().any(|route| {
            let route = &route.value;
            let alone = route.upstream.as_ref().map(|upstream| &upstream.value);
            let mirror = route.mirror.as_ref().map(|mirror| &mirror.value.upstream);
            let shares = route.upstreams.iter().map(|share| &share.value.upstream);
            shares.chain(alone).chain(mirror).any(|upstream| upstream == *name)
        })
    });
    let upstreams =
        upstreams.map(|(name, at)| Mistake::of(at, format!("upstream `{name}`: no route names it")));
    let issuers = document.issuers.iter().filter(|(name, _)| {
        !routes.iter().filter_map(|filters| filters.jwt.as_ref()).any(|jwt| match &jwt.issuers {
            None => true,
            Some(issuers) => issuers.contains(name),
        })
    });
    let issuers = issuers.map(|(name, at)| {
        Mistake::of(
            at,
            format!("issuer `{name}`: its tokens pass nowhere: no route has a `jwt` that takes them"),
        )
    });
    let clients = document.clients.iter().filter_map(|(name, client)| of_client(name, client, routes));
    upstreams.chain(issuers).chain(clients).collect()
}

/// A client has keys, certificates or both, and each is of use for itself.
fn of_client(name: &str, client: &Client, routes: &[FilterSet]) -> Option<Mistake> {
    let keys = client.hmac_keys.first().map(|key| Mistake::of(&key.id, ""));
    let keys = keys.or_else(|| client.hmac_key_file.as_ref().map(|file| Mistake::of(file, "")));
    let certificate = client.certificates.first().map(|names| Mistake::of(names, ""));
    let ids: Vec<&str> = client.hmac_keys.iter().map(|key| key.id.value.as_str()).collect();
    let signs = routes.iter().any(|filters| {
        let verifies = filters.signature.as_ref().is_some_and(|signature| signature.takes_client(name));
        let signing = filters.signing.as_ref().is_some_and(|signing| signing.names(name, &ids));
        verifies || signing
    });
    let shows = routes.iter().any(|filters| {
        filters.client_cert.as_ref().is_some_and(|client_cert| client_cert.takes_client(name))
    });
    let sends = routes.iter().any(|filters| filters.api_key.is_some());
    let unsent = client.api_keys.first().filter(|_| !sends);
    let (place, message) = match (keys.filter(|_| !signs), certificate.filter(|_| !shows)) {
        (Some(place), _) => {
            (place, format!("client `{name}`: no route has a `signature` or `signing` for its keys"))
        }
        (None, Some(place)) => {
            (place, format!("client `{name}`: no route has a `client_cert` for its certificates"))
        }
        (None, None) => {
            let key = unsent?;
            (Mistake::of(key, ""), format!("client `{name}`: no route has an `api_key` for its keys"))
        }
    };
    Some(Mistake { message, ..place })
}

/// Upstreams of which one address can be down unseen, and routes that give up before their upstream does.
pub(super) fn unwatched(document: &Document) -> Vec<Mistake> {
    let several = document
        .upstreams
        .iter()
        .filter(|(_, upstream)| upstream.value.addresses.len() > 1 && upstream.value.health.is_none());
    let several = several.map(|(name, upstream)| {
        let message = format!(
            "upstream `{name}` has {} addresses and no `health`: one that is down is only found by requests that fail",
            upstream.value.addresses.len()
        );
        Mistake::of(upstream, message)
    });
    let of_themselves = document.upstreams.iter().filter_map(|(name, upstream)| {
        let (stated, connect_ms) = (upstream.value.timeout_ms.as_ref()?, upstream.value.connect_timeout_ms);
        (connect_ms >= stated.value).then(|| {
            let message = format!(
                "upstream `{name}`: its `timeout_ms: {}` ends before it has had its `connect_timeout_ms: {connect_ms}`",
                stated.value
            );
            Mistake::of(stated, message)
        })
    });
    let impatient = document.routes.iter().flat_map(|at| {
        let route = &at.value;
        // Of its own time an upstream is told itself.
        let own = |upstream: &Upstream| route.timeout_ms.is_some() || upstream.timeout_ms.is_none();
        let upstreams = route.upstreams_of(document).filter(|(_, upstream)| own(&upstream.value));
        let slow = upstreams.filter_map(|(name, At { value: upstream, .. })| {
            let (timeout_ms, connect_ms) = (route.timeout_ms(upstream), upstream.connect_timeout_ms);
            (timeout_ms > 0 && connect_ms >= timeout_ms).then(|| {
                let message = format!(
                    "route `{}`: its `timeout_ms: {timeout_ms}` ends before upstream `{name}` has had its \
                     `connect_timeout_ms: {connect_ms}`",
                    route.name,
                );
                Mistake::of(at, message)
            })
        });
        slow.collect::<Vec<_>>()
    });
    several.chain(of_themselves).chain(impatient).collect()
}
