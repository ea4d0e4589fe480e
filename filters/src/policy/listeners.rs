//! Where clients connect, and which certificates are shown and believed there.

use std::collections::HashSet;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Reference;
use super::document::{At, Document, ms, n};
use super::mistake::Mistake;

/// An address where clients connect, over TLS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs and metrics.
    pub name: String,
    /// IP address and port.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    pub tls: ListenerTls,
    /// Most connections at once; more wait in the kernel's queue.
    #[serde(default = "n::<10_000>")]
    pub max_connections: u32,
    /// How long a TLS handshake may take, milliseconds.
    #[serde(default = "ms::<5_000>")]
    pub handshake_timeout_ms: u64,
    /// How long a client may take from its handshake to the end of its first request's header, and for each
    /// request's body, milliseconds.
    #[serde(default = "ms::<10_000>")]
    pub request_timeout_ms: u64,
    /// How long a connection is kept without another whole request, milliseconds.
    #[serde(default = "ms::<60_000>")]
    pub idle_timeout_ms: u64,
    /// Requests on one connection, after which it is closed so that load spreads again.
    #[serde(default = "n::<10_000>")]
    pub max_requests_per_connection: u32,
}

/// A listener's certificate and what it asks of clients. TLS 1.2 and 1.3 are spoken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The chain, leaf first, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub certificate: At<Reference>,
    /// The leaf's private key, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub key: At<Reference>,
    /// Other certificates for clients that ask for certain names (SNI); whoever asks for none of them gets the one
    /// above.
    #[serde(default)]
    pub certificates: Vec<NamedCertificate>,
    /// CAs that must have issued all of these, PEM; absent: any.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub ca: Option<At<Reference>>,
    /// Client certificates; absent: none is asked for.
    pub client_certificates: Option<ClientCertificates>,
}

/// A certificate for certain names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedCertificate {
    /// The chain, leaf first, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub certificate: At<Reference>,
    /// The leaf's private key, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub key: At<Reference>,
    /// The names, perhaps `*.` and a domain; each must be on the certificate, and stay there when it is renewed.
    /// Absent: its DNS names.
    #[serde(default)]
    pub server_names: Vec<String>,
}

/// Which client certificates are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// The CAs that sign them, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub ca: At<Reference>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing. All of a client's
    /// chain is checked. A client that a new list revokes loses its open connections too.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub crl: Option<At<Reference>>,
    /// What becomes of clients while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: At<StaleCrl>,
    /// Whether a client without one is turned away in the handshake.
    #[serde(default)]
    pub required: bool,
}

/// What becomes of certificates while the list that would revoke them is past its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StaleCrl {
    /// They are refused.
    #[default]
    Refuse,
    /// The old list is believed for longer; logs and metrics tell.
    Allow,
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    if document.listeners.is_empty() {
        mistakes.push(Mistake::whole("`listeners` is empty: nobody could connect"));
    }
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    for At { value: listener, location } in &document.listeners {
        if !names.insert(&listener.name) {
            mistakes.push(Mistake::at(*location, format!("two listeners are named `{}`", listener.name)));
        }
        if !addresses.insert(listener.address) || listener.address == document.admin.address {
            mistakes.push(Mistake::at(*location, format!("{} is used twice", listener.address)));
        }
    }
}
