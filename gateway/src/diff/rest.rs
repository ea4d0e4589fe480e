//! What changes outside of routes, and whom it concerns: the tenants that have a plan, the routes that go to an upstream.

use std::collections::BTreeSet;

use filters::policy::{Document, Policy, RouteRule};

use super::delta::{Delta, Step, deltas, deltas_of_entries};
use super::{Change, Effect, What, path, with};

/// What is not of routes, whatever it is.
pub(super) fn of_the_rest(before: &Policy, after: &Policy) -> Vec<Change> {
    let written = |policy: &Policy| {
        let mut document = serde_json::to_value(policy.document()).unwrap_or_default();
        if let Some(parts) = document.as_object_mut() {
            parts.remove("routes");
            parts.remove("filters");
        }
        document.as_object().cloned().unwrap_or_default()
    };
    let (old, new) = (written(before), written(after));
    let schema = schemars::schema_for!(Document).to_value();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        let part =
            |parts: &serde_json::Map<String, serde_json::Value>| parts.get(name).cloned().unwrap_or_default();
        let (old, new) = (part(&old), part(&new));
        // A map by names of the writer's, as the schema has it. (Lists tell their names themselves.)
        let found = match schema["properties"][name]["additionalProperties"].is_object() {
            true => deltas_of_entries(&old, &new),
            false => deltas(&old, &new),
        };
        for mut delta in found {
            delta.path.insert(0, Step::Field(name.clone()));
            // Here names are enough.
            delta.beside.clear();
            changes.push(with(concerned(&delta, before, after), delta));
        }
    }
    changes
}

/// A change of this place, with whom it concerns.
fn concerned(delta: &Delta, before: &Policy, after: &Policy) -> Change {
    let change = Change {
        effect: Effect::of(delta),
        routes: Vec::new(),
        every_route: false,
        copied_routes: Vec::new(),
        tenants: Vec::new(),
        unnamed_tenants: false,
        what: What::Field,
        path: path(delta.path.iter()),
        before: None,
        after: None,
        beside: serde_json::Map::new(),
        line: 0,
    };
    match delta.path.as_slice() {
        [Step::Field(part), Step::Entry(name), ..] if part == "upstreams" => {
            let policy = if after.document().upstreams.contains_key(name) { after } else { before };
            let names_of = |goes: fn(&RouteRule, &str) -> bool| {
                let rules = policy.rules().iter().filter(|rule| goes(rule, name));
                rules.map(|rule| rule.name.clone()).collect::<Vec<_>>()
            };
            let routes = names_of(goes_to);
            let old = |name: &String| before.rules().iter().any(|rule| rule.name == *name);
            let mut in_both = after.rules().iter().map(|rule| &rule.name).filter(|name| old(name));
            let every_route = routes.len() > 1 && in_both.all(|name| routes.contains(name));
            Change { routes, every_route, copied_routes: names_of(copies_to), ..change }
        }
        [Step::Field(part), Step::Entry(name), ..] if part == "plans" => {
            let policy = if after.document().plans.contains_key(name) { after } else { before };
            let (tenants, unnamed_tenants) = with_plan(policy.document(), name);
            Change { tenants, unnamed_tenants, ..change }
        }
        [Step::Field(part)] if part == "default_plan" => {
            Change { tenants: without_own_plan(after.document()), unnamed_tenants: true, ..change }
        }
        _ => change,
    }
}

/// Whether any of its requests are for the upstream.
fn goes_to(rule: &RouteRule, upstream: &str) -> bool {
    rule.upstreams.iter().any(|share| share.upstream == upstream && share.weight > 0)
}

/// Whether it sends copies there.
fn copies_to(rule: &RouteRule, upstream: &str) -> bool {
    rule.mirror.as_ref().is_some_and(|mirror| mirror.upstream == upstream)
}

/// The tenants that have a plan, and whether those that the policy does not name have it too.
fn with_plan(document: &Document, plan: &str) -> (Vec<String>, bool) {
    let is_default = document.default_plan.as_ref().is_some_and(|default| default.value == plan);
    let own = document
        .tenants
        .iter()
        .filter(|(_, tenant)| tenant.value.plan.as_ref().is_some_and(|own| own.value == plan));
    let mut tenants: Vec<String> = own.map(|(name, _)| name.clone()).collect();
    if is_default {
        tenants.extend(without_own_plan(document));
    }
    (tenants, is_default)
}

/// The tenants that have the default plan, if there is one: those of clients too.
fn without_own_plan(document: &Document) -> Vec<String> {
    let named = document.tenants.iter().filter(|(_, tenant)| tenant.value.plan.is_none());
    let of_clients = document.clients.values().filter_map(|client| client.tenant.as_ref());
    let unnamed = of_clients.map(|tenant| &tenant.value).filter(|name| !document.tenants.contains_key(*name));
    let names: BTreeSet<&String> = named.map(|(name, _)| name).chain(unnamed).collect();
    names.into_iter().cloned().collect()
}
