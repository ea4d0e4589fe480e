//! Which route serves a request: by path, method and version.

use std::collections::BTreeMap;

use super::document::{At, Document};
use super::mistake::{Mistake, nearest};
use super::routes::Route;
use super::syntax::Location;
use crate::filter::Headers;

/// What a request leads to.
#[derive(Debug)]
pub enum Match<'p> {
    /// The position of the rule in [`Policy::rules`](super::Policy::rules).
    Route(usize),
    /// The path exists, with these methods.
    MethodNotAllowed(Vec<&'p str>),
    /// The path and the method exist, in these versions.
    VersionUnknown(Vec<&'p str>),
    /// The path asks for this version, the request's fields for another.
    VersionAmbiguous(&'p str),
    NotFound,
}

/// What clients ask with (RFC 9110 section 9.3, RFC 5789). CONNECT and TRACE are not for an edge to pass on.
pub(super) const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

const GET: &str = "GET";
const HEAD: &str = "HEAD";

/// Every route, by path.
#[derive(Debug, Default)]
pub(super) struct Paths(matchit::Router<Path>);

/// One path.
#[derive(Clone, Debug)]
struct Path {
    /// That it asks for itself: of `/v2/things` the `2`.
    version: Option<String>,
    served: Vec<Served>,
}

/// What one path serves.
#[derive(Clone, Debug)]
struct Served {
    method: String,
    /// That of its path, if that has one.
    version: Option<String>,
    /// The rule's position.
    rule: usize,
}

impl Path {
    /// What serves the method, in the order of the routes. GET routes serve HEAD too (RFC 9110 section 9.3.2), unless the
    /// path has HEAD routes of its own.
    fn of_method<'p, 'm>(&'p self, method: &'m str) -> impl Iterator<Item = &'p Served> + use<'p, 'm> {
        let has_head = self.served.iter().any(|served| served.method == HEAD);
        let method = if method == HEAD && !has_head { GET } else { method };
        self.served.iter().filter(move |served| served.method == method)
    }

    /// Every method that the path answers, in alphabetical order.
    fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = self.served.iter().map(|served| served.method.as_str()).collect();
        if methods.contains(&GET) {
            methods.push(HEAD);
        }
        methods.sort_unstable();
        methods.dedup();
        methods
    }
}

impl Paths {
    pub(super) fn new(document: &Document, mistakes: &mut Vec<Mistake>) -> Self {
        let mut by_path: BTreeMap<&str, Path> = BTreeMap::new();
        for (rule, At { value: route, location }) in document.routes.iter().enumerate() {
            // As other routers have it; here it would be a path that clients send so.
            let mut is_ours = true;
            for segment in route.path.split('/') {
                let meant = match segment.strip_prefix(':') {
                    Some(name) if !name.is_empty() => format!("{{{name}}}"),
                    Some(_) | None if segment.starts_with('*') => "{*rest}".to_owned(),
                    Some(_) | None => continue,
                };
                let message = format!("route `{}`: write `{meant}` for `{segment}` in `path`", route.name);
                mistakes.push(Mistake::at(*location, message));
                is_ours = false;
            }
            if !is_ours {
                continue;
            }
            let fixed = route.path.replace(['{', '}', '*'], "");
            if !crate::shape::unambiguous(&fixed) {
                let Route { name, path, .. } = route;
                let message = match crate::shape::decode(path) {
                    Some(decoded) => format!(
                        "route `{name}`: `{path}` has percent-encodings, and requests are decoded before they are \
                         matched: write `{decoded}`"
                    ),
                    None => format!("route `{name}`: `{path}` is not a path that a request could have"),
                };
                mistakes.push(Mistake::at(*location, message));
                continue;
            }
            if route.methods.is_empty() {
                mistakes.push(Mistake::at(*location, format!("route `{}` names no method", route.name)));
            }
            if let Some(version) = &route.version
                && !is_version(&version.value)
            {
                let message =
                    format!("`{}` is not a version: use digits and dots, at most 16", version.value);
                mistakes.push(Mistake::of(version, message));
            }
            let of_path = of_path(&route.path);
            if let (Some(of_path), Some(version)) = (of_path, &route.version)
                && of_path != version.value
            {
                let message = format!(
                    "route `{}` has version `{}`, and its path asks for version `{of_path}`: nobody could ask for both",
                    route.name, version.value
                );
                mistakes.push(Mistake::of(version, message));
            }
            let version = of_path.or(route.version.as_ref().map(|version| version.value.as_str()));
            let path = || Path { version: of_path.map(str::to_owned), served: Vec::new() };
            let served = &mut by_path.entry(&route.path).or_insert_with(path).served;
            for method in &route.methods {
                if !METHODS.contains(&method.as_str()) {
                    let meant = match nearest(&method.to_ascii_uppercase(), METHODS.into_iter()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known: {}", METHODS.join(", ")),
                    };
                    let message =
                        format!("route `{}`: `{method}` is not an HTTP method; {meant}", route.name);
                    mistakes.push(Mistake::at(*location, message));
                } else if served
                    .iter()
                    .any(|seen| seen.method == *method && seen.version.as_deref() == version)
                {
                    let message =
                        format!("route `{}`: {method} {} is served by a route above", route.name, route.path);
                    mistakes.push(Mistake::at(*location, message));
                } else {
                    let version = version.map(str::to_owned);
                    served.push(Served { method: method.clone(), version, rule });
                }
            }
        }
        let mut router = matchit::Router::new();
        for (path, served) in by_path {
            if let Err(why) = router.insert(path, served) {
                let routes = document.routes.iter().find(|route| route.value.path == path);
                let location = routes.map_or(Location::UNKNOWN, |route| route.location);
                mistakes.push(Mistake::at(location, format!("path `{path}`: {why}")));
            }
        }
        Self(router)
    }

