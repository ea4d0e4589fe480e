//! The clients' keys: which there are, when each counts, and which one signs.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::Client;
use super::mistake::Mistake;
use super::{At, Reference, Secret};
use crate::crypto::{HmacKey, SigningKey, VerifyingKey};
use crate::filter;
use crate::validity::{Moment, Validity, Window};

/// Keys that sign requests.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// By key id.
    keys: HashMap<String, ClientKey>,
    /// Clients with a file of keys, and whether it has been told.
    files: BTreeMap<String, bool>,
}

/// A client's key.
#[derive(Clone, Debug)]
pub struct ClientKey {
    pub client: filter::Client,
    /// When it counts.
    pub window: Window,
    /// `None` while the data plane has not been told the secret.
    pub key: Option<VerifyingKey>,
}

/// Whose key signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The id of one of the `hmac_keys` of `clients`.
    Key(String),
    /// The name of a client: its newest key that counts now signs, every one that counts verifies.
    Client(String),
}

/// Why there is no key to sign with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    #[error("no key counts now")]
    NoneNow,
    #[error("the key has not been told yet")]
    NotTold,
}

impl Keyring {
    /// The keys of a document's clients. `secret` resolves references.
    pub fn read(
        clients: &BTreeMap<String, Client>,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
    ) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let keyring = Self::read_as_far_as_possible(clients, secret, &mut mistakes);
        if mistakes.is_empty() { Ok(keyring) } else { Err(mistakes) }
    }

    /// The same, without what is wrong.
    pub(super) fn read_as_far_as_possible(
        clients: &BTreeMap<String, Client>,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
        mistakes: &mut Vec<Mistake>,
    ) -> Self {
        let (mut keys, mut files) = (HashMap::new(), BTreeMap::new());
        for (name, settings) in clients {
            let tenant = settings.tenant.as_ref();
            if let Some(tenant) = tenant.filter(|tenant| tenant.value.trim().is_empty()) {
                let message = format!("client `{name}`: `tenant` is empty: no token could be of that tenant");
                mistakes.push(Mistake::of(tenant, message));
            }
            let client = filter::Client {
                name: name.as_str().into(),
                tenant: tenant.map(|At { value, .. }| value.as_str().into()),
            };
            for key in &settings.hmac_keys {
                let reference = &key.secret.value;
                let read = secret(reference).and_then(|found| match found.written() {
                    Some(written) => {
                        let bytes = key.encoding.decode(written)?;
                        VerifyingKey::hmac(&bytes).map(Some).map_err(|why| why.to_string())
                    }
                    None => Ok(None),
                });
                let verifying = match read {
                    Ok(verifying) => verifying,
                    Err(why) => {
                        mistakes.push(Mistake::of(&key.secret, format!("{reference}: {why}")));
                        continue;
                    }
                };
                let key_of = ClientKey { client: client.clone(), window: key.window(), key: verifying };
                if let Err(why) = add(&mut keys, &key.id.value, key_of) {
                    mistakes.push(Mistake::of(&key.id, why));
                }
            }
            let Some(file) = &settings.hmac_key_file else { continue };
            let told = secret(&file.value)
                .and_then(|found| found.written().map(|written| key_file(&written)).transpose());
            files.insert(name.clone(), matches!(told, Ok(Some(_))));
            let added = told.and_then(|told| {
                told.unwrap_or_default().into_iter().try_for_each(|(id, window, key)| {
                    add(&mut keys, &id, ClientKey { client: client.clone(), window, key: Some(key) })
                })
            });
            if let Err(why) = added {
                mistakes.push(Mistake::of(file, format!("{}: {why}", file.value)));
            }
        }
        Self { keys, files }
    }

    /// Takes from `others`, keys of the same clients, what was not told.
    pub fn complete_with(&mut self, others: &Self) {
        for (id, key) in &mut self.keys {
            if key.key.is_none() {
                key.key = others.get(id).and_then(|other| other.key.clone());
            }
        }
        for (client, told) in &mut self.files {
            if !*told && others.files.get(client) == Some(&true) {
                *told = true;
                for (id, key) in others.iter().filter(|(_, key)| *key.client.name == **client) {
                    self.keys.entry(id.to_owned()).or_insert_with(|| key.clone());
                }
            }
        }
    }

    /// Whether a client of that name has a key, or a file of keys.
    pub fn has_client(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.keys.values().any(|key| *key.client.name == *name)
    }

    /// The key of that id.
    pub fn get(&self, keyid: &str) -> Option<&ClientKey> {
        self.keys.get(keyid)
    }

    /// Every key, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ClientKey)> {
        self.keys.iter().map(|(id, key)| (id.as_str(), key))
    }

    /// Whether every secret and every file of keys has been told.
    pub fn is_whole(&self) -> bool {
        self.keys.values().all(|key| key.key.is_some()) && self.files.values().all(|told| *told)
    }

    /// The key that signs now: of a client's the one that began to count last.
    pub fn signer(&self, whose: &Whose, now_ms: u64) -> Result<(&str, SigningKey), NotSigned> {
        let newest = |client: &str| {
            let of_client = self.iter().filter(|(_, key)| *key.client.name == *client);
            let counting = of_client.filter(|(_, key)| key.window.at(now_ms) == Validity::Now);
            counting.max_by(|(id, key), (other, others)| {
                key.window.not_before.cmp(&others.window.not_before).then_with(|| id.cmp(other))
            })
        };
        let found = match whose {
            Whose::Key(id) => self.keys.get_key_value(id).map(|(id, key)| (id.as_str(), key)),
            Whose::Client(name) => newest(name),
        };
        match found.filter(|(_, key)| key.window.at(now_ms) == Validity::Now) {
            None if !self.is_whole() => Err(NotSigned::NotTold),
            None => Err(NotSigned::NoneNow),
            Some((id, ClientKey { key: Some(VerifyingKey::Hmac(key)), .. })) => Ok((id, signing(key))),
            Some(_) => Err(NotSigned::NotTold),
        }
    }
}

