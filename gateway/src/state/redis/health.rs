//! What Redis cannot do at the moment and why, for `/readiness`, the log and the metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{IntGauge, IntGaugeVec};

/// The one `maxmemory-policy` under which Redis forgets no nonce early.
const NO_EVICTION: &str = "noeviction";

/// What is wrong, each with its cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// It does not answer.
    pub(crate) unavailable: Option<String>,
    /// It has no room.
    pub(crate) full: Option<String>,
    /// It may evict nonces.
    pub(crate) evicts: Option<String>,
}

/// The faults of a Redis.
pub(super) struct Health {
    faults: Mutex<Faults>,
    policy_unread: Mutex<bool>,
    up: IntGauge,
    impaired: IntGaugeVec,
}

impl Health {
    pub(super) fn new(up: IntGauge, impaired: IntGaugeVec) -> Self {
        for cause in ["unavailable", "full", "eviction_policy"] {
            impaired.with_label_values(&[cause]).set(0);
        }
        Self { faults: Mutex::default(), policy_unread: Mutex::default(), up, impaired }
    }

    pub(super) fn faults(&self) -> Faults {
        self.lock().clone()
    }

    /// Whether nonces must be refused for the eviction policy.
    pub(super) fn evicts(&self) -> bool {
        self.lock().evicts.is_some()
    }

    pub(super) fn answered(&self) {
        self.up.set(1);
        if self.lock().unavailable.take().is_some() {
            self.impaired.with_label_values(&["unavailable"]).set(0);
            tracing::info!("the shared state is back");
        }
    }

    pub(super) fn unavailable(&self, error: String) {
        self.up.set(0);
        let mut faults = self.lock();
        if faults.unavailable.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                "the shared state is away: nonces are refused, limits are as the policy says, and tokens are refused until \
                 the list of those that are revoked was read once"
            );
            faults.unavailable = Some(error);
            self.impaired.with_label_values(&["unavailable"]).set(1);
        }
    }

    pub(super) fn full(&self, error: String) {
        let mut faults = self.lock();
        if faults.full.is_none() {
            tracing::error!(error, "Redis is full: requests with nonces or shared limits are refused");
            faults.full = Some(error);
            self.impaired.with_label_values(&["full"]).set(1);
        }
    }

    pub(super) fn has_room(&self) {
        if self.lock().full.take().is_some() {
            self.impaired.with_label_values(&["full"]).set(0);
            tracing::info!("Redis has room again");
        }
    }

    /// `policy`: what Redis says that it evicts; empty where it does not say.
    pub(super) fn evicts_by(&self, policy: &str) {
        if policy.is_empty() {
            let mut told = self.policy_unread.lock().unwrap_or_else(PoisonError::into_inner);
            if !std::mem::replace(&mut *told, true) {
                tracing::warn!(
                    "Redis does not say its `maxmemory-policy`: allow the user INFO, or make sure that it is `noeviction`"
                );
            }
        }
        let evicts = (!policy.is_empty() && policy != NO_EVICTION)
            .then(|| format!("maxmemory-policy is {policy}: set it to {NO_EVICTION}"));
        let mut faults = self.lock();
        if faults.evicts == evicts {
            return;
        }
        match &evicts {
            Some(error) => tracing::error!(error, "Redis may evict nonces: requests with nonces are refused"),
            None => tracing::info!("Redis evicts nothing: nonces are remembered again"),
        }
        self.impaired.with_label_values(&["eviction_policy"]).set(i64::from(evicts.is_some()));
        faults.evicts = evicts;
    }

    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
