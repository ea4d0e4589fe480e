//! The issuers' keys, as the state service last told them.

use std::collections::BTreeMap;
use std::sync::Arc;

use filters::jwt::KeySet;
use filters::policy::Policy;
use serde::{Deserialize, Serialize};
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
    /// The name under which all workers share what one has fetched.
    shared_as: String,
    stale_ms: u64,
    refresh_unknown_ms: u64,
    /// When an unknown key last made us ask.
    refreshed_ms: Option<u64>,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    set: Arc<KeySet>,
    /// As it was told.
    text: String,
    /// When the state service last said so.
    confirmed_ms: u64,
}

/// What the state service tells.
#[derive(Deserialize)]
struct Told<'t> {
    #[serde(borrow)]
    issuers: BTreeMap<String, &'t RawValue>,
}

/// What workers share.
#[derive(Serialize, Deserialize)]
struct SharedKeys<'s> {
    confirmed_ms: u64,
    #[serde(borrow)]
    jwks: &'s RawValue,
}

impl Keys {
    /// Of a policy's issuers, with what another worker, or this one before it was restarted, has fetched.
    pub fn new(policy: &Policy, envoy: &dyn Envoy) -> Self {
        let mut issuers = BTreeMap::new();
        for (name, issuer) in &policy.document().issuers {
            let Some(jwks) = &issuer.value.jwks else { continue };
            let source = jwks.url.clone().or_else(|| jwks.file.as_ref().map(ToString::to_string));
            let shared_as =
                format!("torana/keys/{name}/{}/{}", issuer.value.issuer, source.unwrap_or_default());
            let held = envoy.shared(&shared_as).and_then(|bytes| {
                let shared: SharedKeys<'_> = serde_json::from_slice(&bytes).ok()?;
                held(shared.jwks.get(), shared.confirmed_ms)
            });
            let issuer = Issuer {
                shared_as,
                stale_ms: jwks.stale_s.saturating_mul(1_000),
                refresh_unknown_ms: jwks.unknown_kid_refresh_s.saturating_mul(1_000),
                refreshed_ms: None,
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
        (now_ms.saturating_sub(held.confirmed_ms) <= issuer.stale_ms).then(|| Arc::clone(&held.set))
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
    pub fn told(&mut self, answered: &Answered, now_ms: u64, envoy: &dyn Envoy) {
        match answered.status {
            Some(200) => {
                let Ok(told) = serde_json::from_slice::<Told<'_>>(&answered.body) else {
                    envoy.warn("the state service's keys cannot be read");
                    return;
                };
                for (name, text) in told.issuers {
                    if let Some(issuer) = self.issuers.get_mut(&name) {
                        issuer.take(text.get(), now_ms, envoy);
                    }
                }
                self.etag.clone_from(&answered.etag);
            }
            Some(304) => {
                for issuer in self.issuers.values_mut() {
                    if let Some(held) = &mut issuer.held {
                        held.confirmed_ms = now_ms;
                    }
                    issuer.share(envoy);
                }
            }
            // Away: what we have serves until it is stale.
            Some(_) | None => {}
        }
    }

    /// Whether an unknown key may make us ask for that issuer's keys now; at a bounded rate.
    pub fn may_refresh(&mut self, issuer: &str, now_ms: u64) -> bool {
        let Some(issuer) = self.issuers.get_mut(issuer) else { return false };
        let long_enough = issuer
            .refreshed_ms
            .is_none_or(|before| now_ms.saturating_sub(before) >= issuer.refresh_unknown_ms);
        if long_enough {
            issuer.refreshed_ms = Some(now_ms);
        }
        long_enough
    }
}

impl Issuer {
    fn take(&mut self, text: &str, now_ms: u64, envoy: &dyn Envoy) {
        match &mut self.held {
            Some(held) if held.text == text => held.confirmed_ms = now_ms,
            Some(_) | None => match held(text, now_ms) {
                Some(held) => self.held = Some(held),
                None => return envoy.warn("the keys of an issuer cannot be read"),
            },
        }
        self.share(envoy);
    }

    fn share(&self, envoy: &dyn Envoy) {
        let Some(held) = &self.held else { return };
        let text = format!("{{\"confirmed_ms\":{},\"jwks\":{}}}", held.confirmed_ms, held.text);
        envoy.share(&self.shared_as, text.as_bytes());
    }
}

fn held(text: &str, confirmed_ms: u64) -> Option<Held> {
    let set = Arc::new(KeySet::parse(text.as_bytes()).ok()?);
    Some(Held { set, text: text.to_owned(), confirmed_ms })
}
