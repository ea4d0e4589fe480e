//! Whose tokens are believed, and where the keys for them come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{At, Document, ms, n};
use super::mistake::Mistake;
use super::{Reference, StaleCrl};

/// Somebody whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// `iss`, compared to the letter.
    pub issuer: String,
    /// `aud` must contain one of these.
    pub audiences: Vec<String>,
    /// Algorithms that its tokens may be signed with. Symmetric ones and `none` are not allowed. `EdDSA` and `Ed25519` are
    /// two names of one algorithm: each of them allows both names in a token.
    #[serde(default)]
    pub algorithms: Vec<Algorithm>,
    /// Where its public keys come from, for tokens that are JWTs.
    pub jwks: Option<Jwks>,
    /// Whom to ask about tokens that are none.
    pub introspection: Option<At<Introspection>>,
    /// Seconds that its clock and ours may differ by.
    #[serde(default = "ms::<30>")]
    pub leeway_s: u64,
}

/// Signature algorithms of tokens (RFC 7518, RFC 8037, RFC 9864).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    ES256,
    ES384,
    RS256,
    PS256,
    EdDSA,
    Ed25519,
}

impl Algorithm {
    /// The algorithm that `alg` of a token or a key names, in its canonical form; `None` when it is not supported.
    pub fn of_token(alg: &str) -> Option<Self> {
        Some(match alg {
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "RS256" => Self::RS256,
            "PS256" => Self::PS256,
            "EdDSA" | "Ed25519" => Self::EdDSA,
            _ => return None,
        })
    }

    /// One name for each algorithm: `EdDSA` for `Ed25519`, as EdDSA keys have no other curve here.
    #[must_use]
    pub fn canonical(self) -> Self {
        match self {
            Self::Ed25519 => Self::EdDSA,
            other @ (Self::ES256 | Self::ES384 | Self::RS256 | Self::PS256 | Self::EdDSA) => other,
        }
    }
}

/// A JSON Web Key Set (RFC 7517) and how fresh it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    /// An `https:` address. Exactly one of `url`, `file` and `discovery`.
    pub url: Option<String>,
    /// The issuer's own metadata say where: `issuer` is then its `https:` address, and must be in them to the letter.
    pub discovery: Option<Discovery>,
    /// `file:PATH`, read again when it changes.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub file: Option<At<Reference>>,
    /// The CAs that sign the certificate of `url`, PEM; absent: the system's.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub ca: Option<At<Reference>>,
    /// What those CAs have revoked, of the whole chain: a list of each, PEM, or the one list in DER; absent: nothing.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub crl: Option<At<Reference>>,
    /// What becomes of the issuer while a list is past its `nextUpdate`: `refuse`, and its keys grow stale.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// Seconds between refreshes.
    #[serde(default = "ms::<300>")]
    pub refresh_s: u64,
    /// Seconds that the last good keys serve while refreshes fail.
    #[serde(default = "ms::<86_400>")]
    pub stale_s: u64,
    /// Least seconds between two refreshes that tokens cause: by a key id that is not known, or by a signature that does
    /// not hold. Until the next one is allowed, an unknown key id gets 503 with `Retry-After`.
    #[serde(default = "ms::<10>")]
    pub unknown_kid_refresh_s: u64,
    /// Milliseconds a fetch may take.
    #[serde(default = "ms::<3_000>")]
    pub timeout_ms: u64,
}

/// Token introspection (RFC 7662): the issuer says of each token whether it counts and what it claims. Its answer must
/// have `exp`, one of the audiences in `aud`, and `sub`. Without `sub` the subject is `client_id`: a token that a client got
/// for itself. While the issuer cannot be asked, its tokens are refused with 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    /// An `https:` address.
    pub url: String,
    /// The CAs that sign the certificate of `url`, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub ca: At<Reference>,
    /// What those CAs have revoked, of the whole chain: a list of each, PEM, or the one list in DER; absent: nothing.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub crl: Option<At<Reference>>,
    /// What becomes of the issuer while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// What the edge is called there.
    pub client_id: String,
    /// Where the edge's secret is, sent with `client_id` (`client_secret_basic`, RFC 6749 section 2.3.1). Exactly one of
    /// `client_secret` and `certificate`.
    pub client_secret: Option<At<Reference>>,
    /// The chain that the edge shows instead, PEM (`tls_client_auth`, RFC 8705 section 2.1).
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub certificate: Option<At<Reference>>,
    /// Its key, PEM.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub key: Option<At<Reference>>,
    /// Milliseconds that an answer may take.
    #[serde(default = "ms::<1_000>")]
    pub timeout_ms: u64,
    /// Seconds that a token counts without being asked about again, at most until it expires; 1 to 300. So long a token
    /// that its issuer has revoked may still pass, unless it is revoked here too.
    #[serde(default = "ms::<30>")]
    pub cache_s: u64,
    /// Seconds that a token that does not count is not asked about again; 1 to 60.
    #[serde(default = "ms::<5>")]
    pub negative_cache_s: u64,
    /// Tokens that count to remember; 1 to 1000000. Of those that do not, 4096 are remembered beside them.
    #[serde(default = "n::<10_000>")]
    pub cache_entries: u32,
    /// Most questions under way; further tokens are refused with 503 meanwhile. A quarter of them is for tokens that have
    /// counted before alone, so that whoever makes tokens up takes no question from those.
    #[serde(default = "n::<64>")]
    pub max_in_flight: u32,
}

