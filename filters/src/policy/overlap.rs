//! Paths that fit two routes, and which of the two serves them.

use std::collections::{BTreeMap, BTreeSet};

use super::Route;
use super::document::{At, Document};
use super::mistake::Mistake;
use super::routing::{Match, Paths};

/// What routes lose to others whose paths are more specific: the path decides first, then the method and the version.
pub(super) fn overlaps(document: &Document, paths: &Paths) -> Vec<Mistake> {
    let others: BTreeSet<&str> = document.routes.iter().map(|route| route.value.path.as_str()).collect();
    // Nothing is more specific than a path without parameters.
    let losers = document.routes.iter().filter(|route| route.value.path.contains('{'));
    let pairs = losers.flat_map(|route| others.iter().map(move |other| (route, *other)));
    pairs.flat_map(|(route, other)| lost(document, paths, route, other)).collect()
}

/// What a route loses to those of another path.
fn lost(document: &Document, paths: &Paths, route: &At<Route>, other: &str) -> Vec<Mistake> {
    let Some(common) = common(&route.value.path, other).filter(|_| route.value.path != other) else {
        return Vec::new();
    };
    let name = |rule: usize| document.routes.get(rule).map_or("", |route| route.value.name.as_str());
    let path_of = |rule: usize| document.routes.get(rule).map_or("", |route| route.value.path.as_str());
    // A third route's path may be more specific than both; then that one is told of.
    let serving: Vec<usize> = paths.rules_at(&common).filter(|rule| path_of(*rule) == other).collect();
    if serving.is_empty() {
        return Vec::new();
    }
    let version = route.value.version.as_ref().map(|version| version.value.as_str());
    let mut taken: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut refused = Vec::new();
    for method in &route.value.methods {
        match paths.find(method, &common, version) {
            Match::Route(rule) => taken.entry(rule).or_default().push(method),
            Match::MethodNotAllowed(_)
            | Match::VersionUnknown(_)
            | Match::VersionAmbiguous(_)
            | Match::NotFound => refused.push(method.as_str()),
        }
    }
    let told = |methods: &[&str], and: String| {
        let methods = methods.join(" and ");
        let message = format!(
            "route `{}`: {methods} {common} fits `{}` too, {and}",
            route.value.name, route.value.path
        );
        Mistake::of(route, message)
    };
    let taken = taken.into_iter().map(|(rule, methods)| {
        told(&methods, format!("and goes to route `{}`: `{other}` is more specific", name(rule)))
    });
    let refused = (!refused.is_empty()).then(|| {
        let names: Vec<String> = serving.iter().map(|rule| format!("`{}`", name(*rule))).collect();
        let and = format!(
            "and is refused: `{other}` is more specific, and {} does not serve that",
            names.join(" or ")
        );
        told(&refused, and)
    });
    taken.chain(refused).collect()
}

/// A path that fits both patterns, if there is one.
fn common(one: &str, other: &str) -> Option<String> {
    let (mut ones, mut others) = (one.split('/').peekable(), other.split('/').peekable());
    let mut path = Vec::new();
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return Some(path.join("/")),
            // The rest, which is one segment at least.
            (Some(rest), Some(segment)) | (Some(segment), Some(rest)) if rest.starts_with("{*") => {
                let left = if ones.peek().is_some() { ones } else { others };
                let all = std::iter::once(segment).chain(left);
                path.extend(all.map(|segment| some(&Segment::new(segment))));
                return Some(path.join("/"));
            }
            (Some(one), Some(other)) => path.push(fits_both(&Segment::new(one), &Segment::new(other))?),
            (None, Some(_)) | (Some(_), None) => return None,
        }
    }
}

/// A segment of a path: what it begins with, and, if there is a parameter in it, what it ends with.
struct Segment<'p> {
    begin: &'p str,
    end: Option<&'p str>,
}

impl<'p> Segment<'p> {
    fn new(text: &'p str) -> Self {
        let parts = text.split_once('{').and_then(|(begin, rest)| Some((begin, rest.split_once('}')?.1)));
        match parts {
            Some((begin, end)) => Self { begin, end: Some(end) },
            None => Self { begin: text, end: None },
        }
    }
}

/// A text that fits.
fn some(segment: &Segment<'_>) -> String {
    match segment.end {
        None => segment.begin.to_owned(),
        Some(end) => format!("{}x{end}", segment.begin),
    }
}

fn fits_both(one: &Segment<'_>, other: &Segment<'_>) -> Option<String> {
    match (one.end, other.end) {
        (None, None) => (one.begin == other.begin).then(|| one.begin.to_owned()),
        (None, Some(end)) => fits(one.begin, other.begin, end),
        (Some(end), None) => fits(other.begin, one.begin, end),
        (Some(end), Some(others_end)) => {
            let longer = |a: &'_ str, b: &'_ str| if a.len() > b.len() { a.to_owned() } else { b.to_owned() };
            let text = format!("{}x{}", longer(one.begin, other.begin), longer(end, others_end));
            fits(&text, one.begin, end).and_then(|text| fits(&text, other.begin, others_end))
        }
    }
}

fn fits(text: &str, begin: &str, end: &str) -> Option<String> {
    let parameter = text.strip_prefix(begin)?.strip_suffix(end)?;
    (!parameter.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::common;

    #[test]
    fn paths_that_two_patterns_have_in_common() {
        for (one, other, expected) in [
            ("/a/{id}", "/a/b", Some("/a/b")),
            ("/a/{id}", "/b/{id}", None),
            ("/a/{id}", "/a/b/c", None),
            ("/a/{*rest}", "/a/b/{id}", Some("/a/b/x")),
            ("/a/{*rest}", "/a", None),
            ("/a/{*rest}", "/{*rest}", Some("/a/x")),
            ("/a/{x}/c", "/{y}/b/c", Some("/a/b/c")),
            ("/a/{x}.png", "/a/b.png", Some("/a/b.png")),
            ("/a/{x}.png", "/a/b.jpg", None),
            ("/a/{x}.png", "/a/v{x}", Some("/a/vx.png")),
            ("/a/{x}.png", "/a/.png", None),
            ("/{x}", "/{y}", Some("/x")),
        ] {
            assert_eq!(common(one, other).as_deref(), expected, "{one} {other}");
            assert_eq!(common(other, one).is_some(), expected.is_some(), "{other} {one}");
        }
    }
}
