//! Shared state: what must be remembered between requests, and the arithmetic on it.
//!
//! A request asks for at most one [`batch`](run) of operations. A batch happens as a whole or not at all: if
//! one operation is refused, nothing is written, so a nonce is not burnt by a limit and a tenant's allowance
//! not by a user's. Memory, Redis and Envoy's host all run this same arithmetic. Operations and answers are
//! also what travels between Envoy's module and the state service, as JSON.

mod away;
mod batch;
mod memory;
mod mode;
mod rate;
mod trip;
mod usage;
mod volume;
mod windows;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use away::{LimitsWhenAway, away};
pub use batch::{Batch, Counted};
pub use memory::{Full, Memory};
pub use mode::Mode;
pub use rate::{Allowance, Rate, RateError};
pub use trip::{Begun, Ended, Trip, Unanswered};
pub use usage::{Usage, UsageByTenant};
pub use volume::Volume;
pub use windows::Windows;

/// One operation on shared state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Takes `cost` from the allowance `key` (GCRA).
    Take {
        key: String,
        rate: Rate,
        cost: u32,
        #[serde(default, skip_serializing_if = "Mode::enforces")]
        mode: Mode,
    },
    /// Spends `cost` of the `most` that `key` has until `ends_ms`, milliseconds since the Unix epoch.
    Spend {
        key: String,
        most: u64,
        cost: u32,
        ends_ms: u64,
        #[serde(default, skip_serializing_if = "Mode::enforces")]
        mode: Mode,
    },
    /// Remembers `key` for `ttl_ms`; refused when it is remembered already, and when it may have been there before: made,
    /// at `made_s` in Unix seconds by a clock that may be `ahead_s` ahead of ours, before the memory began, or so long ago
    /// that it may be forgotten, by what was remembered for less than `window_s`, the seconds for which it counts.
    Remember {
        key: String,
        ttl_ms: u64,
        made_s: i64,
        ahead_s: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window_s: Option<u64>,
    },
    /// Holds one of the `most` places of `key`, for `lease_ms` at most.
    Hold {
        key: String,
        most: u32,
        lease_ms: u64,
        #[serde(default, skip_serializing_if = "Mode::enforces")]
        mode: Mode,
    },
    /// Gives a place back, unless its lease has ended. Never refused, and never undone by a refusal.
    Release { key: String, place: Place },
    /// Adds to what a tenant has used of the day `key`: `usage` when the batch passes, and as many refused requests
    /// when it does not. Never refused, and forgotten at `until_ms`, milliseconds since the Unix epoch.
    Tally { key: String, tenant: String, usage: Usage, until_ms: u64 },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Self::Take { key, .. }
            | Self::Spend { key, .. }
            | Self::Remember { key, .. }
            | Self::Hold { key, .. }
            | Self::Release { key, .. }
            | Self::Tally { key, .. } => key,
        }
    }

    /// Whether a request may be refused for it.
    pub fn binds(&self) -> bool {
        match self {
            Self::Take { mode, .. } | Self::Spend { mode, .. } | Self::Hold { mode, .. } => mode.enforces(),
            Self::Remember { .. } => true,
            Self::Release { .. } | Self::Tally { .. } => false,
        }
    }

    /// The most places that [`Op::Hold`] may share out.
    pub const MOST_PLACES: u32 = 1_024;
}

/// A place that was held: which, and until when, microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub number: u32,
    pub until_us: u64,
}

/// What the state says to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Op::Take`].
    Taken(Allowance),
    /// To [`Op::Take`]: nothing was taken.
    Exhausted { allowance: Allowance, retry_after_ms: u64 },
    /// To [`Op::Spend`].
    Spent(Volume),
    /// To [`Op::Spend`]: nothing was spent.
    Overspent(Volume),
    /// To [`Op::Remember`].
    Remembered,
    /// To [`Op::Remember`]: it was remembered before.
    Seen,
    /// To [`Op::Remember`]: it is older than the memory, or than what that has kept of its kind.
    TooOld,
    /// To [`Op::Hold`].
    Held(Place),
    /// To [`Op::Hold`]: every place is held; the first lease ends then.
    Busy { retry_after_ms: u64 },
    /// To [`Op::Release`].
    Released,
    /// To [`Op::Tally`].
    Tallied,
    /// To what has [`Mode::Shadow`]: it would have refused, and nothing was taken, spent or held.
    WouldRefuse,
    /// To what refuses nobody: it could not be counted.
    NotCounted,
    /// To anything: the state could not be asked.
    Away,
    /// To anything: it was not asked, for another operation of the request was refused before.
    NotAsked,
}

