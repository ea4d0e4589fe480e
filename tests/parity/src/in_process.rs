//! The crate `filters` itself, as a data plane: no wire, no clock but the case's.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use filters::admission::{Admission, Draw, JOINED};
use filters::chain::Refused;
use filters::compression::Coding;
use filters::crypto::{Local, Verify};
use filters::filter::{Headers, Host, Introspected, Refusal, Request};
use filters::flags::Flags;
use filters::jwt::revocation::Kind;
use filters::jwt::{KeySet, Revocation, Revocations};
use filters::policy::Policy;
use filters::state::{Memory, Op};
use filters::upstream::UpstreamFields;
use serde_json::Value;

use crate::answering::{Asked, Made, Seen, answer, tell_answer};
use crate::case::Named;
use crate::document::{Places, policy};
use crate::introspection;
use crate::mint::{Keys, PARTNER_SECRET, Sent};
use crate::outcome::{FieldMap, Outcome, answer_fields};

/// How long before a case begins its data plane is started, so that there is a past for its requests.
pub const RUN_UP_MS: u64 = 240_000;

/// A policy and the world it decides in.
#[derive(Debug)]
pub struct InProcess<'k> {
    policy: Policy,
    world: World<'k>,
    memory: Memory,
}

#[derive(Debug)]
struct World<'k> {
    keys: &'k Keys,
    flags: Option<Arc<Flags>>,
    now_ms: u64,
    verifier: &'static dyn Verifier,
    revocations: Revocations,
}

/// A [`Verify`] that can be told of.
trait Verifier: Verify + std::fmt::Debug {}
impl<V: Verify + std::fmt::Debug> Verifier for V {}

impl Host for World<'_> {
    fn now_ms(&self) -> u64 {
        self.now_ms
    }
    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        (issuer == "main").then(|| Arc::clone(&self.keys.key_set))
    }
    fn flags(&self) -> Option<Arc<Flags>> {
        self.flags.clone()
    }
    fn introspected(&self, issuer: &str, token: &str) -> Option<Introspected> {
        if issuer == "asked" { introspection::said(token) } else { None }
    }
    fn revocations(&self) -> Option<&Revocations> {
        Some(&self.revocations)
    }
    fn verifier(&self) -> &dyn Verify {
        self.verifier
    }
}

impl<'k> InProcess<'k> {
    /// Reads the case's policy.
    ///
    /// # Errors
    /// When the policy is refused.
    pub fn new(named: &Named, keys: &'k Keys, now_ms: u64) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let at = |port| SocketAddr::new(address.ip(), port);
        let places = Places {
            listeners: [at(1), at(2)],
            admin: at(3),
            state: at(4),
            upstreams: [at(5), at(6)],
            introspection: at(7),
        };
        let document = policy(named, &places, Path::new("/"), keys, now_ms)?;
        let policy = Policy::read(&document.to_string(), &|_| Ok(PARTNER_SECRET.to_vec().into())).map_err(
            |mistakes| anyhow!(mistakes.iter().map(|m| m.in_file("case")).collect::<Vec<_>>().join("; ")),
        )?;
        let flags = named.case.flags_text().map(|text| Flags::read(&text)).transpose();
        let flags = flags.map_err(|mistakes| anyhow!(mistakes.join("; ")))?.map(Arc::new);
        let memory = Memory::new(policy.document().state.memory.max_entries, now_ms - RUN_UP_MS);
        Ok(Self {
            policy,
            world: World { keys, flags, now_ms, verifier: &Local, revocations: Revocations::none() },
            memory,
        })
    }

    /// Has signatures verified by somebody else.
    #[must_use]
    pub fn verified_by<V: Verify + std::fmt::Debug>(mut self, verifier: &'static V) -> Self {
        self.world.verifier = verifier;
        self
    }

    /// Revokes what a case says, as `POST /revocations` would.
    ///
    /// # Errors
    /// When it names nothing that can be revoked.
    pub fn revoke(&mut self, wanted: &serde_json::Map<String, Value>, now_ms: u64) -> anyhow::Result<()> {
        let text = |name: &str| wanted.get(name).and_then(Value::as_str).map(str::to_owned);
        let named = Kind::ALL.into_iter().find_map(|kind| Some((kind, text(kind.name())?)));
        let (kind, id) = named.context("nothing is named")?;
        let for_s = wanted.get("for_s").and_then(Value::as_u64).unwrap_or(86_400);
        self.world.revocations.apply(Revocation {
            kind,
            id,
            tenant: text("tenant"),
            issued_until_ms: kind.spares_later_tokens().then_some(now_ms),
            until_ms: now_ms + for_s * 1_000,
            undone: wanted.get("undo") == Some(&Value::Bool(true)),
        });
        Ok(())
    }

    /// Decides on one request, which ends.
    pub fn decide(&mut self, sent: &Sent, now_ms: u64) -> Outcome {
        let (outcome, held) = self.begin(sent, now_ms);
        self.end(&held, now_ms);
        outcome
    }

    /// A request has ended, and gives back what it held.
    pub fn end(&mut self, held: &[Op], now_ms: u64) {
        if !held.is_empty() {
            let _ = self.memory.run(held, now_ms);
        }
    }

