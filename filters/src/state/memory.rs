//! State in memory, bounded: what one process remembers between requests.

use std::collections::{BTreeMap, HashMap};

use super::{Answer, Cells, Op, Usage, UsageByTenant, Windows, run};

/// A bounded store of expiring cells. When it is full of cells that are still needed it refuses new ones:
/// to forget a nonce early would let it be replayed.
#[derive(Debug)]
pub struct Memory {
    max_entries: usize,
    cells: Expiring,
}

/// The store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory is full of what is still needed")]
pub struct Full;

impl Memory {
    /// Remembers at most `max_entries` things, from `since_ms` on, milliseconds since the Unix epoch.
    pub fn new(max_entries: usize, since_ms: u64) -> Self {
        let cells = Expiring { since_us: since_ms.saturating_mul(1_000), ..Expiring::default() };
        Self { max_entries, cells }
    }

    /// Runs a batch as a whole or not at all. What refuses nobody is left out when there is no room for it.
    pub fn run(&mut self, batch: &[Op], now_ms: u64) -> Result<Vec<Answer>, Full> {
        self.cells.forget_expired(now_ms.saturating_mul(1_000));
        if self.has_room(batch.iter()) {
            return Ok(run(batch, now_ms, &mut self.cells));
        }
        let needed = |op: &&Op| op.binds() || matches!(op, Op::Release { .. });
        let most_needed: Vec<Op> = batch.iter().filter(needed).cloned().collect();
        if !self.has_room(most_needed.iter()) || most_needed.len() == batch.len() {
            return Err(Full);
        }
        let mut answers = run(&most_needed, now_ms, &mut self.cells).into_iter();
        let answered = |op: &Op| if needed(&op) { answers.next() } else { Some(Answer::NotCounted) };
        batch.iter().map(answered).collect::<Option<_>>().ok_or(Full)
    }

    fn has_room<'o>(&self, ops: impl Iterator<Item = &'o Op>) -> bool {
        let cells = &self.cells;
        let is_new = |op: &&Op| match op {
            Op::Take { key, .. } | Op::Spend { key, .. } | Op::Remember { key, .. } => {
                !cells.by_key.contains_key(key)
            }
            // Which of its places it takes shows later; each may be new.
            Op::Hold { .. } => true,
            Op::Release { .. } => false,
            Op::Tally { key, tenant, .. } => {
                cells.usage.get(key).is_none_or(|day| !day.by_tenant.contains_key(tenant))
            }
        };
        self.len() + ops.filter(is_new).count() <= self.max_entries
    }

    /// Things remembered, those not yet swept away included.
    pub fn len(&self) -> usize {
        let usage: usize = self.cells.usage.values().map(|day| day.by_tenant.len()).sum();
        self.cells.by_key.len() + usage
    }

    /// What each tenant has used of a day, by the key of the day's [`Op::Tally`].
    pub fn usage(&self, day: &str) -> UsageByTenant {
        self.cells.usage.get(day).map(|day| day.by_tenant.clone()).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Default)]
struct Expiring {
    by_key: HashMap<String, Cell>,
    /// Keys by the second in which they are next looked at; each key stands in exactly one of them.
    due: BTreeMap<u64, Vec<String>>,
    /// What tenants use, by day.
    usage: BTreeMap<String, Day>,
    since_us: u64,
    windows: Windows,
}

#[derive(Debug)]
struct Day {
    by_tenant: UsageByTenant,
    until_us: u64,
}

#[derive(Debug)]
struct Cell {
    value: u64,
    expires_us: u64,
}

/// Most cells forgotten in one go, so that no single request pays for all the others.
const MOST_FORGOTTEN: usize = 256;

impl Expiring {
    fn forget_expired(&mut self, now_us: u64) {
        if self.usage.values().any(|day| day.until_us <= now_us) {
            self.usage.retain(|_, day| day.until_us > now_us);
        }
        let mut left = MOST_FORGOTTEN;
        while left > 0 {
            let Some(mut second) = self.due.first_entry() else { return };
            if *second.key() >= second_of(now_us) {
                return;
            }
            let Some(key) = second.get_mut().pop() else {
                second.remove();
                continue;
            };
            left -= 1;
            match self.by_key.get(&key) {
                Some(cell) if cell.expires_us > now_us => {
                    self.due.entry(second_of(cell.expires_us)).or_default().push(key);
                }
                Some(_) | None => {
                    self.by_key.remove(&key);
                }
            }
        }
    }
}

fn second_of(time_us: u64) -> u64 {
    time_us / 1_000_000
}

