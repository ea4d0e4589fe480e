//! Tokens: who sends the request, as an issuer of ours says (RFC 6750, 7519, 8725), and whether it is who the token is
//! bound to (RFC 8705).
//!
//! An issuer's algorithms are pinned by the policy and a key is for one algorithm, so nothing in a token can
//! choose how it is verified. Keys come from the host, which keeps them fresh.

mod asked;
mod cache;
mod claims;
mod keys;
pub mod revocation;
mod token;
#[cfg(test)]
mod vectors;

pub use asked::{Accepted, Scalar};
pub use claims::{Claims, Expected};
pub use keys::{Jwk, Key, KeySet, KeySetError, thumbprint, verifying_key};
pub use revocation::{Revocation, Revocations};
pub use token::{Token, TokenError};

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::asked::Asked;
use self::cache::{Cache, Verified};
use crate::certificate::Certificate;
use crate::filter::{
    Binding, Context, Filter, Host, Introspected, OpaqueToken, Refusal, Request, StaleKeys, Verdict,
};
use crate::policy::{Issuer, Settings, Site, Unusable};

/// Requires a bearer token of a trusted issuer, in `Authorization`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names of the issuers whose tokens pass here; absent: every issuer of the policy.
    pub issuers: Option<Vec<String>>,
    /// Scopes that the token must all have.
    pub scopes: Vec<String>,
    /// Claims that the token must have, each with one of the values here: `{ kyc: full, amr: [otp, hwk] }`. Of a claim
    /// that is a list one value is enough.
    pub claims: BTreeMap<String, Accepted>,
    /// Claims that the upstream is told, by the field that tells them: `{ x-torana-claim-kyc: kyc }`. A list is told with
    /// commas; a claim that no field can tell makes the token malformed, one that is not there is not told.
    pub claims_to_headers: BTreeMap<String, String>,
    /// What every token must be bound to; absent: nothing. A certificate that a token is bound to must be shown in any
    /// case. That its sender holds a key that it is bound to (`cnf.jwk`) is proven by `signature` alone, with `signer:
    /// device` or `either`: without that, it is as good as a bearer's. One that is bound by other means is refused.
    pub bound_to: Option<BoundTo>,
    /// Longest token, in bytes; at most 16384.
    pub max_length: usize,
    /// Verified tokens to remember, for each route; at most 1000000. Their times and scopes are checked on
    /// every request all the same.
    pub cache_entries: usize,
}

/// What tokens can be bound to. (A key that they are bound to is asked for by `signature`, `signer: device`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoundTo {
    /// The certificate that the sender shows: `cnf.x5t#S256` (RFC 8705 section 3.1).
    Certificate,
}

impl Config {
    /// Whether nobody passes without a certificate.
    pub(crate) fn needs_certificate(&self) -> bool {
        self.bound_to == Some(BoundTo::Certificate)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            issuers: None,
            scopes: Vec::new(),
            claims: BTreeMap::new(),
            claims_to_headers: BTreeMap::new(),
            bound_to: None,
            max_length: 4096,
            cache_entries: 4_000,
        }
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        let issuers = match (self.issuers, child.issuers) {
            (Some(parent), Some(child)) => {
                Some(parent.into_iter().filter(|name| child.contains(name)).collect())
            }
            (parent, child) => parent.or(child),
        };
        let mut scopes = self.scopes;
        scopes.extend(child.scopes);
        scopes.sort();
        scopes.dedup();
        let mut claims = self.claims;
        for (name, accepted) in child.claims {
            let both = match claims.remove(&name) {
                Some(parents) => parents.and(accepted),
                None => accepted,
            };
            claims.insert(name, both);
        }
        let mut claims_to_headers = self.claims_to_headers;
        claims_to_headers.extend(child.claims_to_headers);
        Self {
            issuers,
            scopes,
            claims,
            claims_to_headers,
            bound_to: child.bound_to.or(self.bound_to),
            max_length: self.max_length.min(child.max_length),
            cache_entries: self.cache_entries.min(child.cache_entries),
        }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if !(256..=16_384).contains(&self.max_length) {
            return Err(Unusable::new("`max_length` is between 256 and 16384"));
        }
        if self.cache_entries > 1_000_000 {
            return Err(Unusable::new("`cache_entries` is at most 1000000"));
        }
        let scope = |scope: &String| {
            !scope.is_empty() && scope.bytes().all(|b| matches!(b, b'!' | b'#'..=b'[' | b']'..=b'~'))
        };
        if !self.scopes.iter().all(scope) {
            return Err(Unusable::new("a scope is visible ASCII without spaces, quotes and backslashes"));
        }
        let names: Vec<&String> = match &self.issuers {
            Some(names) => names.iter().collect(),
            None => site.issuers.keys().collect(),
        };
        let mut issuers = BTreeMap::new();
        for name in names {
            let Some(issuer) = site.issuers.get(name) else {
                return Err(Unusable::new(format!("there is no issuer `{name}`")));
            };
            let trusted = Trusted { name: name.as_str().into(), settings: issuer.value.clone() };
            if issuers.insert(issuer.value.issuer.clone(), trusted).is_some() {
                return Err(Unusable::new(format!("issuer `{name}` has the `iss` of another")));
            }
        }
        let mut asked = issuers.values().filter(|trusted| trusted.settings.introspection.is_some());
        if let (Some(one), Some(other)) = (asked.next(), asked.next()) {
            return Err(Unusable::new(format!(
                "`{}` and `{}` both have `introspection`, and nothing in a token tells which one to ask; name `issuers`",
                one.name, other.name
            )));
        }
        if issuers.is_empty() {
            return Err(Unusable::new("no issuer is left whose tokens could pass"));
        }
        let cache = Cache::new(self.cache_entries);
        let asked = Asked::new(self.claims, self.claims_to_headers)?;
        let Self { scopes, bound_to, max_length, .. } = self;
        Ok(Box::new(Jwt { issuers, cache, scopes, asked, bound_to, max_length }))
    }
}