fn add(keys: &mut HashMap<String, ClientKey>, id: &str, key: ClientKey) -> Result<(), String> {
    if key.window.is_empty() {
        return Err(format!("key `{id}`: `not_after` lies before `not_before`"));
    }
    match keys.insert(id.to_owned(), key) {
        None => Ok(()),
        Some(_) => Err(format!("key id `{id}` is used twice")),
    }
}

/// Most keys in a file.
const MOST_KEYS: usize = 64;

/// The keys of a file. What is wrong is told without a word of what is in it.
fn key_file(written: &[u8]) -> Result<Vec<(String, Window, VerifyingKey)>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        keys: Vec<Entry>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        id: String,
        #[serde(deserialize_with = "wiped")]
        secret: Zeroizing<String>,
        not_before: Option<Moment>,
        not_after: Option<Moment>,
    }
    fn wiped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
    let file: File = serde_json::from_slice(written).map_err(|why| {
        format!("it is no file of keys: look at line {}, column {}", why.line(), why.column())
    })?;
    if file.keys.len() > MOST_KEYS {
        return Err(format!("it has more than {MOST_KEYS} keys"));
    }
    let key = |Entry { id, secret, not_before, not_after }: Entry| {
        let bytes = STANDARD.decode(secret.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| format!("the secret of key `{id}` is not padded base64"))?;
        let key = VerifyingKey::hmac(&bytes).map_err(|why| format!("key `{id}`: {why}"))?;
        Ok((id, Window { not_before, not_after }, key))
    };
    file.keys.into_iter().map(key).collect()
}

fn signing(key: &HmacKey) -> SigningKey {
    SigningKey::Hmac(key.clone())
}

