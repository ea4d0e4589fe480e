//! Rates, and the arithmetic of what is left of them.

use serde::{Deserialize, Serialize};

use super::Answer;

/// So many requests in so long, spread evenly, with a burst on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Numbers", into = "Numbers")]
pub struct Rate {
    requests: u32,
    per_ms: u64,
    burst: u32,
}

/// A [`Rate`] as it travels, before it is checked.
#[derive(Serialize, Deserialize)]
struct Numbers {
    requests: u32,
    per_ms: u64,
    burst: u32,
}

impl From<Rate> for Numbers {
    fn from(Rate { requests, per_ms, burst }: Rate) -> Self {
        Self { requests, per_ms, burst }
    }
}

impl TryFrom<Numbers> for Rate {
    type Error = RateError;

    fn try_from(Numbers { requests, per_ms, burst }: Numbers) -> Result<Self, RateError> {
        Self::new(requests, per_ms, burst)
    }
}

impl Rate {
    /// The longest period: beyond it the arithmetic of [`take`] could overflow. Thirty-one days.
    pub const MAX_PER_MS: u64 = 31 * 24 * 3_600 * 1_000;
    /// The most requests a period: one a microsecond is the finest the arithmetic tells apart.
    pub const MAX_REQUESTS: u32 = 1_000_000;

    /// The longest that a spent burst may take to be there again: ten years. Times stay exact in a double, the
    /// only number that a script in Redis has.
    pub const MAX_AGAIN_US: u64 = 10 * 366 * 24 * 3_600 * 1_000_000;

    /// `burst` requests may come at once; after them one every `per_ms / requests`.
    pub fn new(requests: u32, per_ms: u64, burst: u32) -> Result<Self, RateError> {
        if requests == 0 || requests > Self::MAX_REQUESTS {
            return Err(RateError::Requests);
        }
        if per_ms == 0 || per_ms > Self::MAX_PER_MS || per_ms * 1_000 < u64::from(requests) {
            return Err(RateError::Period);
        }
        let rate = Self { requests, per_ms, burst };
        let again_us = rate.interval_us().saturating_mul(u64::from(burst));
        if burst == 0 || burst > Self::MAX_REQUESTS || again_us > Self::MAX_AGAIN_US {
            return Err(RateError::Burst);
        }
        Ok(rate)
    }

    pub fn requests(&self) -> u32 {
        self.requests
    }

    pub fn per_ms(&self) -> u64 {
        self.per_ms
    }

    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Time that one request is worth, in microseconds. Rounded up: a limit may be a hair stricter than
    /// written, never looser.
    pub fn interval_us(&self) -> u64 {
        (self.per_ms * 1_000).div_ceil(u64::from(self.requests))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("`requests` must be between 1 and {}", Rate::MAX_REQUESTS)]
    Requests,
    #[error("`per_s` must be at least 1 and at most 31 days, and no shorter than a microsecond a request")]
    Period,
    #[error("`burst` must be between 1 and {}, and be there again within ten years", Rate::MAX_REQUESTS)]
    Burst,
}

/// How much is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// Requests of cost 1 that would pass now.
    pub remaining: u32,
    /// Until the whole burst is there again.
    pub reset_ms: u64,
}

/// GCRA on the theoretical arrival time (TAT): the moment at which the whole burst is available again.
/// Answers with the TAT to keep, which is also when the cell may be forgotten.
pub(super) fn take(tat_us: Option<u64>, now_us: u64, rate: &Rate, cost: u32) -> (Answer, u64) {
    let interval = rate.interval_us();
    let tolerance = interval.saturating_mul(u64::from(rate.burst));
    // A clock that stepped back must not lock a client out for longer than the whole burst.
    let tat = tat_us.unwrap_or(now_us).clamp(now_us, now_us.saturating_add(tolerance));
    let after = tat.saturating_add(interval.saturating_mul(u64::from(cost)));
    let allowance = |tat: u64| {
        let used = tat.saturating_sub(now_us);
        let remaining = tolerance.saturating_sub(used) / interval;
        Allowance { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), reset_ms: used.div_ceil(1_000) }
    };
    let earliest = after.saturating_sub(tolerance);
    if earliest <= now_us {
        (Answer::Taken(allowance(after)), after)
    } else {
        let retry_after_ms = (earliest - now_us).div_ceil(1_000);
        (Answer::Exhausted { allowance: allowance(tat), retry_after_ms }, tat)
    }
}
