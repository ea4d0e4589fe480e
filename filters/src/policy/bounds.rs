//! Bounds of the policy's times, and of how many of something there may be: nothing waits for ever, and nothing is so
//! short or so few that nobody could pass.

use std::ops::RangeInclusive;

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Introspection, Issuer, Jwks, Listener, Redis, Route, Upstream};

const MINUTE_MS: RangeInclusive<u64> = 1..=60_000;
const HOUR_MS: RangeInclusive<u64> = 1..=3_600_000;
const MINUTES_S: RangeInclusive<u64> = 0..=300;
const HOUR_S: RangeInclusive<u64> = 1..=3_600;
const DAY_S: RangeInclusive<u64> = 1..=86_400;
const MONTH_S: RangeInclusive<u64> = 0..=2_592_000;
/// Places that one key of the state has ([`crate::state::Op::MOST_PLACES`]).
const PLACES: RangeInclusive<u64> = 1..=1_024;
const MANY: RangeInclusive<u64> = 1..=1_000_000;
const ENTRIES: RangeInclusive<u64> = 1..=1_000_000_000;

/// A field, what it says, and what it may say.
type Number = (&'static str, u64, RangeInclusive<u64>);

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    for at in &document.listeners {
        check_all(at, &format!("listener `{}`", at.value.name), &of_listener(&at.value), mistakes);
    }
    for (name, at) in &document.upstreams {
        check_all(at, &format!("upstream `{name}`"), &of_upstream(&at.value), mistakes);
    }
    for (name, at) in &document.issuers {
        check_all(at, &format!("issuer `{name}`"), &of_issuer(&at.value), mistakes);
        if let Some(at) = &at.value.introspection {
            let about = format!("issuer `{name}`: introspection");
            check_all(at, &about, &of_introspection(&at.value), mistakes);
        }
    }
    for at in &document.routes {
        check_all(at, &format!("route `{}`", at.value.name), &of_route(&at.value), mistakes);
    }
    let state = &document.state;
    if let Some(at) = &state.redis {
        let Redis { connect_timeout_ms, timeout_ms, .. } = at.value;
        let numbers =
            [("connect_timeout_ms", connect_timeout_ms, MINUTE_MS), ("timeout_ms", timeout_ms, MINUTE_MS)];
        check_all(at, "`redis`", &numbers, mistakes);
    }
    if let Some(at) = &state.service {
        check_all(at, "the state service", &[("timeout_ms", at.value.timeout_ms, MINUTE_MS)], mistakes);
    }
    let entries = u64::try_from(state.memory.max_entries).unwrap_or(u64::MAX);
    let nowhere = At::nowhere(());
    check_all(&nowhere, "`state`", &[("memory.max_entries", entries, ENTRIES)], mistakes);
}

fn check_all<T>(at: &At<T>, about: &str, numbers: &[Number], mistakes: &mut Vec<Mistake>) {
    for (field, number, bounds) in numbers.iter().filter(|(_, number, bounds)| !bounds.contains(number)) {
        let (least, most) = (bounds.start(), bounds.end());
        let message = format!("{about}: `{field}` is between {least} and {most}, and not {number}");
        mistakes.push(Mistake::of(at, message));
    }
}

fn of_listener(listener: &Listener) -> Vec<Number> {
    vec![
        ("max_connections", listener.max_connections.into(), MANY),
        ("handshake_timeout_ms", listener.handshake_timeout_ms, MINUTE_MS),
        ("request_timeout_ms", listener.request_timeout_ms, HOUR_MS),
        ("idle_timeout_ms", listener.idle_timeout_ms, HOUR_MS),
        ("max_requests_per_connection", listener.max_requests_per_connection.into(), ENTRIES),
    ]
}

fn of_upstream(upstream: &Upstream) -> Vec<Number> {
    let mut numbers = vec![
        ("connect_timeout_ms", upstream.connect_timeout_ms, MINUTE_MS),
        ("idle_timeout_ms", upstream.idle_timeout_ms, HOUR_MS),
        ("resolve_interval_ms", upstream.resolve_interval_ms, HOUR_MS),
        ("max_in_flight", upstream.max_in_flight.into(), MANY),
        ("max_websockets", upstream.max_websockets.into(), MANY),
    ];
    numbers.extend(upstream.timeout_ms.as_ref().map(|stated| ("timeout_ms", stated.value, HOUR_MS)));
    if let Some(health) = &upstream.health {
        numbers.extend([
            ("health.interval_ms", health.interval_ms, HOUR_MS),
            ("health.timeout_ms", health.timeout_ms, MINUTE_MS),
            ("health.unhealthy_after", health.unhealthy_after.into(), MANY),
            ("health.healthy_after", health.healthy_after.into(), MANY),
        ]);
    }
    // `failures: 0` never leaves one out.
    if upstream.outlier.failures > 0 {
        numbers.push(("outlier.eject_ms", upstream.outlier.eject_ms, HOUR_MS));
    }
    numbers
}

fn of_issuer(issuer: &Issuer) -> Vec<Number> {
    let mut numbers = vec![("leeway_s", issuer.leeway_s, MINUTES_S)];
    if let Some(Jwks { refresh_s, stale_s, unknown_kid_refresh_s, timeout_ms, .. }) = issuer.jwks {
        numbers.extend([
            ("jwks.refresh_s", refresh_s, DAY_S),
            ("jwks.stale_s", stale_s, MONTH_S),
            ("jwks.unknown_kid_refresh_s", unknown_kid_refresh_s, HOUR_S),
            ("jwks.timeout_ms", timeout_ms, MINUTE_MS),
        ]);
    }
    numbers
}

fn of_introspection(settings: &Introspection) -> [Number; 5] {
    [
        ("timeout_ms", settings.timeout_ms, MINUTE_MS),
        ("cache_s", settings.cache_s, 1..=300),
        ("negative_cache_s", settings.negative_cache_s, 1..=60),
        ("cache_entries", settings.cache_entries.into(), MANY),
        ("max_in_flight", settings.max_in_flight.into(), MANY),
    ]
}

fn of_route(route: &Route) -> Vec<Number> {
    // 0 is no limit, where silence has one.
    let total = if route.idle_timeout_ms.is_some() { 0..=*HOUR_MS.end() } else { HOUR_MS };
    let mut numbers = Vec::from_iter(route.timeout_ms.map(|ms| ("timeout_ms", ms, total)));
    numbers.extend(route.idle_timeout_ms.map(|ms| ("idle_timeout_ms", ms, HOUR_MS)));
    if let Some(At { value: websocket, .. }) = &route.websocket {
        numbers.extend([
            ("websocket.idle_timeout_ms", websocket.idle_timeout_ms, HOUR_MS),
            ("websocket.most_s", websocket.most_s, DAY_S),
            ("websocket.max_per_user", websocket.max_per_user.into(), PLACES),
            ("websocket.max_per_tenant", websocket.max_per_tenant.into(), PLACES),
            ("websocket.max", websocket.max.into(), PLACES),
        ]);
    }
    numbers
}
