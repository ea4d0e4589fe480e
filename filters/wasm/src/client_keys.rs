//! The clients' secrets, as the state service last told them. They stay in this worker: what workers share is never
//! wiped.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filters::policy::{Client, Keyring, Policy, Reference, Secret};
use serde::Deserialize;

use crate::envoy::{Answered, Envoy};

/// Where they are asked for.
pub const PATH: &str = "/v1/client-keys";

/// The clients' keys.
#[derive(Debug)]
pub struct ClientKeys {
    ring: Arc<Keyring>,
    /// Whether any of them is the state service's to tell.
    asked_for: bool,
    etag: Option<String>,
}

/// What the state service tells: secrets in base64, by reference.
#[derive(Deserialize)]
struct Told {
    secrets: BTreeMap<String, String>,
}

impl ClientKeys {
    /// Those that the module was configured with.
    pub fn new(policy: &Policy) -> Self {
        let ring = Arc::clone(policy.keyring());
        Self { asked_for: !ring.is_whole(), ring, etag: None }
    }

    pub fn ring(&self) -> Arc<Keyring> {
        Arc::clone(&self.ring)
    }

    pub fn are_asked_for(&self) -> bool {
        self.asked_for
    }

    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Takes what the state service says. What cannot be read changes nothing, and neither does its absence: keys
    /// count until their own end.
    pub fn told(&mut self, answered: &Answered, clients: &BTreeMap<String, Client>, envoy: &dyn Envoy) {
        match answered.status {
            Some(200) => match read(&answered.body, clients) {
                Some(mut ring) => {
                    ring.complete_with(&self.ring);
                    self.ring = Arc::new(ring);
                    self.etag.clone_from(&answered.etag);
                }
                None => envoy.warn("the state service's secrets cannot be read"),
            },
            Some(403 | 404) => {
                envoy.warn("the state service tells no secrets; give it a socket or mutual TLS")
            }
            Some(_) | None => {}
        }
    }
}

fn read(body: &[u8], clients: &BTreeMap<String, Client>) -> Option<Keyring> {
    let told: Told = serde_json::from_slice(body).ok()?;
    let secret = |reference: &Reference| match told.secrets.get(&reference.to_string()) {
        Some(text) => STANDARD.decode(text).map(Secret::from).map_err(|_| "not base64".to_owned()),
        None => Ok(Secret::LATER),
    };
    Keyring::read(clients, &secret).ok()
}
