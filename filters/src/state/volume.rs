//! Volumes: so much until a moment, then all of it anew.

use serde::{Deserialize, Serialize};

use super::Answer;

/// How much is left of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub left: u64,
    /// Until there is all of it again, milliseconds.
    pub renews_ms: u64,
}

impl Volume {
    /// The largest that a quota may have: numbers stay exact in a double, the only number that a script in Redis has.
    pub const MOST: u64 = 1_000_000_000_000;
}

/// How long what was spent is kept after its period, milliseconds: an edge whose clock is behind still finds it.
const KEPT_MS: u64 = 3_600_000;

/// When what was spent may be forgotten. From then on the period is over for good, and nothing is counted in it.
pub(super) fn kept_until_us(ends_ms: u64) -> u64 {
    ends_ms.saturating_add(KEPT_MS).saturating_mul(1_000)
}

/// The answer, and what is spent after it.
pub(super) fn spend(spent: u64, most: u64, cost: u32, ends_ms: u64, now_us: u64) -> (Answer, u64) {
    let renews_ms = ends_ms.saturating_sub(now_us / 1_000);
    let after = spent.saturating_add(cost.into());
    match most.checked_sub(after) {
        Some(left) => (Answer::Spent(Volume { left, renews_ms }), after),
        None => (Answer::Overspent(Volume { left: most.saturating_sub(spent), renews_ms }), spent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Memory, Mode, Op};

    const T0: u64 = 1_700_000_000_000;

    #[test]
    fn a_volume_is_spent_once_and_renewed_by_another_key() {
        let spend =
            |most, cost, mode| [Op::Spend { key: "q".into(), most, cost, ends_ms: T0 + 10_000, mode }];
        let mut memory = Memory::new(10, 0);
        for (at_ms, most, cost, mode, expected) in [
            (0, 5, 2, Mode::Enforce, Answer::Spent(Volume { left: 3, renews_ms: 10_000 })),
            (4_000, 5, 3, Mode::Enforce, Answer::Spent(Volume { left: 0, renews_ms: 6_000 })),
            (4_000, 5, 1, Mode::Enforce, Answer::Overspent(Volume { left: 0, renews_ms: 6_000 })),
            (4_000, 5, 1, Mode::Shadow, Answer::WouldRefuse),
            // Another policy has another volume: what was spent stays spent.
            (4_000, 7, 1, Mode::Shadow, Answer::Spent(Volume { left: 1, renews_ms: 6_000 })),
            (4_000, 3, 1, Mode::Enforce, Answer::Overspent(Volume { left: 0, renews_ms: 6_000 })),
            // An edge whose clock is behind finds it spent.
            (10_000 + KEPT_MS - 1, 6, 1, Mode::Enforce, Answer::Overspent(Volume { left: 0, renews_ms: 0 })),
            (10_000 + KEPT_MS, 6, 1, Mode::Enforce, Answer::Spent(Volume { left: 5, renews_ms: 0 })),
            (10_000 + KEPT_MS, 6, 1, Mode::Enforce, Answer::Spent(Volume { left: 5, renews_ms: 0 })),
        ] {
            let answers = memory.run(&spend(most, cost, mode), T0 + at_ms);
            assert_eq!(answers, Ok(vec![expected]), "{cost} of {most} at {at_ms} ms");
        }
    }
}