#[derive(Debug)]
struct Jwt {
    /// By `iss`.
    issuers: BTreeMap<String, Trusted>,
    cache: Cache,
    scopes: Vec<String>,
    asked: Asked,
    bound_to: Option<BoundTo>,
    max_length: usize,
}

#[derive(Debug)]
struct Trusted {
    /// The policy's name of the issuer.
    name: Arc<str>,
    settings: Issuer,
}

impl Filter for Jwt {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        let text = match bearer(request) {
            Ok(text) => text,
            Err(refusal) => return refusal.into(),
        };
        let claims = match self.verify(text, host) {
            Ok(claims) => claims,
            Err(refusal) => return refusal.into(),
        };
        let identity = &claims.identity;
        if let Err(unproven) = self.check_binding(&identity.binding, request.certificate) {
            return refused(unproven).into();
        }
        if let Some(client) = context.client.as_ref().filter(|client| !client.may_act_for(identity)) {
            return client.of_another_tenant().into();
        }
        if let Some(missing) = self.scopes.iter().find(|scope| !identity.scopes.contains(*scope)) {
            let challenge =
                format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", self.scopes.join(" "));
            return Refusal::new(403, "scope_missing", format!("The token lacks the scope `{missing}`."))
                .header("www-authenticate", challenge)
                .into();
        }
        if let Some(missing) = self.asked.missing(&claims) {
            let detail = format!("The token's claim `{missing}` is not what is needed here.");
            return Refusal::new(403, "claim_missing", detail)
                .header("www-authenticate", "Bearer error=\"insufficient_scope\"")
                .into();
        }
        match self.asked.told(&claims) {
            Ok(fields) => fields.into_iter().for_each(|(name, value)| context.tell(name, value)),
            Err(claim) => {
                let detail = format!("The access token's claim `{claim}` cannot be sent to the upstream in a header field.");
                return invalid_token("token_malformed", detail).into();
            }
        }
        context.tell("x-torana-subject", identity.subject.clone());
        if let Some(tenant) = &identity.tenant {
            context.tell("x-torana-tenant", tenant.clone());
        }
        if let Some(device) = &identity.device {
            context.tell("x-torana-device", device.clone());
        }
        if !claims.vpas.is_empty() {
            context.tell("x-torana-vpa", claims.vpas.join(","));
        }
        context.token = Some(claims);
        Verdict::Pass
    }
}

impl Jwt {
    /// The token, verified now or a moment ago, and checked against the time and the audience.
    fn verify(&self, text: &str, host: &dyn Host) -> Result<Arc<Claims>, Refusal> {
        if host.revocations().is_some_and(|list| !list.is_known()) {
            let detail = "Whether an access token has been revoked is not known yet. Try again shortly.";
            return Err(Refusal::new(503, "token_revocations_unavailable", detail).header("retry-after", "1"));
        }
        if text.len() > self.max_length {
            return Err(refused(TokenError::Malformed));
        }
        let (trusted, claims) = match self.remembered(text, host) {
            Some(found) => found,
            None if is_opaque(text) => self.introspect(text, host)?,
            None => {
                let (trusted, verified) = self.verify_signature(text, host)?;
                let claims = Arc::clone(&verified.claims);
                self.cache.put(text, verified);
                (trusted, claims)
            }
        };
        let expected = Expected {
            audiences: &trusted.settings.audiences,
            leeway_ms: trusted.settings.leeway_s.saturating_mul(1_000),
            now_ms: host.now_ms(),
        };
        claims.check(&expected).map_err(refused)?;
        match host.revocations().is_some_and(|list| list.revokes(&claims, host.now_ms())) {
            true => Err(refused(TokenError::Revoked)),
            false => Ok(claims),
        }
    }

