//! Where in a policy file it is written what a route does.

use std::path::Path;

use filters::FilterSet;
use filters::filter::LimitName;
use filters::policy::{At, Policy, Route, RouteRule};

/// A policy and its text.
pub(crate) struct Places<'p> {
    file: String,
    policy: &'p Policy,
    text: &'p str,
}

impl<'p> Places<'p> {
    pub(crate) fn new(file: &Path, policy: &'p Policy, text: &'p str) -> Self {
        Self { file: file.display().to_string(), policy, text }
    }

    /// Where a filter refuses: its limit's own line, if one does, and which that is.
    pub(crate) fn of_refusal(
        &self,
        rule: &RouteRule,
        plan: Option<&str>,
        filter: &str,
        limit: Option<&LimitName>,
    ) -> String {
        let Some(limit) = limit else { return self.of_filter(rule, plan, filter) };
        let whose = limit.plan.as_ref().map(|plan| format!(" of plan `{plan}`")).unwrap_or_default();
        let place = match self.line_of_limit(rule, filter, limit) {
            Some(line) => self.place(line),
            None => self.of_filter(rule, limit.plan.as_deref().or(plan), filter),
        };
        let comma = if place.is_empty() { "  " } else { ", " };
        format!("{place}{comma}by limit `{}`{whose}", limit.name)
    }

    fn line_of_limit(&self, rule: &RouteRule, filter: &str, limit: &LimitName) -> Option<u64> {
        let document = self.policy.document();
        let (begin, end) = match &limit.plan {
            Some(plan) => section(document.plans.get(&**plan)?.line(), document.plans.values()),
            None => {
                let route =
                    self.route(rule).filter(|route| has(&route.value.filters.value, filter, &limit.name));
                match route {
                    Some(route) => (route.value.filters.line(), self.end_of_route(rule)),
                    None => self.everywhere(),
                }
            }
        };
        let filter = self.line_of(filter, begin, end)?;
        let named = |words: &[&str]| {
            let joined = words.iter().any(|word| word.strip_prefix("name:") == Some(&limit.name));
            joined || words.windows(2).any(|pair| *pair == ["name:", &limit.name])
        };
        self.line_with(named, filter, end)
    }

    /// The most requests in flight to an upstream, and where that is written.
    pub(crate) fn max_in_flight(&self, name: &str) -> Option<String> {
        let upstreams = &self.policy.document().upstreams;
        let upstream = upstreams.get(name)?;
        let (begin, end) = section(upstream.line(), upstreams.values());
        let (written, most) = (self.line_of("max_in_flight", begin, end), upstream.value.max_in_flight);
        Some(self.bound(&format!("max_in_flight of upstream {name}: {most}"), written, begin))
    }

    /// The time that an upstream of a route has, and where that is written.
    pub(crate) fn timeout_ms(&self, rule: &RouteRule, name: &str) -> Option<String> {
        let (route, upstream) = (self.route(rule)?, self.policy.upstream(name)?);
        if let (None, Some(stated)) = (route.value.timeout_ms, &upstream.timeout_ms) {
            let told = format!("timeout_ms of upstream {name}: {}", stated.value);
            return Some(self.bound(&told, Some(stated.line()), 0));
        }
        let written = route
            .value
            .timeout_ms
            .and_then(|_| self.line_of("timeout_ms", route.line(), self.end_of_route(rule)));
        let position = rule.upstreams.iter().position(|share| share.upstream == name)?;
        let told = format!("timeout_ms of route {}: {}", rule.name, rule.timeouts_ms.get(position)?);
        Some(self.bound(&told, written, route.line()))
    }

    /// The times that a WebSocket of a route has, and where that is written.
    pub(crate) fn websocket(&self, rule: &RouteRule) -> Option<String> {
        let bounds = rule.websocket?;
        let line = self.route(rule)?.value.websocket.as_ref().map_or(0, At::line);
        let (idle_timeout_ms, most_s) = (bounds.idle_timeout_ms, bounds.most_s);
        let told =
            format!("websocket of route {}: idle_timeout_ms {idle_timeout_ms}, most_s {most_s}", rule.name);
        Some(told + &self.place(line))
    }

