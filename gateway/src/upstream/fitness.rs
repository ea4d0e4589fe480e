//! Whether an address is given requests: what probes say of it, and what became of the last requests there.
//!
//! Time is an argument, milliseconds on any clock that only goes forward. The breaker of an address is closed, open for
//! [`Outlier::eject_ms`], then half-open: one request tries the address, and what becomes of it closes the breaker or
//! opens it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use filters::policy::{Health, Outlier};

/// One address. Counts may race by one between threads: that makes a breaker no less a breaker.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    /// Failures in a row of requests, while the breaker is closed.
    failures: AtomicU32,
    /// [`CLOSED`], or until when the breaker is open; whoever tries the address then puts that off.
    open_until_ms: AtomicU64,
    /// Probes say that it does not serve.
    unhealthy: AtomicBool,
    /// Probes in a row that said the other thing.
    contrary: AtomicU32,
}

const CLOSED: u64 = 0;
/// Open no longer: the next request tries the address.
const HALF_OPEN: u64 = 1;

/// One request's leave to go to an address. A trial of which nothing was told is the next request's.
#[derive(Debug)]
pub(super) struct Leave {
    fitness: Arc<Fitness>,
    /// What [`Fitness::open_until_ms`] is while this request tries the address.
    trial: Option<u64>,
}

impl Fitness {
    /// Whether a request would be given leave.
    pub(super) fn is_fit(&self, now_ms: u64) -> bool {
        self.is_healthy() && self.open_until_ms.load(Ordering::Relaxed) <= now_ms
    }

    /// Whether it serves for all that is known.
    pub(super) fn is_whole(&self) -> bool {
        self.is_healthy() && self.open_until_ms.load(Ordering::Relaxed) == CLOSED
    }

    /// What probes say.
    pub(super) fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed)
    }

    /// Leave for one request, if the address is fit.
    pub(super) fn leave(self: &Arc<Self>, outlier: &Outlier, now_ms: u64) -> Option<Leave> {
        let open_until_ms = self.open_until_ms.load(Ordering::Relaxed);
        if !self.is_healthy() || open_until_ms > now_ms {
            return None;
        }
        if open_until_ms == CLOSED {
            return Some(Leave { fitness: Arc::clone(self), trial: None });
        }
        let until_ms = after(now_ms, outlier);
        let is_ours = self.replace(open_until_ms, until_ms);
        is_ours.then(|| Leave { fitness: Arc::clone(self), trial: Some(until_ms) })
    }

    fn replace(&self, open_until_ms: u64, by: u64) -> bool {
        self.open_until_ms.compare_exchange(open_until_ms, by, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

impl Leave {
    /// The request was answered, whatever the answer. Tells whether the breaker is closed by that: an answer to what
    /// was asked before it opened says nothing of new connections.
    pub(super) fn answered(&mut self) -> bool {
        self.fitness.failures.store(0, Ordering::Relaxed);
        self.trial.take().is_some_and(|until_ms| self.fitness.replace(until_ms, CLOSED))
    }

    /// The request got no answer. Tells whether the breaker is open from now on.
    pub(super) fn failed(mut self, outlier: &Outlier, now_ms: u64) -> bool {
        let fitness = &self.fitness;
        if let Some(until_ms) = self.trial.take() {
            return fitness.replace(until_ms, after(now_ms, outlier));
        }
        if outlier.failures == 0 || fitness.failures.fetch_add(1, Ordering::Relaxed) + 1 < outlier.failures {
            return false;
        }
        fitness.failures.store(0, Ordering::Relaxed);
        fitness.replace(CLOSED, after(now_ms, outlier))
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(until_ms) = self.trial {
            self.fitness.replace(until_ms, HALF_OPEN);
        }
    }
}

/// Until when a breaker is open that opens now.
fn after(now_ms: u64, outlier: &Outlier) -> u64 {
    now_ms.saturating_add(outlier.eject_ms).max(HALF_OPEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTLIER: Outlier = Outlier { failures: 3, eject_ms: 100 };

    fn leave(address: &Arc<Fitness>, now_ms: u64) -> Leave {
        address.leave(&OUTLIER, now_ms).expect("the address is fit")
    }

    /// An address whose breaker opened at 0.
    fn open() -> Arc<Fitness> {
        let address = Arc::default();
        let opened: Vec<bool> = (0..3).map(|_| leave(&address, 0).failed(&OUTLIER, 0)).collect();
        assert_eq!(opened, [false, false, true]);
        address
    }

    #[test]
    fn failures_in_a_row_open_the_breaker() {
        let address = Arc::default();
        for (failed, at_ms, fit) in [
            (true, 0, true),
            (true, 1, true),
            (false, 2, true),
            (true, 3, true),
            (true, 4, true),
            (true, 5, false),
        ] {
            let mut leave = leave(&address, at_ms);
            if failed {
                assert_eq!(leave.failed(&OUTLIER, at_ms), at_ms == 5)
            } else {
                assert!(!leave.answered(), "it was closed");
            }
            assert_eq!(address.is_fit(at_ms), fit, "at {at_ms}");
        }
        assert!(address.leave(&OUTLIER, 104).is_none());
        assert!(address.is_fit(105));
    }

    #[test]
    fn one_request_tries_an_address_that_was_left_out() {
        let address = open();
        let mut trial = leave(&address, 100);
        assert!(address.leave(&OUTLIER, 100).is_none() && !address.is_whole());
        assert!(trial.answered(), "which is told once");
        assert!(!trial.answered());
        drop(trial);
        assert!(address.is_whole());
        assert!(!leave(&address, 101).failed(&OUTLIER, 101), "failures are counted from none");
    }

    #[test]
    fn a_trial_that_fails_opens_the_breaker_at_once() {
        let address = open();
        assert!(leave(&address, 150).failed(&OUTLIER, 160));
        assert!(address.leave(&OUTLIER, 259).is_none());
        assert!(address.leave(&OUTLIER, 260).is_some());
    }

    #[test]
    fn a_trial_of_which_nothing_is_told_is_the_next_ones() {
        let address = open();
        drop(leave(&address, 100));
        let mut slow = leave(&address, 100);
        assert!(address.leave(&OUTLIER, 199).is_none());
        let next = leave(&address, 200);
        assert!(next.failed(&OUTLIER, 201), "one that takes as long as the pause is tried beside");
        assert!(!slow.answered(), "and its own answer is late");
        drop(slow);
        assert!(address.leave(&OUTLIER, 300).is_none());
    }

    #[test]
    fn what_was_sent_before_the_breaker_opened_neither_closes_it_nor_keeps_it_open() {
        let address = Arc::default();
        let mut early: Vec<Leave> = (0..8).map(|_| leave(&address, 0)).collect();
        assert_eq!(early.drain(..3).filter_map(|early| early.failed(&OUTLIER, 0).then_some(())).count(), 1);
        assert!(!early.pop().expect("one of them").answered() && !address.is_fit(99));
        assert!(early.into_iter().all(|early| !early.failed(&OUTLIER, 99)));
        assert!(address.is_fit(100));
    }

    #[test]
    fn a_breaker_that_is_off_never_opens() {
        let address = Arc::default();
        let off = Outlier { failures: 0, ..OUTLIER };
        assert!((0..100).all(|at_ms| !leave(&address, at_ms).failed(&off, at_ms) && address.is_fit(at_ms)));
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
