//! Whether a place that failed is worth asking: without this every request would wait for it once more.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Failures in a row after which the place is left alone.
const FAILURES: u32 = 3;
/// How long, before one request tries it again.
const PAUSE_MS: u64 = 500;

/// Counts failures in a row. Time is an argument: milliseconds of any clock that does not step back.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: AtomicU32,
    /// Until when nobody asks.
    until_ms: AtomicU64,
}

impl Breaker {
    /// Whether to ask now. While the place is left alone, one request in each pause may.
    pub(super) fn lets(&self, now_ms: u64) -> bool {
        if self.failures.load(Ordering::Relaxed) < FAILURES {
            return true;
        }
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(PAUSE_MS);
        now_ms >= until_ms
            && self.until_ms.compare_exchange(until_ms, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It answered. Tells whether it had been left alone.
    pub(super) fn answered(&self) -> bool {
        self.failures.swap(0, Ordering::Relaxed) >= FAILURES
    }

    /// It did not. Tells whether it is left alone from now on.
    pub(super) fn failed(&self, now_ms: u64) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= FAILURES {
            self.until_ms.fetch_max(now_ms.saturating_add(PAUSE_MS), Ordering::Relaxed);
        }
        failures == FAILURES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_pause_and_one_request_probes() {
        let breaker = Breaker::default();
        for expected in [false, false, true] {
            assert!(breaker.lets(0));
            assert_eq!(breaker.failed(0), expected);
        }
        assert!(!breaker.lets(PAUSE_MS - 1));
        assert!(breaker.lets(PAUSE_MS), "one may");
        assert!(!breaker.lets(PAUSE_MS), "another may not");
        assert!(!breaker.failed(PAUSE_MS), "told once");
        assert!(!breaker.lets(2 * PAUSE_MS - 1));
        assert!(breaker.lets(2 * PAUSE_MS));
        assert!(breaker.answered(), "it had been left alone");
        assert!(breaker.lets(2 * PAUSE_MS) && breaker.lets(2 * PAUSE_MS));
        assert!(!breaker.answered());
    }
}
