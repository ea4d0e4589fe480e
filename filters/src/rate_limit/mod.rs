//! How often: nested limits by GCRA, each counted for one subject, all taken together or not at all.
//!
//! The arithmetic is [`crate::state`]'s. Fields: `RateLimit-Policy`, `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers) and `Retry-After` (RFC 9110 section 10.2.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Request, Verdict, state_unavailable};
use crate::policy::{Settings, Shared, Site, Unusable};
use crate::state::{Answer, Counted, Op, Rate};
use crate::subject::{By, counter_key, name_mistake};

/// Limits that all hold at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits; a request passes when it is within every one of them.
    pub limits: Vec<Limit>,
    /// What one request of this route takes from each limit.
    #[serde(default = "one")]
    pub cost: u32,
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
                format!("{requests} requests in {per_s} s, {burst} at once, by {}{here}", by.name())
            }
        };
        let shared = |limit: &Limit| Shared { name: limit.name.clone(), meaning: meaning(limit) };
        self.limits.iter().map(shared).collect()
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if self.limits.is_empty() || self.limits.len() > MOST_LIMITS {
            return Err(Unusable::new(format!("`limits` needs one to {MOST_LIMITS} entries")));
        }
        let mut limits = Vec::new();
        for limit in self.limits {
            if let Some(mistake) = name_mistake(&limit.name) {
                return Err(Unusable::new(mistake));
            }
            if limits.iter().any(|seen: &Built| seen.name == limit.name) {
                return Err(Unusable::new(format!("two limits are named `{}`", limit.name)));
            }
            let per_ms = limit.per_s.saturating_mul(1_000);
            let burst = limit.burst.unwrap_or(limit.requests);
            let rate = Rate::new(limit.requests, per_ms, burst)
                .map_err(|why| Unusable::new(format!("limit `{}`: {why}", limit.name)))?;
            if self.cost == 0 || self.cost > burst {
                return Err(Unusable::new(format!(
                    "`cost` is between 1 and the burst of every limit; that of `{}` is {burst}",
                    limit.name
                )));
            }
            limits.push(Built { name: limit.name, by: limit.by, rate, counted: limit.counted });
        }
        Ok(Box::new(RateLimit { route: site.route.to_owned(), cost: self.cost, limits }))
    }
}

/// More would make a request's one batch unbounded.
const MOST_LIMITS: usize = 8;

#[derive(Debug)]
struct RateLimit {
    route: String,
    cost: u32,
    limits: Vec<Built>,
}

#[derive(Debug)]
struct Built {
    name: String,
    by: By,
    rate: Rate,
    counted: Counted,
}

impl Filter for RateLimit {
    fn name(&self) -> &'static str {
        "rate_limit"
    }

    fn head(&self, _request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        for limit in &self.limits {
            let Some(key) = counter_key("take", &limit.name, limit.by, &self.route, context) else {
                let detail = "This service limits requests by who sends them, and the request does not say.";
                return Verdict::refuse(403, "rate_limit_subject_missing", detail);
            };
            context.ask_of(limit.counted, Op::Take { key, rate: limit.rate, cost: self.cost });
        }
        Verdict::Pass
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        let (allowance, retry_after_ms) = match answer {
            Answer::Taken(allowance) => (allowance, None),
            Answer::Exhausted { allowance, retry_after_ms } => (allowance, Some(*retry_after_ms)),
            Answer::NotAsked => return Verdict::Pass,
            // The state is away and the policy has no limits without it, or this is no answer to what was
            // asked: fail closed.
            Answer::Away
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Held(_)
            | Answer::Busy { .. }
            | Answer::Released => return state_unavailable(),
        };
        let Some(limit) = self.limits.iter().find(|limit| op.key().starts_with(&format!("take/{}/", limit.name)))
        else {
            return Verdict::Pass;
        };
        let window_s = limit.rate.per_ms() / 1_000;
        let name = &limit.name;
        let policy = format!("\"{name}\";q={};w={window_s}", limit.rate.requests());
        let state = format!("\"{name}\";r={};t={}", allowance.remaining, allowance.reset_ms.div_ceil(1_000));
        append(&mut context.answer, "ratelimit-policy", &policy);
        append(&mut context.answer, "ratelimit", &state);
        match retry_after_ms {
            None => Verdict::Pass,
            Some(ms) => crate::filter::Refusal::new(
                429,
                "rate_limited",
                format!("Too many requests: the limit `{name}` is reached. Wait as Retry-After says."),
            )
            .header("retry-after", ms.div_ceil(1_000).max(1).to_string())
            .into(),
        }
    }
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
