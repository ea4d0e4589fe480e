//! Shared state: what must be remembered between requests, and the arithmetic on it.
//!
//! A request asks for at most one [`batch`](run) of operations. A batch happens as a whole or not at all: if
//! one operation is refused, nothing is written, so a nonce is not burnt by a limit and a tenant's allowance
//! not by a user's. Memory, Redis and Envoy's host all run this same arithmetic.

/// One operation on shared state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Takes `cost` from the allowance `key` (GCRA).
    Take { key: String, rate: Rate, cost: u32 },
    /// Remembers `key` for `ttl_ms`; refused when it is remembered already.
    Remember { key: String, ttl_ms: u64 },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Self::Take { key, .. } | Self::Remember { key, .. } => key,
        }
    }
}

/// So many requests in so long, spread evenly, with a burst on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: u32,
    per_ms: u64,
    burst: u32,
}

impl Rate {
    /// The longest period: beyond it the arithmetic of [`take`] could overflow. Thirty-one days.
    pub const MAX_PER_MS: u64 = 31 * 24 * 3_600 * 1_000;
    /// The most requests a period: one a microsecond is the finest the arithmetic tells apart.
    pub const MAX_REQUESTS: u32 = 1_000_000;

    /// `burst` requests may come at once; after them one every `per_ms / requests`.
    pub fn new(requests: u32, per_ms: u64, burst: u32) -> Result<Self, RateError> {
        if requests == 0 || requests > Self::MAX_REQUESTS {
            return Err(RateError::Requests);
        }
        if per_ms == 0 || per_ms > Self::MAX_PER_MS || per_ms * 1_000 < u64::from(requests) {
            return Err(RateError::Period);
        }
        if burst == 0 || burst > Self::MAX_REQUESTS {
            return Err(RateError::Burst);
        }
        Ok(Self { requests, per_ms, burst })
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
    fn interval_us(&self) -> u64 {
        (self.per_ms * 1_000).div_ceil(u64::from(self.requests))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("`requests` must be between 1 and {}", Rate::MAX_REQUESTS)]
    Requests,
    #[error("`per_s` must be at least 1 and at most 31 days, and no shorter than a microsecond a request")]
    Period,
    #[error("`burst` must be between 1 and {}", Rate::MAX_REQUESTS)]
    Burst,
}

/// What the state says to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Op::Take`].
    Taken(Allowance),
    /// To [`Op::Take`]: nothing was taken.
    Exhausted { allowance: Allowance, retry_after_ms: u64 },
    /// To [`Op::Remember`].
    Remembered,
    /// To [`Op::Remember`]: it was remembered before.
    Seen,
}

impl Answer {
    fn refuses(&self) -> bool {
        match self {
            Self::Taken(_) | Self::Remembered => false,
            Self::Exhausted { .. } | Self::Seen => true,
        }
    }
}

/// How much is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests of cost 1 that would pass now.
    pub remaining: u32,
    /// Until the whole burst is there again.
    pub reset_ms: u64,
}

/// A place that keeps one number a key until a time. Both are in microseconds since the Unix epoch.
pub trait Cells {
    /// The number kept under `key`, unless it has expired by `now_us`.
    fn get(&self, key: &str, now_us: u64) -> Option<u64>;
    fn put(&mut self, key: &str, value: u64, expires_us: u64);
}

/// Runs a batch: every operation is judged, and only if none refuses is anything written.
pub fn run(batch: &[Op], now_ms: u64, cells: &mut dyn Cells) -> Vec<Answer> {
    let now_us = now_ms.saturating_mul(1_000);
    let judged: Vec<(Answer, u64)> = batch
        .iter()
        .map(|op| match op {
            Op::Take { key, rate, cost } => take(cells.get(key, now_us), now_us, rate, *cost),
            Op::Remember { key, ttl_ms } => match cells.get(key, now_us) {
                Some(until) => (Answer::Seen, until),
                None => (Answer::Remembered, now_us.saturating_add(ttl_ms.saturating_mul(1_000))),
            },
        })
        .collect();
    if !judged.iter().any(|(answer, _)| answer.refuses()) {
        for (op, (_, value)) in batch.iter().zip(&judged) {
            cells.put(op.key(), *value, *value);
        }
    }
    judged.into_iter().map(|(answer, _)| answer).collect()
}

