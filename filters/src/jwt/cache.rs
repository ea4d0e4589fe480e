//! Tokens whose signature was verified a moment ago, so that a busy client costs one verification.
//!
//! Only what cannot change is remembered: that this token was signed by this key. Times, audiences and scopes
//! are checked on every request, and a key that the issuer no longer publishes vouches for nothing.

use std::collections::{BTreeMap, VecDeque};
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
    pub claims: Claims,
}

#[derive(Debug, Default)]
struct Shard {
    entries: BTreeMap<[u8; 32], Arc<Verified>>,
    order: VecDeque<[u8; 32]>,
}

const SHARDS: usize = 16;

impl Cache {
    /// Remembers about that many tokens; none when 0.
    pub fn new(entries: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), capacity: entries.div_ceil(SHARDS) }
    }

    /// What is remembered under the SHA-256 of a token.
    pub fn get(&self, digest: &[u8; 32]) -> Option<Arc<Verified>> {
        self.shard(digest)?.entries.get(digest).cloned()
    }

    pub fn put(&self, digest: [u8; 32], verified: Arc<Verified>) {
        let Some(mut shard) = self.shard(&digest).filter(|_| self.capacity > 0) else { return };
        if shard.entries.insert(digest, verified).is_none() {
            shard.order.push_back(digest);
        }
        while shard.order.len() > self.capacity {
            if let Some(oldest) = shard.order.pop_front() {
                shard.entries.remove(&oldest);
            }
        }
    }

    fn shard(&self, digest: &[u8; 32]) -> Option<MutexGuard<'_, Shard>> {
        let [first, ..] = digest;
        let shard = self.shards.get(usize::from(*first) % SHARDS)?;
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
            claims: Claims::parse(payload, "dev").expect("claims"),
        })
    }

    #[test]
    fn the_oldest_goes_first_and_nothing_grows() {
        let cache = Cache::new(32);
        let digest = |n: u8| {
            let mut digest = [0; 32];
            digest[31] = n;
            digest
        };
        for n in 0..5 {
            cache.put(digest(n), verified());
            cache.put(digest(n), verified());
        }
        let held: Vec<bool> = (0..5).map(|n| cache.get(&digest(n)).is_some()).collect();
        assert_eq!(held, [false, false, false, true, true], "one shard holds two");

        let none = Cache::new(0);
        none.put(digest(1), verified());
        assert!(none.get(&digest(1)).is_none());
    }
}
