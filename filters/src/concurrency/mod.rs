//! How many at once: requests in flight of one subject, held in shared state and given back when they end.
//!
//! A place whose request never ends, because its edge died say, is free again when its lease ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::flags::When;
use crate::plan::{self, Limits, meaning_of};
use crate::policy::{Plan, Settings, Shared, Site, Unusable};
use crate::state::{Answer, Counted, Mode, Op};
use crate::subject::By;

/// Limits on requests in flight; a request passes when every one of them has a place for it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits.
    #[serde(default)]
    pub limits: Vec<Limit>,
}

/// So many requests in flight for each subject.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name: lower-case letters, digits, `-` and `_`. Routes that use one name share the places, so it must be
    /// the same limit on all of them; `by: route` is each route's own.
    pub name: String,
    /// Whose requests are counted together.
    pub by: By,
    /// Most in flight; at most 1024.
    pub most: u32,
    /// Seconds after which a place is free again whatever became of its request; longer than any request
    /// takes, or any WebSocket.
    #[serde(default = "lease")]
    pub lease_s: u64,
    /// Whether it holds already.
    #[serde(default)]
    pub mode: Mode,
    /// That it holds while a feature flag says so, and else for nobody; absent: always.
    pub when: Option<When>,
}

/// The longest lease, seconds.
pub(crate) const MOST_LEASE_S: u64 = 3_600;

fn lease() -> u64 {
    60
}

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        self.limits.append(&mut child.limits);
        self
    }

    fn shared(&self) -> Vec<Shared> {
        let meaning = |limit: &Limit| match limit.by {
            By::Route => "a limit of each route".to_owned(),
            by @ (By::Ip | By::Tenant | By::Client | By::User | By::Device | By::Key) => {
                format!("{} at once for {} s at most, by {}{}", limit.most, limit.lease_s, by.name(), meaning_of(&limit.when))
            }
        };
        self.limits.iter().map(|limit| Shared { name: limit.name.clone(), meaning: meaning(limit) }).collect()
    }

    fn flags(&self) -> Vec<&When> {
        self.limits.iter().filter_map(|limit| limit.when.as_ref()).collect()
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let make = |limit: &Limit| {
            if limit.most == 0 || limit.most > Op::MOST_PLACES {
                return Err(format!("`most` is between 1 and {}", Op::MOST_PLACES));
            }
            if !(1..=MOST_LEASE_S).contains(&limit.lease_s) {
                return Err(format!("`lease_s` is between 1 and {MOST_LEASE_S}"));
            }
            Ok(limit.clone())
        };
        let limits = Limits::build("hold", "concurrency", &self.limits, of_plan, site, make)?;
        if limits.is_empty() {
            return Err(Unusable::new("`limits` needs one to 8 entries"));
        }
        Ok(Box::new(Concurrency { limits }))
    }
}

fn of_plan(plan: &Plan) -> &[Limit] {
    &plan.concurrency
}

#[derive(Debug)]
struct Concurrency {
    limits: Limits<Limit>,
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

impl Filter for Concurrency {
    fn name(&self) -> &'static str {
        "concurrency"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        self.limits.ask((request, host), context, "concurrency_subject_missing", |&Limit { most, lease_s, mode, .. }, key| {
            (Counted::Shared, Op::Hold { key, most, lease_ms: lease_s.saturating_mul(1_000), mode })
        })
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        match answer {
            Answer::Held(place) => {
                context.held.push(Op::Release { key: op.key().to_owned(), place: *place });
                Verdict::Pass
            }
            // Somebody's request will end long before its lease does.
            Answer::Busy { .. } => {
                let detail = "Too many requests at once. Wait for one to be answered, then try again.";
                let refusal = Refusal::new(429, "concurrency_limited", detail).header("retry-after", "1");
                match self.limits.find(op.key(), context) {
                    Some((scope, limit)) => refusal.of_limit(scope.told(&limit.name, context)).into(),
                    None => refusal.into(),
                }
            }
            Answer::NotAsked | Answer::NotCounted => Verdict::Pass,
            Answer::WouldRefuse => self.limits.would_refuse(op, context),
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Spent(_)
            | Answer::Overspent(_)
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Released
            | Answer::Tallied => state_unavailable(),
        }
    }
}
