//! Signatures over requests and responses: RFC 9421 over the message, RFC 9530 over its body.
//!
//! The filter wants every request signed by the device that the token is bound to (RFC 7800) or by a partner
//! with a key of its own. Method, path, query, token and the digest of the body are always covered
//! ([`ALWAYS`]); a policy can only ask for more. A field that must be covered must be when it is there, and one
//! that is covered must be there, so it can be neither changed, slipped in nor taken away.

mod component;
pub mod digest;
pub mod freshness;
pub mod message;
mod query;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::digest::DigestError;
use self::freshness::Window;
use self::message::{Component, Fields, Message, Parsed, SignatureError};
use crate::crypto::VerifyingKey;
use crate::filter::{Binding, Client, Context, Filter, Headers, Host, Refusal, Request, Signed, Verdict};
use crate::jwt::thumbprint;
use crate::policy::{ClientKey, Keyring, Settings, Site, Unusable, in_both};
use crate::validity::{self, Validity};

/// Requires a signature over the request (RFC 9421) and a digest of its body (RFC 9530).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whose key must have signed.
    pub signer: Signer,
    /// Clients of the policy that may sign; empty: every one.
    pub clients: Vec<String>,
    /// What the signature must cover, as RFC 9421 names it, on top of `@method`, `@path`, `@query`,
    /// `authorization` and `content-digest`, which it always must. A field is covered whenever the request has
    /// it; a request with a body always has `content-digest`.
    pub components: Vec<String>,
    /// The label of the signature; absent: the request has exactly one that the edge understands. Other signatures are
    /// ignored.
    pub label: Option<String>,
    /// Seconds after its creation that a signature is taken; at most 3600.
    pub max_age_s: u64,
    /// Seconds that the sender's clock may be ahead of ours; at most 300.
    pub max_skew_s: u64,
}

/// Whose key signs requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Signer {
    /// The key in the token's `cnf`; needs the filter `jwt`.
    Device,
    /// The key of a client of the policy, named by `keyid`.
    Client,
    /// The device when the token is bound to one, otherwise the client that `keyid` names. A partner's key
    /// never stands in for what a token is bound to.
    #[default]
    Either,
}

/// What every signature covers, whatever the policy says. Without one of these a signature could be moved to
/// another call, another sender's token or another body.
const ALWAYS: [&str; 5] = ["@method", "@path", "@query", "authorization", "content-digest"];

impl Default for Config {
    fn default() -> Self {
        Self {
            signer: Signer::default(),
            clients: Vec::new(),
            components: ["content-type", "idempotency-key"].map(str::to_owned).to_vec(),
            label: None,
            max_age_s: 300,
            max_skew_s: 30,
        }
    }
}

impl Config {
    /// Whether any client of the policy may sign.
    pub(crate) fn takes_any_client(&self) -> bool {
        self.signer != Signer::Device && self.clients.is_empty()
    }

    /// Whether that client of the policy may sign.
    pub(crate) fn takes_client(&self, client: &str) -> bool {
        self.signer != Signer::Device && (self.clients.is_empty() || self.clients.iter().any(|name| name == client))
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        let mut components = self.components;
        components.extend(child.components);
        components.sort();
        components.dedup();
        Self {
            clients: in_both(self.clients, child.clients),
            signer: match (self.signer, child.signer) {
                (Signer::Either, child) => child,
                (parent @ (Signer::Device | Signer::Client), Signer::Either) => parent,
                // Both cannot have signed with one signature: nearer to the route is more specific.
                (Signer::Device | Signer::Client, child) => child,
            },
            components,
            label: child.label.or(self.label),
            max_age_s: self.max_age_s.min(child.max_age_s),
            max_skew_s: self.max_skew_s.min(child.max_skew_s),
        }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if !(1..=3_600).contains(&self.max_age_s) || self.max_skew_s > 300 {
            return Err(Unusable::new("`max_age_s` is between 1 and 3600, `max_skew_s` at most 300"));
        }
        if let Some(unknown) = self.clients.iter().find(|client| !site.keyring.has_client(client)) {
            return Err(Unusable::new(match unknown.as_str() {
                "" => "`clients` here and those of every route have none in common".to_owned(),
                unknown => format!("`clients`: there is no client `{unknown}` that has a key"),
            }));
        }
        let parse = |text: &str| {
            let component = text.parse::<Component>();
            let usable = component.and_then(|component| component.of_some_request().map(|()| component));
            usable.map_err(|why| Unusable::new(format!("{why}")))
        };
        let mut named: Vec<Component> = Vec::new();
        for text in &self.components {
            let component = parse(text)?;
            if named.contains(&component) {
                return Err(Unusable::new(format!("component `{text}` is named twice")));
            }
            named.push(component);
        }
        let mut required = ALWAYS.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        named.retain(|component| !required.contains(component));
        required.append(&mut named);
        if required.len() > message::COMPONENTS_MAX {
            let most = message::COMPONENTS_MAX - ALWAYS.len();
            return Err(Unusable::new(format!("`components` adds at most {most} to those always covered")));
        }
        let identifiers: Vec<String> = required.iter().map(Component::identifier).collect();
        let wanted = format!(
            "{}=({});created;keyid;nonce",
            self.label.as_deref().unwrap_or("sig1"),
            identifiers.join(" ")
        );
        Ok(Box::new(Signature { required, wanted, keyring: Arc::clone(site.keyring), config: self }))
    }
}

