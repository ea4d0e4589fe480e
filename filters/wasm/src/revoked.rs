//! What is revoked, as the state service last told it.
//!
//! A worker asks every second for what has changed, and starts with what another one, or itself before it was restarted,
//! was told: a new policy lets no request wait for the list.

use filters::jwt::{Revocation, Revocations};
use filters::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::envoy::{Answered, Envoy};

/// Where it is asked for.
pub const PATH: &str = "/v1/revocations";

/// Under which name workers share the list, and when it was last confirmed.
const LIST: &str = "torana/revoked";
const CONFIRMED: &str = "torana/revoked/confirmed_ms";
/// What others were told no longer ago than this is as good as told to us.
const FRESH_MS: u64 = 5_000;

/// How far a worker has followed the state service.
#[derive(Debug, Default)]
pub struct Followed {
    epoch: String,
    after: u64,
    is_asked_for: bool,
}

/// What the state service tells.
#[derive(Deserialize)]
struct Told {
    epoch: String,
    last: u64,
    whole: bool,
    changes: Vec<Revocation>,
}

/// What workers share.
#[derive(Serialize, Deserialize)]
struct Shared {
    epoch: String,
    after: u64,
    revocations: Vec<Revocation>,
}

impl Followed {
    /// With what other workers know. Where no token is asked for, nothing is.
    pub fn new(policy: &Policy, list: &Revocations, envoy: &dyn Envoy) -> Self {
        if policy.document().issuers.is_empty() {
            list.known();
            return Self::default();
        }
        let now_ms = envoy.now_ms();
        let confirmed_ms =
            envoy.shared(CONFIRMED).and_then(|bytes| serde_json::from_slice::<u64>(&bytes).ok());
        let fresh = confirmed_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) <= FRESH_MS);
        let shared = envoy.shared(LIST).and_then(|bytes| serde_json::from_slice::<Shared>(&bytes).ok());
        let Some(Shared { epoch, after, revocations }) = shared.filter(|_| fresh) else {
            return Self { is_asked_for: true, ..Self::default() };
        };
        take(revocations, list);
        list.known();
        Self { epoch, after, is_asked_for: true }
    }

    /// The path to ask, if there is anything to ask for.
    pub fn path(&self) -> Option<String> {
        self.is_asked_for.then(|| format!("{PATH}?epoch={}&after={}", self.epoch, self.after))
    }

    /// Takes what the state service says. What cannot be read changes nothing, nor does its absence: the last list
    /// counts. Tells whether there is more to ask for at once.
    pub fn told(&mut self, answered: &Answered, list: &Revocations, envoy: &dyn Envoy) -> bool {
        if answered.status != Some(200) {
            return false;
        }
        let Ok(Told { epoch, last, whole, changes }) = serde_json::from_slice(&answered.body) else {
            envoy.warn("the state service's list of what is revoked cannot be read");
            return false;
        };
        let is_news = !changes.is_empty() || epoch != self.epoch;
        take(changes, list);
        (self.epoch, self.after) = (epoch, last);
        if !whole {
            return is_news;
        }
        let now_ms = envoy.now_ms();
        if is_news || !list.is_known() {
            list.known();
            list.forget(now_ms);
            let shared = Shared { epoch: self.epoch.clone(), after: self.after, revocations: list.all() };
            if let Ok(text) = serde_json::to_vec(&shared) {
                envoy.share(LIST, &text);
            }
        }
        envoy.share(CONFIRMED, now_ms.to_string().as_bytes());
        false
    }
}

fn take(revocations: Vec<Revocation>, list: &Revocations) {
    for revocation in revocations {
        list.apply(revocation);
    }
}
