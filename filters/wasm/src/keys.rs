//! The issuers' keys, as the state service last told them.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use filters::jwt::KeySet;
use filters::policy::Policy;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::envoy::{Answered, Envoy};

/// Where keys are asked for.
pub const PATH: &str = "/v1/keys";

/// Where the keys of the issuer that the body names are asked to be fetched anew.
pub const REFRESH_PATH: &str = "/v1/keys/refresh";

/// The keys of every issuer of a policy.
#[derive(Debug, Default)]
pub struct Keys {
    issuers: BTreeMap<String, Issuer>,
    etag: Option<String>,
}

#[derive(Debug)]
struct Issuer {
    /// What the state service knows it as, whatever the policies of both call it.
    known_as: String,
    /// The name under which all workers share what one has fetched.
    shared_as: String,
    stale_ms: u64,
    refresh_unknown_ms: u64,
    /// Whether the keys are in a file, which the state service follows.
    in_file: bool,
    /// When an unknown key may make us ask again.
    refresh_after_ms: u64,
    /// Until then the file is unchanged, as far as we know.
    current_until_ms: u64,
    /// The request that made us ask, while it waits for the answer.
    first: Weak<()>,
    /// Counts those who wait.
    waiting: Rc<()>,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    set: Arc<KeySet>,
    /// As it was told.
    text: String,
    /// When the issuer said so: from then on they grow stale, whoever has told of them since.
    fetched_ms: u64,
}

/// What the state service tells, of every issuer by what it is known as.
#[derive(Deserialize)]
struct Told<'t> {
    #[serde(borrow)]
    issuers: BTreeMap<String, Fetched<'t>>,
    /// In answer to a request for fresh keys: they could not be fetched, and may be tried again after so many seconds.
    retry_after_s: Option<u64>,
}

/// What becomes of a request that needs fresh keys.
#[derive(Debug)]
pub enum Refresh<'k> {
    /// Ask the state service for keys, by what it knows the issuer as, and wait for the answer.
    Ask(&'k str, Waiting),
    /// The keys are those that the issuer publishes.
    Current,
    /// They cannot be fetched now.
    NotNow { retry_after_s: u64 },
}

/// Keys as the state service tells of them, and as workers share them.
#[derive(Deserialize)]
struct Fetched<'t> {
    fetched_ms: u64,
    #[serde(borrow)]
    jwks: &'t RawValue,
}

impl Keys {
    /// Of a policy's issuers, with what another worker, or this one before it was restarted, has fetched.
    pub fn new(policy: &Policy, envoy: &dyn Envoy) -> Self {
        let mut issuers = BTreeMap::new();
        for (name, issuer) in &policy.document().issuers {
            let Some(jwks) = &issuer.value.jwks else { continue };
            let known_as = issuer.value.known_as();
            let shared_as = format!("torana/keys/{known_as}");
            let held = envoy.shared(&shared_as).and_then(|bytes| {
                let shared: Fetched<'_> = serde_json::from_slice(&bytes).ok()?;
                held(&shared)
            });
            let issuer = Issuer {
                known_as,
                shared_as,
                stale_ms: jwks.stale_s.saturating_mul(1_000),
                refresh_unknown_ms: jwks.unknown_kid_refresh_s.saturating_mul(1_000),
                in_file: jwks.file.is_some(),
                refresh_after_ms: 0,
                current_until_ms: 0,
                first: Weak::new(),
                waiting: Rc::default(),
                held,
            };
            issuers.insert(name.clone(), issuer);
        }
        Self { issuers, etag: None }
    }

    /// The keys of an issuer, unless they were never told or not for too long.
    pub fn get(&self, issuer: &str, now_ms: u64) -> Option<Arc<KeySet>> {
        let issuer = self.issuers.get(issuer)?;
        let held = issuer.held.as_ref()?;
        (now_ms.saturating_sub(held.fetched_ms) <= issuer.stale_ms).then(|| Arc::clone(&held.set))
    }

    /// Whether there is anything to ask for.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// How many issuers have no keys that may be used.
    pub fn missing(&self, now_ms: u64) -> usize {
        self.issuers.keys().filter(|name| self.get(name, now_ms).is_none()).count()
    }

    /// What was last told, so that it need not be told again.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Takes what the state service says. What cannot be read changes nothing.
    pub fn told(&mut self, answered: &Answered, envoy: &dyn Envoy) {
        if self.take(answered, envoy).is_some() {
            self.etag.clone_from(&answered.etag);
        }
    }

