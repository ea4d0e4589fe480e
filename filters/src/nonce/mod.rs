//! Replays: a signed request is taken once.
//!
//! `signature` has verified what is read here. The nonce goes into the request's one batch for shared state,
//! where it is remembered only if nothing else refuses: a client that was told to slow down may send the same
//! request again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::policy::{Settings, Site, Unusable};
use crate::signature::freshness::Window;
use crate::state::{Answer, Op};

/// Requires a fresh nonce in the request's signature (RFC 9421 section 7.2.2). Needs the filter `signature`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds after its creation that a request is taken; at most 3600. The nonce is remembered for longer.
    pub window_s: u64,
    /// Seconds that the sender's clock may be ahead of ours; at most 300. Where the memory of nonces is lost, by a restart
    /// of the Redis or of whoever else keeps it, signed requests are refused for this long, and a second more: what a clock
    /// that is ahead had signed may have been taken before. So make it less while the memory is kept, and let the time that
    /// it was pass before a restart.
    pub max_skew_s: u32,
    /// Shortest nonce, in characters.
    pub min_length: usize,
    /// Longest nonce, in characters; at most 256.
    pub max_length: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { window_s: 300, max_skew_s: 10, min_length: 16, max_length: 128 }
    }
}

/// For how long a policy remembers nonces: whatever route takes a signed request first, each of them knows that it was
/// taken, for as long as any of them would take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    window_s: u64,
    max_skew_s: u32,
}

impl Kept {
    /// What the widest of these windows needs.
    pub(crate) fn of(routes: impl Iterator<Item = Config>) -> Self {
        routes.fold(Self::default(), |kept, Config { window_s, max_skew_s, .. }| Self {
            window_s: kept.window_s.max(window_s),
            max_skew_s: kept.max_skew_s.max(max_skew_s),
        })
    }

    /// Seconds that a nonce is remembered: longer than any request that carries it could be taken.
    pub(crate) fn remembered_s(self) -> u64 {
        self.window_s.saturating_add(u64::from(self.max_skew_s)).saturating_add(MARGIN_S)
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self {
            window_s: self.window_s.min(child.window_s),
            max_skew_s: self.max_skew_s.min(child.max_skew_s),
            min_length: self.min_length.max(child.min_length),
            max_length: self.max_length.min(child.max_length),
        }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if !(1..=3_600).contains(&self.window_s) || self.max_skew_s > 300 {
            return Err(Unusable::new("`window_s` is between 1 and 3600, `max_skew_s` at most 300"));
        }
        if self.min_length == 0 || self.min_length > self.max_length || self.max_length > 256 {
            return Err(Unusable::new("`min_length` is at least 1, `max_length` no less and at most 256"));
        }
        Ok(Box::new(Nonce { kept: site.nonces, config: self }))
    }
}

/// What a nonce is remembered for beyond the window, so that no clock that is corrected lets one in twice.
const MARGIN_S: u64 = 60;

#[derive(Debug)]
struct Nonce {
    kept: Kept,
    config: Config,
}

impl Filter for Nonce {
    fn name(&self) -> &'static str {
        "nonce"
    }

    fn head(&self, _request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        let config = &self.config;
        let Some(signed) = &context.signed else {
            return refuse("signature_missing", "Sign the request, with a fresh nonce in the signature.");
        };
        let length = config.min_length..=config.max_length;
        let Some(nonce) = signed.nonce.as_ref().filter(|nonce| length.contains(&nonce.len())) else {
            let detail = format!(
                "Put a fresh nonce of {} to {} characters into the signature's parameters.",
                config.min_length, config.max_length
            );
            return Refusal::new(401, "nonce_missing", detail).into();
        };
        let window = Window { max_age_s: config.window_s, max_skew_s: u64::from(config.max_skew_s) };
        if let Err(stale) = window.check(signed.created, None, host.now_ms()) {
            let (code, detail) = stale.of_request();
            return refuse(code, detail);
        }
        // Lengths tell the parts apart, whatever is in them.
        let key = format!("nonce/{}/{}/{nonce}", signed.keyid.len(), signed.keyid);
        let ttl_ms = self.kept.remembered_s().saturating_mul(1_000);
        let Kept { window_s, max_skew_s: ahead_s } = self.kept;
        context.ask(Op::Remember { key, ttl_ms, made_s: signed.created, ahead_s, window_s: Some(window_s) });
        Verdict::Pass
    }

    fn answered(&self, _op: &Op, answer: &Answer, _context: &mut Context) -> Verdict {
        match answer {
            Answer::Remembered => Verdict::Pass,
            Answer::Seen => refuse("nonce_replayed", "This signed request was taken before. Sign a new one."),
            Answer::TooOld => self.too_old(),
            Answer::NotAsked => Verdict::Pass,
            // The state is away, or this is no answer to what was asked: fail closed.
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Held(_)
            | Answer::Busy { .. }
            | Answer::Released
            | Answer::Spent(_)
            | Answer::Overspent(_)
            | Answer::Tallied
            | Answer::WouldRefuse
            | Answer::NotCounted => state_unavailable(),
        }
    }
}

impl Nonce {
    /// It may have been taken by who kept the memory before. When this one began is not said, so the longest time is told.
    fn too_old(&self) -> Verdict {
        let seconds = self.kept.max_skew_s.saturating_add(1);
        let detail = format!(
            "The request may have been signed before this edge began to remember requests. Sign it anew in {seconds} s, or later if your clock is behind."
        );
        Refusal::new(401, "created_before_start", detail).header("retry-after", seconds.to_string()).into()
    }
}

fn refuse(code: &'static str, detail: &'static str) -> Verdict {
    Verdict::refuse(401, code, detail)
}
