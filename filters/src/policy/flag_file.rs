//! Where feature flags come from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Reference, Route};
use crate::flags::{FlagUse, RESERVED, When};
use crate::{FilterSet, shape};

/// Feature flags: what flags there are, and which fields of a request they may look at. They know of a request:
/// `targetingKey` (the token's `sub`, otherwise the client's name), `user`, `tenant`, `client`, `device`, `scopes`, `ip`,
/// `method` and `path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlagFile {
    /// `file:PATH`, in flagd's format, JSON, or YAML if it is called so. It is followed: what changes counts a second
    /// later, and a file with mistakes, or without a flag that this policy counts on, changes nothing.
    #[schemars(with = "super::reference::FileReference")]
    pub file: At<Reference>,
    /// Header fields that flags may look at, by what they call them: `app_version: x-app-version`. Whoever sends a
    /// request can write them.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    let Some(source) = &document.flags else { return };
    if !matches!(source.value.file.value, Reference::File(_)) {
        mistakes.push(Mistake::of(
            &source.value.file,
            "flags are in a file, so that they can change: write `file:PATH`",
        ));
    }
    for (name, field) in &source.value.fields {
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if RESERVED.contains(&name.as_str()) || name.is_empty() || name.contains('.') {
            let message = format!("`fields`: `{name}` is a name of the edge's own, or none: use another");
            mistakes.push(Mistake::of(source, message));
        }
        if field.is_empty() || !field.bytes().all(lower) {
            let message = format!("`fields`: `{field}` is not the name of a field, in lower-case letters");
            mistakes.push(Mistake::of(source, message));
        } else if SECRET.contains(&field.as_str()) || shape::edge_only(field) {
            mistakes.push(Mistake::of(source, format!("`fields`: `{field}` is not for flags to see")));
        }
    }
}

/// Fields that tell who somebody is.
const SECRET: [&str; 5] = ["authorization", "cookie", "proxy-authorization", "x-api-key", "signature"];

/// What of a route counts on flags: its filters, and its sharing.
pub(super) fn of_route(document: &Document, at: &At<Route>, filters: &FilterSet) -> Vec<FlagUse> {
    let route = &at.value;
    let of_filters = filters.flags().into_iter().map(|(filter, when)| {
        let own = route.filters.value.has(filter);
        let place = if own { &route.filters } else { &document.filters };
        used(when, place)
    });
    let sharing = route.flag.as_ref().map(|flag| FlagUse {
        flag: flag.clone(),
        variants: route.upstreams.iter().filter_map(|share| share.value.variant.clone()).collect(),
    });
    of_filters.chain(sharing).collect()
}

/// What of the plans does.
pub(super) fn of_plans(document: &Document) -> Vec<FlagUse> {
    let of_plan = |at: &At<super::Plan>| -> Vec<FlagUse> {
        let plan = &at.value;
        let rate_limit = plan.rate_limit.iter().filter_map(|limit| limit.when.as_ref());
        let quota = plan.quota.iter().filter_map(|limit| limit.when.as_ref());
        let concurrency = plan.concurrency.iter().filter_map(|limit| limit.when.as_ref());
        rate_limit.chain(quota).chain(concurrency).map(|when| used(when, at)).collect()
    };
    document.plans.values().flat_map(of_plan).collect()
}

/// Flags without a file.
pub(super) fn check_uses(document: &Document, uses: &[FlagUse], mistakes: &mut Vec<Mistake>) {
    if document.flags.is_some() {
        return;
    }
    // Once each: filters of every route count on theirs on every route.
    let mut told: Vec<&FlagUse> = Vec::new();
    for used in uses {
        if !told.contains(&used) {
            told.push(used);
            let message =
                format!("flag `{}`: there are no flags: name their file in `flags`", used.flag.value);
            mistakes.push(Mistake::of(&used.flag, message));
        }
    }
}

fn used<T>(when: &When, place: &At<T>) -> FlagUse {
    let (flag, variants) = when.used();
    FlagUse { flag: place.with(flag), variants }
}