impl Answer {
    /// Whether the request cannot pass with this answer.
    pub fn refuses(&self) -> bool {
        match self {
            Self::Taken(_)
            | Self::Spent(_)
            | Self::Remembered
            | Self::Held(_)
            | Self::Released
            | Self::Tallied
            | Self::WouldRefuse
            | Self::NotCounted => false,
            Self::Exhausted { .. }
            | Self::Overspent(_)
            | Self::Seen
            | Self::TooOld
            | Self::Busy { .. }
            | Self::Away
            | Self::NotAsked => true,
        }
    }
}

/// A place that keeps one number a key until a time, in microseconds since the Unix epoch; and what tenants use.
pub trait Cells {
    /// The number kept under `key`, unless it has expired by `now_us`.
    fn get(&self, key: &str, now_us: u64) -> Option<u64>;
    fn put(&mut self, key: &str, value: u64, expires_us: u64);
    /// Adds to what a tenant has used of a day.
    fn tally(&mut self, day: &str, tenant: &str, usage: Usage, until_us: u64);

    /// Since when the cells remember, microseconds since the Unix epoch: 0 when they outlive this process.
    fn since_us(&self) -> u64 {
        0
    }

    /// For how long was remembered.
    fn windows(&self) -> &Windows;
    fn windows_mut(&mut self) -> &mut Windows;
}

/// Runs a batch: every operation is judged, and only if none refuses is anything written. The keys of a batch
/// are distinct, so no operation depends on another.
pub fn run(batch: &[Op], now_ms: u64, cells: &mut dyn Cells) -> Vec<Answer> {
    let now_us = now_ms.saturating_mul(1_000);
    for op in batch {
        if let Op::Release { key, place } = op {
            let cell = cell(key, place.number);
            if cells.get(&cell, now_us) == Some(place.until_us) {
                // Over for good, also for a clock that steps back.
                cells.put(&cell, 0, 0);
            }
        }
    }
    let judged: Vec<(Answer, Option<Write<'_>>)> = batch.iter().map(|op| judge(op, now_us, cells)).collect();
    let refused = judged.iter().any(|(answer, _)| answer.refuses());
    if !refused {
        for op in batch {
            if let Op::Remember { window_s: Some(window_s), .. } = op {
                cells.windows_mut().note(*window_s, unix_s(now_us));
            }
        }
        for (_, write) in &judged {
            if let Some(Write { key, value, until_us }) = write {
                cells.put(key, *value, *until_us);
            }
        }
    }
    for op in batch {
        if let Op::Tally { key, tenant, usage, until_ms } = op {
            let until_us = until_ms.saturating_mul(1_000);
            if until_us > now_us {
                cells.tally(key, tenant, if refused { usage.refused() } else { *usage }, until_us);
            }
        }
    }
    let answers = batch.iter().zip(judged).map(|(op, (answer, _))| match answer {
        Answer::Taken(_) | Answer::Spent(_) if refused => untouched(op, now_us, cells).unwrap_or(answer),
        answer => answer,
    });
    answers.collect()
}

/// What is left where nothing was taken after all.
fn untouched(op: &Op, now_us: u64, cells: &dyn Cells) -> Option<Answer> {
    match op {
        Op::Take { key, rate, .. } => Some(rate::take(cells.get(key, now_us), now_us, rate, 0).0),
        Op::Spend { key, most, ends_ms, .. } => {
            let spent = spent(key, *ends_ms, now_us, cells);
            Some(volume::spend(spent, *most, 0, *ends_ms, now_us).0)
        }
        Op::Remember { .. } | Op::Hold { .. } | Op::Release { .. } | Op::Tally { .. } => None,
    }
}

/// What is spent of a period that is not over for good.
fn spent(key: &str, ends_ms: u64, now_us: u64, cells: &dyn Cells) -> u64 {
    let over = volume::kept_until_us(ends_ms) <= now_us;
    if over { 0 } else { cells.get(key, now_us).unwrap_or(0) }
}

/// What an operation keeps, and until when.
struct Write<'k> {
    key: Cow<'k, str>,
    value: u64,
    until_us: u64,
}

