//! The keys between us and the network: which there are, when each counts, and the files they come from, followed
//! while the process runs.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use certs::{
    Bytes, CertError, Set, Subject, Watch,
    file::Content,
    report::{self, KeyKind},
};
pub use filters::validity::Moment;
use filters::{
    signature::message::{SigningKey, VerifyingKey},
    validity::{Validity, Window, next_rotation},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        self, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use time::OffsetDateTime;

use crate::secret::{Secret, SecretRef};

/// A key and when it counts: outside its times it signs nothing and verifies nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub key_id: String,
    pub key: SecretRef,
    /// RFC 3339; absent: always.
    #[serde(default)]
    pub not_before: Option<Moment>,
    /// RFC 3339; absent: for ever.
    #[serde(default)]
    pub not_after: Option<Moment>,
}

/// One key, or a list while one takes over from another.
#[derive(Clone, Debug)]
pub struct KeyList(Vec<Key>);

/// The keys as they are now. Wiped when dropped.
#[derive(Debug)]
pub struct Keys(Vec<Held>);

struct Held {
    id: String,
    window: Window,
    secret: Secret,
    signing: SigningKey,
    verifying: VerifyingKey,
    first_seen: OffsetDateTime,
}

impl Key {
    fn window(&self) -> Window {
        Window { not_before: self.not_before, not_after: self.not_after }
    }
}

impl KeyList {
    /// The id of the first; there is one.
    pub fn first_id(&self) -> &str {
        self.0.first().map_or("", |key| &key.key_id)
    }

    /// Reads the keys, and has `watch` follow their files and tell of them as `owner`'s.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn follow(&self, owner: &'static str, folder: &Path, watch: &Watch) -> Result<Set<Keys>, CertError> {
        let files: Vec<(PathBuf, Content)> = self
            .0
            .iter()
            .filter_map(|key| match &key.key {
                SecretRef::File(path) => Some((folder.join(path), Content::Secret)),
                SecretRef::Env(_) => None,
            })
            .collect();
        let list = self.clone();
        let set = watch.files(format!("keys/{owner}"), files, move |files, before, now| {
            Keys::accept(&list, files, before, now)
        })?;
        let told = set.clone();
        watch.holds(move || told.current().report(owner));
        Ok(set)
    }
}

impl Keys {
    /// One that always counts.
    ///
    /// # Errors
    /// When it cannot be a key.
    pub fn one(key_id: &str, secret: &Secret) -> Result<Keys, String> {
        let held = Held::new(key_id, Window::default(), secret.clone(), OffsetDateTime::UNIX_EPOCH)?;
        Ok(Keys(vec![held]))
    }

    /// The key that signs: of those that count the one that began last.
    pub fn signing(&self, now_ms: i64) -> Option<(&str, &SigningKey)> {
        let newest = self.counting(now_ms).max_by_key(|held| held.window.not_before)?;
        Some((&newest.id, &newest.signing))
    }

    /// The key of that id, if it counts.
    pub fn verifying(&self, key_id: &str, now_ms: i64) -> Option<&VerifyingKey> {
        self.counting(now_ms).find(|held| held.id == key_id).map(|held| &held.verifying)
    }

    fn counting(&self, now_ms: i64) -> impl Iterator<Item = &Held> {
        let now_ms = u64::try_from(now_ms).unwrap_or_default();
        self.0.iter().filter(move |held| held.window.at(now_ms) == Validity::Now)
    }

