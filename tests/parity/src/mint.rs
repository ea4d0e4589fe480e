//! Keys, tokens and signatures of the cases, and the bytes that are sent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::crypto::{SigningKey, VerifyingKey};
use filters::filter::{Headers, Request};
use filters::jwt::KeySet;
use filters::signature::{digest, message};
use serde_json::{Value, json};

use crate::answering::{TELLS, tell};
use crate::case::{Sign, Step, Token};
use crate::certificates::Certificates;
use crate::introspection;
use crate::saying::SAYS;

/// The authority that requests are sent to.
pub const AUTHORITY: &str = "edge.test";
/// The secret of the client key `partner-1`.
pub const PARTNER_SECRET: &[u8] = b"a partner's secret of 32 bytes!!";

/// Everybody's keys.
#[derive(Debug)]
pub struct Keys {
    issuer: SigningKey,
    stranger: SigningKey,
    device: SigningKey,
    partner: SigningKey,
    /// By what is signed: a signature of ECDSA is another one each time.
    tokens: Mutex<HashMap<String, String>>,
    /// What the issuer publishes.
    pub jwks: Value,
    pub key_set: Arc<KeySet>,
    pub certificates: Certificates,
}

impl Keys {
    /// New keys.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let (issuer, stranger, device) = (p256()?, p256()?, p256()?);
        let jwks = published(&issuer, "k1")?;
        let key_set = KeySet::parse(jwks.to_string().as_bytes())?;
        let partner = SigningKey::hmac(PARTNER_SECRET)?;
        Ok(Self {
            issuer,
            stranger,
            device,
            partner,
            tokens: Mutex::default(),
            jwks,
            key_set: Arc::new(key_set),
            certificates: Certificates::new()?,
        })
    }

    /// What the issuer would publish had it taken the key `stranger` for its own, as `k2`.
    ///
    /// # Errors
    /// Never: it is a key.
    pub fn rotated(&self) -> anyhow::Result<Value> {
        published(&self.stranger, "k2")
    }

    /// A token with these claims on top of the usual ones.
    ///
    /// # Errors
    /// When it asks for a key that there is not.
    pub fn token(&self, token: &Token, times: Times) -> anyhow::Result<String> {
        let mut header = json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" });
        let mut claims = json!({
            "iss": "https://issuer.test", "aud": "torana", "sub": "user-1", "tenant": "acme",
            "device": "device-1", "iat": times.now_s, "exp": times.now_s + 300, "jti": "t-1",
            "scope": "payments:read payments:write", "cnf": { "jwk": jwk(&self.device)? },
        });
        if let Some(name) = &token.bound_to {
            let thumbprint = URL_SAFE_NO_PAD.encode(self.certificates.get(name)?.sha256());
            claims["cnf"] = json!({ "x5t#S256": thumbprint });
        }
        if token.opaque {
            claims["iss"] = json!("https://asked.test");
            claims["active"] = json!(true);
        }
        merge(&mut header, &token.header, times);
        merge(&mut claims, &token.claims, times);
        if token.opaque {
            return Ok(introspection::token(&claims));
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(&claims));
        let key = token.key.as_deref().unwrap_or("issuer");
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tokens.get(&format!("{key} {input}")) {
            return Ok(known.clone());
        }
        let signature = match key {
            "issuer" => self.issuer.sign(input.as_bytes())?,
            "stranger" => self.stranger.sign(input.as_bytes())?,
            "public_as_secret" => {
                SigningKey::hmac(jwk(&self.issuer)?.to_string().as_bytes())?.sign(input.as_bytes())?
            }
            "none" => Vec::new(),
            other => bail!("there is no key {other}"),
        };
        let text = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
        tokens.insert(format!("{key} {input}"), text.clone());
        Ok(text)
    }
}

fn p256() -> anyhow::Result<SigningKey> {
    let random = ring::rand::SystemRandom::new();
    let curve = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(curve, &random);
    Ok(SigningKey::ecdsa_p256_pkcs8(pkcs8.map_err(|_| anyhow::anyhow!("no randomness"))?.as_ref())?)
}

/// A set of one key.
fn published(key: &SigningKey, kid: &str) -> anyhow::Result<Value> {
    let mut key = jwk(key)?;
    key["kid"] = json!(kid);
    key["alg"] = json!("ES256");
    Ok(json!({ "keys": [key] }))
}