impl Cells for Expiring {
    fn get(&self, key: &str, now_us: u64) -> Option<u64> {
        self.by_key.get(key).filter(|cell| cell.expires_us > now_us).map(|cell| cell.value)
    }

    fn put(&mut self, key: &str, value: u64, expires_us: u64) {
        let fresh = Cell { value, expires_us };
        if self.by_key.insert(key.to_owned(), fresh).is_none() {
            self.due.entry(second_of(expires_us)).or_default().push(key.to_owned());
        }
    }

    fn tally(&mut self, day: &str, tenant: &str, usage: Usage, until_us: u64) {
        let day = match self.usage.get_mut(day) {
            Some(day) => day,
            None => {
                let new = Day { by_tenant: UsageByTenant::new(), until_us };
                self.usage.entry(day.to_owned()).or_insert(new)
            }
        };
        match day.by_tenant.get_mut(tenant) {
            Some(used) => *used += usage,
            None => drop(day.by_tenant.insert(tenant.to_owned(), usage)),
        }
    }

    fn since_us(&self) -> u64 {
        self.since_us
    }

    fn windows(&self) -> &Windows {
        &self.windows
    }

    fn windows_mut(&mut self) -> &mut Windows {
        &mut self.windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Mode, Rate};

    const T0: u64 = 1_700_000_000_000;

    fn remember(key: &str, ttl_ms: u64) -> [Op; 1] {
        [Op::Remember { key: key.into(), ttl_ms, made_s: 1_700_000_000, ahead_s: 0, window_s: None }]
    }

    #[test]
    fn a_full_store_refuses_and_forgets_nothing_early() {
        let mut memory = Memory::new(2, 0);
        assert_eq!(memory.run(&remember("a", 10_000), T0), Ok(vec![Answer::Remembered]));
        assert_eq!(memory.run(&remember("b", 1_000), T0), Ok(vec![Answer::Remembered]));
        assert_eq!(memory.run(&remember("c", 1_000), T0), Err(Full));
        assert_eq!(memory.run(&remember("a", 10_000), T0), Ok(vec![Answer::Seen]), "known keys still answer");
        assert_eq!(memory.run(&remember("c", 1_000), T0 + 2_001), Ok(vec![Answer::Remembered]));
        assert_eq!(memory.run(&remember("a", 10_000), T0 + 2_001), Ok(vec![Answer::Seen]));
    }

    #[test]
    fn what_a_tenant_uses_is_counted_as_its_batch_ends_and_refuses_nobody() {
        let mut memory = Memory::new(2, 0);
        let tally = |tenant: &str| Op::Tally {
            key: "usage/d".into(),
            tenant: tenant.into(),
            usage: Usage::of_request(3),
            until_ms: T0 + 10_000,
        };
        let [nonce] = remember("n", 60_000);
        assert_eq!(
            memory.run(&[nonce.clone(), tally("a")], T0),
            Ok(vec![Answer::Remembered, Answer::Tallied])
        );
        assert_eq!(memory.run(&[nonce.clone(), tally("a")], T0), Ok(vec![Answer::Seen, Answer::Tallied]));
        // There is no room for another tenant, and nobody is refused for that.
        assert_eq!(memory.run(&[tally("b")], T0), Ok(vec![Answer::NotCounted]));
        assert_eq!(memory.run(&[nonce, tally("b")], T0), Ok(vec![Answer::Seen, Answer::NotCounted]));
        let used = Usage { requests: 1, cost: 3, refused: 1 };
        assert_eq!(memory.usage("usage/d"), UsageByTenant::from([("a".to_owned(), used)]));
        assert_eq!((memory.len(), memory.usage("usage/e").len()), (2, 0));
        assert_eq!(memory.run(&[tally("a")], T0 + 10_000), Ok(vec![Answer::Tallied]), "the day is forgotten");
        assert_eq!((memory.len(), memory.usage("usage/d").len()), (1, 0));
    }

    #[test]
    fn keys_that_are_used_again_are_kept_once_and_forgotten_at_last() {
        let mut memory = Memory::new(10, 0);
        let rate = Rate::new(10, 1_000, 10).unwrap();
        for step in 0..1_000 {
            let op = Op::Take { key: "k".into(), rate, cost: 1, mode: Mode::Enforce };
            memory.run(&[op], T0 + step * 100).unwrap();
        }
        let places: usize = memory.cells.due.values().map(Vec::len).sum();
        assert_eq!((memory.len(), places), (1, 1));
        memory.run(&remember("other", 1), T0 + 200_000).unwrap();
        assert_eq!(memory.len(), 1, "only the new key is left");
    }
}