impl<'k> Write<'k> {
    /// A time, which may be forgotten once it has come.
    fn time(key: Cow<'k, str>, value_us: u64) -> Self {
        Self { key, value: value_us, until_us: value_us }
    }
}

/// What is said to an operation, and what it keeps if nothing refuses. What would refuse in shadow keeps nothing.
fn judge<'k>(op: &'k Op, now_us: u64, cells: &dyn Cells) -> (Answer, Option<Write<'k>>) {
    match strictly(op, now_us, cells) {
        (answer, _) if answer.refuses() && !op.binds() => (Answer::WouldRefuse, None),
        judged => judged,
    }
}

fn strictly<'k>(op: &'k Op, now_us: u64, cells: &dyn Cells) -> (Answer, Option<Write<'k>>) {
    let later = |ms: u64| now_us.saturating_add(ms.saturating_mul(1_000));
    match op {
        Op::Take { key, rate, cost, .. } => {
            let (answer, value_us) = rate::take(cells.get(key, now_us), now_us, rate, *cost);
            (answer, Some(Write::time(key.into(), value_us)))
        }
        Op::Spend { key, most, cost, ends_ms, .. } => {
            let until_us = volume::kept_until_us(*ends_ms);
            let spent = spent(key, *ends_ms, now_us, cells);
            let (answer, value) = volume::spend(spent, *most, *cost, *ends_ms, now_us);
            (answer, (until_us > now_us).then_some(Write { key: key.into(), value, until_us }))
        }
        Op::Remember { key, ttl_ms, made_s, ahead_s, window_s } => {
            // Whole seconds: what was made in the second of the beginning may have been taken before it.
            let too_old = *made_s <= unix_s(cells.since_us()).saturating_add(i64::from(*ahead_s));
            let forgotten = |window_s| cells.windows().may_have_forgotten(window_s, *made_s, unix_s(now_us));
            if too_old || window_s.is_some_and(forgotten) {
                (Answer::TooOld, None)
            } else if cells.get(key, now_us).is_some() {
                (Answer::Seen, None)
            } else {
                (Answer::Remembered, Some(Write::time(key.into(), later(*ttl_ms))))
            }
        }
        Op::Hold { key, most, lease_ms, .. } => {
            hold(key, (*most).min(Op::MOST_PLACES), later(*lease_ms), now_us, cells)
        }
        Op::Release { .. } => (Answer::Released, None),
        Op::Tally { .. } => (Answer::Tallied, None),
    }
}

/// The first free place of `key`. Each place is a cell of its own that its lease's end empties.
fn hold<'k>(
    key: &str,
    most: u32,
    until_us: u64,
    now_us: u64,
    cells: &dyn Cells,
) -> (Answer, Option<Write<'k>>) {
    let mut first_end_us = until_us;
    for number in 0..most {
        let key = cell(key, number);
        match cells.get(&key, now_us) {
            None => {
                let held = Answer::Held(Place { number, until_us });
                return (held, Some(Write::time(key.into(), until_us)));
            }
            Some(end_us) => first_end_us = first_end_us.min(end_us),
        }
    }
    (Answer::Busy { retry_after_ms: first_end_us.saturating_sub(now_us).div_ceil(1_000) }, None)
}

fn unix_s(time_us: u64) -> i64 {
    i64::try_from(time_us / 1_000_000).unwrap_or(i64::MAX)
}

fn cell(key: &str, place: u32) -> String {
    format!("{key}#{place}")
}

#[cfg(test)]
mod tests;
