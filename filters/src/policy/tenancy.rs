//! Tenants and plans: whose requests the edge serves, and how much of it each may have.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document};
use super::meaning::Site;
use super::mistake::{Mistake, unknown};
use super::{Settings as _, Unusable};
use crate::FilterSet;
use crate::calendar::Calendar;
use crate::{concurrency, quota, rate_limit};

/// A tenant: a merchant, a partner bank, a business of one's own.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The plan whose limits hold for it; absent: `default_plan`, or none.
    pub plan: Option<At<String>>,
    /// Hosts that are its alone: a request to one of them is a request of this tenant.
    #[serde(default)]
    pub hosts: Vec<At<String>>,
}

/// Limits of every tenant that has the plan, on every route that requires `tenant`. They are counted for each tenant
/// apart, and within it as `by` says.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// How often.
    pub rate_limit: Vec<rate_limit::Limit>,
    /// How much a day or a month.
    pub quota: Vec<quota::Limit>,
    /// How many at once.
    pub concurrency: Vec<concurrency::Limit>,
}

/// Plans by name.
pub(super) type Plans = BTreeMap<String, At<Plan>>;

/// What a filter may know of tenants where it is made.
#[derive(Clone, Copy, Debug)]
pub struct Tenancy<'p> {
    /// Every tenant of the policy.
    pub(crate) tenants: &'p BTreeMap<String, At<Tenant>>,
    plans: &'p Plans,
    /// The plan of tenants that name none, and of those that the policy does not name.
    pub(crate) default_plan: Option<&'p str>,
    pub(crate) calendar: Calendar,
    /// Filters of which no plan's limits hold.
    except: &'p [&'p str],
    /// Whether the place requires `tenant`: only there plans hold.
    required: bool,
    /// What one request costs.
    pub(crate) cost: u32,
    /// Whether anything counts what requests cost.
    pub(crate) cost_counts: bool,
}

impl<'p> Tenancy<'p> {
    /// Of a place with these filters.
    pub(super) fn of(
        document: &'p Document,
        plans: &'p Plans,
        filters: &FilterSet,
        except: &'p [&'p str],
    ) -> Self {
        let required = filters.tenant.is_some();
        let cost = filters.rate_limit.as_ref().map_or(1, |settings| settings.cost);
        let Document { tenants, default_plan, utc_offset: calendar, .. } = document;
        let default_plan = default_plan.as_ref().map(|plan| plan.value.as_str());
        Self {
            tenants,
            default_plan,
            calendar: *calendar,
            plans,
            except,
            required,
            cost,
            cost_counts: required || filters.quota.is_some(),
        }
    }

    /// The plans whose limits of this filter hold here.
    pub(crate) fn plans(&self, filter: &str) -> impl Iterator<Item = (&'p str, &'p Plan)> + use<'p> {
        let hold = self.required && !self.except.contains(&filter);
        let plans = hold.then_some(self.plans).into_iter().flatten();
        plans.map(|(name, plan)| (name.as_str(), &plan.value))
    }
}

/// The filters of a place, and those that the plans need there.
pub(super) fn with_plans(mut filters: FilterSet, plans: &Plans, except: &[&str]) -> FilterSet {
    if filters.tenant.is_none() {
        return filters;
    }
    let needed = |filter: &str, limits: fn(&Plan) -> bool| {
        !except.contains(&filter) && plans.values().any(|plan| limits(&plan.value))
    };
    if needed("rate_limit", |plan| !plan.rate_limit.is_empty()) {
        filters.rate_limit.get_or_insert_default();
    }
    if needed("quota", |plan| !plan.quota.is_empty()) {
        filters.quota.get_or_insert_default();
    }
    if needed("concurrency", |plan| !plan.concurrency.is_empty()) {
        filters.concurrency.get_or_insert_default();
    }
    filters
}

