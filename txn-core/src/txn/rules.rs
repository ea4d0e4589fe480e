//! The times and limits that `step` goes by: configuration, never constants.

use serde::Deserialize;

use super::{Txn, UnixMs, Wake, WakeKind};

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
    /// before that, unless the network has acknowledged.
    pub send_settles_within_ms: u64,
    /// The longest from the mark "dispatched" to the call. A process that was held up for longer does not send:
    /// the status checks may have begun. Less than the first of them.
    pub send_starts_within_ms: u64,
    /// When status checks are made, counted from the sending. UPI: the first no sooner than 90 s, at most 3.
    /// "Unknown to the network" means "never arrived" only as the answer to the last one: a sending that was
    /// held up may overtake an earlier one.
    pub status_checks_ms: Vec<u64>,
    /// No status check later than this after the sending. UPI: 2 hours.
    pub status_check_window_ms: u64,
    /// How long after the last check an answer may still come before the payment is flagged.
    pub last_check_grace_ms: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            send_within_ms: 120_000,
            resend_base_ms: 500,
            resend_max_ms: 10_000,
            send_settles_within_ms: 30_000,
            send_starts_within_ms: 5_000,
            status_checks_ms: vec![90_000, 900_000, 5_400_000],
            status_check_window_ms: 7_200_000,
            last_check_grace_ms: 30_000,
        }
    }
}

/// Wait before a check that could not be made is tried again, if nobody said how long.
const CHECK_AGAIN_MS: u64 = 5_000;

impl Rules {
    /// The first check of a sending that nobody has acknowledged.
    pub(crate) fn first_check_unanswered(&self, sent_at: UnixMs) -> UnixMs {
        let first = self.status_checks_ms.first().copied().unwrap_or(self.status_check_window_ms);
        sent_at.plus(first.max(self.send_settles_within_ms))
    }

    /// The next check that is owed, never in the past. None for what is flagged: its checks are used up.
    pub(super) fn next_check(&self, txn: &Txn, now: UnixMs) -> Option<Wake> {
        if txn.flagged_at.is_some() {
            return None;
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
        if txn.flagged_at.is_some() {
            return None;
        }
        Some(Wake { kind: WakeKind::Check, at: now.plus(retry_after_ms.unwrap_or(CHECK_AGAIN_MS).max(100)) })
    }

    /// Whether the check of this number leaves none to be made.
    pub(super) fn is_last_check(&self, check: u32) -> bool {
        check as usize >= self.status_checks_ms.len()
    }

    pub(super) fn checks_are_exhausted(&self, txn: &Txn, now: UnixMs) -> bool {
        let sent_at = txn.dispatched_at.unwrap_or(txn.created_at);
        self.is_last_check(txn.checks) || now > sent_at.plus(self.status_check_window_ms)
    }

    /// Exponential from the base, capped; what the proxy asked for if that is longer.
    pub(super) fn resend_after_ms(&self, sends: u32, asked_ms: Option<u64>) -> u64 {
        let doubled = self.resend_base_ms.saturating_mul(1 << sends.saturating_sub(1).min(16));
        doubled.max(asked_ms.unwrap_or(0)).min(self.resend_max_ms)
    }
}
