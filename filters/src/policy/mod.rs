//! The policy: one YAML document that platform teams write.
//!
//! [`Document`] is what is written, [`Policy`] what is meant. Reading a document checks everything that can be
//! checked without touching the world; keys and secrets are references that the data plane resolves.

mod address;
mod bounds;
mod clients;
mod document;
mod envoy;
#[cfg(not(target_family = "wasm"))]
mod files;
mod flag_file;
mod issuers;
mod key_times;
mod keyring;
mod known_as;
mod lease;
mod listeners;
mod meaning;
mod mistake;
mod names;
pub(crate) mod network;
mod nobody;
mod overlap;
mod path;
mod preflight;
mod reach;
mod reference;
mod routes;
mod routing;
mod secret;
mod shared_state;
mod streaming;
mod syntax;
mod tenancy;
mod timeout;
mod unused;
mod upstream_tls;
mod upstreams;
mod warning;

pub use address::{Address, NotAnAddress};
pub use clients::{ApiKey, CertificateNames, Client, HmacKey};
pub use document::{Admin, At, Document};
#[cfg(not(target_family = "wasm"))]
pub use files::MUST_BE_FILE;
pub use flag_file::FlagFile;
pub use issuers::{Algorithm, Discovery, Introspection, Issuer, Jwks};
pub use keyring::{ClientKey, Keyring, NotSigned, Whose};
pub use listeners::{ClientCertificates, Listener, ListenerTls, NamedCertificate, StaleCrl};
pub use meaning::{Policy, RouteRule, Site};
pub use mistake::{Mistake, Unusable};
pub(crate) use mistake::{reworded, unknown, unknown_field};
pub use preflight::Preflight;
pub use reference::{Reference, ReferenceError};
pub use routes::{Deprecated, Mirror, Route, Share, WebSocket};
pub use routing::{Match, version};
pub use secret::{Encoding, Secret};
pub use shared_state::{Memory, ReadinessWhenAway, Redis, Sentinel, State, StateService, StateTls};
#[cfg(not(target_family = "wasm"))]
pub use syntax::{Spots, as_json, without_mark};
pub use tenancy::{Plan, Tenancy, Tenant};
pub use upstream_tls::{MutualTls, Off, UpstreamSecurity, UpstreamTls};
pub use upstreams::{Health, Outlier, Protocol, Upstream};

use crate::filter::Filter;
use crate::flags::When;

/// A name that routes share, and what it means where it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    pub name: String,
    /// Equal if and only if the routes mean the same; told to the policy's writer when they do not.
    pub meaning: String,
}

/// Names that both lists allow, where an empty list allows every name. Of two lists that have none in common the empty
/// name is left, which nobody bears.
pub(crate) fn in_both(some: Vec<String>, others: Vec<String>) -> Vec<String> {
    match (some.is_empty(), others.is_empty()) {
        (true, _) => others,
        (false, true) => some,
        (false, false) => {
            let common: Vec<String> = some.into_iter().filter(|name| others.contains(name)).collect();
            if common.is_empty() { vec![String::new()] } else { common }
        }
    }
}

/// The settings of one filter, as the policy states them.
pub trait Settings: Sized {
    /// What holds where a parent and a child both state settings: both.
    #[must_use]
    fn and(self, child: Self) -> Self;

    /// What is shared with every other route that names it too, and must therefore mean the same there.
    fn shared(&self) -> Vec<Shared> {
        Vec::new()
    }

    /// What counts on feature flags.
    fn flags(&self) -> Vec<&When> {
        Vec::new()
    }

    /// Makes the filter, or says what is wrong with the settings.
    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable>;
}