    /// Whether the connection proves what the token is bound to, as far as a connection can; and whether the token is
    /// bound to what it must be.
    fn check_binding(&self, binding: &Binding, shown: Option<&Certificate>) -> Result<(), TokenError> {
        match (binding.certificate(), shown, self.bound_to) {
            (Some(bound), Some(shown), _) if bound.is_of(shown) => Ok(()),
            (Some(_), Some(_), _) => Err(TokenError::OtherCertificate),
            (Some(_), None, _) => Err(TokenError::CertificateMissing),
            // Nobody can prove it here, and so it is nobody's; a bearer token it is not.
            (None, _, _) if *binding == Binding::NotUnderstood => Err(TokenError::BindingUnsupported),
            (None, _, Some(BoundTo::Certificate)) => Err(TokenError::NotBound),
            (None, _, None) => Ok(()),
        }
    }

    fn remembered(&self, text: &str, host: &dyn Host) -> Option<(&Trusted, Arc<Claims>)> {
        let verified = self.cache.get(text)?;
        let name = verified.claims.identity.issuer.as_str();
        let trusted = self.issuers.values().find(|trusted| *trusted.name == *name)?;
        let keys = host.keys(name)?;
        let still = keys.find(verified.key.kid.as_deref(), verified.key.algorithm) == Some(&verified.key);
        still.then(|| (trusted, Arc::clone(&verified.claims)))
    }

    /// What the issuer says of a token that is no JWT. The host remembers that, so it is not in the cache.
    fn introspect(&self, text: &str, host: &dyn Host) -> Result<(&Trusted, Arc<Claims>), Refusal> {
        let mut asked = self.issuers.values().filter(|trusted| trusted.settings.introspection.is_some());
        let trusted = asked.next().ok_or_else(|| refused(TokenError::Malformed))?;
        match host.introspected(&trusted.name, text) {
            Some(Introspected::Active(payload)) => {
                if !claims::may_be_of(payload.as_bytes(), &trusted.settings.issuer) {
                    return Err(refused(TokenError::Issuer));
                }
                let claims = Claims::introspected(payload.as_bytes(), &trusted.name, &self.asked.names);
                Ok((trusted, Arc::new(claims.map_err(refused)?)))
            }
            Some(Introspected::Inactive) => Err(refused(TokenError::Inactive)),
            None => {
                let detail = "The token's issuer cannot be asked about it at the moment. Try again shortly.";
                let mut refusal =
                    Refusal::new(503, "token_introspection_unavailable", detail).header("retry-after", "1");
                let issuer = Arc::clone(&trusted.name);
                refusal.opaque_token = Some(Box::new(OpaqueToken { issuer, text: text.to_owned() }));
                Err(refusal)
            }
        }
    }

    fn verify_signature(&self, text: &str, host: &dyn Host) -> Result<(&Trusted, Arc<Verified>), Refusal> {
        let token = Token::parse(text, self.max_length).map_err(refused)?;
        let issuer = claims::issuer(token.unverified()).map_err(refused)?;
        let known = self.issuers.get(&issuer).filter(|trusted| trusted.settings.jwks.is_some());
        let trusted = known.ok_or_else(|| refused(TokenError::Issuer))?;
        let algorithm = token
            .algorithm
            .filter(|algorithm| trusted.settings.algorithms.iter().any(|allowed| allowed.canonical() == *algorithm))
            .ok_or_else(|| refused(TokenError::Algorithm))?;
        let rests_on_keys = |mut refusal: Refusal, refuses_anyway| {
            let issuer = Arc::clone(&trusted.name);
            refusal.stale_keys = Some(Box::new(StaleKeys { issuer, refuses_anyway }));
            refusal
        };
        let Some(keys) = host.keys(&trusted.name) else {
            return Err(rests_on_keys(keys_unavailable(1), false));
        };
        let Some(key) = keys.find(token.kid.as_deref(), algorithm) else {
            return Err(rests_on_keys(refused(TokenError::KeyUnknown), false));
        };
        let payload = match token.verify(key, host.verifier()) {
            Ok(payload) => payload,
            // The issuer may have taken the key's id for another key. Most such tokens are forgeries, so the refusal
            // stays when the keys cannot be fetched now.
            Err(why @ TokenError::Signature) => return Err(rests_on_keys(refused(why), true)),
            Err(why) => return Err(refused(why)),
        };
        let claims = Claims::parse(payload, &trusted.name, &self.asked.names).map_err(refused)?;
        Ok((trusted, Arc::new(Verified { key: key.clone(), claims: Arc::new(claims) })))
    }
}

