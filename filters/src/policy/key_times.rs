//! The times of clients' keys, held against the clock: what is worth a second look.

use super::keyring::Keyring;
use super::{Client, Mistake};
use crate::validity::{Validity, Window};

/// What is worth a second look in the times of a client's keys, at a time: an end that has passed, a time without any
/// key, an end that nothing follows.
pub(super) fn window_warnings(name: &str, client: &Client, ring: &Keyring, now_ms: u64) -> Vec<Mistake> {
    const SOON_MS: i128 = 30 * 86_400_000;
    let mut warnings = Vec::new();
    let keys = timed(name, client, ring);
    for key in &keys {
        if let (Some(end), Validity::NoLonger) = (key.window.not_after, key.window.at(now_ms)) {
            let message =
                format!("client `{name}`: key `{}` counts no longer since {end}; remove it", key.id);
            warnings.push(key.told(message));
        }
    }
    let now_ms = i128::from(now_ms);
    let mut windows: Vec<_> = keys.iter().filter(|key| !key.window.is_empty()).collect();
    windows.sort_by_key(|key| key.window.not_before);
    // From now on; `covered` is the time until which some key counts.
    let mut covered = Some(now_ms - 1);
    let mut last = windows.first().copied();
    for key in windows {
        let (Some(until), start) = (covered, key.window.not_before.map_or(i128::MIN, |start| start.ms()))
        else {
            break;
        };
        let end = key.window.not_after.map(|end| end.ms());
        if end.is_some_and(|end| end < now_ms) {
            continue;
        }
        if start > until + 1 {
            let from = match last.and_then(|key| key.window.not_after).filter(|end| end.ms() >= now_ms) {
                Some(end) => format!("from {end}"),
                None => "from now".to_owned(),
            };
            let to = key.window.not_before.map(|start| start.to_string()).unwrap_or_default();
            let message = format!("client `{name}`: no key counts {from} to {to}, when `{}` begins", key.id);
            warnings.push(key.told(message));
        }
        if end.is_none_or(|end| end > until) {
            (covered, last) = (end, Some(key));
        }
    }
    if let (Some(until), Some(key)) = (covered, last) {
        let message = match until < now_ms {
            true => format!("client `{name}`: no key counts any more, and none will"),
            false => {
                let end = key.window.not_after.map(|end| end.to_string()).unwrap_or_default();
                format!("client `{name}`: its last key, `{}`, ends at {end}, and none follows", key.id)
            }
        };
        if until - now_ms < SOON_MS {
            warnings.push(key.told(message));
        }
    }
    warnings
}

/// A key, when it counts, and where that is written.
struct Timed<'k> {
    id: &'k str,
    window: Window,
    place: Mistake,
}

impl Timed<'_> {
    fn told(&self, message: String) -> Mistake {
        Mistake { message, ..self.place.clone() }
    }
}

fn timed<'k>(name: &str, client: &'k Client, ring: &'k Keyring) -> Vec<Timed<'k>> {
    let written = client.hmac_keys.iter().map(|key| Timed {
        id: &key.id.value,
        window: key.window(),
        place: Mistake::of(&key.id, ""),
    });
    let mut keys: Vec<Timed<'k>> = written.collect();
    if let Some(file) = &client.hmac_key_file {
        let of_client = ring.iter().filter(|(_, key)| *key.client.name == *name);
        let mut filed: Vec<_> = of_client.filter(|(id, _)| keys.iter().all(|key| key.id != *id)).collect();
        filed.sort_by_key(|(id, _)| *id);
        keys.extend(filed.into_iter().map(|(id, key)| Timed {
            id,
            window: key.window,
            place: Mistake::of(file, ""),
        }));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::keyring::tests::{Days, NOW_MS, day};
    use crate::policy::{At, Reference};

    fn client(keys: &[Days]) -> Client {
        let key = |(number, (start, end)): (usize, &Days)| crate::policy::HmacKey {
            id: At::nowhere(format!("k{number}")),
            secret: At::nowhere(Reference::Env("K".to_owned())),
            encoding: Default::default(),
            not_before: start.map(day),
            not_after: end.map(day),
        };
        Client {
            tenant: None,
            hmac_keys: keys.iter().enumerate().map(key).collect(),
            hmac_key_file: None,
            certificates: Vec::new(),
            api_keys: Vec::new(),
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
                &[
                    "client `acme`: no key counts from 2026-01-04T00:00:00Z to 2026-01-06T00:00:00Z, when `k1` begins",
                ],
            ),
            (&[(Some(5), None)], &["no key counts from now to 2026-01-06"]),
            (
                &[(None, Some(-1))],
                &[
                    "client `acme`: key `k0` counts no longer since 2025-12-31T00:00:00Z; remove it",
                    "client `acme`: no key counts any more, and none will",
                ],
            ),
            (&[(None, Some(-1)), (Some(-2), None)], &["`k0` counts no longer"]),
            (
                &[(None, Some(4)), (None, Some(9))],
                &["client `acme`: its last key, `k1`, ends at 2026-01-10T00:00:00Z, and none follows"],
            ),
        ];
        for (keys, expected) in cases {
            let told: Vec<String> = window_warnings("acme", &client(keys), &Keyring::default(), NOW_MS)
                .into_iter()
                .map(|warning| warning.message)
                .collect();
            assert_eq!(told.len(), expected.len(), "{keys:?}: {told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{keys:?}: {told}");
            }
        }
    }
}
