//! API keys: a client known by a secret that it sends with each request, for partners that can neither sign nor show a
//! certificate.
//!
//! A key is 32 random bytes behind a prefix that secret scanners know it by ([`Minted`]); the policy has its SHA-256
//! alone. A plain hash is enough for what nobody can guess: what makes slow, salted hashes necessary is that people
//! choose passwords, and nobody chose this. So that it stays true, only text of that form is looked up at all: the hash
//! of a word that somebody thought up is of no use here. It is a bearer's secret: who sees it once can use it, and it
//! covers no request. Where a client can do more, prefer `client_cert` or `signature`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::crypto::{equal, sha256};
use crate::filter::{Client, Context, Filter, Host, Refusal, Request, Verdict};
use crate::policy::{self, Settings, Site, Unusable, in_both};
use crate::validity::{Validity, Window};

/// Requires an API key of a client of the policy, in `X-Api-Key` or as `Authorization: ApiKey KEY`. Where a token is
/// required too, `Authorization` is the token's. The upstream sees neither field.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Clients of the policy that may call; empty: every one that has `api_keys`.
    pub clients: Vec<String>,
}

/// A key as `gateway api-key new` makes it.
pub struct Minted(String);

impl Minted {
    /// What every key begins with.
    pub const PREFIX: &'static str = "torana_";
    /// Random bytes in a key.
    pub const BYTES: usize = 32;

    /// Of random bytes, drawn for this key alone.
    pub fn new(random: &[u8; Self::BYTES]) -> Self {
        Self(format!("{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(random)))
    }

    /// The key, to hand to its client.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// What the policy has of it.
    pub fn sha256_hex(&self) -> String {
        sha256(self.0.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a key could be written so.
    fn is_form_of(text: &str) -> bool {
        let bytes = text.strip_prefix(Self::PREFIX).and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok());
        bytes.is_some_and(|bytes| bytes.len() == Self::BYTES)
    }
}

impl std::fmt::Debug for Minted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Minted(..)")
    }
}

/// Most keys of all clients together: each request's key is compared with every one of them.
pub const MOST_KEYS: usize = 1_024;

/// The hash that is written so, or what is wrong with it.
pub(crate) fn hash(written: &str) -> Result<[u8; 32], String> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = written.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let hash = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).ok_or_else(|| {
        "`sha256` is 64 lower-case hexadecimal digits, as `gateway api-key new` prints them".to_owned()
    })?;
    match hash == sha256(b"") {
        true => Err("`sha256` is the hash of nothing".to_owned()),
        false => Ok(hash),
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self { clients: in_both(self.clients, child.clients) }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let mut keys = Vec::new();
        for (name, client) in site.clients {
            let tenant = client.tenant.as_ref().map(|tenant| tenant.value.as_str().into());
            let client_of_key = Client { name: name.as_str().into(), tenant };
            for key in &client.api_keys {
                let policy::ApiKey { sha256, .. } = &key.value;
                let sha256 = hash(sha256).map_err(Unusable::new)?;
                keys.push(Known { client: client_of_key.clone(), window: key.value.window(), sha256 });
            }
        }
        let has = |name: &String| keys.iter().any(|key| *key.client.name == **name);
        if let Some(unknown) = self.clients.iter().find(|name| !has(name)) {
            return Err(Unusable::new(match unknown.as_str() {
                "" => "`clients` here and those of every route have none in common".to_owned(),
                unknown => format!("`clients`: there is no client `{unknown}` that has `api_keys`"),
            }));
        }
        if keys.is_empty() {
            return Err(Unusable::new("no client of the policy has `api_keys`, so nobody could pass"));
        }
        Ok(Box::new(ApiKeys { clients: self.clients, keys }))
    }
}

#[derive(Debug)]
struct ApiKeys {
    clients: Vec<String>,
    keys: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    client: Client,
    window: Window,
    sha256: [u8; 32],
}

/// A 401 names a scheme (RFC 9110 section 11.6.1).
const CHALLENGE: &str = "ApiKey";

impl Filter for ApiKeys {
    fn name(&self) -> &'static str {
        "api_key"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        match self.holder(request, host) {
            Err(refusal) => refusal.into(),
            Ok(client) => match &context.client {
                Some(shown) if shown.name != client.name => {
                    let detail = "The API key is another client's than the certificate that you connect with.";
                    Verdict::refuse(403, "client_mismatch", detail)
                }
                Some(_) | None => {
                    context.identify(client.clone());
                    Verdict::Pass
                }
            },
        }
    }
}

