//! What issuers say of tokens that only they can read, as the state service has told it.

use std::collections::{HashMap, VecDeque};

use filters::crypto::sha256;
use filters::filter::{Introspected, OpaqueToken};
use serde::{Deserialize, Serialize};

use crate::envoy::Answered;

/// Where tokens are asked about.
pub const PATH: &str = "/v1/introspect";

/// Most answers that a worker remembers; the state service has more.
const MOST_ANSWERS: usize = 1_000;

/// What is known of tokens, by their hashes.
#[derive(Debug, Default)]
pub struct Tokens {
    answers: HashMap<[u8; 32], (Introspected, u64)>,
    order: VecDeque<[u8; 32]>,
}

#[derive(Serialize)]
struct Question<'q> {
    /// What it is known as.
    issuer: &'q str,
    token: &'q str,
}

/// What the state service says.
#[derive(Deserialize)]
struct Told {
    /// Absent: the token does not count.
    claims: Option<String>,
    until_ms: u64,
}

/// What to send of a token of the issuer that is known as that.
pub fn question(issuer: &str, token: &str) -> Option<Vec<u8>> {
    serde_json::to_vec(&Question { issuer, token }).ok()
}

impl Tokens {
    pub fn get(&self, issuer: &str, token: &str, now_ms: u64) -> Option<Introspected> {
        let (said, until_ms) = self.answers.get(&name(issuer, token))?;
        (now_ms <= *until_ms).then(|| said.clone())
    }

    /// Takes what the state service says. What cannot be read says nothing.
    pub fn told(&mut self, token: &OpaqueToken, answered: &Answered, now_ms: u64) {
        if answered.status != Some(200) {
            return;
        }
        let Ok(Told { claims, until_ms }) = serde_json::from_slice(&answered.body) else { return };
        let said = claims.map_or(Introspected::Inactive, |claims| Introspected::Active(claims.into()));
        let hash = name(&token.issuer, &token.text);
        // The request that asked is decided on with it, however short it counts.
        if self.answers.insert(hash, (said, until_ms.max(now_ms))).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > MOST_ANSWERS {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }
}

fn name(issuer: &str, token: &str) -> [u8; 32] {
    sha256(format!("{issuer}\n{token}").as_bytes())
}