/// Tells what is wrong with tenants and plans themselves; plans with mistakes are not told of again by every route, so
/// then there are none.
pub(super) fn check<'d>(document: &'d Document, site: &Site<'_>, mistakes: &mut Vec<Mistake>) -> &'d Plans {
    let names = || document.plans.keys().map(String::as_str);
    let named = document.tenants.values().filter_map(|tenant| tenant.value.plan.as_ref());
    for plan in named.chain(&document.default_plan) {
        if !document.plans.contains_key(&plan.value) {
            mistakes.push(Mistake::of(plan, unknown("plan", &plan.value, names())));
        }
    }
    let mut hosts: BTreeMap<String, &str> = BTreeMap::new();
    for (name, tenant) in &document.tenants {
        if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = format!("tenant `{name}`: a name is 1 to {MOST_NAME} visible characters");
            mistakes.push(Mistake::of(tenant, message));
        }
        for host in &tenant.value.hosts {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            if host.value.is_empty() || !host.value.bytes().all(plain) {
                let message =
                    format!("tenant `{name}`: `{}` is not a host; write it without its port", host.value);
                mistakes.push(Mistake::of(host, message));
            } else if let Some(other) = hosts.insert(host.value.to_ascii_lowercase(), name) {
                let message = format!("tenants `{other}` and `{name}` would have the host `{}`", host.value);
                mistakes.push(Mistake::of(host, message));
            }
        }
    }
    let mut plans = &document.plans;
    for (name, plan) in &document.plans {
        for why in unusable(&plan.value, site) {
            mistakes.push(Mistake::of(plan, format!("plan `{name}`: {why}")));
            plans = &NO_PLANS;
        }
    }
    let tenants = || document.tenants.keys().map(String::as_str);
    for (name, client) in &document.clients {
        if let Some(tenant) = &client.tenant
            && !document.tenants.is_empty()
            && document.default_plan.is_none()
            && !document.tenants.contains_key(&tenant.value)
        {
            let why = unknown("tenant", &tenant.value, tenants());
            mistakes.push(Mistake::of(tenant, format!("client `{name}`: {why}")));
        }
    }
    plans
}

static NO_PLANS: Plans = Plans::new();

#[cfg(test)]
impl Tenancy<'static> {
    /// Of a policy without tenants.
    pub(crate) fn none() -> Self {
        static NOBODY: BTreeMap<String, At<Tenant>> = BTreeMap::new();
        Self {
            tenants: &NOBODY,
            plans: &NO_PLANS,
            default_plan: None,
            calendar: Calendar::INDIA,
            except: &[],
            required: false,
            cost: 1,
            cost_counts: false,
        }
    }
}

/// As in tokens and fields.
const MOST_NAME: usize = 128;

/// What would be wrong with the plan's limits on any route.
fn unusable(plan: &Plan, site: &Site<'_>) -> Vec<Unusable> {
    let rate_limit = rate_limit::Config { limits: plan.rate_limit.clone(), ..Default::default() };
    let quota = quota::Config { limits: plan.quota.clone() };
    let concurrency = concurrency::Config { limits: plan.concurrency.clone() };
    let built = [
        (!plan.rate_limit.is_empty()).then(|| rate_limit.build(site).map_err(|why| why.of("rate_limit"))),
        (!plan.quota.is_empty()).then(|| quota.build(site).map_err(|why| why.of("quota"))),
        (!plan.concurrency.is_empty()).then(|| concurrency.build(site).map_err(|why| why.of("concurrency"))),
    ];
    built.into_iter().flatten().filter_map(Result::err).collect()
}

/// What is worth a second look.
pub(super) fn warnings(document: &Document) -> Vec<Mistake> {
    let everywhere = &document.filters.value;
    let requires = document.routes.iter().any(|route| {
        let route = &route.value;
        let inherits = everywhere.has("tenant") && !route.except.iter().any(|name| name.value == "tenant");
        inherits || route.filters.value.has("tenant")
    });
    let mut warnings = Vec::new();
    for (name, plan) in &document.plans {
        let used = document.default_plan.iter().any(|plan| plan.value == *name)
            || document
                .tenants
                .values()
                .filter_map(|tenant| tenant.value.plan.as_ref())
                .any(|plan| plan.value == *name);
        if !requires {
            let message = format!("plan `{name}` limits nobody: no route requires `tenant`");
            warnings.push(Mistake::of(plan, message));
        } else if !used {
            warnings.push(Mistake::of(plan, format!("no tenant has the plan `{name}`")));
        }
    }
    warnings
}