/// The refusal of a token whose issuer's keys are missing, or may lack the token's key, while they cannot be fetched.
/// `retry_after_s`: seconds until the next fetch is allowed.
pub(crate) fn keys_unavailable(retry_after_s: u64) -> Refusal {
    let detail = "The keys of the token's issuer cannot be fetched at the moment. Try again later.";
    Refusal::new(503, "token_keys_unavailable", detail)
        .header("retry-after", retry_after_s.max(1).to_string())
}

/// Whether a token is none that could be read here: a JWS in compact form has two dots. What is no token at all (RFC 6750
/// section 2.1, `b64token`) nobody is asked about.
fn is_opaque(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    !text.is_empty() && text.bytes().all(plain) && text.bytes().filter(|byte| *byte == b'.').count() != 2
}

/// The token of `Authorization: Bearer` (RFC 6750 section 2.1).
fn bearer<'r>(request: &Request<'r>) -> Result<&'r str, Refusal> {
    let field = request.headers.one("authorization").map_err(|_| refused(TokenError::Malformed))?;
    match field.and_then(|field| field.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_start_matches(' ')),
        Some(_) | None => {
            Err(Refusal::new(401, "token_missing", "Send an access token: Authorization: Bearer TOKEN.")
                .header("www-authenticate", "Bearer"))
        }
    }
}

fn refused(error: TokenError) -> Refusal {
    let (code, detail) = match error {
        TokenError::Malformed => {
            ("token_malformed", "The access token is not a signed JWT that is understood here.")
        }
        TokenError::Payload => {
            ("token_malformed", "The access token's payload is not a JSON object, or repeats a claim.")
        }
        TokenError::ClaimMissing(name) => {
            return invalid_token("token_malformed", format!("The access token has no claim `{name}`."));
        }
        TokenError::Claim { name, expected } => {
            let detail = format!("The access token's claim `{name}` is not {expected}.");
            return invalid_token("token_malformed", detail);
        }
        TokenError::SubjectMissing => (
            "token_malformed",
            "The issuer's answer about the access token has neither `sub` nor `client_id`.",
        ),
        TokenError::Algorithm => {
            ("token_algorithm", "The access token's algorithm is not one that its issuer uses.")
        }
        TokenError::KeyUnknown => {
            ("token_key_unknown", "The access token's key is not among its issuer's keys.")
        }
        TokenError::Signature => ("token_signature", "The access token's signature does not hold."),
        TokenError::Issuer => {
            ("token_issuer", "The access token is from an issuer that is not trusted here.")
        }
        TokenError::Audience => ("token_audience", "The access token is for another audience."),
        TokenError::Expired => ("token_expired", "The access token has expired. Get a new one."),
        TokenError::NotYetValid => {
            ("token_not_yet_valid", "The access token is not valid yet. Check your clock.")
        }
        TokenError::Inactive => ("token_inactive", "The access token does not count, says its issuer. Get a new one."),
        TokenError::Revoked => ("token_revoked", "The access token has been revoked. Log in again."),
        TokenError::CertificateMissing => (
            "token_certificate_missing",
            "The access token is bound to a certificate. Connect with that certificate.",
        ),
        TokenError::OtherCertificate => (
            "token_certificate_mismatch",
            "The access token is bound to another certificate than the one that you connect with.",
        ),
        TokenError::NotBound => {
            ("token_not_bound", "Get an access token that is bound to your client certificate (RFC 8705).")
        }
        TokenError::BindingUnsupported => (
            "token_binding_unsupported",
            "The access token is bound by means that are not understood here. Get one that is bound to a key or a \
             certificate.",
        ),
        TokenError::Crypto(_) => {
            return Refusal::new(
                503,
                "token_not_verifiable",
                "The access token cannot be verified here at present.",
            );
        }
    };
    invalid_token(code, detail)
}

fn invalid_token(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Refusal {
    let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{code}\"");
    Refusal::new(401, code, detail).header("www-authenticate", challenge)
}