    /// Takes the answer to a request for an issuer's fresh keys. `Err`: they could not be fetched; seconds until the next
    /// try.
    pub fn refreshed(
        &mut self,
        issuer: &str,
        answered: &Answered,
        now_ms: u64,
        envoy: &dyn Envoy,
    ) -> Result<(), u64> {
        let taken = self.take(answered, envoy);
        let Some(issuer) = self.issuers.get_mut(issuer) else { return Err(1) };
        match taken {
            Some(None) => {
                if issuer.in_file {
                    issuer.current_until_ms = issuer.refresh_after_ms;
                }
                Ok(())
            }
            // The state service waits for the same time, which may have begun for another worker.
            Some(Some(retry_after_s)) => {
                issuer.refresh_after_ms = now_ms.saturating_add(retry_after_s.saturating_mul(1_000));
                Err(retry_after_s)
            }
            None => Err(issuer.retry_after_s(now_ms)),
        }
    }

    /// Takes the keys that an answer brings. `None`: it brings nothing new, or there is no answer, and what we have serves
    /// until it is stale. Inside: `retry_after_s`.
    fn take(&mut self, answered: &Answered, envoy: &dyn Envoy) -> Option<Option<u64>> {
        if answered.status != Some(200) {
            return None;
        }
        let Ok(told) = serde_json::from_slice::<Told<'_>>(&answered.body) else {
            envoy.warn("the state service's keys cannot be read");
            return None;
        };
        for issuer in self.issuers.values_mut() {
            if let Some(fetched) = told.issuers.get(&issuer.known_as) {
                issuer.take(fetched, envoy);
            }
        }
        Some(told.retry_after_s)
    }

    /// Whether a token that an issuer's keys do not verify makes us ask for its keys now: at a bounded rate, and while the
    /// request that made us ask waits for the answer.
    pub fn refresh(&mut self, issuer: &str, now_ms: u64) -> Refresh<'_> {
        const SOON: Refresh<'_> = Refresh::NotNow { retry_after_s: 1 };
        let Some(issuer) = self.issuers.get_mut(issuer) else { return SOON };
        if Rc::strong_count(&issuer.waiting) > MOST_WAITING {
            return SOON;
        }
        let first = match issuer.first.upgrade() {
            // Ours is the same question.
            Some(_) => None,
            None if now_ms < issuer.current_until_ms => return Refresh::Current,
            None if now_ms < issuer.refresh_after_ms => {
                return Refresh::NotNow { retry_after_s: issuer.retry_after_s(now_ms) };
            }
            None => {
                issuer.refresh_after_ms = now_ms.saturating_add(issuer.refresh_unknown_ms);
                let first = Rc::new(());
                issuer.first = Rc::downgrade(&first);
                Some(first)
            }
        };
        Refresh::Ask(&issuer.known_as, Waiting { _first: first, _counted: Rc::clone(&issuer.waiting) })
    }
}

/// Most requests of a worker that wait for one issuer's keys at once. Each asks; the state service fetches once for all.
const MOST_WAITING: usize = 64;

/// A request waits for an issuer's keys for as long as this is there.
#[derive(Debug)]
pub struct Waiting {
    /// Of the request that made us ask.
    _first: Option<Rc<()>>,
    _counted: Rc<()>,
}

impl Issuer {
    /// Seconds until an unknown key may make us ask again; at least 1.
    fn retry_after_s(&self, now_ms: u64) -> u64 {
        self.refresh_after_ms.saturating_sub(now_ms).div_ceil(1_000).max(1)
    }

    fn take(&mut self, fetched: &Fetched<'_>, envoy: &dyn Envoy) {
        match &mut self.held {
            Some(held) if held.text == fetched.jwks.get() => held.fetched_ms = fetched.fetched_ms,
            Some(_) | None => match held(fetched) {
                Some(held) => self.held = Some(held),
                None => return envoy.warn("the keys of an issuer cannot be read"),
            },
        }
        let text = format!("{{\"fetched_ms\":{},\"jwks\":{}}}", fetched.fetched_ms, fetched.jwks.get());
        envoy.share(&self.shared_as, text.as_bytes());
    }
}

fn held(Fetched { fetched_ms, jwks }: &Fetched<'_>) -> Option<Held> {
    let text = jwks.get();
    let set = Arc::new(KeySet::parse(text.as_bytes()).ok()?);
    Some(Held { set, text: text.to_owned(), fetched_ms: *fetched_ms })
}

#[cfg(test)]
mod tests {
    use filters::policy::Secret;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::Fake;

    const T0: u64 = 1_700_000_000_000;
    const STALE_MS: u64 = 86_400_000;

