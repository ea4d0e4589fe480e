//! The clients' keys: which there are, when each counts, and which one signs.

use std::collections::{BTreeMap, HashMap};

use super::document::Client;
use super::mistake::Mistake;
use super::{At, Reference, Secret};
use crate::crypto::{HmacKey, SigningKey, VerifyingKey};
use crate::filter;
use crate::validity::{Validity, Window};

/// Keys that sign requests, by key id.
#[derive(Clone, Debug, Default)]
pub struct Keyring(HashMap<String, ClientKey>);

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
        let mut keys = HashMap::new();
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
                let (id, window) = (&key.id, key.window());
                if window.is_empty() {
                    let message = format!("key `{}`: `not_after` lies before `not_before`", id.value);
                    mistakes.push(Mistake::of(id, message));
                }
                let key = ClientKey { client: client.clone(), window, key: verifying };
                if keys.insert(id.value.clone(), key).is_some() {
                    mistakes.push(Mistake::of(id, format!("key id `{}` is used twice", id.value)));
                }
            }
        }
        Self(keys)
    }

    /// Takes from `others`, keys of the same clients, what was not told.
    pub fn complete_with(&mut self, others: &Self) {
        for (id, key) in &mut self.0 {
            if key.key.is_none() {
                key.key = others.get(id).and_then(|other| other.key.clone());
            }
        }
    }

    /// Whether a client of that name has a key.
    pub fn has_client(&self, name: &str) -> bool {
        self.0.values().any(|key| *key.client.name == *name)
    }

    /// The key of that id.
    pub fn get(&self, keyid: &str) -> Option<&ClientKey> {
        self.0.get(keyid)
    }

    /// Every key, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ClientKey)> {
        self.0.iter().map(|(id, key)| (id.as_str(), key))
    }

    /// Whether every secret has been told.
    pub fn is_whole(&self) -> bool {
        self.0.values().all(|key| key.key.is_some())
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
            Whose::Key(id) => self.0.get_key_value(id).map(|(id, key)| (id.as_str(), key)),
            Whose::Client(name) => newest(name),
        };
        match found.filter(|(_, key)| key.window.at(now_ms) == Validity::Now) {
            None => Err(NotSigned::NoneNow),
            Some((id, ClientKey { key: Some(VerifyingKey::Hmac(key)), .. })) => Ok((id, signing(key))),
            Some(_) => Err(NotSigned::NotTold),
        }
    }
}

fn signing(key: &HmacKey) -> SigningKey {
    SigningKey::Hmac(key.clone())
}

impl FromIterator<(String, ClientKey)> for Keyring {
    /// From key ids and keys.
    fn from_iter<I: IntoIterator<Item = (String, ClientKey)>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

/// What is worth a second look in the times of a client's keys, at a time: an end that has passed, a time without any
/// key, an end that nothing follows.
pub(super) fn window_warnings(name: &str, client: &Client, now_ms: u64) -> Vec<Mistake> {
    const SOON_MS: i128 = 30 * 86_400_000;
    let mut warnings = Vec::new();
    for key in &client.hmac_keys {
        if let (Some(end), Validity::NoLonger) = (key.not_after, key.window().at(now_ms)) {
            let message =
                format!("client `{name}`: key `{}` counts no longer since {end}; remove it", key.id.value);
            warnings.push(Mistake::of(&key.id, message));
        }
    }
    let now_ms = i128::from(now_ms);
    let mut windows: Vec<_> = client.hmac_keys.iter().filter(|key| !key.window().is_empty()).collect();
    windows.sort_by_key(|key| key.not_before);
    // From now on; `covered` is the time until which some key counts.
    let mut covered = Some(now_ms - 1);
    let mut last = windows.first().copied();
    for key in windows {
        let (Some(until), start) = (covered, key.not_before.map_or(i128::MIN, |start| start.ms())) else {
            break;
        };
        let end = key.not_after.map(|end| end.ms());
        if end.is_some_and(|end| end < now_ms) {
            continue;
        }
        if start > until + 1 {
            let from = match last.and_then(|key| key.not_after).filter(|end| end.ms() >= now_ms) {
                Some(end) => format!("from {end}"),
                None => "from now".to_owned(),
            };
            let to = key.not_before.map(|start| start.to_string()).unwrap_or_default();
            let message =
                format!("client `{name}`: no key counts {from} to {to}, when `{}` begins", key.id.value);
            warnings.push(Mistake::of(&key.id, message));
        }
        if end.is_none_or(|end| end > until) {
            (covered, last) = (end, Some(key));
        }
    }
    if let (Some(until), Some(key)) = (covered, last) {
        let message = match until < now_ms {
            true => format!("client `{name}`: no key counts any more, and none will"),
            false => {
                let end = key.not_after.map(|end| end.to_string()).unwrap_or_default();
                format!("client `{name}`: its last key, `{}`, ends at {end}, and none follows", key.id.value)
            }
        };
        if until - now_ms < SOON_MS {
            warnings.push(Mistake::of(&key.id, message));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validity::Moment;

    const NOW_MS: u64 = 1_767_225_600_000; // 2026-01-01T00:00:00Z

    fn day(number: i64) -> Moment {
        let date = if number < 0 {
            format!("2025-12-{:02}", 32 + number)
        } else {
            format!("2026-01-{:02}", 1 + number)
        };
        format!("{date}T00:00:00Z").parse().unwrap()
    }

    type Days = (Option<i64>, Option<i64>);

    fn client(keys: &[Days]) -> Client {
        let key = |(number, (start, end)): (usize, &Days)| super::super::HmacKey {
            id: At::nowhere(format!("k{number}")),
            secret: At::nowhere(Reference::Env("K".to_owned())),
            encoding: Default::default(),
            not_before: start.map(day),
            not_after: end.map(day),
        };
        Client {
            tenant: None,
            hmac_keys: keys.iter().enumerate().map(key).collect(),
            certificates: Vec::new(),
        }
    }

    #[test]
    fn times_without_a_key_are_told() {
        let cases: [(&[Days], &[&str]); 9] = [
            (&[], &[]),
            (&[(None, None)], &[]),
            (&[(None, Some(5)), (Some(3), None)], &[]),
            (&[(Some(3), None), (None, Some(5))], &[]),
            (
                &[(None, Some(3)), (Some(5), None)],
                &["no key counts from 2026-01-04T00:00:00Z to 2026-01-06T00:00:00Z"],
            ),
            (&[(Some(5), None)], &["no key counts from now to 2026-01-06"]),
            (&[(None, Some(-1))], &["`k0` counts no longer since 2025-12-31", "no key counts any more"]),
            (&[(None, Some(-1)), (Some(-2), None)], &["`k0` counts no longer"]),
            (&[(None, Some(4)), (None, Some(9))], &["its last key, `k1`, ends at 2026-01-10"]),
        ];
        for (keys, expected) in cases {
            let told: Vec<String> = window_warnings("acme", &client(keys), NOW_MS)
                .into_iter()
                .map(|warning| warning.message)
                .collect();
            assert_eq!(told.len(), expected.len(), "{keys:?}: {told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{keys:?}: {told}");
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
