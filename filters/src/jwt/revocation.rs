//! Tokens that are no longer believed before they expire: the token itself (`jti`), its session (`sid`), its device, its
//! user.
//!
//! Owns what is revoked and whether a token is. The list is in memory, so that no request pays a trip for it; the data
//! plane keeps it fresh. It is bounded by [`Revocations::MOST`], which the data plane that takes revocations sees to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use super::claims::{Claims, readable};

/// What a revocation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `jti`.
    Token,
    /// `sid`.
    Session,
    /// `device`.
    Device,
    /// `sub`.
    User,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Token, Self::Session, Self::Device, Self::User];

    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Device => "device",
            Self::User => "user",
        }
    }

    /// Whether who logs in again is believed again: a user or a device gets new tokens, a token or a session ends.
    pub fn spares_later_tokens(self) -> bool {
        match self {
            Self::Token | Self::Session => false,
            Self::Device | Self::User => true,
        }
    }
}

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

/// A revocation, or the end of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    pub kind: Kind,
    /// The claim's value.
    pub id: String,
    /// Tokens of this tenant alone; absent: whatever their tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Tokens that were issued (`iat`) at or before this, Unix milliseconds, and those that do not say when; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_until_ms: Option<u64>,
    /// When it is forgotten, Unix milliseconds: after the last token that it is of has expired.
    pub until_ms: u64,
    /// It is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
}

impl Revocation {
    pub fn key(&self) -> Key {
        Key::new(self.kind, self.tenant.as_deref(), &self.id)
    }

    /// What counts once this has come after another of the same key: none takes a stronger one's force, but an undo.
    /// The script `gateway/src/state/revoked.lua` does the same where a fleet shares a Redis.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let until_ms = self.until_ms.max(before.until_ms);
        match (before.undone, self.undone) {
            (true, false) => self,
            // It is remembered for as long as what it takes back would have been.
            (false | true, true) => Self { until_ms, ..self },
            (false, false) => {
                let issued_until_ms = match (before.issued_until_ms, self.issued_until_ms) {
                    (Some(before), Some(after)) => Some(before.max(after)),
                    (None, _) | (_, None) => None,
                };
                Self { issued_until_ms, until_ms, ..self }
            }
        }
    }

    /// Whether a token could carry what it names.
    pub fn is_readable(&self) -> bool {
        readable(&self.id) && self.tenant.as_deref().is_none_or(readable)
    }
}

