//! Routes that forward bodies as they arrive, and requests without a total time: what else such a route may have.

use super::Route;
use super::mistake::Mistake;
use super::syntax::Location;
use crate::FilterSet;
use crate::shape::{Config, is_json};

pub(super) fn check(route: &Route, location: Location, filters: &FilterSet, mistakes: &mut Vec<Mistake>) {
    let mut wrong =
        |message: String| mistakes.push(Mistake::at(location, format!("route `{}`: {message}", route.name)));
    if let Some(shape) = filters.shape.as_ref().filter(|shape| shape.streams().is_some()) {
        let at_most = Config::MOST_BODY_BYTES;
        for (what, instead) in needs_whole_body(route, filters, shape) {
            wrong(format!(
                "`max_body_bytes` above {at_most} forwards bodies as they arrive, and {what} needs the whole body; \
                 {instead}, or write at most {at_most}"
            ));
        }
    }
    if route.timeout_ms == Some(0) {
        for what in needs_total_time(route, filters) {
            wrong(format!(
                "`timeout_ms: 0` has no limit, and {what} needs one; write how long a request may last"
            ));
        }
    }
}

/// What on the route needs the whole body, and what to write instead. `idempotency` compares members of JSON bodies only,
/// and those are never forwarded as they arrive.
fn needs_whole_body(route: &Route, filters: &FilterSet, shape: &Config) -> Vec<(&'static str, &'static str)> {
    let json = shape.content_types.is_empty() || shape.content_types.iter().any(|kind| is_json(kind));
    [
        (json, "the JSON check of `shape`", "name `content_types` that are not JSON"),
        (
            filters.signature.is_some(),
            "`signature` (its Content-Digest)",
            "write `except: [signature]`, or drop it",
        ),
        (filters.signing.is_some(), "`signing`", "write `except: [signing]`, or drop it"),
        (route.mirror.is_some(), "`mirror`", "drop `mirror`"),
    ]
    .into_iter()
    .filter_map(|(needs, what, instead)| needs.then_some((what, instead)))
    .collect()
}

/// What on the route needs a request to end in a known time.
fn needs_total_time(route: &Route, filters: &FilterSet) -> Vec<&'static str> {
    let holds = filters.concurrency.is_some();
    let reads = filters.signing.as_ref().is_some_and(|signing| signing.reads_answers());
    [
        (holds, "`concurrency`, whose places end with `lease_s`,"),
        (reads, "`signing` of responses"),
        (route.mirror.is_some(), "`mirror`"),
    ]
    .into_iter()
    .filter_map(|(needs, what)| needs.then_some(what))
    .collect()
}
