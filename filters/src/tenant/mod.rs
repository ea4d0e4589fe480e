//! Whose request it is: the tenant that the token, the client or the host tells, and what the policy says of it.
//!
//! All who tell must tell the same. `X-Tenant-Id` tells nothing by itself, for anybody can send it: it must only agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar::{Calendar, Per};
use crate::filter::{self, Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::policy::{Settings, Site, Unusable};
use crate::state::{Answer, Op, Usage};

/// Requires that the request has a tenant. The limits of its plan hold, what it uses is counted, and the upstream is
/// told in `X-Torana-Tenant`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whose word suffices; one of them must tell the tenant. All who tell one must agree, those too that are not here.
    pub from: Vec<Source>,
}

/// Who tells the tenant of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `tenant` of the token.
    Token,
    /// The client of the policy, known by its certificate or its signature.
    Client,
    /// The host that the request is sent to. It proves nothing about the sender: whoever sends a request chooses whose
    /// limits and bill it counts in.
    Host,
}

impl Default for Config {
    fn default() -> Self {
        Self { from: vec![Source::Token, Source::Client] }
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self { from: self.from.into_iter().filter(|source| child.from.contains(source)).collect() }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let tenancy = &site.tenancy;
        if self.from.is_empty() {
            return Err(Unusable::new("`from` is empty, or has nothing in common with that of every route"));
        }
        if tenancy.tenants.is_empty() && tenancy.default_plan.is_none() {
            return Err(Unusable::new("the policy has no `tenants` and no `default_plan`, so nobody could pass"));
        }
        let default_plan: Option<Arc<str>> = tenancy.default_plan.map(Arc::from);
        let mut known = BTreeMap::new();
        let mut hosts = BTreeMap::new();
        for (name, settings) in tenancy.tenants {
            let name: Arc<str> = name.as_str().into();
            let own = settings.value.plan.as_ref().map(|plan| Arc::from(plan.value.as_str()));
            let plan = own.or_else(|| default_plan.clone());
            for host in &settings.value.hosts {
                hosts.insert(host.value.to_ascii_lowercase(), Arc::clone(&name));
            }
            known.insert(Arc::clone(&name), filter::Tenant { name, plan });
        }
        Ok(Box::new(Tenants {
            from: self.from,
            known,
            hosts,
            default_plan,
            calendar: tenancy.calendar,
            cost: tenancy.cost,
        }))
    }
}

#[derive(Debug)]
struct Tenants {
    from: Vec<Source>,
    known: BTreeMap<Arc<str>, filter::Tenant>,
    /// By name, lower-case.
    hosts: BTreeMap<String, Arc<str>>,
    default_plan: Option<Arc<str>>,
    calendar: Calendar,
    cost: u32,
}

/// The field in which a client may say which tenant it means.
const FIELD: &str = "x-tenant-id";

impl Tenants {
    /// The tenant's name; `None`: nobody tells one.
    fn told<'c>(&'c self, request: &Request<'_>, context: &'c Context) -> Result<Option<&'c str>, Refusal> {
        let mut told: Option<&str> = None;
        let mut suffices = false;
        for source in [Source::Token, Source::Client, Source::Host] {
            let says = match source {
                Source::Token => context.identity().and_then(|who| who.tenant.as_deref()),
                Source::Client => context.client.as_ref().and_then(|client| client.tenant.as_deref()),
                Source::Host => self.hosts.get(&host(request)).map(|name| &**name),
            };
            match (told, says) {
                (Some(first), Some(other)) if first != other => {
                    let detail = "The token, the client and the host do not belong to one tenant.";
                    return Err(Refusal::new(403, "tenant_mismatch", detail));
                }
                (None, Some(name)) => told = Some(name),
                (Some(_), Some(_)) | (_, None) => {}
            }
            suffices |= says.is_some() && self.from.contains(&source);
        }
        Ok(told.filter(|_| suffices))
    }

    fn tenant(&self, request: &Request<'_>, context: &Context) -> Result<filter::Tenant, Refusal> {
        let meant = request.headers.one(FIELD).map_err(|_| {
            Refusal::new(400, "tenant_ambiguous", "Send X-Tenant-Id once, in visible ASCII, or not at all.")
        })?;
        let Some(name) = self.told(request, context)? else {
            let detail = "This service is for tenants, and nothing tells yours: the access token, the client or the host.";
            return Err(Refusal::new(400, "tenant_missing", detail));
        };
        if meant.is_some_and(|meant| meant != name) {
            let detail = "X-Tenant-Id names another tenant than yours. Leave it out, or send your own.";
            return Err(Refusal::new(403, "tenant_mismatch", detail));
        }
        match (self.known.get(name), &self.default_plan) {
            (Some(known), _) => Ok(known.clone()),
            (None, Some(plan)) => Ok(filter::Tenant { name: name.into(), plan: Some(Arc::clone(plan)) }),
            (None, None) => {
                Err(Refusal::new(403, "tenant_unknown", "Your tenant is not served here. Ask its operator."))
            }
        }
    }
}

/// The host that the request names, lower-case, without its port.
fn host(request: &Request<'_>) -> String {
    let host = request.headers.one("host").ok().flatten().unwrap_or(request.authority);
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    name.to_ascii_lowercase()
}

impl Filter for Tenants {
    fn name(&self) -> &'static str {
        "tenant"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        let tenant = match self.tenant(request, context) {
            Ok(tenant) => tenant,
            Err(refusal) => return refusal.into(),
        };
        let day = self.calendar.period(Per::Day, host.now_ms());
        context.tell("x-torana-tenant", tenant.name.to_string());
        context.ask(Op::Tally {
            key: usage_key(&day.name),
            tenant: tenant.name.to_string(),
            usage: Usage::of_request(self.cost),
            until_ms: day.ends_ms.saturating_add(USAGE_KEPT_MS),
        });
        context.tenant = Some(tenant);
        Verdict::Pass
    }

    fn answered(&self, _op: &Op, answer: &Answer, _context: &mut Context) -> Verdict {
        match answer {
            Answer::Tallied | Answer::NotCounted | Answer::NotAsked => Verdict::Pass,
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Spent(_)
            | Answer::Overspent(_)
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Held(_)
            | Answer::Busy { .. }
            | Answer::Released
            | Answer::WouldRefuse => state_unavailable(),
        }
    }
}

/// What is kept of a day, so that the whole of the month before this one can be told until this one ends.
const USAGE_KEPT_MS: u64 = 62 * 86_400_000;

/// The key of what tenants have used of a day.
pub fn usage_key(day: &str) -> String {
    format!("usage/{day}")
}
