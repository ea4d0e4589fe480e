//! The clients' shared secrets, followed while the edge runs: a file that changes is used from then on, as a whole
//! with all the others, or refused with a reason. And what is told of them, and of the API keys, which change with the
//! policy alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::file::Content;
use certs::report::{Key, KeyKind};
use certs::{Bytes, CertError, Live, Set, Subject, Watch};
use filters::policy::{Client, Document, Keyring, Mistake, Reference, Secret};
use filters::validity::{Moment, Window, next_rotation};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::load::less_line_break;

/// The clients' keys as they are now.
#[derive(Clone, Debug)]
pub(crate) struct ClientKeys(Set<Held>);

struct Held {
    ring: Arc<Keyring>,
    /// Since when each key is held, by its id.
    first_seen: BTreeMap<String, OffsetDateTime>,
    /// The API keys, by their names among people.
    api_keys: BTreeMap<String, HeldApiKey>,
    /// What files hold, by reference, for Envoy's workers.
    written: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

struct HeldApiKey {
    client: String,
    sha256: String,
    window: Window,
    first_seen: OffsetDateTime,
}

impl ClientKeys {
    /// Reads them, and has `watch` follow their files and tell of them. Those that were held `before` are as old as they
    /// were.
    pub(crate) fn follow(
        document: &Document,
        folder: &Path,
        watch: &Watch,
        before: Option<Self>,
    ) -> Result<Self, CertError> {
        let clients = document.clients.clone();
        let mut files: Vec<PathBuf> = document
            .client_secrets()
            .filter_map(|reference| match reference {
                Reference::File(path) => Some(path.clone()),
                Reference::Env(_) => None,
            })
            .collect();
        files.sort_unstable();
        files.dedup();
        let watched = files.iter().map(|path| (folder.join(path), Content::Secret)).collect();
        // Let go of as soon as it was looked at: it holds secrets.
        let first = Mutex::new(before.map(|before| before.0.current()));
        let accept = move |read: &[Bytes], before: Option<&Held>, now| {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            Held::accept(&clients, files.iter().zip(read), before.or(first.as_deref()), now)
        };
        let set = watch.files("client-keys".to_owned(), watched, accept)?;
        let told = set.clone();
        watch.holds(move || told.current().report(crate::now_ms()));
        Ok(Self(set))
    }

    pub(crate) fn current(&self) -> Arc<Keyring> {
        Arc::clone(&self.0.current().ring)
    }

    /// What the files hold, JSON, and a number that changes when that does.
    pub(crate) fn written(&self) -> (u64, Zeroizing<String>) {
        // The number first: a change in between is told twice rather than never.
        let live: &Live<Held> = &self.0;
        let (generation, held) = (live.generation(), live.current());
        let entries = held.written.iter().map(|(reference, secret)| {
            let base64 = Zeroizing::new(STANDARD.encode(secret));
            let name = serde_json::Value::from(reference.as_str());
            Zeroizing::new(format!("{name}:\"{}\"", *base64))
        });
        let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
        text.push_str("{\"secrets\":{");
        for (position, entry) in entries.enumerate() {
            if position > 0 {
                text.push(',');
            }
            text.push_str(&entry);
        }
        text.push_str("}}");
        (generation, text)
    }
}

impl Held {
    fn accept<'b>(
        clients: &BTreeMap<String, Client>,
        read: impl Iterator<Item = (&'b PathBuf, &'b Bytes)>,
        before: Option<&Self>,
        now: OffsetDateTime,
    ) -> Result<Self, CertError> {
        let mut written = BTreeMap::new();
        let mut paths = BTreeMap::new();
        for (path, file) in read {
            let reference = Reference::File(path.clone()).to_string();
            paths.insert(reference.clone(), file.path.clone());
            written.insert(reference, less_line_break(file.bytes.clone()));
        }
        let secret = |reference: &Reference| match (reference, written.get(&reference.to_string())) {
            (Reference::File(_), Some(bytes)) => Ok(Secret::new(bytes.clone())),
            (Reference::File(_), None) => Err("it was not read".to_owned()),
            // A process cannot be told another environment.
            (Reference::Env(_), _) => crate::load::secret(Path::new(""), reference).map(Secret::new),
        };
        let ring = Keyring::read(clients, &secret).map_err(|mistakes| {
            let reason = mistakes.iter().map(|mistake: &Mistake| mistake.message.clone()).collect::<Vec<_>>();
            let named = paths.iter().find(|(reference, _)| reason.iter().any(|why| why.contains(*reference)));
            let path = named.map(|(_, path)| path.clone()).unwrap_or_default();
            CertError::Content { path, reason: reason.join("; ") }
        })?;
        let first_seen = ring.iter().map(|(id, key)| {
            let known = before.and_then(|before| {
                let same = before.ring.get(id).is_some_and(|other| other.key == key.key);
                before.first_seen.get(id).filter(|_| same).copied()
            });
            (id.to_owned(), known.unwrap_or(now))
        });
        let first_seen = first_seen.collect();
        let api_keys = Self::api_keys(clients, before, now);
        Ok(Self { first_seen, ring: Arc::new(ring), api_keys, written })
    }