    /// The positions of the rules of the path, whatever methods and versions they serve.
    pub(super) fn rules_at(&self, path: &str) -> impl Iterator<Item = usize> {
        self.0.at(path).into_iter().flat_map(|found| found.value.served.iter().map(|served| served.rule))
    }

    /// The positions of the rules of the path and the method, whatever versions they serve, in their order.
    pub(super) fn rules_of(&self, method: &str, path: &str) -> Vec<usize> {
        let Ok(found) = self.0.at(path) else { return Vec::new() };
        found.value.of_method(method).map(|served| served.rule).collect()
    }

    pub(super) fn find(&self, method: &str, path: &str, version: Option<&str>) -> Match<'_> {
        let Ok(found) = self.0.at(path) else { return Match::NotFound };
        let path = found.value;
        let of_method = || path.of_method(method);
        let Some(first) = of_method().next() else { return Match::MethodNotAllowed(path.methods()) };
        let version = match (path.version.as_deref(), version) {
            (Some(of_path), Some(version)) if of_path != version => return Match::VersionAmbiguous(of_path),
            (of_path, version) => of_path.or(version),
        };
        if let Some(served) = of_method().find(|served| served.version.as_deref() == version) {
            return Match::Route(served.rule);
        }
        let versions: Vec<&str> = of_method().filter_map(|served| served.version.as_deref()).collect();
        // Where nothing has a version, asking for one changes nothing.
        if versions.is_empty() { Match::Route(first.rule) } else { Match::VersionUnknown(versions) }
    }
}

/// The version that a path asks for: of `/v2/things` the `2`.
fn of_path(path: &str) -> Option<&str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('v')).find(|version| is_version(version))
}

/// The version that a request's fields ask for: by `X-API-Version`, or by the media type it accepts,
/// `application/vnd.NAME.v2+json` say. An error when what it asks for is no version, or not one.
pub fn version<'r>(headers: &Headers<'r>) -> Result<Option<&'r str>, NotOneVersion> {
    let by_field = headers.one("x-api-version").map_err(|_| NotOneVersion)?;
    if by_field.is_some_and(|version| !is_version(version)) {
        return Err(NotOneVersion);
    }
    let mut asked = by_field;
    for accept in headers.all("accept") {
        // What is not text names no version of ours; what else it means is the upstream's to say.
        let Ok(accept) = std::str::from_utf8(accept) else { continue };
        for version in accept.split(',').filter_map(of_media_type) {
            if asked.is_some_and(|asked| asked != version) {
                return Err(NotOneVersion);
            }
            asked = Some(version);
        }
    }
    Ok(asked)
}

/// The request asks for several versions, or for something that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request does not ask for one version")]
pub struct NotOneVersion;

/// Of `application/vnd.torana.v2+json;q=1` the `2`.
fn of_media_type(media_type: &str) -> Option<&str> {
    let name =
        media_type.split(';').next()?.trim().strip_prefix("application/vnd.")?.strip_suffix("+json")?;
    let (_, version) = name.rsplit_once(".v")?;
    is_version(version).then_some(version)
}

fn is_version(text: &str) -> bool {
    let bounded = (1..=16).contains(&text.len()) && text.starts_with(|first: char| first.is_ascii_digit());
    bounded && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_ask_for_a_version() {
        for (path, version) in [
            ("/v2/things", Some("2")),
            ("/api/v2.1/things/{id}", Some("2.1")),
            ("/v2/things/v3", Some("2")),
            ("/things/v{version}", None),
            ("/vpa/{vpa}", None),
            ("/V2/things", None),
            ("/v/things", None),
            ("/", None),
        ] {
            assert_eq!(of_path(path), version, "{path}");
        }
    }

    #[test]
    fn fields_ask_for_versions_in_two_ways_and_once() {
        type Given<'g> = &'g [(&'g str, &'g [u8])];
        let cases: [(Given<'_>, Result<Option<&str>, NotOneVersion>); 11] = [
            (&[], Ok(None)),
            (&[("x-api-version", b"2")], Ok(Some("2"))),
            (&[("x-api-version", b"2.1")], Ok(Some("2.1"))),
            (&[("x-api-version", b"two")], Err(NotOneVersion)),
            (&[("x-api-version", b"1"), ("x-api-version", b"2")], Err(NotOneVersion)),
            (&[("accept", b"application/vnd.torana.v2+json")], Ok(Some("2"))),
            (&[("accept", b"text/html, application/vnd.a.b.v3+json;q=0.5")], Ok(Some("3"))),
            (&[("accept", b"application/json, */*")], Ok(None)),
            (&[("accept", b"application/vnd.v2+json")], Ok(None)),
            (&[("accept", b"application/vnd.a.v2+json"), ("x-api-version", b"2")], Ok(Some("2"))),
            (&[("accept", b"application/vnd.a.v2+json, application/vnd.a.v1+json")], Err(NotOneVersion)),
        ];
        for (fields, expected) in cases {
            assert_eq!(version(&fields.iter().copied().collect()), expected, "{fields:?}");
        }
    }
}
