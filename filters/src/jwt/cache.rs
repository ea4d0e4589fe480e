//! Tokens whose signature was verified a moment ago, so that a busy client costs one verification.
//!
//! Only what cannot change is remembered: that this token was signed by this key. Times, audiences and scopes
//! are checked on every request, and a key that the issuer no longer publishes vouches for nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::claims::Claims;
use super::keys::Key;

/// A bounded cache; when it is full the oldest entry goes. Shards keep threads out of each other's way.
#[derive(Debug)]
pub(super) struct Cache {
    shards: Vec<Mutex<Shard>>,
    capacity: usize,
}

/// A verified token.
#[derive(Debug)]
pub(super) struct Verified {
    /// The key that vouches for it.
    pub key: Key,
    pub claims: Arc<Claims>,
}

#[derive(Debug, Default)]
struct Shard {
    /// By the whole token: equal to the letter, so that nothing stands in for it.
    entries: HashMap<Arc<str>, Arc<Verified>>,
    order: VecDeque<Arc<str>>,
}

const SHARDS: usize = 16;

impl Cache {
    /// Remembers about that many tokens; none when 0.
    pub fn new(entries: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), capacity: entries.div_ceil(SHARDS) }
    }

    /// What is remembered of a token.
    pub fn get(&self, token: &str) -> Option<Arc<Verified>> {
        self.shard(token)?.entries.get(token).cloned()
    }

    pub fn put(&self, token: &str, verified: Arc<Verified>) {
        let Some(mut shard) = self.shard(token).filter(|_| self.capacity > 0) else { return };
        let token: Arc<str> = token.into();
        if shard.entries.insert(Arc::clone(&token), verified).is_none() {
            shard.order.push_back(token);
        }
        while shard.order.len() > self.capacity {
            if let Some(oldest) = shard.order.pop_front() {
                shard.entries.remove(&oldest);
            }
        }
    }

    fn shard(&self, token: &str) -> Option<MutexGuard<'_, Shard>> {
        // A token ends with its signature, which is as good as random.
        let end = token.bytes().rev().take(4).fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let shard = self.shards.get(end % SHARDS)?;
        // A thread that died while it held the lock left a map that is whole: every step above is.
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::VerifyingKey;
    use crate::policy::Algorithm;

    fn verified() -> Arc<Verified> {
        let payload = br#"{"sub":"u","aud":"a","exp":1}"#;
        Arc::new(Verified {
            key: Key {
                kid: None,
                algorithm: Algorithm::EdDSA,
                key: VerifyingKey::ed25519(&[1; 32]).expect("a key"),
            },
            claims: Arc::new(Claims::parse(payload, "dev", &[]).expect("claims")),
        })
    }

    #[test]
    fn the_oldest_goes_first_and_nothing_grows() {
        let cache = Cache::new(32);
        // Of one shard all: they end alike.
        let token = |n: u8| format!("{n}.same");
        for n in 0..5 {
            cache.put(&token(n), verified());
            cache.put(&token(n), verified());
        }
        let held: Vec<bool> = (0..5).map(|n| cache.get(&token(n)).is_some()).collect();
        assert_eq!(held, [false, false, false, true, true], "one shard holds two");

        let none = Cache::new(0);
        none.put(&token(1), verified());
        assert!(none.get(&token(1)).is_none());
    }
}