impl FromIterator<(String, ClientKey)> for Keyring {
    /// From key ids and keys.
    fn from_iter<I: IntoIterator<Item = (String, ClientKey)>>(keys: I) -> Self {
        Self { keys: keys.into_iter().collect(), files: BTreeMap::new() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const NOW_MS: u64 = 1_767_225_600_000; // 2026-01-01T00:00:00Z

    pub(crate) fn day(number: i64) -> Moment {
        Moment::from_unix_s(1_767_225_600 + number * 86_400).unwrap()
    }

    pub(crate) type Days = (Option<i64>, Option<i64>);

    #[test]
    fn files_of_keys() {
        const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let entry = |rest: &str| format!(r#"{{"keys":[{{"id":"k","secret":"{SECRET}"{rest}}}]}}"#);
        for (written, expected) in [
            (entry(""), Ok(1)),
            (r#"{"keys":[]}"#.to_owned(), Ok(0)),
            (entry(r#","not_before":"2026-01-01T00:00:00Z","not_after":"2026-01-02T00:00:00Z""#), Ok(1)),
            (entry(r#","not_after":"soon""#), Err("look at line 1, column")),
            (entry(r#","kid":"k""#), Err("look at line 1, column")),
            (r#"{"keys":[{"id":"k","secret":"AAAA"}]}"#.to_owned(), Err("at least 32 bytes")),
            (r#"{"keys":[{"id":"k","secret":"not base64"}]}"#.to_owned(), Err("is not padded base64")),
            (SECRET.to_owned(), Err("look at line 1, column")),
            (format!("\"{SECRET}\""), Err("look at line 1, column")),
        ] {
            match (key_file(written.as_bytes()), expected) {
                (Ok(keys), Ok(expected)) => assert_eq!(keys.len(), expected, "{written}"),
                (Err(told), Err(expected)) => {
                    assert!(told.contains(expected), "{written}: {told}");
                    assert!(
                        !told.contains(SECRET) && !told.contains("AAAA") && !told.contains("not base64"),
                        "{told}"
                    );
                }
                (found, _) => panic!("{written}: {}", found.is_ok()),
            }
        }
    }

    #[test]
    fn the_newest_key_that_counts_signs() {
        let secret = VerifyingKey::hmac(&[7; 32]).unwrap();
        let ring = |keys: &[(&str, Days)]| -> Keyring {
            let key = |(id, (start, end)): &(&str, Days)| {
                let client = filter::Client { name: "acme".into(), tenant: None };
                let window = Window { not_before: start.map(day), not_after: end.map(day) };
                ((*id).to_owned(), ClientKey { client, window, key: Some(secret.clone()) })
            };
            keys.iter().map(key).collect()
        };
        let acme = Whose::Client("acme".to_owned());
        for (keys, expected) in [
            (&[("a", (None, None)), ("b", (Some(-1), None))][..], Ok("b")),
            (&[("a", (Some(-1), None)), ("b", (None, None))], Ok("a")),
            (&[("a", (None, None)), ("b", (Some(1), None))], Ok("a")),
            (&[("a", (Some(-2), Some(-1))), ("b", (Some(1), None))], Err(NotSigned::NoneNow)),
            (&[], Err(NotSigned::NoneNow)),
        ] {
            let ring = ring(keys);
            assert_eq!(ring.signer(&acme, NOW_MS).map(|(id, _)| id), expected, "{keys:?}");
        }
        let ring = ring(&[("a", (None, Some(-1)))]);
        assert_eq!(ring.signer(&Whose::Key("a".to_owned()), NOW_MS).err(), Some(NotSigned::NoneNow));
        let untold = ClientKey { key: None, ..ring.get("a").unwrap().clone() };
        let untold: Keyring =
            [("b".to_owned(), ClientKey { window: Window::default(), ..untold })].into_iter().collect();
        assert_eq!(untold.signer(&acme, NOW_MS).err(), Some(NotSigned::NotTold));
        assert!(!untold.is_whole());
    }
}
