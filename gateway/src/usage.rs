//! What tenants have used, for whoever bills them: `/usage`, and `/usage?month=2026-10` for the month before.

use std::collections::BTreeMap;

use filters::calendar::Per;
use filters::policy::Policy;
use filters::state::{Unanswered, Usage};
use filters::tenant::usage_key;
use http::StatusCode;
use serde_json::{Value, json};

use crate::now_ms;
use crate::state::State;

/// Why nothing is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untold {
    #[error("ask for /usage or for a month, /usage?month=2026-11")]
    NotAMonth,
    #[error(transparent)]
    State(#[from] Unanswered),
}

impl Untold {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NotAMonth => StatusCode::BAD_REQUEST,
            Self::State(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// What tenants have used of a month, and if it is this month also of today.
pub(crate) async fn told(policy: &Policy, state: &State, query: Option<&str>) -> Result<Value, Untold> {
    let document = policy.document();
    let calendar = document.utc_offset;
    let now_ms = now_ms();
    let (this_month, today) = (calendar.period(Per::Month, now_ms), calendar.period(Per::Day, now_ms));
    let month = match query.map(|query| query.strip_prefix("month=")) {
        None => this_month.name.as_str(),
        Some(Some(month)) => month,
        Some(None) => return Err(Untold::NotAMonth),
    };
    let days = calendar.days_of(month).ok_or(Untold::NotAMonth)?;
    let keys: Vec<String> = days.iter().map(|day| usage_key(&day.name)).collect();
    let used = state.usage(&keys).await?;
    let mut by_tenant: BTreeMap<&str, (Usage, Usage)> = BTreeMap::new();
    // Who has used nothing is told too.
    by_tenant.extend(document.tenants.keys().map(|name| (name.as_str(), Default::default())));
    for (day, used) in days.iter().zip(&used) {
        for (tenant, usage) in used {
            let (of_month, of_today) = by_tenant.entry(tenant).or_default();
            *of_month += *usage;
            if day.name == today.name {
                *of_today += *usage;
            }
        }
    }
    let is_current = month == this_month.name;
    let tenants = by_tenant.into_iter().map(|(name, (of_month, of_today))| {
        let named = document.tenants.get(name).and_then(|tenant| tenant.value.plan.as_ref());
        let plan = named.or(document.default_plan.as_ref()).map(|plan| plan.value.as_str());
        let today = is_current.then_some(of_today);
        (name.to_owned(), json!({ "plan": plan, "month": of_month, "day": today }))
    });
    let tenants: serde_json::Map<String, Value> = tenants.collect();
    Ok(json!({
        "utc_offset": calendar.to_string(),
        "month": month,
        "day": is_current.then_some(today.name),
        "of": if state.is_shared() { "every edge on the shared state" } else { "this process since it began" },
        "tenants": tenants,
    }))
}
