//! What a process really serves, presents and trusts, told on its admin address: `GET /certificates`.
//!
//! Names, dates and public pins only: nothing here is secret. Paths are absolute, so that whoever reads a
//! report can hold it against the files.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Facts, San};

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `gateway`, `txn-core`, `npci-proxy`, `npci-sim`.
    pub service: String,
    pub listeners: Vec<Listener>,
    pub clients: Vec<Client>,
    pub keys: Vec<Key>,
}

/// A certificate that a listener serves. One that chooses among several has an entry for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub address: SocketAddr,
    /// Names for which clients are shown this certificate; empty: it is the one for every other name.
    pub server_names: Vec<String>,
    pub certificate: PathBuf,
    /// Whose client certificates are believed; none: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    pub crl: Option<PathBuf>,
    /// When the first of the lists in use is stale.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub crl_next_update: Option<OffsetDateTime>,
    /// Whether no handshake completes without a client certificate.
    pub requires_client: bool,
    pub serving: Leaf,
    #[serde(flatten)]
    pub reloads: Reloads,
}

/// How a process connects to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub name: String,
    /// What the other side's certificate must name, where one name is meant.
    pub server_name: Option<String>,
    /// What is shown to the other side, if anything.
    pub certificate: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub crl: Option<PathBuf>,
    /// When the first of the lists in use is stale.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub crl_next_update: Option<OffsetDateTime>,
    /// What new connections are made with.
    pub serving: Option<Leaf>,
    /// The CAs of which one must have signed the other side's certificate.
    pub trusted: Vec<Leaf>,
    #[serde(flatten)]
    pub reloads: Reloads,
}

/// What became of the files since the process started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// When a set was last accepted, that of the start included.
    #[serde(with = "time::serde::rfc3339")]
    pub last_reload: OffsetDateTime,
    /// Why the files as they are now are not served; none: they are.
    pub last_failure: Option<Failure>,
    /// Sets refused since the start.
    pub reload_failures: u64,
}

/// A set of files that was refused: what was served before still is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub reason: String,
}

/// A certificate, as far as an operator compares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub subject: String,
    /// Lower-case hexadecimal without separators.
    pub serial_hex: String,
    pub sans: Vec<San>,
    pub issuer: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Base64 of the SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: String,
}

/// A key that signs or verifies messages or tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub kind: KeyKind,
    /// Whose it is: a client, an issuer, the network.
    pub owner: String,
    /// What messages call it: `keyid` or `kid`. Of an API key, its name among people and how its hash begins.
    pub id: String,
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub not_before: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub not_after: Option<OffsetDateTime>,
    /// When this process first held it: its age is at least the time since.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub first_seen: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub next_rotation: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// A secret shared with a client.
    Hmac,
    /// A public key bound to a device.
    Device,
    /// A public key of a token issuer.
    Jwks,
    /// Shared with the payment network.
    Network,
    /// Sent by a client; its hash alone is held.
    #[serde(rename = "api_key")]
    ApiKey,
}

impl From<&Facts> for Leaf {
    fn from(facts: &Facts) -> Leaf {
        Leaf {
            subject: facts.subject.clone(),
            serial_hex: facts.serial_hex.clone(),
            sans: facts.sans.clone(),
            issuer: facts.issuer.clone(),
            not_before: facts.not_before,
            not_after: facts.not_after,
            spki_sha256: facts.spki_sha256.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect_pem;
    use crate::pki::{Authority, Leaf as Wanted};

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let ca = Authority::create("one").unwrap();
        let issued = ca.issue(&Wanted::new("svc", &["svc.test", "::1"])).unwrap();
        let facts = inspect_pem(issued.certificate_pem.as_bytes()).unwrap();
        let at = time::macros::datetime!(2026-11-24 21:00 UTC);
        let reloads = Reloads {
            last_reload: at,
            last_failure: Some(Failure { at, reason: "it expired".into() }),
            reload_failures: 1,
        };
        let report = Report {
            service: "svc".into(),
            listeners: vec![Listener {
                name: "public".into(),
                address: "127.0.0.1:1".parse().unwrap(),
                server_names: vec!["svc.test".into()],
                certificate: "/pki/svc.pem".into(),
                client_ca: None,
                crl: None,
                crl_next_update: None,
                requires_client: false,
                serving: Leaf::from(&facts[0]),
                reloads: reloads.clone(),
            }],
            clients: vec![Client {
                name: "core".into(),
                server_name: None,
                certificate: None,
                ca: Some("/pki/ca.pem".into()),
                crl: Some("/pki/ca.crl".into()),
                crl_next_update: Some(at),
                serving: None,
                trusted: facts.iter().map(Leaf::from).collect(),
                reloads: Reloads { last_failure: None, ..reloads },
            }],
            keys: vec![Key {
                kind: KeyKind::Jwks,
                owner: "main".into(),
                id: "2026-11".into(),
                not_before: None,
                not_after: Some(at),
                first_seen: Some(at),
                next_rotation: None,
            }],
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains(r#""last_reload":"2026-11-24T21:00:00Z""#), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
