//! Whether an address is given requests: what probes say of it, and what became of the last requests there.
//!
//! Time is an argument, milliseconds on any clock that only goes forward. As in Envoy, an address that was left out
//! comes back whole after its time, and is left out again after as many failures.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use filters::policy::{Health, Outlier};

/// One address. Counts may race by one between threads: that makes a breaker no less a breaker.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    /// Failures in a row of requests.
    failures: AtomicU32,
    left_out_until_ms: AtomicU64,
    /// Probes say that it does not serve.
    unhealthy: AtomicBool,
    /// Probes in a row that said the other thing.
    contrary: AtomicU32,
}

impl Fitness {
    pub(super) fn is_fit(&self, now_ms: u64) -> bool {
        self.is_healthy() && self.left_out_until_ms.load(Ordering::Relaxed) <= now_ms
    }

    /// What probes say.
    pub(super) fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed)
    }

    /// A request was answered, whatever the answer.
    pub(super) fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// A request got no answer. Tells whether the address is left out from now on.
    pub(super) fn failed(&self, outlier: &Outlier, now_ms: u64) -> bool {
        if outlier.failures == 0 || self.failures.fetch_add(1, Ordering::Relaxed) + 1 < outlier.failures {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.left_out_until_ms.store(now_ms.saturating_add(outlier.eject_ms), Ordering::Relaxed);
        true
    }

    /// A probe ended. Tells the new health when it has changed.
    pub(super) fn probed(&self, serves: bool, health: &Health) -> Option<bool> {
        let unhealthy = self.unhealthy.load(Ordering::Relaxed);
        if serves != unhealthy {
            self.contrary.store(0, Ordering::Relaxed);
            return None;
        }
        let enough = if serves { health.healthy_after } else { health.unhealthy_after };
        if self.contrary.fetch_add(1, Ordering::Relaxed) + 1 < enough {
            return None;
        }
        self.contrary.store(0, Ordering::Relaxed);
        self.unhealthy.store(!serves, Ordering::Relaxed);
        Some(serves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTLIER: Outlier = Outlier { failures: 3, eject_ms: 100 };

    #[test]
    fn failures_in_a_row_leave_an_address_out_for_a_while() {
        let address = Fitness::default();
        for (failed, at_ms, fit) in [
            (true, 0, true),
            (true, 1, true),
            (false, 2, true),
            (true, 3, true),
            (true, 4, true),
            (true, 5, false),
            (true, 6, false),
        ] {
            if failed {
                assert_eq!(address.failed(&OUTLIER, at_ms), at_ms == 5)
            } else {
                address.answered()
            }
            assert_eq!(address.is_fit(at_ms), fit, "at {at_ms}");
        }
        assert!(!address.is_fit(104));
        assert!(address.is_fit(105), "it comes back after its time");
    }

    #[test]
    fn a_breaker_that_is_off_never_opens() {
        let address = Fitness::default();
        let off = Outlier { failures: 0, ..OUTLIER };
        assert!((0..100).all(|at_ms| !address.failed(&off, at_ms) && address.is_fit(at_ms)));
    }

    #[test]
    fn probes_change_their_mind_slowly() {
        let health = Health {
            path: "/health".into(),
            interval_ms: 1,
            timeout_ms: 1,
            unhealthy_after: 3,
            healthy_after: 2,
        };
        let address = Fitness::default();
        for (serves, changed, fit) in [
            (true, None, true),
            (false, None, true),
            (false, None, true),
            (true, None, true),
            (false, None, true),
            (false, None, true),
            (false, Some(false), false),
            (false, None, false),
            (true, None, false),
            (false, None, false),
            (true, None, false),
            (true, Some(true), true),
        ] {
            assert_eq!(address.probed(serves, &health), changed);
            assert_eq!(address.is_fit(0), fit);
        }
    }
}