impl Key {
    fn new(kind: Kind, tenant: Option<&str>, id: &str) -> Self {
        // Claims are one line each, so none can be read as two.
        Self(format!("{}\n{}\n{id}", kind.name(), tenant.unwrap_or_default()).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Everything that is revoked now.
#[derive(Default)]
pub struct Revocations(RwLock<List>);

#[derive(Default)]
struct List {
    is_known: bool,
    by_key: HashMap<Key, Revocation>,
}

impl Revocations {
    /// The most that may be revoked at a time. More are refused where they are made.
    pub const MOST: usize = 100_000;

    /// A list of which nothing has been heard: no token is believed until it [is known](Self::is_known).
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Nothing is revoked.
    pub fn none() -> Self {
        let none = Self::default();
        none.known();
        none
    }

    /// From now on what is not on the list is not revoked.
    pub fn known(&self) {
        self.write().is_known = true;
    }

    pub fn is_known(&self) -> bool {
        self.read().is_known
    }

    /// Revokes, or takes a revocation back. Tells what counts now, which is more than was asked for where more was revoked
    /// already, and whether that changed anything. When the list is full only what is on it already is changed.
    pub fn revoke(&self, revocation: Revocation, now_ms: u64) -> (Revocation, bool) {
        let mut list = self.write();
        let before = list.by_key.get(&revocation.key()).filter(|before| before.until_ms > now_ms);
        let counts = match before {
            Some(before) => revocation.after(before),
            None => revocation,
        };
        (counts.clone(), list.set(counts))
    }

    /// Takes what counts now, or that nothing does, from whoever keeps the list for others. Tells whether that changed
    /// anything. When the list is full only what is on it already is changed.
    pub fn apply(&self, revocation: Revocation) -> bool {
        self.write().set(revocation)
    }

    /// Forgets what is over.
    pub fn forget(&self, now_ms: u64) {
        self.write().by_key.retain(|_, revocation| revocation.until_ms > now_ms);
    }
    pub fn len(&self) -> usize {
        self.read().by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of everything, in no order.
    pub fn all(&self) -> Vec<Revocation> {
        self.read().by_key.values().cloned().collect()
    }

    pub fn get(&self, key: &Key) -> Option<Revocation> {
        self.read().by_key.get(key).cloned()
    }

    /// Whether a token with these claims is no longer believed.
    pub fn revokes(&self, claims: &Claims, now_ms: u64) -> bool {
        let list = self.read();
        if list.by_key.is_empty() {
            return false;
        }
        let identity = &claims.identity;
        let tenant = identity.tenant.as_deref();
        let ids = Kind::ALL.into_iter().filter_map(|kind| {
            let id = match kind {
                Kind::Token => claims.token_id.as_deref(),
                Kind::Session => claims.session.as_deref(),
                Kind::Device => identity.device.as_deref(),
                Kind::User => Some(identity.subject.as_str()),
            };
            id.map(|id| (kind, id))
        });
        let revoked = ids.flat_map(|(kind, id)| {
            let of_tenant = tenant.map(|tenant| Key::new(kind, Some(tenant), id));
            [Some(Key::new(kind, None, id)), of_tenant].into_iter().flatten()
        });
        let holds = |revocation: &Revocation| {
            let spared = match (revocation.issued_until_ms, claims.issued_ms()) {
                (Some(until), Some(issued)) => issued > i64::try_from(until).unwrap_or(i64::MAX),
                (Some(_), None) | (None, _) => false,
            };
            revocation.until_ms > now_ms && !spared
        };
        revoked.filter_map(|key| list.by_key.get(&key)).any(holds)
    }

    // A panic while the lock was held cannot have left half a change: a map's own steps do not fail.
    fn read(&self) -> RwLockReadGuard<'_, List> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, List> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn set(&mut self, revocation: Revocation) -> bool {
        let key = revocation.key();
        let before = self.by_key.get(&key);
        match (before, revocation.undone) {
            (Some(_), true) => self.by_key.remove(&key).is_some(),
            (None, true) => false,
            (Some(before), false) if *before == revocation => false,
            (None, false) if self.by_key.len() >= Revocations::MOST => false,
            (Some(_) | None, false) => {
                self.by_key.insert(key, revocation);
                true
            }
        }
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn claims(rest: &str) -> Claims {
        let text = format!(r#"{{"sub":"u1","aud":"a","exp":1800000000{rest}}}"#);
        Claims::parse(text.as_bytes(), "dev", &[]).expect("claims")
    }

    fn revocation(kind: Kind, id: &str) -> Revocation {
        Revocation {
            kind,
            id: id.to_owned(),
            tenant: None,
            issued_until_ms: kind.spares_later_tokens().then_some(NOW_MS),
            until_ms: NOW_MS + 60_000,
            undone: false,
        }
    }

    #[test]
    fn what_is_revoked() {
        let all = r#","tenant":"acme","device":"d1","jti":"t1","sid":"s1","iat":1699999990"#;
        let of_tenant = |tenant: &str| Revocation { tenant: Some(tenant.into()), ..revocation(Kind::User, "u1") };
        let at = |seconds: u64| format!(r#","iat":{seconds}"#);
        for (revoked, rest, expected) in [
            (revocation(Kind::Token, "t1"), all, true),
            (revocation(Kind::Token, "t2"), all, false),
            (revocation(Kind::Session, "s1"), all, true),
            (revocation(Kind::Session, "t1"), all, false),
            (revocation(Kind::Device, "d1"), all, true),
            (revocation(Kind::User, "u1"), all, true),
            (revocation(Kind::User, "d1"), all, false),
            (of_tenant("acme"), all, true),
            (of_tenant("other"), all, false),
            (of_tenant("acme"), "", false),
            (revocation(Kind::User, "u1"), "", true),
            (revocation(Kind::User, "u1"), &at(1_700_000_000), true),
            (revocation(Kind::User, "u1"), &at(1_700_000_001), false),
            (revocation(Kind::Token, "t1"), r#","jti":"t1","iat":1700000001"#, true),
            (Revocation { until_ms: NOW_MS, ..revocation(Kind::User, "u1") }, all, false),
        ] {
            let list = Revocations::none();
            assert!(!list.revokes(&claims(rest), NOW_MS));
            assert!(list.apply(revoked.clone()));
            assert_eq!(list.revokes(&claims(rest), NOW_MS), expected, "{revoked:?} {rest}");
            assert!(!list.apply(revoked.clone()), "the same again");
            assert!(list.apply(Revocation { undone: true, ..revoked.clone() }));
            assert!(!list.apply(Revocation { undone: true, ..revoked }), "undone already");
            assert!(!list.revokes(&claims(rest), NOW_MS));
        }
    }

    #[test]
    fn no_later_revocation_takes_the_force_of_another() {
        let of = |issued_until_ms, until_ms| Revocation {
            issued_until_ms,
            until_ms: NOW_MS + until_ms,
            ..revocation(Kind::User, "u1")
        };
        let undo = |until_ms| Revocation { undone: true, ..of(None, until_ms) };
        for (before, after, expected) in [
            (of(Some(9), 9), of(Some(5), 5), of(Some(9), 9)),
            (of(Some(5), 5), of(Some(9), 9), of(Some(9), 9)),
            (of(Some(9), 5), of(Some(5), 9), of(Some(9), 9)),
            (of(None, 5), of(Some(9), 9), of(None, 9)),
            (of(Some(9), 9), of(None, 5), of(None, 9)),
            (of(Some(9), 9), undo(5), undo(9)),
            (undo(9), of(Some(5), 5), of(Some(5), 5)),
            // It is over.
            (of(Some(9), 0), of(Some(5), 5), of(Some(5), 5)),
        ] {
            let list = Revocations::none();
            list.revoke(before.clone(), NOW_MS);
            let (counts, _) = list.revoke(after.clone(), NOW_MS);
            assert_eq!(counts, expected, "{before:?} {after:?}");
            let kept = list.get(&after.key());
            assert_eq!(kept, (!expected.undone).then_some(expected), "{before:?} {after:?}");
        }
    }

    #[test]
    fn the_list_is_bounded_and_forgets() {
        let list = Revocations::none();
        for number in 0..Revocations::MOST {
            assert!(list.apply(revocation(Kind::Token, &number.to_string())));
        }
        assert!(!list.apply(revocation(Kind::Token, "one more")));
        assert!(list.apply(Revocation { until_ms: NOW_MS + 120_000, ..revocation(Kind::Token, "7") }));
        list.forget(NOW_MS + 60_000);
        assert_eq!((list.len(), list.is_empty()), (1, false));
    }

    #[test]
    fn what_no_token_could_carry() {
        let of = |id: &str| revocation(Kind::User, id);
        for (revocation, expected) in [
            (of("u1"), true),
            (of(""), false),
            (of("a\nb"), false),
            (of(&"x".repeat(257)), false),
            (Revocation { tenant: Some(String::new()), ..of("u1") }, false),
        ] {
            assert_eq!(revocation.is_readable(), expected, "{revocation:?}");
        }
    }
}
