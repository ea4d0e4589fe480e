//! A policy as Envoy's module gets it: what `gateway envoy` writes and the module reads.
//!
//! The module reads the same document as the gateway with the same code, so that the two cannot mean different
//! things by it. Only its syntax is JSON's, and secrets are added, for a module has no files.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::policy::{self, Mistake, Policy, Reference};

/// The configuration of the module, JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compiled {
    /// The policy document, JSON.
    pub policy: String,
    /// What the document's references to secrets stand for, by reference.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// Envoy's cluster that leads to the state service.
    pub state_cluster: String,
    /// The field in which Envoy tells the address at the other end of the connection, whatever a client sends in
    /// it. Absent: the module asks Envoy, which costs a call.
    #[serde(default)]
    pub peer_field: Option<String>,
    /// The field in which Envoy tells the certificate that was shown and verified at the other end, whatever a client
    /// sends in it (`x-forwarded-client-cert`, with `cert`). Absent: no request has a certificate.
    #[serde(default)]
    pub certificate_field: Option<String>,
}

/// Where the module finds a secret.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// The secret itself, base64.
    Inline(String),
    /// The name of a variable that Envoy passes on to the module.
    Env(String),
    /// The state service tells it while the module runs, and again when it changes.
    Service,
}

impl Secret {
    pub fn inline(bytes: &[u8]) -> Self {
        Self::Inline(STANDARD.encode(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::Env(name) => write!(f, "Env({name})"),
            Self::Service => f.write_str("Service"),
        }
    }
}

impl Compiled {
    /// Reads the policy. `env` looks a variable up.
    pub fn read(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Policy, Vec<Mistake>> {
        Policy::read(&self.policy, &|reference: &Reference| match self.secrets.get(&reference.to_string()) {
            None => Err("the module was not given this secret".to_owned()),
            Some(Secret::Service) => Ok(policy::Secret::LATER),
            Some(Secret::Inline(text)) => {
                STANDARD.decode(text).map(policy::Secret::from).map_err(|_| "not base64".to_owned())
            }
            Some(Secret::Env(name)) => match env(name) {
                Some(value) => Ok(value.into_bytes().into()),
                None => Err(format!("Envoy does not pass on the variable `{name}`")),
            },
        })
    }
}