    fn accept(
        list: &KeyList,
        files: &[Bytes],
        before: Option<&Keys>,
        now: OffsetDateTime,
    ) -> Result<Keys, CertError> {
        let mut files = files.iter();
        let mut keys: Vec<Held> = Vec::new();
        for key in &list.0 {
            let (path, read) = match (&key.key, &key.key) {
                (SecretRef::File(path), _) => {
                    let file = files.next();
                    let bytes = file.map(|file| file.bytes.as_slice()).unwrap_or_default();
                    (file.map_or_else(|| path.clone(), |file| file.path.clone()), Secret::decode(bytes, "it"))
                }
                (SecretRef::Env(name), reference) => (name.into(), reference.load(Path::new(""))),
            };
            let wrong = |reason: String| CertError::Content { path: path.clone(), reason };
            let secret = read.map_err(|why| wrong(why.to_string()))?;
            if key.window().is_empty() {
                return Err(wrong(format!("key `{}`: not_after lies before not_before", key.key_id)));
            }
            if keys.iter().any(|other| other.id == key.key_id) {
                return Err(wrong(format!("two keys have the id `{}`", key.key_id)));
            }
            let known = before.and_then(|before| before.0.iter().find(|held| held.id == key.key_id));
            let known = known.filter(|held| filters::crypto::equal(held.secret.bytes(), secret.bytes()));
            let first_seen = known.map_or(now, |held| held.first_seen);
            keys.push(Held::new(&key.key_id, key.window(), secret, first_seen).map_err(wrong)?);
        }
        Ok(Keys(keys))
    }

    fn report(&self, owner: &str) -> Vec<report::Key> {
        let windows: Vec<Window> = self.0.iter().map(|held| held.window).collect();
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        let now_ms = u64::try_from(now).unwrap_or_default();
        let key = |held: &Held| report::Key {
            kind: KeyKind::Network,
            owner: owner.to_owned(),
            id: held.id.clone(),
            not_before: held.window.not_before.map(Moment::time),
            not_after: held.window.not_after.map(Moment::time),
            first_seen: Some(held.first_seen),
            next_rotation: next_rotation(held.window, &windows, now_ms).map(Moment::time),
        };
        self.0.iter().map(key).collect()
    }
}

impl Held {
    fn new(id: &str, window: Window, secret: Secret, first_seen: OffsetDateTime) -> Result<Held, String> {
        let signing = SigningKey::hmac(secret.bytes()).map_err(|why| why.to_string())?;
        let verifying = VerifyingKey::hmac(secret.bytes()).map_err(|why| why.to_string())?;
        Ok(Held { id: id.to_owned(), window, secret, signing, verifying, first_seen })
    }
}