impl ApiKeys {
    fn holder(&self, request: &Request<'_>, host: &dyn Host) -> Result<&Client, Refusal> {
        let refuse =
            |code, detail: &'static str| Refusal::new(401, code, detail).header("www-authenticate", CHALLENGE);
        let unknown = || refuse("api_key_unknown", "The API key is none that is known here.");
        let sent = sent(request)?.ok_or_else(|| {
            refuse("api_key_missing", "Send your API key: X-Api-Key: KEY, or Authorization: ApiKey KEY.")
        })?;
        if !Minted::is_form_of(sent) {
            return Err(unknown());
        }
        // Every key is looked at, so that the time tells nothing of which one fits.
        let hash = sha256(sent.as_bytes());
        let mut known = None;
        for key in &self.keys {
            if equal(&key.sha256, &hash) {
                known = Some(key);
            }
        }
        let known = known.ok_or_else(unknown)?;
        // Only who holds the key learns when it counts and what it is for.
        match known.window.at(host.now_ms()) {
            Validity::Now => {}
            Validity::NotYet => {
                return Err(refuse("api_key_not_yet_valid", "The API key does not count yet."));
            }
            Validity::NoLonger => {
                return Err(refuse("api_key_expired", "The API key counts no longer. Send a newer one."));
            }
        }
        if !self.clients.is_empty() && !self.clients.iter().any(|name| **name == *known.client.name) {
            let detail = "The client that the API key is of may not call this.";
            return Err(Refusal::new(403, "client_not_allowed", detail));
        }
        Ok(&known.client)
    }
}

/// The key that is sent, in one of its two places.
fn sent<'r>(request: &Request<'r>) -> Result<Option<&'r str>, Refusal> {
    let ambiguous = || {
        let detail = "Send one API key, in X-Api-Key or in Authorization.";
        Refusal::new(400, "api_key_ambiguous", detail)
    };
    let own = request.headers.one("x-api-key").map_err(|_| ambiguous())?;
    let authorization = request.headers.one("authorization").map_err(|_| ambiguous())?;
    let shared = authorization
        .and_then(|field| field.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("apikey"))
        .map(|(_, key)| key.trim_start_matches(' '));
    match (own, shared) {
        (Some(_), Some(_)) => Err(ambiguous()),
        (own, shared) => Ok(own.or(shared).filter(|key| !key.is_empty())),
    }
}

/// That each key is one client's, and could be a key. `None`: nothing is wrong.
pub(crate) fn mistakes<'k>(
    keys: impl Iterator<Item = (&'k str, &'k policy::ApiKey)>,
) -> impl Iterator<Item = (usize, String)> {
    let mut ids: Vec<&str> = Vec::new();
    let mut hashes: Vec<Arc<str>> = Vec::new();
    let mut found = Vec::new();
    for (position, (client, key)) in keys.enumerate() {
        let mut wrong = |why: String| found.push((position, format!("client `{client}`: API key `{}`: {why}", key.id)));
        if let Err(why) = hash(&key.sha256) {
            wrong(why);
        }
        if key.window().is_empty() {
            wrong("`not_after` lies before `not_before`".to_owned());
        }
        if key.id.is_empty() || ids.contains(&key.id.as_str()) {
            wrong("its `id` is empty or used twice".to_owned());
        }
        if hashes.iter().any(|hash| **hash == *key.sha256) {
            wrong("its `sha256` is that of another key".to_owned());
        }
        if position == MOST_KEYS {
            wrong(format!("there are more than {MOST_KEYS} API keys"));
        }
        ids.push(&key.id);
        hashes.push(key.sha256.as_str().into());
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_minted_is_known_by_its_hash() {
        let key = Minted::new(&[7; 32]);
        assert_eq!(key.secret().len(), Minted::PREFIX.len() + 43);
        assert!(Minted::is_form_of(key.secret()));
        assert_eq!(hash(&key.sha256_hex()), Ok(sha256(key.secret().as_bytes())));
        for weak in ["", "torana_", "torana_hunter2", "hunter2", &key.secret()["torana_".len()..], "torana_é"] {
            assert!(!Minted::is_form_of(weak), "{weak}");
        }
    }

    #[test]
    fn hashes_that_are_none() {
        let empty: String = sha256(b"").iter().map(|byte| format!("{byte:02x}")).collect();
        for (written, expected) in [
            ("", "64 lower-case"),
            ("ab", "64 lower-case"),
            (&"AB".repeat(32), "64 lower-case"),
            (&"zz".repeat(32), "64 lower-case"),
            (&"abc".repeat(21), "64 lower-case"),
            (empty.as_str(), "the hash of nothing"),
        ] {
            let told = hash(written).expect_err(written);
            assert!(told.contains(expected), "{written}: {told}");
        }
    }
}
