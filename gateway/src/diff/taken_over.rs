//! Requests on which another route decides than before, though neither route changed.

use std::collections::BTreeSet;

use filters::policy::{Match, Policy};
use serde_json::json;

use super::{Change, Effect, Effective, What, filter_deltas, path};

/// Requests on which another route decides now: one that came with a path that fits them better, or one whose path fits
/// them too and that got none of them while another was there. `pairs` are routes that are the same.
pub(super) fn taken_over(
    before: &Policy,
    after: &Policy,
    (old, new): (&[Effective<'_>], &[Effective<'_>]),
    pairs: &[(usize, usize)],
) -> Vec<Change> {
    let requests: BTreeSet<(&str, String, Option<&str>)> =
        old.iter().chain(new).flat_map(Effective::requests).collect();
    let mut changes = Vec::new();
    for (method, path, version) in requests {
        let serves = |policy: &Policy| {
            let found = policy.route(method, &path, version);
            if let Match::Route(rule) = found { Some(rule) } else { None }
        };
        let (Some(from), Some(to)) = (serves(before), serves(after)) else { continue };
        let (Some(old), Some(new)) = (old.get(from), new.get(to)) else { continue };
        if pairs.contains(&(from, to)) {
            continue;
        }
        let looser = looser(old, new);
        let effect = if looser.is_empty() { Effect::Other } else { Effect::Looser };
        let version = version.map(|version| format!(" of version {version}")).unwrap_or_default();
        let told = |route: &Effective<'_>| {
            let filters: Vec<_> = route.rule.chain.names().collect();
            json!({ "route": route.rule.name, "filters": filters })
        };
        let mut after = told(new);
        after["looser"] = looser.into();
        let change = new.change(effect, What::TakenOver, &format!("{method} {path}{version}"));
        changes.push(Change { before: Some(told(old)), after: Some(after), ..change });
    }
    changes
}

/// In what another route asks for less: filters that it does without, and settings of those that both have.
fn looser(before: &Effective<'_>, after: &Effective<'_>) -> Vec<String> {
    let looser = filter_deltas(before, after).filter(|(_, effect, _)| *effect == Effect::Looser);
    let mut told: Vec<String> = looser.map(|(_, _, delta)| path(delta.path.iter())).collect();
    // Filters that only plans have put there are in no route's settings.
    let lost = before.rule.chain.names().filter(|name| after.rule.chain.names().all(|other| other != *name));
    told.extend(lost.filter(|name| !before.filters.has(name)).map(str::to_owned));
    told
}
