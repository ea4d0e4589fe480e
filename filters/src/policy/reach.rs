//! What a route needs of its upstreams, and what they may be sent.

use super::document::Document;
use super::mistake::Mistake;
use super::syntax::Location;
use super::{Route, Upstream};
use crate::FilterSet;

pub(super) fn check(
    document: &Document,
    route: &Route,
    location: Location,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    check_protocol(document, route, location, filters, mistakes);
    check_authorization(document, route, location, filters, mistakes);
}

/// `Authorization` goes on only where it was verified, and to nobody else.
fn check_authorization(
    document: &Document,
    route: &Route,
    location: Location,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    let forwards = |upstream: &Upstream| upstream.forward_authorization.value;
    let to = route.upstreams_of(document).find(|(_, upstream)| forwards(&upstream.value));
    let Some((upstream, _)) = to else { return };
    if filters.jwt.is_none() {
        let message = format!(
            "route `{}`: upstream `{upstream}` has `forward_authorization`, and without `jwt` nothing verifies what it \
             receives; add `jwt`, or give the route an upstream without it",
            route.name
        );
        mistakes.push(Mistake::at(location, message));
    }
    let mirror = route.mirror.as_ref();
    let copied = mirror.and_then(|mirror| document.upstreams.get(&mirror.value.upstream));
    if let (Some(mirror), Some(copied)) = (mirror, copied)
        && !forwards(&copied.value)
    {
        let message = format!(
            "route `{}`: `mirror` would copy the `Authorization` of upstream `{upstream}` to `{}`, which has no \
             `forward_authorization`",
            route.name, mirror.value.upstream
        );
        mistakes.push(Mistake::of(mirror, message));
    }
}

/// What the edge asks an upstream for by itself, it asks for over HTTP/1.1.
fn check_protocol(
    document: &Document,
    route: &Route,
    location: Location,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    let signs = filters.signing.as_ref().is_some_and(|signing| signing.reads_answers());
    let needs = match (&route.websocket, signs) {
        (Some(_), _) => "`websocket`",
        (None, true) => "`signing` of responses",
        (None, false) => return,
    };
    let other =
        route.upstreams_of(document).find(|(_, upstream)| upstream.value.protocol.value.multiplexes());
    if let Some((upstream, _)) = other {
        let message = format!(
            "route `{}`: {needs} needs HTTP/1.1, and upstream `{upstream}` has another `protocol`; give it `protocol: \
             http1`, or an upstream of its own to this route",
            route.name
        );
        mistakes.push(Mistake::at(location, message));
    }
}
