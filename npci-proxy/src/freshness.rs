//! Whether a signed message is of now. Pure; time is an argument.

use serde::Deserialize;

/// How far from our clock a message may say it was created, and how long its nonce is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// The oldest message that is still taken.
    pub window_ms: i64,
    /// How far the sender's clock may be ahead of ours.
    pub ahead_ms: i64,
    /// Nonces remembered at once. Full means that callbacks are refused until some expire: forgetting one
    /// early would let it be replayed.
    pub nonces: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { window_ms: 300_000, ahead_ms: 5_000, nonces: 500_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    #[error("the message was created too long ago")]
    TooOld,
    #[error("the message says that it was created in the future")]
    InFuture,
}

impl Rules {
    /// `created_s` is RFC 9421's `created`, Unix time in seconds.
    pub fn check(&self, created_s: i64, now_ms: i64) -> Result<(), Stale> {
        self.check_ms(created_s.saturating_mul(1_000), now_ms)
    }

    /// The same for a time in milliseconds.
    pub fn check_ms(&self, created_ms: i64, now_ms: i64) -> Result<(), Stale> {
        let age_ms = now_ms.saturating_sub(created_ms);
        if age_ms > self.window_ms {
            return Err(Stale::TooOld);
        }
        if age_ms < -self.ahead_ms {
            return Err(Stale::InFuture);
        }
        Ok(())
    }

    /// Longer than any message with that nonce can be fresh.
    pub fn remember_ms(&self) -> i64 {
        self.window_ms + self.ahead_ms + 60_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let now_ms = 1_000_000_999;
        for (created_s, expected) in [
            (1_000_000, Ok(())),
            (999_701, Ok(())),
            (999_700, Err(Stale::TooOld)),
            (1_000_005, Ok(())),
            (1_000_006, Err(Stale::InFuture)),
            (0, Err(Stale::TooOld)),
            (i64::MIN, Err(Stale::TooOld)),
            (i64::MAX, Err(Stale::InFuture)),
        ] {
            assert_eq!(Rules::default().check(created_s, now_ms), expected, "{created_s}");
        }
    }
}
