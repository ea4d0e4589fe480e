//! Limits of one kind that hold on a route: the route's own, and those of the plan that its tenant has.
//!
//! What a plan limits is counted for each of its tenants apart: never is one counter shared by all who have the plan.

use std::collections::BTreeMap;

use crate::filter::{Context, Host, LimitName, Refusal, Request, Verdict};
use crate::flags::When;
use crate::policy::{Plan, Site, Unusable};
use crate::state::{Counted, Mode, Op};
use crate::subject::{By, counter_key, name_mistake};

/// The limits of a route by one filter.
#[derive(Debug)]
pub(crate) struct Limits<L> {
    kind: &'static str,
    filter: &'static str,
    route: String,
    own: Vec<L>,
    by_plan: BTreeMap<String, Vec<L>>,
}

/// Where a limit is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Route,
    /// In a plan: everything is counted within the tenant.
    Plan,
}

/// What every limit has.
pub(crate) trait Limit {
    fn name(&self) -> &str;
    fn by(&self) -> By;
    fn mode(&self) -> Mode;
    /// While what it holds.
    fn when(&self) -> Option<&When>;
}

/// While what a limit holds, in words, for those who compare.
pub(crate) fn meaning_of(when: &Option<When>) -> String {
    when.as_ref().map(|when| format!(", {}", when.meaning())).unwrap_or_default()
}

/// More would make a request's one batch unbounded.
const MOST_LIMITS: usize = 8;

impl<L: Limit> Limits<L> {
    /// Builds the limits of a route and, where they hold, those of every plan. `kind` keeps counters of different
    /// filters apart; `make` says what is wrong with a limit by itself.
    pub(crate) fn build<W: Limit>(
        kind: &'static str,
        filter: &'static str,
        own: &[W],
        of_plan: fn(&Plan) -> &[W],
        site: &Site<'_>,
        make: impl Fn(&W) -> Result<L, String>,
    ) -> Result<Self, Unusable> {
        let checked = |limit: &W| {
            if let Some(mistake) = name_mistake(limit.name()) {
                return Err(mistake);
            }
            let about = limit.when().and_then(When::mistake);
            about.map_or_else(|| make(limit), Err).map_err(|why| format!("limit `{}`: {why}", limit.name()))
        };
        let twice = |limits: &[W], position: usize, name: &str| {
            limits.iter().take(position).any(|seen| seen.name() == name)
        };
        let mut limits =
            Self { kind, filter, route: site.route.to_owned(), own: Vec::new(), by_plan: BTreeMap::new() };
        if own.len() > MOST_LIMITS {
            return Err(Unusable::new(format!("`limits` needs one to {MOST_LIMITS} entries")));
        }
        for (position, limit) in own.iter().enumerate() {
            if twice(own, position, limit.name()) {
                return Err(Unusable::new(format!("two limits are named `{}`", limit.name())));
            }
            limits.own.push(checked(limit).map_err(Unusable::new)?);
        }
        for (plan, settings) in site.tenancy.plans(filter) {
            let wrong = |why: String| Unusable::new(format!("plan `{plan}`: {why}"));
            let written = of_plan(settings);
            if own.len() + written.len() > MOST_LIMITS {
                return Err(wrong(format!(
                    "with those of the route there are more than {MOST_LIMITS} limits"
                )));
            }
            let mut built = Vec::new();
            for (position, limit) in written.iter().enumerate() {
                if twice(written, position, limit.name()) {
                    return Err(wrong(format!("two limits are named `{}`", limit.name())));
                }
                if twice(own, own.len(), limit.name()) {
                    let name = limit.name();
                    return Err(wrong(format!(
                        "limit `{name}` has the name of one of the route; use another"
                    )));
                }
                built.push(checked(limit).map_err(wrong)?);
            }
            limits.by_plan.insert(plan.to_owned(), built);
        }
        Ok(limits)
    }

    /// Whether nothing is limited for anybody.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.by_plan.values().all(Vec::is_empty)
    }

    /// Asks the state for what each of those that hold takes of the request, in the order written, the plan's last: those
    /// whose flag says so, and those whose flag says nothing, for a limit is safe. `op`
    /// makes it of the limit and the key under which the request is counted. A request that does not say who sends it is
    /// refused with `missing`.
    pub(crate) fn ask(
        &self,
        (request, host): (&Request<'_>, &dyn Host),
        context: &mut Context,
        missing: &'static str,
        op: impl Fn(&L, String) -> (Counted, Op),
    ) -> Verdict {
        let (mut ops, mut shadows) = (Vec::new(), Vec::new());
        for (scope, limit) in self.scoped(context) {
            if limit.when().is_some_and(|when| when.holds(request, host, context) == Some(false)) {
                continue;
            }
            let key = counter_key(self.kind, limit.name(), limit.by(), scope, &self.route, context);
            match (key, limit.mode()) {
                (Some(key), _) => ops.push(op(limit, key)),
                (None, Mode::Shadow) => shadows.push(limit.name()),
                (None, Mode::Enforce) => {
                    let detail =
                        "This service limits requests by who sends them, and the request does not say.";
                    return Refusal::new(403, missing, detail)
                        .of_limit(scope.told(limit.name(), context))
                        .into();
                }
            }
        }
        ops.into_iter().for_each(|(counted, op)| context.ask_of(counted, op));
        shadows.into_iter().for_each(|name| context.note_shadow(self.filter, name));
        Verdict::Pass
    }

    /// A limit in shadow would have refused: that is noted, and the request passes.
    pub(crate) fn would_refuse(&self, op: &Op, context: &mut Context) -> Verdict {
        if let Some((_, limit)) = self.find(op.key(), context) {
            context.note_shadow(self.filter, limit.name());
        }
        Verdict::Pass
    }

    /// The one that is counted under a key, and where it is written.
    pub(crate) fn find(&self, key: &str, context: &Context) -> Option<(Scope, &L)> {
        let name = key.strip_prefix(self.kind)?.strip_prefix('/')?.split('/').next()?;
        let mut all = self.scoped(context);
        all.find(|(scope, limit)| scope.counter(limit.name()) == name)
    }

    fn scoped<'l>(&'l self, context: &Context) -> impl Iterator<Item = (Scope, &'l L)> + 'l {
        let plan = context.tenant.as_ref().and_then(|tenant| tenant.plan.as_deref());
        let of_plan = plan.and_then(|plan| self.by_plan.get(plan)).into_iter().flatten();
        self.own.iter().map(|limit| (Scope::Route, limit)).chain(of_plan.map(|limit| (Scope::Plan, limit)))
    }
}

impl Scope {
    /// How a limit's counters are named: those of plans apart from those of routes. A tenant that changes its plan keeps
    /// what it has used of limits that have the same name in both.
    pub(crate) fn counter(self, name: &str) -> String {
        match self {
            Self::Route => name.to_owned(),
            Self::Plan => format!("plan:{name}"),
        }
    }

    /// How operators are told of a limit.
    pub(crate) fn told(self, name: &str, context: &Context) -> LimitName {
        let plan = match self {
            Self::Route => None,
            Self::Plan => context.tenant.as_ref().and_then(|tenant| tenant.plan.clone()),
        };
        LimitName { name: name.to_owned(), plan }
    }
}
