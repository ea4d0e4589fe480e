//! The times and limits that `step` goes by: configuration, never constants.

use serde::Deserialize;

use super::{State, Txn, UnixMs, Wake, WakeKind};

/// When to send again, when to ask, when to stop. All times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// From acceptance until a payment that could not be sent is given up as FAILED.
    pub send_within_ms: u64,
    /// First wait after a definite "not sent"; doubles each time.
    pub resend_base_ms: u64,
    /// Longest wait between two sendings.
    pub resend_max_ms: u64,
    /// How long a sending may be under way (the proxy's own timeout and a margin). No status check is made
    /// before that, unless the network has acknowledged: only then does "unknown" mean "never arrived".
    pub send_settles_within_ms: u64,
    /// When status checks are made, counted from the sending. UPI: the first no sooner than 90 s, at most 3.
    pub status_checks_ms: Vec<u64>,
    /// No status check later than this after the sending. UPI: 2 hours.
    pub status_check_window_ms: u64,
    /// How long after the last check an answer may still come before the payment is flagged.
    pub last_check_grace_ms: u64,
    /// Ask about a flagged or deemed payment this often, until 90 days after it was made; none: never.
    pub reconcile_every_ms: Option<u64>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            send_within_ms: 120_000,
            resend_base_ms: 500,
            resend_max_ms: 10_000,
            send_settles_within_ms: 30_000,
            status_checks_ms: vec![90_000, 900_000, 5_400_000],
            status_check_window_ms: 7_200_000,
            last_check_grace_ms: 30_000,
            reconcile_every_ms: None,
        }
    }
}

/// UPI answers status checks for 90 days.
const STATUS_KNOWN_FOR_MS: u64 = 90 * 24 * 3_600_000;

/// Wait before a check that could not be made is tried again, if nobody said how long.
const CHECK_AGAIN_MS: u64 = 5_000;

impl Rules {
    /// The first check of a sending that nobody has acknowledged.
    pub(super) fn first_check_unanswered(&self, sent_at: UnixMs) -> UnixMs {
        let first = self.status_checks_ms.first().copied().unwrap_or(self.status_check_window_ms);
        sent_at.plus(first.max(self.send_settles_within_ms))
    }

    /// The next check that is owed, never in the past.
    pub(super) fn next_check(&self, txn: &Txn, now: UnixMs) -> Option<Wake> {
        if txn.flagged_at.is_some() {
            return self.reconcile_wake(txn, now);
        }
        let sent_at = txn.dispatched_at.unwrap_or(now);
        let at = match self.status_checks_ms.get(txn.checks as usize) {
            Some(after) => sent_at.plus(*after).max(now),
            None => now.plus(self.last_check_grace_ms),
        };
        Some(Wake { kind: WakeKind::Check, at })
    }

    pub(super) fn wake_after_check(&self, txn: &Txn, now: UnixMs) -> Option<Wake> {
        let wake = self.next_check(txn, now)?;
        // Two checks never fall together, however late the first one was.
        Some(Wake { at: wake.at.max(now.plus(self.last_check_grace_ms.min(CHECK_AGAIN_MS))), ..wake })
    }

    pub(super) fn wake_after_check_not_made(
        &self,
        txn: &Txn,
        now: UnixMs,
        retry_after_ms: Option<u64>,
    ) -> Option<Wake> {
        if txn.flagged_at.is_some() || txn.state == State::Deemed {
            return self.reconcile_wake(txn, now);
        }
        Some(Wake { kind: WakeKind::Check, at: now.plus(retry_after_ms.unwrap_or(CHECK_AGAIN_MS).max(100)) })
    }

    /// The slow inquiry of what waits for reconciliation.
    pub(super) fn reconcile_wake(&self, txn: &Txn, now: UnixMs) -> Option<Wake> {
        let at = now.plus(self.reconcile_every_ms?);
        (at < txn.created_at.plus(STATUS_KNOWN_FOR_MS)).then_some(Wake { kind: WakeKind::Check, at })
    }

    /// Flagged and deemed payments have left the budget of checks behind: theirs are slow inquiries.
    pub(super) fn checks_are_exhausted(&self, txn: &Txn, now: UnixMs) -> bool {
        if txn.flagged_at.is_some() || txn.state == State::Deemed {
            return false;
        }
        let sent_at = txn.dispatched_at.unwrap_or(txn.created_at);
        txn.checks as usize >= self.status_checks_ms.len() || now > sent_at.plus(self.status_check_window_ms)
    }

    /// Exponential from the base, capped; what the proxy asked for if that is longer.
    pub(super) fn resend_after_ms(&self, sends: u32, asked_ms: Option<u64>) -> u64 {
        let doubled = self.resend_base_ms.saturating_mul(1 << sends.saturating_sub(1).min(16));
        doubled.max(asked_ms.unwrap_or(0)).min(self.resend_max_ms)
    }
}