    /// A policy that believes issuers, each by its name and where its keys come from.
    fn policy(issuers: &[(&str, &str)]) -> Policy {
        let tls = json!({ "certificate": "file:c", "key": "file:k" });
        let issuer = |url: &str| {
            json!({
                "issuer": url, "audiences": ["a"], "algorithms": ["ES256"], "jwks": { "url": format!("{url}/keys") },
            })
        };
        let issuers: BTreeMap<_, _> = issuers.iter().map(|(name, url)| (name, issuer(url))).collect();
        let document = json!({
            "listeners": [{ "name": "l", "address": "127.0.0.1:1", "tls": tls }],
            "admin": { "address": "127.0.0.1:2" },
            "upstreams": { "u": {
                "addresses": ["127.0.0.1:3"],
                "tls": { "server_name": "u", "ca": "file:a", "certificate": "file:c", "key": "file:k" },
            } },
            "issuers": issuers,
            "routes": [{ "name": "r", "methods": ["GET"], "path": "/", "upstream": "u" }],
        });
        Policy::read(&document.to_string(), &|_| Ok(Secret::LATER)).unwrap()
    }

    fn jwks(kid: &str) -> Value {
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        }] })
    }

    fn known_as(policy: &Policy, name: &str) -> String {
        policy.document().issuers[name].value.known_as()
    }

    /// What is said of issuers, by their names in a policy; nothing: nothing has changed.
    fn answered(policy: &Policy, said: Option<&[(&str, Value)]>, fetched_ms: u64) -> Answered {
        let Some(said) = said else { return Answered { status: Some(304), ..Answered::default() } };
        let fetched = |jwks: &Value| json!({ "fetched_ms": fetched_ms, "jwks": jwks });
        let issuers: BTreeMap<_, _> =
            said.iter().map(|(name, jwks)| (known_as(policy, name), fetched(jwks))).collect();
        let body = json!({ "issuers": issuers }).to_string().into_bytes();
        Answered { status: Some(200), etag: Some("\"e\"".to_owned()), body }
    }

    fn kid(keys: &Keys, issuer: &str, now_ms: u64) -> Option<String> {
        keys.get(issuer, now_ms)?.iter().find_map(|key| key.kid.clone())
    }

    /// Keys grow stale from when their issuer published them, however often it is told that nothing has changed.
    #[test]
    fn keys_that_are_fetched_no_more_grow_stale() {
        let garbage = || json!({ "keys": "none" });
        for (then, stays) in [
            (vec![("one", jwks("1")), ("two", jwks("2"))], true),
            (vec![("one", jwks("1"))], false),
            (vec![("one", jwks("1")), ("two", garbage())], false),
        ] {
            let policy = policy(&[("one", "https://one.test"), ("two", "https://two.test")]);
            let envoy = Fake::default();
            let mut keys = Keys::new(&policy, &envoy);
            let both = [("one", jwks("1")), ("two", jwks("2"))];
            keys.told(&answered(&policy, Some(&both), T0), &envoy);
            keys.told(&answered(&policy, Some(&then), T0 + 1), &envoy);
            keys.told(&answered(&policy, None, 0), &envoy);
            for (now_ms, expected) in [
                (T0 + STALE_MS, (true, true)),
                (T0 + STALE_MS + 1, (true, stays)),
                (T0 + STALE_MS + 2, (false, false)),
            ] {
                // Others take them for no fresher.
                for keys in [&keys, &Keys::new(&policy, &envoy)] {
                    let held = (kid(keys, "one", now_ms).is_some(), kid(keys, "two", now_ms).is_some());
                    assert_eq!(held, expected, "{then:?} at {}", now_ms - T0);
                }
            }
        }
    }

    /// Whatever the state service's policy calls an issuer, its keys are that issuer's alone.
    #[test]
    fn issuers_are_known_by_more_than_their_names() {
        let ours = policy(&[("one", "https://one.test"), ("two", "https://two.test")]);
        let said = [("one", jwks("1")), ("two", jwks("2"))];
        let one_and_two = (Some("1"), Some("2"));
        for (theirs, expected) in [
            (policy(&[("one", "https://one.test"), ("two", "https://two.test")]), one_and_two),
            (policy(&[("one", "https://two.test"), ("two", "https://one.test")]), (Some("2"), Some("1"))),
            (policy(&[("one", "https://other.test"), ("two", "https://two.test")]), (None, Some("2"))),
        ] {
            let envoy = Fake::default();
            let mut keys = Keys::new(&ours, &envoy);
            keys.told(&answered(&theirs, Some(&said), T0), &envoy);
            let held = (kid(&keys, "one", T0), kid(&keys, "two", T0));
            assert_eq!((held.0.as_deref(), held.1.as_deref()), expected);
        }
        // What workers share of an issuer is not another's either, whatever a policy calls it.
        let envoy = Fake::default();
        Keys::new(&ours, &envoy).told(&answered(&ours, Some(&said), T0), &envoy);
        let renamed = Keys::new(&policy(&[("two", "https://one.test"), ("one", "https://new.test")]), &envoy);
        assert_eq!((kid(&renamed, "two", T0).as_deref(), kid(&renamed, "one", T0)), (Some("1"), None));
    }
}