fn jwk(key: &SigningKey) -> anyhow::Result<Value> {
    let VerifyingKey::EcdsaP256(public) = key.verifying_key()? else { bail!("not a P-256 key") };
    let (x, y) = public.uncompressed()[1..].split_at(32);
    Ok(json!({
        "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    }))
}

/// When a request is made, Unix seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub now_s: i64,
    /// The case's first request.
    pub began_s: i64,
}

impl Times {
    /// `at_ms` after `began_ms`.
    ///
    /// # Errors
    /// When that is beyond all time.
    pub fn new(began_ms: u64, at_ms: u64) -> anyhow::Result<Self> {
        Ok(Self {
            now_s: i64::try_from((began_ms + at_ms) / 1_000)?,
            began_s: i64::try_from(began_ms / 1_000)?,
        })
    }

    fn of(self, text: &str) -> Option<i64> {
        match text.split_at_checked(1)? {
            ("+" | "-", _) => Some(self.now_s + text.parse::<i64>().ok()?),
            ("@", seconds) => Some(self.began_s + seconds.parse::<i64>().ok()?),
            _ => None,
        }
    }
}

fn merge(base: &mut Value, on_top: &std::collections::BTreeMap<String, Value>, times: Times) {
    for (name, value) in on_top {
        match (value, value.as_str().and_then(|text| times.of(text))) {
            (Value::Null, _) => {
                if let Some(base) = base.as_object_mut() {
                    base.remove(name);
                }
            }
            (_, Some(seconds)) => base[name] = json!(seconds),
            _ => base[name] = value.clone(),
        }
    }
}

/// What is sent.
#[derive(Debug)]
pub struct Sent {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub peer: IpAddr,
    /// The name of the certificate that is shown.
    pub certificate: Option<String>,
}

impl Sent {
    /// The request of a step, made at one time.
    ///
    /// # Errors
    /// When the step names a key or a component that there is not.
    pub fn new(step: &Step, keys: &Keys, times: Times) -> anyhow::Result<Self> {
        let mut headers = Vec::new();
        for (name, values) in &step.headers {
            let field = |value: &String| (name.to_ascii_lowercase(), value.clone().into_bytes());
            headers.extend(values.values().iter().map(field));
        }
        headers.extend(step.long_headers.iter().map(|(name, length)| (name.clone(), vec![b'x'; *length])));
        for (name, digits) in &step.byte_headers {
            headers.push((name.clone(), unhex(digits).with_context(|| format!("{name}: {digits}"))?));
        }
        headers.extend((0..step.more_headers).map(|number| (format!("x-{number}"), b"1".to_vec())));
        if let Some(token) = &step.token {
            headers
                .push(("authorization".into(), format!("Bearer {}", keys.token(token, times)?).into_bytes()));
        }
        let body = match step.long_body {
            Some(length) => vec![b'x'; length],
            None => step.body.clone().into_bytes(),
        };
        let (method, target) = (step.method.clone(), step.target.clone());
        if let Some(answers) = &step.answers {
            headers.push((TELLS.to_owned(), tell(answers, times.now_s)?.into_bytes()));
        }
        if let Some(says) = &step.says {
            headers.push((SAYS.to_owned(), serde_json::to_vec(says)?));
        }
        let mut sent =
            Self { method, target, headers, body, peer: step.peer, certificate: step.certificate.clone() };
        if let Some(sign) = &step.sign {
            sent.sign(sign, keys, times.now_s)?;
        }
        Ok(sent)
    }

    fn sign(&mut self, sign: &Sign, keys: &Keys, now_s: i64) -> anyhow::Result<()> {
        if sign.digest {
            self.headers.push(("content-digest".into(), digest::content_digest(&self.body).into_bytes()));
        }
        let (key, keyid) = match sign.key.as_str() {
            "device" => (&keys.device, "device-1"),
            "partner" => (&keys.partner, "partner-1"),
            "stranger" => (&keys.stranger, "device-1"),
            other => bail!("there is no key {other}"),
        };
        let components: Vec<&str> = sign.components.iter().map(String::as_str).collect();
        let mut params = message::Params::covering(&components)?;
        params.created = sign.created.map(|offset| now_s + offset);
        params.nonce = sign.nonce.clone();
        params.keyid = Some(sign.keyid.clone().unwrap_or_else(|| keyid.to_owned()));
        params.alg = match &sign.alg {
            None => None,
            Some(name) => Some(message::Algorithm::named(name).context("no such algorithm")?),
        };
        let (path, query) = split(&self.target);
        let signed = message::Message::request(&self.method, "https", AUTHORITY, path, query, &self.headers);
        let fields = message::sign(&signed, "sig1", &params, key)?;
        self.headers.push(("signature-input".into(), fields.signature_input.into_bytes()));
        self.headers.push(("signature".into(), fields.signature.into_bytes()));
        let then = &sign.then;
        for (name, value) in &then.headers {
            self.headers.retain(|(sent, _)| sent != name);
            if !value.is_empty() {
                self.headers.push((name.clone(), value.clone().into_bytes()));
            }
        }
        self.target = then.target.clone().unwrap_or_else(|| self.target.clone());
        self.method = then.method.clone().unwrap_or_else(|| self.method.clone());
        self.body = then.body.clone().map_or_else(|| self.body.clone(), String::into_bytes);
        Ok(())
    }

    /// The request as a filter sees it. As on the wire, the authority is a field, and a body has a length.
    pub fn request<'s>(&'s self, framing: &'s [(String, Vec<u8>)], keys: &'s Keys) -> Request<'s> {
        let (path, query) = split(&self.target);
        let fields = framing.iter().chain(&self.headers);
        let headers: Headers<'_> = fields.map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let headers = headers.beyond_connection();
        Request {
            method: &self.method,
            scheme: "https",
            authority: AUTHORITY,
            path,
            query,
            headers,
            peer: self.peer,
            certificate: self.certificate.as_deref().and_then(|name| keys.certificates.get(name).ok()),
        }
    }

    /// The fields that every client adds: the host, and the length of a body unless the case frames it.
    pub fn framing(&self) -> Vec<(String, Vec<u8>)> {
        let mut fields = vec![("host".to_owned(), AUTHORITY.as_bytes().to_vec())];
        let framed = |(name, _): &(String, Vec<u8>)| name == "content-length" || name == "transfer-encoding";
        if !self.body.is_empty() && !self.headers.iter().any(framed) {
            fields.push(("content-length".to_owned(), self.body.len().to_string().into_bytes()));
        }
        fields
    }
}

/// The path and the query.
pub(crate) fn split(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

fn unhex(digits: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(digits.len().is_multiple_of(2) && digits.is_ascii(), "not pairs of digits");
    let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    Ok(pairs.collect::<Result<_, _>>()?)
}
