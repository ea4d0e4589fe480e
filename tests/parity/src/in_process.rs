//! The crate `filters` itself, as a data plane: no wire, no clock but the case's.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use filters::admission::{Admission, Draw, HIDDEN_FROM_CLIENTS};
use filters::chain::Refused;
use filters::crypto::{Local, Verify};
use filters::filter::{Host, Refusal};
use filters::jwt::KeySet;
use filters::policy::Policy;
use filters::state::{Memory, Op};

use crate::case::Named;
use crate::document::{Places, policy};
use crate::mint::{Keys, PARTNER_SECRET, Sent};
use crate::outcome::{FieldMap, Outcome, answer_fields, upstream_fields};

/// What the upstreams answer with, besides their name.
pub const UPSTREAM_ANSWER: [(&str, &str); 3] =
    [("content-type", "application/json"), ("server", "upstream/1.0"), ("x-upstream-says", "hello")];

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
    now_ms: u64,
    verifier: &'static dyn Verifier,
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
        let places =
            Places { listeners: [at(1), at(2)], admin: at(3), state: at(4), upstreams: [at(5), at(6)] };
        let document = policy(named, &places, Path::new("/"));
        let policy =
            Policy::read(&document.to_string(), &|_| Ok(PARTNER_SECRET.to_vec())).map_err(|mistakes| {
                anyhow!(mistakes.iter().map(|m| m.in_file("case")).collect::<Vec<_>>().join("; "))
            })?;
        let memory = Memory::new(policy.document().state.memory.max_entries, now_ms - RUN_UP_MS);
        Ok(Self { policy, world: World { keys, now_ms, verifier: &Local }, memory })
    }

    /// Has signatures verified by somebody else.
    #[must_use]
    pub fn verified_by<V: Verify + std::fmt::Debug>(mut self, verifier: &'static V) -> Self {
        self.world.verifier = verifier;
        self
    }

    /// Decides on one request, which ends.
    pub fn decide(&mut self, sent: &Sent, now_ms: u64) -> Outcome {
        let (outcome, held) = self.begin(sent, now_ms);
        if !held.is_empty() {
            let _ = self.memory.run(&held, now_ms);
        }
        outcome
    }

    /// Decides on one request, and tells what it gives back when it ends.
    pub fn begin(&mut self, sent: &Sent, now_ms: u64) -> (Outcome, Vec<Op>) {
        self.world.now_ms = now_ms;
        let framing = sent.framing();
        let request = sent.request(&framing);
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
        let outcome = match decided {
            Ok(()) => self.passed(&admission, &request),
            Err(Refused { refusal, .. }) => self.refused(&admission, &refusal),
        };
        (outcome, admission.leaves())
    }

    fn passed(&self, admission: &Admission, request: &filters::filter::Request<'_>) -> Outcome {
        let changes = admission.upstream_fields(request.headers.iter().map(|(name, _)| name));
        let kept = request.headers.iter().filter(|(name, _)| {
            !changes.remove.iter().any(|removed| removed == name)
                && !changes.set.iter().any(|(set, _)| set == name)
        });
        let set = changes.set.iter().map(|(name, value)| (*name, value.as_bytes()));
        let upstream = Some(upstream_fields(kept.chain(set)));
        let from_upstream =
            UPSTREAM_ANSWER.into_iter().filter(|(name, _)| !HIDDEN_FROM_CLIENTS.contains(name));
        let answer =
            self.dressed(admission, from_upstream.map(|(n, v)| (n.to_owned(), v.to_owned())).collect());
        let shares = admission.rule(&self.policy).map(|rule| rule.upstreams.as_slice());
        let served_by = match shares {
            Some([only]) => Some(only.upstream.clone()),
            Some(_) | None => None,
        };
        Outcome { verdict: "pass".to_owned(), upstream, served_by, answer, entries: Some(self.memory.len()) }
    }

    fn refused(&self, admission: &Admission, refusal: &Refusal) -> Outcome {
        let (fields, _) = admission.problem(refusal);
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Outcome {
            verdict: format!("{} {}", refusal.status, refusal.code),
            upstream: None,
            served_by: None,
            answer: self.dressed(admission, fields),
            entries: Some(self.memory.len()),
        }
    }

    /// An answer's own fields, and in place of some of them those of every answer.
    fn dressed(&self, admission: &Admission, mut fields: Vec<(String, String)>) -> FieldMap {
        for (name, value) in admission.answer_fields(&self.policy) {
            fields.retain(|(given, _)| *given != name);
            fields.push((name.into_owned(), value));
        }
        answer_fields(fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    }
}