    fn bound(&self, told: &str, written: Option<u64>, begin: u64) -> String {
        match written {
            Some(line) => told.to_owned() + &self.place(line),
            None => format!("{told}, as it is where none is written{}", self.place(begin)),
        }
    }

    /// Where the route begins: `  [edge.yaml:21]`.
    pub(crate) fn of_route(&self, rule: &RouteRule) -> String {
        self.place(self.route(rule).map_or(0, At::line))
    }

    fn route(&self, rule: &RouteRule) -> Option<&'p At<Route>> {
        self.policy.document().routes.iter().find(|route| route.value.name == rule.name)
    }

    /// Where the next one begins.
    fn end_of_route(&self, rule: &RouteRule) -> u64 {
        let mut after =
            self.policy.document().routes.iter().skip_while(|route| route.value.name != rule.name);
        after.nth(1).map_or(u64::MAX, At::line)
    }

    /// From where to where the filters of every route are written.
    fn everywhere(&self) -> (u64, u64) {
        let document = self.policy.document();
        section(document.filters.line(), document.routes.first())
    }

    /// The route's own word on a filter, or else that of every route, or else that of the tenant's plan.
    pub(crate) fn of_filter(&self, rule: &RouteRule, plan: Option<&str>, filter: &str) -> String {
        let document = self.policy.document();
        let own = self
            .route(rule)
            .and_then(|route| self.line_of(filter, route.value.filters.line(), self.end_of_route(rule)));
        let everywhere = || {
            let (begin, end) = self.everywhere();
            self.line_of(filter, begin, end)
        };
        let of_plan = || document.plans.get(plan?).map(At::line);
        self.place(own.or_else(everywhere).or_else(of_plan).unwrap_or(0))
    }

    /// The plan that a tenant has.
    pub(crate) fn plan_of(&self, tenant: &str) -> Option<&'p str> {
        let document = self.policy.document();
        let tenant = document.tenants.get(tenant).map(|tenant| &tenant.value);
        let own = tenant.and_then(|tenant| tenant.plan.as_ref());
        own.or(document.default_plan.as_ref()).map(|plan| plan.value.as_str())
    }

    /// The first line from `begin` on, and before `end`, with this key in it.
    fn line_of(&self, key: &str, begin: u64, end: u64) -> Option<u64> {
        let key = format!("{key}:");
        self.line_with(|words| words.contains(&key.as_str()), begin, end)
    }

    /// The first line from `begin` on, and before `end`, whose words are these.
    fn line_with(&self, are_these: impl Fn(&[&str]) -> bool, begin: u64, end: u64) -> Option<u64> {
        let lines = self.text.lines().zip(1u64..).skip_while(|(_, number)| *number < begin.max(1));
        // A section ends where the next one begins.
        let section = |line: &str| !line.is_empty() && !line.starts_with([' ', '#', '-']);
        let mut lines =
            lines.take_while(|(line, number)| *number < end && (*number == begin || !section(line)));
        let (_, number) = lines.find(|(line, _)| {
            let written = line.split('#').next().unwrap_or_default().replace(['"', '\''], "");
            let words = written.split(['{', '}', '[', ']', ',', ' ']).filter(|word| !word.is_empty());
            are_these(&words.collect::<Vec<_>>())
        })?;
        (begin > 0).then_some(number)
    }

    fn place(&self, line: u64) -> String {
        if line == 0 { String::new() } else { format!("  [{}:{line}]", self.file) }
    }
}

/// From a line to where the next of these begins.
fn section<'a, T: 'a>(begin: u64, all: impl IntoIterator<Item = &'a At<T>>) -> (u64, u64) {
    let after = all.into_iter().map(At::line).filter(|line| *line > begin);
    (begin, after.min().unwrap_or(u64::MAX))
}

/// Whether a limit of this name is among the filter's.
fn has(filters: &FilterSet, filter: &str, limit: &str) -> bool {
    match filter {
        "rate_limit" => filters.rate_limit.iter().flat_map(|all| &all.limits).any(|one| one.name == limit),
        "quota" => filters.quota.iter().flat_map(|all| &all.limits).any(|one| one.name == limit),
        "concurrency" => filters.concurrency.iter().flat_map(|all| &all.limits).any(|one| one.name == limit),
        _ => false,
    }
}
