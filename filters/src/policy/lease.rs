//! Leases of places (`concurrency`) that end before the request that holds the place may: then more are let in than the
//! limit says.

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Route, WebSocket};
use crate::concurrency::{Limit, MOST_LEASE_S};

/// Limits whose lease a route may outlive: those of every route, of the route, and of plans that hold on it.
pub(super) fn outlived(document: &Document) -> Vec<Mistake> {
    let mut warnings = Vec::new();
    let inherited = &document.filters;
    for At { value: route, .. } in &document.routes {
        let excepts = |filter: &str| route.except.iter().any(|name| name.value == filter);
        let mut warn = |place: Mistake, limit: &Limit| {
            if let Some(why) = outlives(document, route, limit) {
                warnings.push(Mistake {
                    message: format!("{}limit `{}`: {why}", place.message, limit.name),
                    ..place
                });
            }
        };
        if !excepts("concurrency") {
            for limit in inherited.value.concurrency.iter().flat_map(|settings| &settings.limits) {
                warn(Mistake::of(inherited, ""), limit);
            }
        }
        for limit in route.filters.value.concurrency.iter().flat_map(|settings| &settings.limits) {
            warn(Mistake::of(&route.filters, ""), limit);
        }
        let requires =
            inherited.value.has("tenant") && !excepts("tenant") || route.filters.value.has("tenant");
        if !requires || excepts("concurrency") {
            continue;
        }
        for (name, plan) in &document.plans {
            for limit in &plan.value.concurrency {
                warn(Mistake::of(plan, format!("plan `{name}`: ")), limit);
            }
        }
    }
    warnings
}

/// What to tell when the place is free again before the request has ended.
fn outlives(document: &Document, route: &Route, limit: &Limit) -> Option<String> {
    let name = &route.name;
    let attempts = u64::from(route.retries).saturating_add(1);
    let upstreams = route.upstreams_of(document);
    let times = upstreams.map(|(name, at)| {
        let stated = at.value.timeout_ms.is_some() && route.timeout_ms.is_none();
        (route.timeout_ms(&at.value), stated.then_some(name))
    });
    let (timeout_ms, whose) = times.max_by_key(|(timeout_ms, _)| *timeout_ms)?;
    let whose = whose.map(|upstream| format!(" of upstream `{upstream}`")).unwrap_or_default();
    let answered_ms = timeout_ms.saturating_mul(attempts);
    let websocket_s = route.websocket.as_ref().map(|At { value: WebSocket { most_s, .. }, .. }| *most_s);
    let longest_s = answered_ms.div_ceil(1_000).max(websocket_s.unwrap_or_default());
    if longest_s <= limit.lease_s {
        return None;
    }
    let lasts = match websocket_s {
        Some(most_s) if most_s == longest_s => {
            format!("a WebSocket of route `{name}` may last `most_s: {most_s}`")
        }
        Some(_) | None => {
            let times =
                if attempts > 1 { format!(", {attempts} times with `retries`") } else { String::new() };
            format!("a request of route `{name}` may last `timeout_ms: {timeout_ms}`{whose}{times}")
        }
    };
    let write = match longest_s <= MOST_LEASE_S {
        true => format!("write `lease_s: {longest_s}`"),
        false => {
            format!("write `lease_s: {MOST_LEASE_S}`, which is the most, and let the route last no longer")
        }
    };
    Some(format!(
        "{lasts}, its place is free again after `lease_s: {}`, and more than {} are let in; {write}",
        limit.lease_s, limit.most
    ))
}
