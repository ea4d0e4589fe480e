//! State in memory, bounded: what one process remembers between requests.

use std::collections::{BTreeMap, HashMap};

use super::{Answer, Cells, Op, run};

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

    /// Runs a batch as a whole or not at all.
    pub fn run(&mut self, batch: &[Op], now_ms: u64) -> Result<Vec<Answer>, Full> {
        let cells = &mut self.cells;
        cells.forget_expired(now_ms.saturating_mul(1_000));
        let is_new = |op: &&Op| match op {
            Op::Take { key, .. } | Op::Remember { key, .. } => !cells.by_key.contains_key(key),
            // Which of its places it takes shows later; each may be new.
            Op::Hold { .. } => true,
            Op::Release { .. } => false,
        };
        if cells.by_key.len() + batch.iter().filter(is_new).count() > self.max_entries {
            return Err(Full);
        }
        Ok(run(batch, now_ms, cells))
    }

    /// Things remembered, those not yet swept away included.
    pub fn len(&self) -> usize {
        self.cells.by_key.len()
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
    since_us: u64,
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

    fn since_us(&self) -> u64 {
        self.since_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Rate;

    const T0: u64 = 1_700_000_000_000;

    fn remember(key: &str, ttl_ms: u64) -> [Op; 1] {
        [Op::Remember { key: key.into(), ttl_ms, made_s: 1_700_000_000 }]
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
    fn keys_that_are_used_again_are_kept_once_and_forgotten_at_last() {
        let mut memory = Memory::new(10, 0);
        let rate = Rate::new(10, 1_000, 10).unwrap();
        for step in 0..1_000 {
            let op = Op::Take { key: "k".into(), rate, cost: 1 };
            memory.run(&[op], T0 + step * 100).unwrap();
        }
        let places: usize = memory.cells.due.values().map(Vec::len).sum();
        assert_eq!((memory.len(), places), (1, 1));
        memory.run(&remember("other", 1), T0 + 200_000).unwrap();
        assert_eq!(memory.len(), 1, "only the new key is left");
    }
}