    /// Decides on one request, and tells what it gives back when it ends.
    pub fn begin(&mut self, sent: &Sent, now_ms: u64) -> (Outcome, Vec<Op>) {
        self.world.now_ms = now_ms;
        let framing = sent.framing();
        let request = sent.request(&framing, self.world.keys);
        let traceparent = request.headers.one("traceparent").ok().flatten();
        let draw = Draw { request_id: 1, trace_id: 1, span_id: 1 };
        let mut admission = Admission::new(sent.peer, traceparent, draw);
        let decided = admission
            .head(&self.policy, &request, &self.world)
            .and_then(|()| admission.body(&self.policy, &request, &sent.body, &self.world))
            .and_then(|()| {
                let batch = admission.batch(&self.policy).all();
                let answers = self.memory.run(&batch, now_ms);
                admission.answered(&self.policy, answers)
            });
        let outcome = match decided.and_then(|()| self.passed(&mut admission, &request, sent)) {
            Ok(outcome) => outcome,
            Err(Refused { refusal, .. }) => self.refused(&admission, &refusal),
        };
        (outcome, admission.leaves())
    }

    /// What the upstream gets, and what becomes of its answer.
    fn passed(
        &self,
        admission: &mut Admission,
        request: &Request<'_>,
        sent: &Sent,
    ) -> Result<Outcome, Refused> {
        let UpstreamFields { remove, set, path } = admission.forward(&self.policy, request, &self.world)?;
        let gone =
            |name: &str| remove.iter().any(|gone| gone == name) || set.iter().any(|(new, _)| *new == name);
        let kept = request.headers.iter().filter(|(name, _)| !gone(name));
        let new = set.iter().map(|(name, value)| (name.as_ref(), value.as_bytes()));
        let fields = kept.chain(new).map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        // Who serves by chance is not compared.
        let sticks = admission
            .rule(&self.policy)
            .is_some_and(|rule| rule.upstreams.len() == 1 || rule.sticky.is_some());
        let share = admission.share(&self.policy).filter(|_| sticks);
        let served_by = share.map(|(_, share)| share.upstream.clone());
        let upstream = served_by.clone().unwrap_or_default();
        let target = match (path, request.query) {
            (None, _) => sent.target.clone(),
            (Some(path), None) => path,
            (Some(path), Some(query)) => format!("{path}?{query}"),
        };
        let seen = Seen { upstream, target, fields, body: sent.body.clone() };
        let upstream = seen.told(&sent.method);
        let made = answer(&sent.method, &seen)
            .map_err(|why| Refused::from(Refusal::new(500, "case_unusable", format!("{why:#}"))))?;
        if admission.reads_answer(&self.policy) {
            let headers = made.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
            let answer = (made.status, headers, made.body.as_slice());
            admission.answer(&self.policy, request, answer, &self.world)?;
        }
        let coding = self.coding(admission, request, &made);
        let visible = |(name, _): &&(String, Vec<u8>)| !admission.hides(&self.policy, name);
        let fields = self.dressed(admission, made.fields.iter().filter(visible).cloned().collect());
        let fields = coded(coding, fields);
        let mut answer = told_answer(&fields);
        let to = [&sent.target, &seen.target].map(|target| Asked { method: &sent.method, target });
        tell_answer(&mut answer, made.status, &fields, &made.body, to);
        let entries = Some(self.memory.len());
        if made.status != 200 {
            let verdict = format!("{} -", made.status);
            return Ok(Outcome { verdict, upstream: None, served_by: None, answer, entries });
        }
        let verdict = "pass".to_owned();
        Ok(Outcome { verdict, upstream: Some(upstream), served_by, answer, entries })
    }

    /// Whether the answer goes on compressed.
    fn coding(&self, admission: &Admission, request: &Request<'_>, made: &Made) -> Coding {
        let length = made.body.len().to_string();
        let told = made.tells_length().then_some(("content-length", length.as_bytes()));
        let fields = made.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let fields: Headers<'_> = fields.chain(told).collect();
        admission.coding(&self.policy, request, (made.status, &fields))
    }

    fn refused(&self, admission: &Admission, refusal: &Refusal) -> Outcome {
        let (fields, _) = admission.problem(refusal);
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect();
        Outcome {
            verdict: match refusal.refuses() {
                true => format!("{} {}", refusal.status, refusal.code),
                false => format!("{} -", refusal.status),
            },
            upstream: None,
            served_by: None,
            answer: told_answer(&self.dressed(admission, fields)),
            entries: Some(self.memory.len()),
        }
    }

    /// An answer's own fields, and in place of some of them those of every answer.
    fn dressed(&self, admission: &Admission, mut fields: Fields) -> Fields {
        for (name, value) in admission.answer_fields(&self.policy) {
            fields.retain(|(given, _)| JOINED.contains(&given.as_str()) || *given != name);
            fields.push((name.into_owned(), value.into_bytes()));
        }
        fields
    }
}

/// The fields of an answer that goes on so.
fn coded(coding: Coding, mut fields: Fields) -> Fields {
    let edits = coding.edits(&fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect());
    fields.retain(|(given, _)| !edits.iter().any(|(name, _)| given == name));
    let set = edits.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into_bytes())));
    fields.extend(set);
    if coding == Coding::Gzip {
        fields.push(("content-encoding".to_owned(), b"gzip".to_vec()));
    }
    fields
}

type Fields = Vec<(String, Vec<u8>)>;

fn told_answer(fields: &Fields) -> FieldMap {
    answer_fields(fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}