#[derive(Debug)]
struct Signature {
    required: Vec<Component>,
    /// `Accept-Signature` (RFC 9421 section 5.1), for who sent none or too little.
    wanted: String,
    /// As it was when the policy was read.
    keyring: Arc<Keyring>,
    config: Config,
}

impl Filter for Signature {
    fn name(&self) -> &'static str {
        "signature"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        match self.verify(request, host, context) {
            Ok((signed, client)) => {
                if let Some(client) = client {
                    context.identify(client);
                }
                context.signed = Some(signed);
                Verdict::Pass
            }
            Err(refusal) => refusal.into(),
        }
    }

    fn body(&self, request: &Request<'_>, body: &[u8], _host: &dyn Host, _context: &mut Context) -> Verdict {
        let refuse = |code, detail| Verdict::refuse(400, code, detail);
        // `head` made sure that the signature covers the field if it is there (`ALWAYS`); without it nothing
        // vouches for a body.
        if request.headers.all("content-digest").next().is_none() {
            return match body {
                [] => Verdict::Pass,
                _ => refuse("digest_missing", "Send and sign a Content-Digest of the body (RFC 9530)."),
            };
        }
        match digest::verify(request.headers.all("content-digest"), body) {
            Ok(()) => Verdict::Pass,
            Err(DigestError::Mismatch) => {
                refuse("digest_mismatch", "The body is not the one that was digested.")
            }
            Err(DigestError::NoKnownAlgorithm) => {
                refuse("digest_missing", "Content-Digest must hold a sha-256 or sha-512 digest.")
            }
            Err(DigestError::TooLong | DigestError::Malformed) => {
                refuse("digest_malformed", "Content-Digest is not a dictionary of byte sequences (RFC 9530).")
            }
        }
    }
}

impl Signature {
    /// The signature, and the client whose key made it.
    fn verify(
        &self,
        request: &Request<'_>,
        host: &dyn Host,
        context: &Context,
    ) -> Result<(Signed, Option<Client>), Refusal> {
        let parsed = message::parse(&request.headers, self.config.label.as_deref())
            .map_err(|why| self.refused(&why))?;
        let params = parsed.params();
        self.check_coverage(&parsed, request)?;
        let Some(created) = params.created else {
            return Err(self.incomplete("The signature must say when it was `created`."));
        };
        self.check_age(created, params.expires, host)?;
        let keyring = host.keyring().unwrap_or_else(|| Arc::clone(&self.keyring));
        let untold = || {
            let detail = "The clients' keys are not at hand. Try again shortly.";
            Refusal::new(503, "signature_keys_unavailable", detail).header("retry-after", "1")
        };
        let signer = self.key(params.keyid.as_deref(), context, &keyring).ok_or_else(|| {
            if self.config.signer != Signer::Device && !keyring.is_whole() {
                return untold();
            }
            let detail = "The signature's key is neither a known client's nor the token's device key.";
            Refusal::new(401, "signature_key_unknown", detail).header("www-authenticate", CHALLENGE)
        })?;
        let message = Message::request(
            request.method,
            request.scheme,
            request.authority,
            request.path,
            request.query,
            &request.headers,
        );
        let key = signer.key.ok_or_else(untold)?;
        parsed.verify_with(&message, key, host.verifier()).map_err(|why| self.refused(&why))?;
        // Only who holds the key learns when it counts and whose it is.
        let refuse = |code, detail| {
            Err(Refusal::new(401, code, detail).header("www-authenticate", CHALLENGE))
        };
        match signer.window.at(host.now_ms()) {
            Validity::Now => {}
            Validity::NotYet => {
                return refuse("signature_key_not_yet_valid", "The signature's key does not count yet.");
            }
            Validity::NoLonger => {
                return refuse("signature_key_expired", "The signature's key counts no longer. Sign with a newer one.");
            }
        }
        let signed = Signed { keyid: signer.name, created, nonce: params.nonce.clone() };
        let Some(client) = signer.client else { return Ok((signed, None)) };
        if context.identity().is_some_and(|identity| !client.may_act_for(identity)) {
            return Err(client.of_another_tenant());
        }
        if context.client.as_ref().is_some_and(|shown| shown.name != client.name) {
            let detail = "The client that signed is another than the one whose certificate you connect with.";
            return Err(Refusal::new(403, "client_mismatch", detail));
        }
        Ok((signed, Some(client.clone())))
    }

