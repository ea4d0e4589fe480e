//! How often: nested limits by GCRA, each counted for one subject, all taken together or not at all.
//!
//! The arithmetic is [`crate::state`]'s. Fields: `RateLimit-Policy`, `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers) and `Retry-After` (RFC 9110 section 10.2.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::flags::When;
use crate::plan::{self, Limits, meaning_of};
use crate::policy::{Plan, Settings, Shared, Site, Unusable};
use crate::state::{Answer, Counted, Mode, Op, Rate};
use crate::subject::By;

/// Limits that all hold at once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits; a request passes when it is within every one of them.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// What one request of this route takes from each limit, and from each quota.
    #[serde(default = "one")]
    pub cost: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { limits: Vec::new(), cost: one() }
    }
}

fn one() -> u32 {
    1
}

/// So many requests in so long for each subject.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name in the RateLimit fields and in the logs: lower-case letters, digits, `-` and `_`. Routes that
    /// use one name share the limit, so it must be the same limit on all of them; `by: route` is each route's
    /// own.
    pub name: String,
    /// Whose requests are counted together.
    pub by: By,
    /// Requests in `per_s`.
    pub requests: u32,
    /// Seconds.
    pub per_s: u64,
    /// Requests that may come at once; `requests` when absent.
    pub burst: Option<u32>,
    /// Where it is counted.
    #[serde(default)]
    pub counted: Counted,
    /// Whether it holds already.
    #[serde(default)]
    pub mode: Mode,
    /// That it holds while a feature flag says so, and else for nobody; absent: always.
    pub when: Option<When>,
}

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        self.limits.append(&mut child.limits);
        Self { limits: self.limits, cost: self.cost.max(child.cost) }
    }

    fn shared(&self) -> Vec<Shared> {
        let meaning = |limit: &Limit| match limit.by {
            By::Route => "a limit of each route".to_owned(),
            by @ (By::Ip | By::Tenant | By::Client | By::User | By::Device | By::Key) => {
                let burst = limit.burst.unwrap_or(limit.requests);
                let Limit { requests, per_s, .. } = limit;
                let here = match limit.counted {
                    Counted::Shared => "",
                    Counted::Here => ", counted here",
                };
                format!("{requests} requests in {per_s} s, {burst} at once, by {}{here}{}", by.name(), meaning_of(&limit.when))
            }
        };
        let shared = |limit: &Limit| Shared { name: limit.name.clone(), meaning: meaning(limit) };
        self.limits.iter().map(shared).collect()
    }

    fn flags(&self) -> Vec<&When> {
        self.limits.iter().filter_map(|limit| limit.when.as_ref()).collect()
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let cost = self.cost;
        let make = |limit: &Limit| {
            let burst = limit.burst.unwrap_or(limit.requests);
            let per_ms = limit.per_s.saturating_mul(1_000);
            let rate = Rate::new(limit.requests, per_ms, burst).map_err(|why| why.to_string())?;
            if cost == 0 || cost > burst {
                return Err(format!("`cost` is between 1 and the burst of every limit; here that is {burst}"));
            }
            let Limit { name, by, counted, mode, when, .. } = limit.clone();
            Ok(Built { name, by, rate, counted, mode, when })
        };
        let limits = Limits::build("take", "rate_limit", &self.limits, of_plan, site, make)?;
        if cost == 0 {
            return Err(Unusable::new("`cost` is at least 1"));
        }
        // Without limits the settings may still say what a request costs.
        if limits.is_empty() && !(cost > 1 && site.tenancy.cost_counts) {
            return Err(Unusable::new("`limits` needs one to 8 entries"));
        }
        Ok(Box::new(RateLimit { cost, limits }))
    }
}

fn of_plan(plan: &Plan) -> &[Limit] {
    &plan.rate_limit
}

#[derive(Debug)]
struct RateLimit {
    cost: u32,
    limits: Limits<Built>,
}

#[derive(Debug)]
struct Built {
    name: String,
    by: By,
    rate: Rate,
    counted: Counted,
    mode: Mode,
    when: Option<When>,
}

impl plan::Limit for Limit {
    fn name(&self) -> &str {
        &self.name
    }
    fn by(&self) -> By {
        self.by
    }
    fn mode(&self) -> Mode {
        self.mode
    }
    fn when(&self) -> Option<&When> {
        self.when.as_ref()
    }
}

impl plan::Limit for Built {
    fn name(&self) -> &str {
        &self.name
    }
    fn by(&self) -> By {
        self.by
    }
    fn mode(&self) -> Mode {
        self.mode
    }
    fn when(&self) -> Option<&When> {
        self.when.as_ref()
    }
}

impl Filter for RateLimit {
    fn name(&self) -> &'static str {
        "rate_limit"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        self.limits.ask((request, host), context, "rate_limit_subject_missing", |&Built { rate, counted, mode, .. }, key| {
            (counted, Op::Take { key, rate, cost: self.cost, mode })
        })
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        let (allowance, retry_after_ms) = match answer {
            Answer::Taken(allowance) => (allowance, None),
            Answer::Exhausted { allowance, retry_after_ms } => (allowance, Some(*retry_after_ms)),
            Answer::NotAsked | Answer::NotCounted => return Verdict::Pass,
            Answer::WouldRefuse => return self.limits.would_refuse(op, context),
            // The state is away and the policy has no limits without it, or this is no answer to what was
            // asked: fail closed.
            Answer::Away
            | Answer::Spent(_)
            | Answer::Overspent(_)
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Held(_)
            | Answer::Busy { .. }
            | Answer::Released
            | Answer::Tallied => return state_unavailable(),
        };
        let Some((scope, limit)) = self.limits.find(op.key(), context) else { return Verdict::Pass };
        let name = limit.name.clone();
        if limit.mode.enforces() {
            let window_s = limit.rate.per_ms() / 1_000;
            let policy = format!("\"{name}\";q={};w={window_s}", limit.rate.requests());
            let left = allowance.remaining;
            advertise(context, &policy, &format!("\"{name}\";r={left};t={}", allowance.reset_ms.div_ceil(1_000)));
        }
        match retry_after_ms {
            None => Verdict::Pass,
            Some(ms) => Refusal::new(
                429,
                "rate_limited",
                format!("Too many requests: the limit `{name}` is reached. Wait as Retry-After says."),
            )
            .header("retry-after", ms.div_ceil(1_000).max(1).to_string())
            .of_limit(scope.told(&name, context))
            .into(),
        }
    }
}

/// Tells the client of a limit that holds: what it lets pass, and what is left of that.
pub(crate) fn advertise(context: &mut Context, policy: &str, state: &str) {
    append(&mut context.answer, "ratelimit-policy", policy);
    append(&mut context.answer, "ratelimit", state);
}

/// One field with a list of members, as structured fields want it (RFC 8941 section 3.1).
fn append(fields: &mut Vec<(&'static str, String)>, name: &'static str, member: &str) {
    match fields.iter_mut().find(|(n, _)| *n == name) {
        Some((_, value)) => {
            value.push_str(", ");
            value.push_str(member);
        }
        None => fields.push((name, member.to_owned())),
    }
}
