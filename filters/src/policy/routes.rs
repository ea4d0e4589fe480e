//! What may be called, and where it goes.

use std::collections::HashSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::document::{At, Document, n};
use super::mistake::{Mistake, unknown};
use super::reach;
use super::routing::METHODS;
use super::syntax::Location;
use crate::FilterSet;
use crate::flags::is_name;
use crate::subject::{By, name_mistake};
use crate::validity::Moment;

/// Something that may be called.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name in logs, metrics and limits.
    pub name: String,
    /// Methods that may be used. GET includes HEAD, unless a route of the same path names HEAD.
    #[schemars(schema_with = "methods")]
    pub methods: Vec<String>,
    /// `/v1/send` exactly, `/v1/transactions/{id}` with any one segment, or `/v1/files/{*rest}` with the
    /// rest. Written without percent-encodings: requests are decoded once before they are matched. The most specific route
    /// serves.
    pub path: String,
    /// The path that the upstream gets in place of the client's. The query stays as it is.
    pub rewrite: Option<At<String>>,
    /// The version of the API that it serves, as `X-API-Version: 2` or `Accept: application/vnd.NAME.v2+json`
    /// asks for it. A route without one serves requests that ask for none. A path that has a segment such as `v2` asks
    /// for that version by itself, and those fields may not ask for another.
    pub version: Option<At<String>>,
    /// The name of the upstream. Exactly one of `upstream` and `upstreams`.
    pub upstream: Option<At<String>>,
    /// Upstreams that share the requests by weight, for a canary say. While one of them is away its share gets 503: none
    /// stands in for another.
    #[serde(default)]
    pub upstreams: Vec<At<Share>>,
    /// Requests of one sender go to the same one of `upstreams`: whose requests those are. A weight that grows draws
    /// senders to its upstream and moves no others. Requests that do not say who sends them go by chance.
    pub sticky: Option<At<By>>,
    /// Makes the sharing an experiment of this name: each of `upstreams` is a `variant`, which the upstream is told in
    /// `X-Torana-Experiment: NAME=VARIANT`, and logs and metrics too. Routes with the same experiment and variants have
    /// each sender see the same one.
    pub experiment: Option<At<String>>,
    /// The feature flag that says which of `upstreams` serves a request: the one whose `variant` it says, and the first
    /// where it says none of them. The upstream is told in `X-Torana-Experiment: FLAG=VARIANT`, and logs and metrics
    /// too. In place of `sticky` and `experiment`.
    pub flag: Option<At<String>>,
    /// That this route will go, and when: every answer says so.
    pub deprecated: Option<At<Deprecated>>,
    /// Sends a copy of each request to another upstream, whose answer nobody hears.
    pub mirror: Option<At<Mirror>>,
    /// Lets WebSockets through (RFC 6455, and RFC 8441 over HTTP/2). The filters decide on the request that asks for one.
    /// What then passes is between client and upstream, until one of them ends it, or the token that opened it expires or is
    /// revoked. Absent: whoever asks for another protocol is refused.
    pub websocket: Option<At<WebSocket>>,
    /// Milliseconds the upstream may take for the whole answer, whatever the upstream's own `timeout_ms` says; of a
    /// WebSocket, `websocket` says how long it may be. Absent: the upstream's, and 5000 where it states none, of which
    /// `check` warns. With `idle_timeout_ms` it may be 0: no limit.
    pub timeout_ms: Option<u64>,
    /// Milliseconds without a byte in either direction after which the edge ends a request, 1 to 3600000: for server-sent
    /// events, long polls and streams, which may last. Absent: `timeout_ms` alone ends a request.
    pub idle_timeout_ms: Option<u64>,
    /// Times that a request is sent again, to the next address, when its connection broke before an answer began; at most
    /// 3, and only where all `methods` are safe (RFC 9110 section 9.2.1): what may have moved money is never repeated.
    /// A request of which nothing was sent is no repeat, and needs none of this.
    #[serde(default)]
    pub retries: u32,
    /// What this route requires on top of what every route does.
    #[serde(default)]
    pub filters: At<FilterSet>,
    /// Filters of every route that this one does without, in so many words.
    #[serde(default)]
    #[schemars(schema_with = "filters")]
    pub except: Vec<At<String>>,
}

