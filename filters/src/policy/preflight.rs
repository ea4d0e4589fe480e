//! Preflights of paths that several versions serve.
//!
//! A browser names no version in a preflight, and the request that follows may name any: what the answer allows, it
//! allows of each. So a preflight is answered as all versions of its path and method would answer it, and where one of
//! them has no `cors`, not at all.

use std::collections::BTreeMap;

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Route, Settings as _, Site};
use crate::chain::Chain;
use crate::cors;

/// Who decides on preflights that may be of several rules, by the rules' positions.
#[derive(Debug)]
pub(super) struct Preflights(BTreeMap<Vec<usize>, Chain>);

/// Who decides on a preflight.
#[derive(Clone, Copy, Debug)]
pub enum Preflight<'p> {
    /// The only rule that it can be of, by its position.
    Rule(usize),
    /// All versions together.
    Versions(&'p Chain),
}

impl Preflights {
    pub(super) fn new(document: &Document, site: &Site<'_>) -> Self {
        let chains = versions(document).into_iter().filter_map(|versions| {
            let filter = versions.cors(document)?.build(site).ok()?;
            Some((versions.rules, Chain::new(vec![filter])))
        });
        Self(chains.collect())
    }

    /// Of the rules of its path and method, in their order.
    pub(super) fn of(&self, rules: &[usize]) -> Option<Preflight<'_>> {
        match rules {
            [] => None,
            [only] => Some(Preflight::Rule(*only)),
            several => self.0.get(several).map(Preflight::Versions),
        }
    }
}

/// Versions whose preflights no page passes, though some of them let pages in.
pub(super) fn refused(document: &Document) -> Vec<Mistake> {
    let refused = versions(document).into_iter().filter_map(|versions| {
        let routes = || versions.rules.iter().filter_map(|rule| document.routes.get(*rule));
        let first = routes().find(|route| cors_of(document, &route.value).is_some())?;
        let without = routes().find(|route| cors_of(document, &route.value).is_none());
        let name = &first.value.name;
        let what = format!("{} {}", versions.method, versions.path);
        let message = match (without, versions.cors(document)) {
            (Some(without), _) => format!(
                "route `{name}`: a browser's preflight names no version, and route `{}` serves {what} too, without \
                 `cors`: preflights are refused",
                without.value.name
            ),
            (None, Some(cors)) if cors.names_nobody() => format!(
                "route `{name}`: a browser's preflight names no version, and no page is let in by every version of \
                 {what}: preflights are refused"
            ),
            (None, _) => return None,
        };
        Some(Mistake::of(first, message))
    });
    refused.collect()
}

/// Several rules of one path and method.
struct Versions<'d> {
    method: &'d str,
    path: &'d str,
    rules: Vec<usize>,
}

impl Versions<'_> {
    /// What all of them let in; `None`: one of them has no `cors`.
    fn cors(&self, document: &Document) -> Option<cors::Config> {
        let mut all: Option<cors::Config> = None;
        for rule in &self.rules {
            let cors = cors_of(document, &document.routes.get(*rule)?.value)?;
            all = Some(match all {
                Some(others) => others.also(cors),
                None => cors,
            });
        }
        all
    }
}

fn versions(document: &Document) -> Vec<Versions<'_>> {
    let mut groups: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (rule, At { value: route, .. }) in document.routes.iter().enumerate() {
        for method in &route.methods {
            groups.entry((&route.path, method)).or_default().push(rule);
        }
    }
    let several = groups.into_iter().filter(|(_, rules)| rules.len() > 1);
    several.map(|((path, method), rules)| Versions { method, path, rules }).collect()
}

/// The `cors` in effect on a route.
fn cors_of(document: &Document, route: &Route) -> Option<cors::Config> {
    document.filters_of(route).cors
}
