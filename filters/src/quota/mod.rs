//! How much: volumes of a day or a month, each counted for one subject, spent together with every other limit or not
//! at all.
//!
//! The arithmetic is [`crate::state`]'s, days and months are [`crate::calendar`]'s. Fields: as of `rate_limit`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar::{Calendar, Per};
use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::flags::When;
use crate::plan::{self, Limits, meaning_of};
use crate::policy::{Plan, Settings, Shared, Site, Unusable};
use crate::rate_limit::advertise;
use crate::state::{Answer, Counted, Mode, Op, Volume};
use crate::subject::By;

/// Volumes that all hold at once. What a request costs is `rate_limit.cost`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The volumes; a request passes when there is enough left of every one of them.
    #[serde(default)]
    pub limits: Vec<Limit>,
}

/// So much a day or a month for each subject.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name in the RateLimit fields and in the logs: lower-case letters, digits, `-` and `_`. Routes that
    /// use one name share the volume, so it must be the same on all of them; `by: route` is each route's own.
    pub name: String,
    /// Whose requests are counted together.
    pub by: By,
    /// How long it lasts, in the policy's `utc_offset`.
    pub per: Per,
    /// What may be spent of it; a request of a route without `cost` spends 1.
    pub most: u64,
    /// Whether it holds already.
    #[serde(default)]
    pub mode: Mode,
    /// That it holds while a feature flag says so, and else for nobody; absent: always.
    pub when: Option<When>,
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

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        self.limits.append(&mut child.limits);
        self
    }

    fn shared(&self) -> Vec<Shared> {
        let meaning = |limit: &Limit| match limit.by {
            By::Route => "a quota of each route".to_owned(),
            by @ (By::Ip | By::Tenant | By::Client | By::User | By::Device | By::Key) => {
                format!("{} a {}, by {}{}", limit.most, limit.per.name(), by.name(), meaning_of(&limit.when))
            }
        };
        self.limits.iter().map(|limit| Shared { name: limit.name.clone(), meaning: meaning(limit) }).collect()
    }

    fn flags(&self) -> Vec<&When> {
        self.limits.iter().filter_map(|limit| limit.when.as_ref()).collect()
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let cost = site.tenancy.cost;
        let make = |limit: &Limit| {
            if limit.most == 0 || limit.most > Volume::MOST {
                return Err(format!("`most` is between 1 and {}", Volume::MOST));
            }
            if u64::from(cost) > limit.most {
                return Err(format!("a request costs {cost}, and `most` is {}", limit.most));
            }
            Ok(limit.clone())
        };
        let limits = Limits::build("spend", "quota", &self.limits, of_plan, site, make)?;
        if limits.is_empty() {
            return Err(Unusable::new("`limits` needs one to 8 entries"));
        }
        Ok(Box::new(Quota { limits, cost, calendar: site.tenancy.calendar }))
    }
}

fn of_plan(plan: &Plan) -> &[Limit] {
    &plan.quota
}

#[derive(Debug)]
struct Quota {
    limits: Limits<Limit>,
    cost: u32,
    calendar: Calendar,
}

impl Filter for Quota {
    fn name(&self) -> &'static str {
        "quota"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        let now_ms = host.now_ms();
        self.limits.ask((request, host), context, "quota_subject_missing", |&Limit { per, most, mode, .. }, key| {
            let period = self.calendar.period(per, now_ms);
            let key = format!("{key}@{}", period.name);
            (Counted::Shared, Op::Spend { key, most, cost: self.cost, ends_ms: period.ends_ms, mode })
        })
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        let (volume, spent) = match answer {
            Answer::Spent(volume) => (volume, true),
            Answer::Overspent(volume) => (volume, false),
            Answer::NotAsked | Answer::NotCounted => return Verdict::Pass,
            Answer::WouldRefuse => return self.limits.would_refuse(op, context),
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Held(_)
            | Answer::Busy { .. }
            | Answer::Released
            | Answer::Tallied => return state_unavailable(),
        };
        let (Some((scope, limit)), Op::Spend { most, ends_ms, .. }) = (self.limits.find(op.key(), context), op) else {
            return Verdict::Pass;
        };
        let renews_s = volume.renews_ms.div_ceil(1_000);
        let name = limit.name.clone();
        if limit.mode.enforces() {
            let length_s = self.calendar.period(limit.per, ends_ms.saturating_sub(1)).length_s();
            let policy = format!("\"{name}\";q={most};w={length_s}");
            advertise(context, &policy, &format!("\"{name}\";r={};t={renews_s}", volume.left));
        }
        if spent {
            return Verdict::Pass;
        }
        let per = limit.per.name();
        let detail = format!("The quota `{name}` of this {per} is spent. Retry-After tells when there is more.");
        Refusal::new(429, "quota_exceeded", detail)
            .header("retry-after", renews_s.max(1).to_string())
            .of_limit(scope.told(&name, context))
            .into()
    }
}
