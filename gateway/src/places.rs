//! Where in a policy file it is written what a route does.

use std::path::Path;

use filters::policy::{At, Policy, RouteRule};

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

    /// Where the route begins: `  [edge.yaml:21]`.
    pub(crate) fn of_route(&self, rule: &RouteRule) -> String {
        let route = self.policy.document().routes.iter().find(|route| route.value.name == rule.name);
        self.place(route.map_or(0, At::line))
    }

    /// The route's own word on a filter, or else that of every route, or else that of the tenant's plan.
    pub(crate) fn of_filter(&self, rule: &RouteRule, plan: Option<&str>, filter: &str) -> String {
        let document = self.policy.document();
        let mut after = document.routes.iter().skip_while(|route| route.value.name != rule.name);
        let own = after.next().and_then(|route| {
            let end = after.next().map_or(u64::MAX, At::line);
            self.line_of(filter, route.value.filters.line(), end)
        });
        let everywhere = || {
            let begin = document.filters.line();
            let sections = [document.routes.first().map(At::line)].into_iter().flatten();
            let end = sections.filter(|line| *line > begin).min().unwrap_or(u64::MAX);
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
        let lines = self.text.lines().zip(1u64..).skip_while(|(_, number)| *number < begin.max(1));
        // A section ends where the next one begins.
        let section = |line: &str| !line.is_empty() && !line.starts_with([' ', '#', '-']);
        let mut lines =
            lines.take_while(|(line, number)| *number < end && (*number == begin || !section(line)));
        let (_, number) = lines.find(|(line, _)| {
            let written = line.split('#').next().unwrap_or_default().replace(['"', '\''], "");
            written.split(['{', ',', ' ']).any(|word| word == key)
        })?;
        (begin > 0).then_some(number)
    }

    fn place(&self, line: u64) -> String {
        if line == 0 { String::new() } else { format!("  [{}:{line}]", self.file) }
    }
}
