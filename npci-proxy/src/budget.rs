//! How often the network may be asked about one payment: its rule, not ours; who breaks it is throttled.
//!
//! There is no way round it and none is wanted: a payment whose budget is spent gets its end from a callback or
//! from the network's reconciliation files, never from a further call.

use serde::Deserialize;

/// The network's status-check rule. Where the network agreed to an earlier first check, say so here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// The first check comes no sooner than this after the payment.
    pub first_after_ms: i64,
    /// At most this many checks.
    pub most: u32,
    /// All of them within this time of the payment.
    pub within_ms: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { first_after_ms: 90_000, most: 3, within_ms: 2 * 60 * 60 * 1000 }
    }
}

/// What is known of one payment's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    pub started_ms: i64,
    pub checks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    TooSoon {
        retry_after_ms: i64,
    },
    /// No further check is allowed, ever: the payment waits for a callback or for the network's files.
    Exhausted,
}

pub fn decide(rules: &Rules, spent: &Spent, now_ms: i64) -> Verdict {
    let age_ms = now_ms.saturating_sub(spent.started_ms);
    if spent.checks >= rules.most || age_ms > rules.within_ms {
        return Verdict::Exhausted;
    }
    if age_ms < rules.first_after_ms {
        return Verdict::TooSoon { retry_after_ms: rules.first_after_ms.saturating_sub(age_ms) };
    }
    Verdict::Allowed
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, *};

    #[test]
    fn the_table() {
        let started_ms = 1_000_000;
        for (age_ms, checks, expected) in [
            (0, 0, TooSoon { retry_after_ms: 90_000 }),
            (-5_000, 0, TooSoon { retry_after_ms: 95_000 }),
            (89_999, 0, TooSoon { retry_after_ms: 1 }),
            (90_000, 0, Allowed),
            (90_001, 2, Allowed),
            (90_001, 3, Exhausted),
            (7_200_000, 0, Allowed),
            (7_200_001, 0, Exhausted),
            (0, 3, Exhausted),
        ] {
            let verdict = decide(&Rules::default(), &Spent { started_ms, checks }, started_ms + age_ms);
            assert_eq!(verdict, expected, "age {age_ms} ms, {checks} checks");
        }
    }
}
