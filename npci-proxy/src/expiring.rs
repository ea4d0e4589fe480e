//! A bounded memory whose entries all live equally long. Time is an argument.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
};

/// Keys remembered for `ttl_ms`, at most `capacity` of them.
#[derive(Debug)]
pub struct Expiring<K, V> {
    ttl_ms: i64,
    capacity: usize,
    entries: HashMap<K, V>,
    // In order of arrival, and so of expiry: every entry lives equally long.
    arrivals: VecDeque<(i64, K)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    New,
    Known,
    /// Full of entries that may not be forgotten yet.
    Full,
}

impl<K: Clone + Eq + Hash, V> Expiring<K, V> {
    pub fn new(ttl_ms: i64, capacity: usize) -> Self {
        Expiring { ttl_ms, capacity, entries: HashMap::new(), arrivals: VecDeque::new() }
    }

    /// Remembers `key`, and refuses rather than forget another one before its time.
    pub fn remember(&mut self, now_ms: i64, key: K, value: V) -> Remembered {
        self.forget_expired(now_ms);
        let full = self.entries.len() >= self.capacity;
        match self.entries.entry(key) {
            Entry::Occupied(_) => Remembered::Known,
            Entry::Vacant(_) if full => Remembered::Full,
            Entry::Vacant(slot) => {
                self.arrivals.push_back((now_ms.saturating_add(self.ttl_ms), slot.key().clone()));
                slot.insert(value);
                Remembered::New
            }
        }
    }

    /// The entry of `key`, made by `value` if there is none; the oldest entry makes room.
    pub fn entry(&mut self, now_ms: i64, key: K, value: impl FnOnce() -> V) -> &mut V {
        self.forget_expired(now_ms);
        if !self.entries.contains_key(&key) {
            while self.entries.len() >= self.capacity.max(1) {
                let Some((_, oldest)) = self.arrivals.pop_front() else { break };
                self.entries.remove(&oldest);
            }
            self.arrivals.push_back((now_ms.saturating_add(self.ttl_ms), key.clone()));
        }
        self.entries.entry(key).or_insert_with(value)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn forget_expired(&mut self, now_ms: i64) {
        while let Some((expires_ms, key)) = self.arrivals.front() {
            if *expires_ms > now_ms {
                return;
            }
            self.entries.remove(key);
            self.arrivals.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Remembered::*, *};

    #[test]
    fn a_nonce_is_new_once_until_it_expires() {
        let mut seen = Expiring::new(100, 2);
        for (now_ms, key, expected) in [
            (0, "a", New),
            (0, "a", Known),
            (99, "a", Known),
            (99, "b", New),
            (99, "c", Full),
            (100, "c", New), // a has expired
            (150, "b", Known),
            (199, "a", New),
        ] {
            assert_eq!(seen.remember(now_ms, key, ()), expected, "{key} at {now_ms}");
            assert!(seen.len() <= 2);
        }
    }

    #[test]
    fn a_counter_gives_way_to_newer_ones() {
        let mut counts = Expiring::new(100, 2);
        *counts.entry(0, "a", || 0) += 1;
        *counts.entry(1, "a", || 0) += 1;
        *counts.entry(2, "b", || 0) += 1;
        *counts.entry(3, "c", || 0) += 1;
        assert_eq!(counts.len(), 2);
        assert_eq!(*counts.entry(4, "b", || 0), 1);
        assert_eq!(*counts.entry(5, "a", || 0), 0, "the oldest made room");
    }
}
