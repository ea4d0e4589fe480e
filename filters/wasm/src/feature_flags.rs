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
            new.take(&json, None, policy);
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
        if !self.take(json, answered.etag.clone(), policy) {
            envoy.warn("the state service's flags cannot be used here; the last ones stay");
            return;
        }
        let Some(file) = known_as(policy) else { return };
        let shared = Shared { file, etag: answered.etag.clone(), json: json.to_owned() };
        if let Ok(text) = serde_json::to_vec(&shared) {
            envoy.share(TOLD, &text);
        }
    }

    fn take(&mut self, json: &str, etag: Option<String>, policy: &Policy) -> bool {
        match Flags::read(json) {
            Ok(flags) if flags.lacks(policy.flag_uses()).is_empty() => {
                (self.flags, self.etag) = (Some(Arc::new(flags)), etag);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

fn known_as(policy: &Policy) -> Option<String> {
    Some(policy.document().flags.as_ref()?.value.known_as())
}