fn methods(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "minItems": 1, "items": { "type": "string", "enum": METHODS } })
}

fn filters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "enum": FilterSet::NAMES } })
}

/// Bounds of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocket {
    /// Milliseconds that may pass without a word from either side, the upstream's answer included. Have one ping more
    /// often.
    pub idle_timeout_ms: u64,
    /// Seconds after which it is closed, whatever passes: whoever opened it must show again who he is.
    pub most_s: u64,
    /// Whether it stays open when the token that opened it expires (`exp`). Otherwise it is closed within seconds.
    pub outlives_token: bool,
    /// Most that one user (`sub` of the token) has open on this route; at most 1024. More are refused with 429.
    pub max_per_user: u32,
    /// Most that one tenant has open on this route; at most 1024.
    pub max_per_tenant: u32,
    /// Most that are open on this route; at most 1024.
    pub max: u32,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            idle_timeout_ms: 60_000,
            most_s: 3_600,
            outlives_token: false,
            max_per_user: 16,
            max_per_tenant: 256,
            max: 1_024,
        }
    }
}

/// An upstream's share of a route's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The name of the upstream.
    pub upstream: String,
    /// Its part of the sum of all weights; 0 to 10000.
    #[serde(default = "n::<1>")]
    pub weight: u32,
    /// What its requests see, in an `experiment` or by a `flag`; two variants may have the same upstream.
    pub variant: Option<String>,
}

impl Share {
    /// What tells it from the others of its route.
    pub(crate) fn key(&self) -> &str {
        self.variant.as_deref().unwrap_or(&self.upstream)
    }
}

/// When a route is no longer to be used, and when it will be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deprecated {
    /// Since when it should not be used; may lie ahead. `Deprecation` (RFC 9745) says so.
    pub since: Moment,
    /// From when on it may be gone; not before `since`. `Sunset` (RFC 8594) says so.
    pub sunset: Option<Moment>,
    /// Where people read what to use instead, an `https:` address. `Link` with the relation `deprecation` says so.
    pub link: Option<String>,
}

/// Copies of requests, to see how another version fares. They never delay or fail the original, carry
/// `X-Torana-Mirror: 1`, and must not move money a second time: that is the upstream's to see to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The name of the upstream.
    pub upstream: String,
    /// How many of a hundred requests are copied.
    #[serde(default = "n::<100>")]
    pub percent: u32,
}

/// What is wrong with a route but for its shares and filters. `filters` are those in effect on it.
pub(super) fn check(
    document: &Document,
    route: &Route,
    location: Location,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    match &route.flag {
        Some(flag) => check_flag(flag, route, mistakes),
        None => check_experiment(route, mistakes),
    }
    check_retries(route, location, mistakes);
    if let Some(rewrite) = &route.rewrite
        && !(rewrite.value.starts_with('/') && crate::shape::unambiguous(&rewrite.value))
    {
        let message = format!("`{}` is not a path; `rewrite` is one, without parameters", rewrite.value);
        mistakes.push(Mistake::of(rewrite, message));
    }
    if let Some(mirror) = &route.mirror {
        check_mirror(document, mirror, route, filters, mistakes);
    }
    if let (Some(_), Some(signing)) = (&filters.compression, &filters.signing)
        && signing.reads_answers()
    {
        let message = format!(
            "route `{}`: what is signed or verified is not compressed afterwards: write `except: [compression]`, or drop \
             `compression` here",
            route.name
        );
        mistakes.push(Mistake::at(location, message));
    }
    if let Some(websocket) = &route.websocket {
        check_websocket(websocket, route, filters, mistakes);
    }
    reach::check(document, route, location, filters, mistakes);
}