    fn check_coverage(&self, parsed: &Parsed, request: &Request<'_>) -> Result<(), Refusal> {
        let missing = self.required.iter().find(|component| {
            let there = component.field().is_none_or(|field| request.headers.all(field).next().is_some());
            there && !parsed.covers(component)
        });
        match missing {
            None => Ok(()),
            Some(component) => Err(self.incomplete(format!("The signature must cover {component}."))),
        }
    }

    fn check_age(&self, created_s: i64, expires_s: Option<i64>, host: &dyn Host) -> Result<(), Refusal> {
        let Config { max_age_s, max_skew_s, .. } = self.config;
        Window { max_age_s, max_skew_s }.check(created_s, expires_s, host.now_ms()).map_err(|stale| {
            let (code, detail) = stale.of_request();
            Refusal::new(401, code, detail).header("www-authenticate", CHALLENGE)
        })
    }

    /// Whose key must have signed.
    fn key<'k>(&self, keyid: Option<&str>, context: &'k Context, keyring: &'k Keyring) -> Option<Holder<'k>> {
        let client = || {
            let ClientKey { client, window, key } = keyring.get(keyid?)?;
            if !self.config.clients.is_empty() && !self.config.clients.iter().any(|name| **name == *client.name) {
                return None;
            }
            let name = format!("client/{}", keyid?);
            Some(Holder { name, key: key.as_ref(), window: *window, client: Some(client) })
        };
        let device = |key: &'k VerifyingKey| {
            let name = format!("device/{}", thumbprint(key)?);
            // It counts for as long as the token that names it.
            Some(Holder { name, key: Some(key), window: validity::Window::default(), client: None })
        };
        match (self.config.signer, binding(context)) {
            (Signer::Client, _) | (Signer::Either, Binding::None | Binding::Certificate(_)) => client(),
            (Signer::Device | Signer::Either, Binding::Key(key) | Binding::KeyAndCertificate(key, _)) => device(key),
            (Signer::Device, Binding::None | Binding::Certificate(_))
            | (Signer::Device | Signer::Either, Binding::NotUnderstood) => None,
        }
    }

    fn incomplete(&self, detail: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
        Refusal::new(401, "signature_incomplete", detail)
            .header("www-authenticate", CHALLENGE)
            .header("accept-signature", self.wanted.clone())
    }

    fn refused(&self, error: &SignatureError) -> Refusal {
        let (status, code, detail) = match error {
            SignatureError::Missing => {
                (401, "signature_missing", "Sign the request (RFC 9421): Signature-Input and Signature.")
            }
            SignatureError::Several => (400, "signature_malformed", "Send exactly one signature."),
            SignatureError::TooLarge => {
                (400, "signature_malformed", "The signature is larger than what is read.")
            }
            SignatureError::Malformed(_) => {
                (400, "signature_malformed", "Signature-Input or Signature is not what RFC 9421 says.")
            }
            SignatureError::UnknownAlgorithm => {
                (400, "signature_malformed", "The signature's algorithm is not one that is verified here.")
            }
            SignatureError::Component(error) => {
                let detail = format!("The signature cannot be verified: {error}.");
                return Refusal::new(400, "signature_malformed", detail);
            }
            SignatureError::AlgorithmMismatch | SignatureError::Invalid => {
                (401, "signature_invalid", "The signature does not hold for this request and key.")
            }
            SignatureError::Crypto(_) => {
                (503, "signature_not_verifiable", "The signature cannot be verified here at present.")
            }
        };
        let refusal = Refusal::new(status, code, detail);
        match status {
            401 => {
                refusal.header("www-authenticate", CHALLENGE).header("accept-signature", self.wanted.clone())
            }
            _ => refusal,
        }
    }
}