/// GCRA on the theoretical arrival time (TAT): the moment at which the whole burst is available again.
/// Answers with the TAT to keep, which is also when the cell may be forgotten.
fn take(tat_us: Option<u64>, now_us: u64, rate: &Rate, cost: u32) -> (Answer, u64) {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Map(HashMap<String, (u64, u64)>);

    impl Cells for Map {
        fn get(&self, key: &str, now_us: u64) -> Option<u64> {
            self.0.get(key).filter(|(_, expires)| *expires > now_us).map(|(value, _)| *value)
        }
        fn put(&mut self, key: &str, value: u64, expires_us: u64) {
            self.0.insert(key.to_owned(), (value, expires_us));
        }
    }

    const T0: u64 = 1_700_000_000_000;

    fn rate(requests: u32, per_ms: u64, burst: u32) -> Rate {
        Rate::new(requests, per_ms, burst).unwrap()
    }

    fn take_op(key: &str, rate: Rate, cost: u32) -> Op {
        Op::Take { key: key.into(), rate, cost }
    }

    #[test]
    fn a_burst_passes_then_one_each_interval() {
        let mut cells = Map::default();
        let op = [take_op("u", rate(10, 1_000, 3), 1)];
        let mut left = Vec::new();
        for _ in 0..3 {
            match run(&op, T0, &mut cells)[0] {
                Answer::Taken(a) => left.push(a.remaining),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(left, [2, 1, 0]);
        let expected =
            Answer::Exhausted { allowance: Allowance { remaining: 0, reset_ms: 300 }, retry_after_ms: 100 };
        assert_eq!(run(&op, T0, &mut cells), [expected]);
        assert!(matches!(run(&op, T0 + 100, &mut cells)[0], Answer::Taken(_)));
        assert!(matches!(run(&op, T0 + 100, &mut cells)[0], Answer::Exhausted { .. }));
    }

    #[test]
    fn a_refused_batch_writes_nothing() {
        let mut cells = Map::default();
        let wide = rate(100, 1_000, 100);
        let narrow = rate(1, 60_000, 1);
        let nonce = |n: &str| Op::Remember { key: format!("nonce/{n}"), ttl_ms: 600_000 };
        let batch = |n: &str| [nonce(n), take_op("tenant", wide, 1), take_op("user", narrow, 1)];
        assert!(run(&batch("a"), T0, &mut cells).iter().all(|a| !a.refuses()));
        let before = cells.0.clone();
        let answers = run(&batch("b"), T0, &mut cells);
        assert!(matches!(answers[2], Answer::Exhausted { .. }));
        assert_eq!(cells.0, before, "a nonce or an allowance was spent on a refused request");
        assert_eq!(run(&batch("b"), T0 + 60_000, &mut cells)[0], Answer::Remembered);
        assert_eq!(run(&batch("b"), T0 + 120_000, &mut cells)[0], Answer::Seen);
    }

    #[test]
    fn what_is_remembered_is_forgotten_after_its_time() {
        let mut cells = Map::default();
        let op = [Op::Remember { key: "n".into(), ttl_ms: 1_000 }];
        for (at, expected) in [(0, Answer::Remembered), (999, Answer::Seen), (1_000, Answer::Remembered)] {
            assert_eq!(run(&op, T0 + at, &mut cells), [expected], "at {at} ms");
        }
    }

    #[test]
    fn rates_outside_the_arithmetic_are_refused() {
        for (requests, per_ms, burst, ok) in [
            (1, 1_000, 1, true),
            (1_000_000, 1_000, 1_000_000, true),
            (0, 1_000, 1, false),
            (1_000_001, 60_000, 1, false),
            (1, 0, 1, false),
            (1, Rate::MAX_PER_MS + 1, 1, false),
            (1_000_000, 999, 1, false),
            (1, 1_000, 0, false),
        ] {
            assert_eq!(Rate::new(requests, per_ms, burst).is_ok(), ok, "{requests}/{per_ms}/{burst}");
        }
    }

    proptest! {
        /// In any window, no more than the burst and the window's share may pass.
        #[test]
        fn never_more_than_the_limit(
            requests in 1u32..1_000, per_ms in 1u64..100_000, burst in 1u32..50,
            steps in prop::collection::vec((0u64..5_000, 1u32..4), 1..200),
        ) {
            prop_assume!(per_ms * 1_000 >= u64::from(requests));
            let rate = rate(requests, per_ms, burst);
            let mut cells = Map::default();
            let mut now = T0;
            let mut passed = 0u64;
            for (wait, cost) in steps {
                now += wait;
                match run(&[take_op("k", rate, cost)], now, &mut cells)[0] {
                    Answer::Taken(_) => passed += u64::from(cost),
                    Answer::Exhausted { retry_after_ms, allowance } => {
                        prop_assert!(allowance.remaining < cost || cost > burst);
                        prop_assert!(retry_after_ms > 0);
                        if cost <= burst {
                            let mut later = Map(cells.0.clone());
                            let again = run(&[take_op("k", rate, cost)], now + retry_after_ms, &mut later);
                            prop_assert!(matches!(again[0], Answer::Taken(_)), "Retry-After lied");
                        }
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
                let share = (now - T0) * u64::from(requests) / per_ms;
                prop_assert!(passed <= u64::from(burst) + share + 1, "{passed} passed by {}", now - T0);
            }
        }

        #[test]
        fn no_input_overflows(tat in any::<Option<u64>>(), now in any::<u64>(), cost in any::<u32>(),
            requests in 1u32..=Rate::MAX_REQUESTS, per_ms in 1u64..=Rate::MAX_PER_MS, burst in 1u32..=Rate::MAX_REQUESTS,
        ) {
            if let Ok(rate) = Rate::new(requests, per_ms, burst) {
                let _ = take(tat, now, &rate, cost);
            }
        }
    }
}