    fn api_keys(
        clients: &BTreeMap<String, Client>,
        before: Option<&Self>,
        now: OffsetDateTime,
    ) -> BTreeMap<String, HeldApiKey> {
        let written = clients
            .iter()
            .flat_map(|(client, keys)| keys.api_keys.iter().map(move |key| (client, &key.value)));
        let held = written.map(|(client, key)| {
            let before = before.and_then(|before| before.api_keys.get(&key.id));
            let first_seen =
                before.filter(|before| before.sha256 == key.sha256).map(|before| before.first_seen);
            let held = HeldApiKey {
                client: client.clone(),
                sha256: key.sha256.clone(),
                window: key.window(),
                first_seen: first_seen.unwrap_or(now),
            };
            (key.id.clone(), held)
        });
        held.collect()
    }

    fn report(&self, now_ms: u64) -> Vec<Key> {
        /// How much of a hash tells which one it is.
        const DIGITS: usize = 8;
        let hmac = self.ring.iter().map(|(id, key)| Told {
            owner: &key.client.name,
            id: id.to_owned(),
            window: key.window,
            first_seen: self.first_seen.get(id).copied(),
        });
        let api_keys = self.api_keys.iter().map(|(id, key)| Told {
            owner: &key.client,
            id: format!("{id} (sha256 {})", key.sha256.get(..DIGITS).unwrap_or_default()),
            window: key.window,
            first_seen: Some(key.first_seen),
        });
        let mut keys = told(KeyKind::Hmac, hmac, now_ms);
        keys.extend(told(KeyKind::ApiKey, api_keys, now_ms));
        keys
    }
}

/// A key, for a report.
struct Told<'h> {
    owner: &'h str,
    id: String,
    window: Window,
    first_seen: Option<OffsetDateTime>,
}

/// Keys of one kind, by owner. One gives way to the next of its owner's.
fn told<'h>(kind: KeyKind, keys: impl Iterator<Item = Told<'h>>, now_ms: u64) -> Vec<Key> {
    let mut by_owner: BTreeMap<&str, Vec<Told<'_>>> = BTreeMap::new();
    for key in keys {
        by_owner.entry(key.owner).or_default().push(key);
    }
    let mut report = Vec::new();
    for (owner, mut keys) in by_owner {
        keys.sort_by(|one, other| one.id.cmp(&other.id));
        let all: Vec<Window> = keys.iter().map(|key| key.window).collect();
        report.extend(keys.into_iter().map(|Told { id, window, first_seen, .. }| Key {
            kind,
            owner: owner.to_owned(),
            id,
            not_before: window.not_before.map(Moment::time),
            not_after: window.not_after.map(Moment::time),
            first_seen,
            next_rotation: next_rotation(window, &all, now_ms).map(Moment::time),
        }));
    }
    report
}

impl Subject for Held {
    fn summary(&self) -> String {
        format!("{} keys of clients", self.first_seen.len())
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("first_seen", &self.first_seen).finish_non_exhaustive()
    }
}
