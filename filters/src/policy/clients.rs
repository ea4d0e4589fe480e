//! Partners and services that are known by keys or certificates of their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Reference;
use super::document::{At, Document};
use super::mistake::Mistake;
use super::secret::Encoding;
use crate::api_key;
use crate::client_cert::Claim;
use crate::validity::{Moment, Window};

/// A client with keys or certificates of its own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The tenant that it belongs to. A request that it sends with a token of another tenant, or of none, is
    /// refused; absent: it may act for any token.
    pub tenant: Option<At<String>>,
    /// Keys for HMAC-SHA256 message signatures. Several at a time let one take over from another.
    #[serde(default)]
    pub hmac_keys: Vec<HmacKey>,
    /// More of them, in a file that is followed, so that keys come and go without another policy: JSON,
    /// `{"keys": [{"id": "acme-2", "secret": "BASE64", "not_before": "2026-11-01T00:00:00Z"}]}`, of each the `id`, the
    /// `secret`, and perhaps `not_before` and `not_after`. At most 64.
    pub hmac_key_file: Option<At<Reference>>,
    /// The certificates that are its own: one that fits any of these.
    #[serde(default)]
    pub certificates: Vec<At<CertificateNames>>,
    /// API keys that it sends, for the filter `api_key`. Several at a time let one take over from another.
    #[serde(default)]
    pub api_keys: Vec<At<ApiKey>>,
}

/// An API key, as `gateway api-key new` makes it: the policy has its hash alone. Outside its times it counts for nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its name among people; unique among all clients.
    pub id: String,
    /// The SHA-256 of the key, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// From when it counts; absent: always.
    pub not_before: Option<Moment>,
    /// Until when it counts; absent: for ever.
    pub not_after: Option<Moment>,
}

impl ApiKey {
    /// When it counts.
    pub fn window(&self) -> Window {
        Window { not_before: self.not_before, not_after: self.not_after }
    }
}

/// What a client's certificate is known by; of several, all must be in it. Names are compared whole: a wildcard fits
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateNames {
    /// A DNS name.
    pub dns: Option<String>,
    /// A URI, to the letter: `spiffe://bank.example/payments` say.
    pub uri: Option<String>,
    /// An email address.
    pub email: Option<String>,
    /// The SHA-256 of its public key (SubjectPublicKeyInfo) in base64, as `certs show` prints it.
    pub spki_sha256: Option<String>,
}

/// A shared secret and the key id that names it. Outside its times the key verifies nothing and signs nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacKey {
    /// `keyid` in the signature; unique among all clients.
    pub id: At<String>,
    /// At least 32 bytes.
    pub secret: At<Reference>,
    /// How the secret is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// From when it counts; absent: always.
    pub not_before: Option<Moment>,
    /// Until when it counts; absent: for ever.
    pub not_after: Option<Moment>,
}

impl HmacKey {
    /// When it counts.
    pub fn window(&self) -> Window {
        Window { not_before: self.not_before, not_after: self.not_after }
    }
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    check_certificates(document, mistakes);
    check_api_keys(document, mistakes);
}

/// A client has a key or a certificate, and a certificate is one client's.
fn check_certificates(document: &Document, mistakes: &mut Vec<Mistake>) {
    let mut claimed: Vec<(Claim, &str)> = Vec::new();
    for (name, client) in &document.clients {
        let signs = !client.hmac_keys.is_empty() || client.hmac_key_file.is_some();
        if !signs && client.certificates.is_empty() && client.api_keys.is_empty() {
            let message = format!(
                "client `{name}` needs `hmac_keys` or `certificates` or `api_keys`: it could never be known"
            );
            mistakes.push(Mistake::whole(message));
        }
        for names in &client.certificates {
            match Claim::new(&names.value) {
                Err(why) => mistakes.push(Mistake::of(names, format!("client `{name}`: {why}"))),
                Ok(claim) => match claimed.iter().find(|(other, _)| *other == claim) {
                    Some((_, other)) => {
                        let message =
                            format!("clients `{other}` and `{name}` would have the same certificate");
                        mistakes.push(Mistake::of(names, message));
                    }
                    None => claimed.push((claim, name)),
                },
            }
        }
    }
}

fn check_api_keys(document: &Document, mistakes: &mut Vec<Mistake>) {
    let clients = document.clients.iter();
    let keys: Vec<_> =
        clients.flat_map(|(name, client)| client.api_keys.iter().map(move |key| (name, key))).collect();
    let written = keys.iter().map(|(name, key)| (name.as_str(), &key.value));
    for (position, why) in api_key::mistakes(written) {
        if let Some((_, key)) = keys.get(position) {
            mistakes.push(Mistake::of(*key, why));
        }
    }
}
