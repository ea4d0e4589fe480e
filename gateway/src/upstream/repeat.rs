//! Requests that are sent again, and how many there may be at once: an upstream that fails must not be given many more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Repeats that are allowed at once of however few requests, of which a share would be none. A share of 0 % is none.
pub(crate) const LEAST_REPEATS: usize = 3;

/// A request that is sent again, counted until dropped.
#[derive(Debug)]
pub(crate) struct Repeat(Arc<AtomicUsize>);

impl Repeat {
    /// One more of the repeats under way, unless they are their share of all in flight.
    pub(super) fn within(repeats: &Arc<AtomicUsize>, in_flight: usize, percent: u32) -> Option<Self> {
        let least = if percent == 0 { 0 } else { LEAST_REPEATS };
        let budget = (in_flight * percent as usize / 100).max(least);
        let repeat = Self(Arc::clone(repeats));
        // Counted first: of two who ask at once none overlooks the other.
        (repeat.0.fetch_add(1, Ordering::Relaxed) < budget).then_some(repeat)
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_a_share_of_what_is_in_flight() {
        for (in_flight, percent, most) in [
            (1, 20, LEAST_REPEATS),
            (1, 1, LEAST_REPEATS),
            (1_000, 0, 0),
            (19, 20, LEAST_REPEATS),
            (20, 20, 4),
            (24, 20, 4),
            (1_000, 20, 200),
            (10, 100, 10),
        ] {
            let repeats = Arc::default();
            let ask = || Repeat::within(&repeats, in_flight, percent);
            let mut allowed: Vec<Repeat> = std::iter::from_fn(ask).take(2_000).collect();
            assert_eq!(allowed.len(), most, "of {in_flight}, {percent} %");
            assert!(ask().is_none(), "a refusal takes no place, and gives none");
            let over = allowed.pop().is_some();
            assert_eq!(ask().is_some(), over, "one that is over makes room for another");
        }
    }
}