impl Subject for Keys {
    fn summary(&self) -> String {
        self.0.iter().map(|held| held.id.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("id", &self.id).field("window", &self.window).finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for KeyList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = KeyList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key or a list of keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeyList, A::Error> {
                Key::deserialize(MapAccessDeserializer::new(map)).map(|key| KeyList(vec![key]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<KeyList, A::Error> {
                let keys = Vec::<Key>::deserialize(SeqAccessDeserializer::new(list))?;
                if keys.is_empty() {
                    return Err(de::Error::invalid_length(0, &"at least one key"));
                }
                Ok(KeyList(keys))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
        sync::Arc,
        time::Duration,
    };

    use super::*;
    use crate::seal::{Broken, Mark, Signer, Verifier};

    const POST: (&str, &str) = ("POST", "/v1/callback");

    fn write(folder: &Path, name: &str, digit: &str) {
        let new = folder.join("new");
        fs::write(&new, digit.repeat(64)).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, folder.join(name)).unwrap();
    }

    fn list(yaml: &str) -> KeyList {
        serde_saphyr::from_str(yaml).unwrap()
    }

    const TWO: &str = r#"
        - { key_id: old, key: "file:a", not_after: "2026-01-01T00:01:00Z" }
        - { key_id: new, key: "file:b", not_before: "2026-01-01T00:00:30Z" }
    "#;
    const T0_S: i64 = 1_767_225_600;

    #[tokio::test]
    async fn keys_overlap_and_give_way_by_their_times() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", "a");
        write(folder.path(), "b", "b");
        let watch = Watch::new("test");
        let set = list(TWO).follow("network", folder.path(), &watch).unwrap();
        for (after_s, signing, verifying) in [
            (-5, Some("old"), [true, false]),
            (29, Some("old"), [true, false]),
            (30, Some("new"), [true, true]),
            (60, Some("new"), [true, true]),
            (61, Some("new"), [false, true]),
        ] {
            let (keys, now_ms) = (set.current(), (T0_S + after_s) * 1_000);
            assert_eq!(keys.signing(now_ms).map(|(id, _)| id), signing, "{after_s}");
            let known = ["old", "new"].map(|id| keys.verifying(id, now_ms).is_some());
            assert_eq!(known, verifying, "{after_s}");
        }
        let ended = list("{ key_id: old, key: 'file:a', not_after: '2026-01-01T00:01:00Z' }");
        let keys = ended.follow("ours", folder.path(), &watch).unwrap();
        assert!(keys.current().signing((T0_S + 61) * 1_000).is_none());

        let told = watch.report().keys;
        let of = |owner: &str, id: &str| {
            told.iter().find(|key| key.owner == owner && key.id == id).unwrap().clone()
        };
        assert_eq!(of("network", "new").not_before.unwrap().unix_timestamp(), T0_S + 30);
        assert_eq!(of("ours", "old").next_rotation.unwrap().unix_timestamp(), T0_S + 60);
        assert_eq!(told.len(), 3);
    }

    /// From the file's change on the new secret signs and verifies, and what others may read is refused.
    #[tokio::test]
    async fn a_key_file_that_changes_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", "a");
        let watch = Watch::new("test");
        let set = list("{ key_id: k, key: 'file:a' }").follow("ours", folder.path(), &watch).unwrap();
        let signer = Signer::new(&set);
        let following = tokio::spawn(Arc::clone(&watch).run());
        let now_ms = T0_S * 1_000;
        let holds_for = |digit: &str| {
            let mut headers = http::HeaderMap::new();
            let mark = Mark { created_s: T0_S, nonce: "0123456789abcdef".into() };
            signer.sign_request(POST, &mut headers, b"{}", &mark).unwrap();
            let secret = Secret::decode(digit.repeat(64).as_bytes(), "here").unwrap();
            match Verifier::hmac("k", &secret).unwrap().verify_request(POST, &headers, b"{}", now_ms) {
                Ok(_) => true,
                Err(Broken::Invalid) => false,
                Err(other) => panic!("{other}"),
            }
        };
        assert!(holds_for("a"));
        write(folder.path(), "a", "b");
        tokio::time::timeout(Duration::from_secs(30), async {
            while !holds_for("b") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        fs::set_permissions(folder.path().join("a"), Permissions::from_mode(0o644)).unwrap();
        tokio::time::timeout(Duration::from_secs(30), async {
            while set.reloads().reload_failures == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        assert!(holds_for("b"), "the old one stays");
        assert!(set.reloads().last_failure.unwrap().reason.contains("defaultMode: 0440"));
        following.abort();
    }

    #[test]
    fn lists_that_cannot_be_meant() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", "a");
        let watch = Watch::new("test");
        for (yaml, expected) in [
            ("[{ key_id: k, key: 'file:a' }, { key_id: k, key: 'file:a' }]", "two keys have the id `k`"),
            (
                "{ key_id: k, key: 'file:a', not_before: '2026-01-02T00:00:00Z', not_after: '2026-01-01T00:00:00Z' }",
                "not_after lies before not_before",
            ),
            ("{ key_id: k, key: 'file:none' }", "none"),
        ] {
            let why = list(yaml).follow("ours", folder.path(), &watch).unwrap_err().to_string();
            assert!(why.contains(expected), "{yaml}: {why}");
        }
        for yaml in ["[]", "{ key_id: k }", "{ key_id: k, key: 'file:a', not_after: soon }", "k"] {
            assert!(serde_saphyr::from_str::<KeyList>(yaml).is_err(), "{yaml}");
        }
    }
}
