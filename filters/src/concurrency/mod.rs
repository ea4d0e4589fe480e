//! How many at once: requests in flight of one subject, held in shared state and given back when they end.
//!
//! A place whose request never ends, because its edge died say, is free again when its lease ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::policy::{Settings, Shared, Site, Unusable};
use crate::state::{Answer, Op};
use crate::subject::{By, counter_key, name_mistake};

/// Limits on requests in flight; a request passes when every one of them has a place for it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The limits.
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
    /// Seconds after which a place is free again whatever became of its request; longer than any request takes.
    #[serde(default = "lease")]
    pub lease_s: u64,
}

fn lease() -> u64 {
    60
}

/// More would make a request's one batch unbounded.
const MOST_LIMITS: usize = 8;

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        self.limits.append(&mut child.limits);
        self
    }

    fn shared(&self) -> Vec<Shared> {
        let meaning = |limit: &Limit| match limit.by {
            By::Route => "a limit of each route".to_owned(),
            by @ (By::Ip | By::Tenant | By::Client | By::User | By::Device | By::Key) => {
                format!("{} at once for {} s at most, by {}", limit.most, limit.lease_s, by.name())
            }
        };
        self.limits.iter().map(|limit| Shared { name: limit.name.clone(), meaning: meaning(limit) }).collect()
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if self.limits.is_empty() || self.limits.len() > MOST_LIMITS {
            return Err(Unusable::new(format!("`limits` needs one to {MOST_LIMITS} entries")));
        }
        for (position, limit) in self.limits.iter().enumerate() {
            if let Some(mistake) = name_mistake(&limit.name) {
                return Err(Unusable::new(mistake));
            }
            if self.limits.iter().take(position).any(|seen| seen.name == limit.name) {
                return Err(Unusable::new(format!("two limits are named `{}`", limit.name)));
            }
            if limit.most == 0 || limit.most > Op::MOST_PLACES {
                let most = Op::MOST_PLACES;
                return Err(Unusable::new(format!("limit `{}`: `most` is between 1 and {most}", limit.name)));
            }
            if !(1..=3_600).contains(&limit.lease_s) {
                return Err(Unusable::new(format!("limit `{}`: `lease_s` is between 1 and 3600", limit.name)));
            }
        }
        Ok(Box::new(Concurrency { route: site.route.to_owned(), limits: self.limits }))
    }
}

#[derive(Debug)]
struct Concurrency {
    route: String,
    limits: Vec<Limit>,
}

impl Filter for Concurrency {
    fn name(&self) -> &'static str {
        "concurrency"
    }

    fn head(&self, _request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        for limit in &self.limits {
            let Some(key) = counter_key("hold", &limit.name, limit.by, &self.route, context) else {
                let detail = "This service limits requests by who sends them, and the request does not say.";
                return Verdict::refuse(403, "concurrency_subject_missing", detail);
            };
            context.ask(Op::Hold { key, most: limit.most, lease_ms: limit.lease_s.saturating_mul(1_000) });
        }
        Verdict::Pass
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        match answer {
            Answer::Held(place) => {
                context.held.push(Op::Release { key: op.key().to_owned(), place: *place });
                Verdict::Pass
            }
            // Somebody's request will end long before its lease does.
            Answer::Busy { .. } => Refusal::new(
                429,
                "concurrency_limited",
                "Too many requests at once. Wait for one to be answered, then try again.",
            )
            .header("retry-after", "1")
            .into(),
            Answer::NotAsked => Verdict::Pass,
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Released => state_unavailable(),
        }
    }
}