/// Who serves a route, and in which shares.
pub(super) fn shares(
    document: &Document,
    route: &Route,
    location: Location,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Share> {
    const MOST_WEIGHT: u32 = 10_000;
    let known = || document.upstreams.keys().map(String::as_str);
    let written: Vec<At<Share>> = match (&route.upstream, route.upstreams.as_slice()) {
        (Some(At { value, location }), []) => {
            let only = Share { upstream: value.clone(), weight: 1, variant: None };
            vec![At { value: only, location: *location }]
        }
        (None, shares @ [_, ..]) => shares.to_vec(),
        (None, []) | (Some(_), [_, ..]) => {
            let message = format!("route `{}` needs exactly one of `upstream` and `upstreams`", route.name);
            mistakes.push(Mistake::at(location, message));
            return Vec::new();
        }
    };
    for share in &written {
        if !document.upstreams.contains_key(&share.value.upstream) {
            mistakes.push(Mistake::of(share, unknown("upstream", &share.value.upstream, known())));
        }
        if share.value.weight > MOST_WEIGHT {
            mistakes.push(Mistake::of(share, format!("`weight` is at most {MOST_WEIGHT}")));
        }
    }
    if written.iter().all(|share| share.value.weight == 0) {
        mistakes.push(Mistake::at(location, format!("route `{}`: every weight is 0", route.name)));
    }
    written.into_iter().map(|share| share.value).collect()
}

fn check_retries(route: &Route, location: Location, mistakes: &mut Vec<Mistake>) {
    const MOST: u32 = 3;
    let mut wrong =
        |message: String| mistakes.push(Mistake::at(location, format!("route `{}`: {message}", route.name)));
    if route.retries > MOST {
        wrong(format!("`retries` is at most {MOST}"));
    }
    let unsafe_one =
        route.methods.iter().find(|method| !matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS"));
    if let (1.., Some(method)) = (route.retries, unsafe_one) {
        wrong(format!("`retries` would repeat {method}, which may change something twice"));
    }
}

fn check_websocket(
    websocket: &At<WebSocket>,
    route: &Route,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    let mut wrong = |message: &str| {
        mistakes.push(Mistake::of(websocket, format!("route `{}`: {message}", route.name)));
    };
    if route.methods != ["GET"] {
        wrong("WebSockets are asked for with GET, and `methods` is another: write `methods: [GET]`");
    }
    if route.mirror.is_some() {
        wrong("a WebSocket cannot be copied: drop `mirror` or `websocket`");
    }
    if filters.signing.is_some() {
        wrong("what passes on a WebSocket cannot be signed or verified: drop `signing` or `websocket`");
    }
}

/// A flag needs several variants to say, and nothing else may decide.
fn check_flag(flag: &At<String>, route: &Route, mistakes: &mut Vec<Mistake>) {
    let mut wrong =
        |message: &str| mistakes.push(Mistake::of(flag, format!("route `{}`: {message}", route.name)));
    if route.sticky.is_some() || route.experiment.is_some() {
        wrong("a `flag` decides alone: drop `sticky` and `experiment`");
    }
    if route.upstreams.len() < 2 {
        wrong("`flag` needs several `upstreams` to choose from");
    }
    if route.upstreams.iter().any(|share| share.value.weight != 1) {
        wrong("a `flag` decides alone: drop `weight`");
    }
    if !is_name(&flag.value) {
        wrong("`flag` cannot be the name of one");
    }
    let mut variants = HashSet::new();
    for share in &route.upstreams {
        match &share.value.variant {
            None => {
                let message = format!("route `{}`: each upstream of a `flag` has its `variant`", route.name);
                mistakes.push(Mistake::of(share, message));
            }
            Some(variant) if !variants.insert(variant) => {
                mistakes.push(Mistake::of(share, format!("two variants are named `{variant}`")));
            }
            Some(variant) if !is_name(variant) => {
                mistakes.push(Mistake::of(share, format!("`{variant}` cannot be the name of a variant")));
            }
            Some(_) => {}
        }
    }
}

/// Stickiness needs somebody to stick and something to choose from; an experiment needs both, and names for them.
fn check_experiment(route: &Route, mistakes: &mut Vec<Mistake>) {
    if let Some(sticky) = &route.sticky {
        if sticky.value == By::Route {
            mistakes.push(Mistake::of(sticky, "`sticky: route` would send everybody to the same upstream"));
        }
        if route.upstreams.len() < 2 {
            let message =
                format!("route `{}`: `sticky` needs several `upstreams` to choose from", route.name);
            mistakes.push(Mistake::of(sticky, message));
        }
    }
    let mut variants = HashSet::new();
    for share in &route.upstreams {
        match (&route.experiment, &share.value.variant) {
            (None, Some(variant)) => {
                let message =
                    format!("route `{}`: variant `{variant}` is of no `experiment`: name one", route.name);
                mistakes.push(Mistake::of(share, message));
            }
            (Some(_), None) => {
                let message =
                    format!("route `{}`: each upstream of an experiment is a `variant`", route.name);
                mistakes.push(Mistake::of(share, message));
            }
            (Some(_), Some(variant)) if !variants.insert(variant) => {
                mistakes.push(Mistake::of(share, format!("two variants are named `{variant}`")));
            }
            (Some(_), Some(variant)) => {
                if name_mistake(variant).is_some() {
                    let message = format!("variant `{variant}`: {NAME}");
                    mistakes.push(Mistake::of(share, message));
                }
            }
            (None, None) => {}
        }
    }
    if let Some(experiment) = &route.experiment {
        if name_mistake(&experiment.value).is_some() {
            mistakes.push(Mistake::of(experiment, format!("experiment `{}`: {NAME}", experiment.value)));
        }
        if route.sticky.is_none() {
            let message = format!(
                "experiment `{}` needs `sticky`: whose requests see the same variant",
                experiment.value
            );
            mistakes.push(Mistake::of(experiment, message));
        }
    }
}

const NAME: &str = "use lower-case letters, digits, '-' and '_', at most 64";

/// The fields that tell of it.
pub(super) fn deprecation(told: &At<Deprecated>, mistakes: &mut Vec<Mistake>) -> Vec<(&'static str, String)> {
    let Deprecated { since, sunset, link } = &told.value;
    let mut fields = vec![("deprecation", format!("@{}", since.ms().div_euclid(1_000)))];
    if let Some(sunset) = sunset {
        if sunset < since {
            mistakes.push(Mistake::of(
                told,
                "`sunset` comes before `since`: a route goes after it is deprecated",
            ));
        }
        fields.push(("sunset", sunset.http_date()));
    }
    if let Some(link) = link {
        let plain = |byte: u8| (b'!'..=b'~').contains(&byte) && !b"<>\"".contains(&byte);
        if !link.starts_with("https://") || !link.bytes().all(plain) {
            mistakes.push(Mistake::of(told, format!("`{link}` is not an `https:` address")));
        }
        fields.push(("link", format!("<{link}>; rel=\"deprecation\"; type=\"text/html\"")));
    }
    fields
}

fn check_mirror(
    document: &Document,
    mirror: &At<Mirror>,
    route: &Route,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    if !document.upstreams.contains_key(&mirror.value.upstream) {
        let known = document.upstreams.keys().map(String::as_str);
        mistakes.push(Mistake::of(mirror, unknown("upstream", &mirror.value.upstream, known)));
    }
    if !(1..=100).contains(&mirror.value.percent) {
        mistakes.push(Mistake::of(mirror, "`percent` is between 1 and 100"));
    }
    if filters.signing.as_ref().is_some_and(|signing| signing.to_upstream.is_some()) {
        let message = format!(
            "route `{}`: `mirror` would hand somebody else requests that are signed as ours",
            route.name
        );
        mistakes.push(Mistake::of(mirror, message));
    }
}