/// Whose rules say where an issuer's metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// OpenID Connect Discovery 1.0 section 4: `ISSUER/.well-known/openid-configuration`.
    Openid,
    /// RFC 8414 section 3: `/.well-known/oauth-authorization-server` between the host and the path.
    Oauth,
}

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    for (name, At { value: issuer, location }) in &document.issuers {
        let mut wrong = |message: String| mistakes.push(Mistake::at(*location, message));
        if issuer.audiences.is_empty() {
            wrong(format!(
                "issuer `{name}` needs `audiences`: a token for anybody is a token for an attacker"
            ));
        }
        if let Some(introspection) = &issuer.introspection {
            check_introspection(name, introspection, mistakes);
        }
        let mut wrong = |message: String| mistakes.push(Mistake::at(*location, message));
        let Some(jwks) = &issuer.jwks else {
            match (&issuer.introspection, issuer.algorithms.is_empty()) {
                (None, _) => wrong(format!("issuer `{name}` needs `jwks` or `introspection`")),
                (Some(_), false) => {
                    wrong(format!("issuer `{name}`: `algorithms` are of `jwks`, which is not there"))
                }
                (Some(_), true) => {}
            }
            continue;
        };
        if issuer.algorithms.is_empty() {
            wrong(format!("issuer `{name}` needs `algorithms`"));
        }
        if jwks.crl.is_some() && jwks.ca.is_none() {
            wrong(format!("issuer `{name}`: `jwks.crl` is of the CAs in `jwks.ca`, which is not there"));
        }
        match (&jwks.url, &jwks.file, jwks.discovery) {
            (Some(url), None, None) => {
                if let Some(why) = no_address(url) {
                    wrong(format!("issuer `{name}`: `jwks.url` {why}"));
                }
            }
            (None, Some(At { value: Reference::File(_), .. }), None) => {}
            (None, Some(At { value: Reference::Env(_), .. }), None) => {
                wrong(format!("issuer `{name}`: `jwks.file` must be a `file:`"))
            }
            (None, None, Some(_)) if is_address(&issuer.issuer) => {}
            (None, None, Some(_)) => wrong(format!(
                "issuer `{name}`: `jwks.discovery` needs an `issuer` that is an https:// address without query and \
                 fragment"
            )),
            (None, None, None) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) | (Some(_), Some(_), None) => {
                wrong(format!(
                    "issuer `{name}` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`"
                ));
            }
        }
    }
}

fn check_introspection(name: &str, written: &At<Introspection>, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |message: &str| {
        mistakes.push(Mistake::of(written, format!("issuer `{name}`: introspection: {message}")))
    };
    let settings = &written.value;
    if let Some(why) = no_address(&settings.url) {
        wrong(&format!("`url` {why}"));
    }
    if settings.client_id.is_empty() || !settings.client_id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    {
        wrong("`client_id` is visible ASCII");
    }
    match (&settings.client_secret, &settings.certificate, &settings.key) {
        (Some(_), None, None) | (None, Some(_), Some(_)) => {}
        (Some(_), _, _) | (None, _, _) => {
            wrong("the edge is known there by a `client_secret`, or by a `certificate` and its `key`");
        }
    }
}

/// Whether metadata could be found there.
fn is_address(issuer: &str) -> bool {
    no_address(issuer).is_none() && !issuer.contains(['?', '#'])
}

/// Why nothing could be fetched from there, if so.
fn no_address(url: &str) -> Option<&'static str> {
    let Some(rest) = url.strip_prefix("https://") else { return Some("must begin with https://") };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("has spaces or other letters than visible ASCII: write them as %20 and the like");
    }
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['[', ']', ':']),
    };
    match (is_host, port) {
        (false, _) => Some("names no host: write https://host/path"),
        (true, Some(port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Some("has a port that is none: write a number from 1 to 65535")
        }
        (true, Some(_) | None) => None,
    }
}