/// Who must have signed.
struct Holder<'k> {
    /// A name for the key that its holder cannot choose.
    name: String,
    /// `None` while the data plane has not been told it.
    key: Option<&'k VerifyingKey>,
    window: validity::Window,
    /// Absent: a device.
    client: Option<&'k Client>,
}

fn binding(context: &Context) -> &Binding {
    context.identity().map_or(&Binding::None, |identity| &identity.binding)
}

/// A 401 names a scheme (RFC 9110 section 11.6.1); `Accept-Signature` says the rest.
const CHALLENGE: &str = "Signature";

impl Fields for Headers<'_> {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.iter().for_each(|(name, value)| visit(name, value));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::Tenancy;
    use crate::jwt::KeySet;

    struct Clock(u64);

    impl Host for Clock {
        fn now_ms(&self) -> u64 {
            self.0
        }

        fn keys(&self, _issuer: &str) -> Option<Arc<KeySet>> {
            None
        }
    }

    fn build(config: Config) -> Result<Box<dyn Filter>, Unusable> {
        let key = VerifyingKey::hmac(&[7; 32]).expect("long enough");
        let client = Client { name: "client".into(), tenant: None };
        let client = ClientKey { client, window: validity::Window::default(), key: Some(key) };
        let keyring: Keyring = [("k".to_owned(), client)].into_iter().collect();
        let (issuers, clients) = (BTreeMap::new(), BTreeMap::new());
        let keyring = Arc::new(keyring);
        let (issuers, clients, keyring) = (&issuers, &clients, &keyring);
        config.build(&Site { route: "r", issuers, clients, keyring, tenancy: Tenancy::none(), nonces: crate::nonce::Kept::default() })
    }

    #[test]
    fn settings_that_cannot_be_meant() {
        let of = |components: &[&str]| Config {
            components: components.iter().map(|text| (*text).to_owned()).collect(),
            ..Config::default()
        };
        let many: Vec<String> = (0..28).map(|n| format!("h{n}")).collect();
        assert!(build(Config::default()).is_ok());
        assert!(build(of(&[])).is_ok());
        assert!(build(of(&["@method", "\"@query-param\";name=\"id\""])).is_ok());
        let unusable = [
            of(&["@method", "@method"]),
            of(&["@made-up"]),
            of(&["Content-Digest"]),
            of(&["\"date\";tr"]),
            Config { components: many, ..Config::default() },
            Config { max_age_s: 0, ..Config::default() },
            Config { max_age_s: 3_601, ..Config::default() },
            Config { max_skew_s: 301, ..Config::default() },
        ];
        for config in unusable {
            assert!(build(config.clone()).is_err(), "{config:?}");
        }
    }

    proptest! {
        #[test]
        fn no_request_panics_or_passes_unsigned(
            input in proptest::collection::vec(any::<u8>(), 0..80),
            created in any::<i64>(),
            signature in proptest::collection::vec(any::<u8>(), 0..40),
            digest in proptest::collection::vec(any::<u8>(), 0..40),
            path in any::<String>(),
            now_ms in any::<u64>(),
        ) {
            let written = format!("sig1=(\"@method\" \"@path\" \"@query\" \"content-digest\");created={created};keyid=\"k\"");
            let inputs: [(&[u8], &[u8]); 2] = [(&input, &signature), (written.as_bytes(), b"sig1=:AAAA:")];
            let filter = build(Config::default()).expect("usable");
            for (input, signature) in inputs {
                let fields = [("signature-input", input), ("signature", signature), ("content-digest", digest.as_slice())];
                let peer = Ipv4Addr::LOCALHOST.into();
                let request = Request {
                    method: "POST",
                    scheme: "https",
                    authority: "edge.test",
                    path: &path,
                    query: Some(&path),
                    headers: fields.into_iter().collect(),
                    peer,
                    certificate: None,
                };
                let mut context = Context::new(peer);
                prop_assert_ne!(filter.head(&request, &Clock(now_ms), &mut context), Verdict::Pass);
                prop_assert_ne!(filter.body(&request, b"body", &Clock(now_ms), &mut context), Verdict::Pass);
            }
        }
    }
}
