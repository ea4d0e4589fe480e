//! Feature flags, as the state service last told them.
//!
//! A worker asks every second whether they have changed, and starts with what another one was told: a new policy lets no
//! request wait for them.

use std::sync::Arc;

use filters::flags::Flags;
use filters::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::envoy::{Answered, Envoy};

/// Where they are asked for, before what their file is known as.
const PATH: &str = "/v1/flags";

/// Under which name workers share them.
const TOLD: &str = "torana/flags";

/// The flags in one worker.
#[derive(Debug, Default)]
pub struct FeatureFlags {
    flags: Option<Arc<Flags>>,
    /// Of what was told last, whether it could be used or not: so it is told once, and one warning is enough.
    etag: Option<String>,
    /// Where they are asked for; `None`: the policy has none.
    path: Option<String>,
}

/// What workers share.
#[derive(Serialize, Deserialize)]
struct Shared {
    /// Of which policy they are told: another one may count on other flags.
    file: String,
    etag: Option<String>,
    json: String,
}

impl FeatureFlags {
    /// With what other workers know. Without a file of flags, none are asked for.
    pub fn new(policy: &Policy, envoy: &dyn Envoy) -> Self {
        let Some(file) = known_as(policy) else { return Self::default() };
        let mut new = Self { path: Some(format!("{PATH}/{file}")), ..Self::default() };
        let shared = envoy.shared(TOLD).and_then(|bytes| serde_json::from_slice::<Shared>(&bytes).ok());
        if let Some(Shared { json, .. }) = shared.filter(|shared| shared.file == file) {
            new.take(&json, policy);
        }
        new
    }

    pub fn current(&self) -> Option<Arc<Flags>> {
        self.flags.clone()
    }

    /// Where to ask for them, if there is anything to ask for.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Whether they are wanted and none were ever told.
    pub fn are_missing(&self) -> bool {
        self.path.is_some() && self.flags.is_none()
    }

    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Takes what the state service says. What cannot be read, or has not all flags that the policy counts on, changes
    /// nothing.
    pub fn told(&mut self, answered: &Answered, policy: &Policy, envoy: &dyn Envoy) {
        if answered.status != Some(200) {
            return;
        }
        let Ok(json) = std::str::from_utf8(&answered.body) else { return };
        self.etag.clone_from(&answered.etag);
        if !self.take(json, policy) {
            envoy.warn("the state service's flags cannot be used here; the last ones stay");
            return;
        }
        let Some(file) = known_as(policy) else { return };
        let shared = Shared { file, etag: answered.etag.clone(), json: json.to_owned() };
        if let Ok(text) = serde_json::to_vec(&shared) {
            envoy.share(TOLD, &text);
        }
    }

    fn take(&mut self, json: &str, policy: &Policy) -> bool {
        match Flags::read(json) {
            Ok(flags) if flags.lacks(policy.flag_uses()).is_empty() => {
                self.flags = Some(Arc::new(flags));
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

fn known_as(policy: &Policy) -> Option<String> {
    Some(policy.document().flags.as_ref()?.value.known_as())
}

#[cfg(test)]
mod tests {
    use filters::policy::Secret;
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    #[test]
    fn what_cannot_be_used_is_told_once_and_changes_nothing() {
        let tls = json!({ "certificate": "file:c", "key": "file:k" });
        let feature = json!({ "when": [{ "flag": "open", "is": ["on"] }] });
        let document = json!({
            "listeners": [{ "name": "l", "address": "127.0.0.1:1", "tls": tls }],
            "admin": { "address": "127.0.0.1:2" },
            "flags": { "file": "file:flags.json" },
            "upstreams": { "u": {
                "addresses": ["127.0.0.1:3"],
                "tls": { "server_name": "u", "ca": "file:a", "certificate": "file:c", "key": "file:k" },
            } },
            "routes": [{
                "name": "r", "methods": ["GET"], "path": "/", "upstream": "u", "filters": { "feature": feature },
            }],
        });
        let policy = Policy::read(&document.to_string(), &|_| Ok(Secret::LATER)).unwrap();
        let flag = json!({ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" });
        let (good, other) = (json!({ "flags": { "open": flag } }), json!({ "flags": { "other": flag } }));
        let envoy = Fake::default();
        let mut flags = FeatureFlags::new(&policy, &envoy);
        for (status, etag, body, known_as, warnings) in [
            (200, "1", good.to_string(), Some("1"), 0),
            (200, "2", "{".to_owned(), Some("2"), 1),
            // The state service has nothing else to tell.
            (304, "2", String::new(), Some("2"), 1),
            (200, "3", other.to_string(), Some("3"), 2),
            (503, "", String::new(), Some("3"), 2),
            (200, "1", good.to_string(), Some("1"), 2),
        ] {
            let answered =
                Answered { status: Some(status), etag: Some(etag.to_owned()), body: body.into_bytes() };
            flags.told(&answered, &policy, &envoy);
            assert_eq!((flags.etag(), envoy.warned.get()), (known_as, warnings));
            assert!(flags.current().unwrap().get("open").is_some());
        }
        // Whoever starts next has what could be used.
        assert!(!FeatureFlags::new(&policy, &envoy).are_missing());
    }
}
