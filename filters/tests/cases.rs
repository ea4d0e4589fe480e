//! Runs every filter's `cases.yaml` through the whole chain, in process. The same files are what the other
//! data planes must agree on.
//!
//! A case states the filter's configuration and one or more requests with their verdicts. Requests of one case
//! share one state and one clock, so that replays and limits can be told. Tokens and signatures are made when
//! the case runs: a case says what is in them, or what is wrong with them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests read files, and fail by panicking"
)]

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::FilterSet;
use filters::chain::Refused;
use filters::crypto::{CryptoError, Local, SigningKey, Verify, VerifyingKey};
use filters::filter::{Context, Headers, Host, Request};
use filters::jwt::KeySet;
use filters::policy::{Match, Policy};
use filters::signature::{digest, message};
use filters::state::{self, Cells};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// The settings of the filter that the file belongs to.
    #[serde(default)]
    config: Value,
    /// Settings of other filters that the case needs.
    #[serde(default)]
    with: BTreeMap<String, Value>,
    #[serde(default)]
    trusted_proxies: Vec<String>,
    /// The tenant that the client with the key `partner-1` belongs to.
    client_tenant: Option<String>,
    requests: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Milliseconds after the case began.
    #[serde(default)]
    at_ms: u64,
    #[serde(default = "get")]
    method: String,
    #[serde(default = "anything")]
    target: String,
    /// A list of values sends the field once for each.
    #[serde(default)]
    headers: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    body: String,
    #[serde(default = "loopback")]
    peer: IpAddr,
    token: Option<Token>,
    sign: Option<Sign>,
    /// How often the same bytes are sent; the verdict is the last one's.
    #[serde(default = "once")]
    times: u32,
    /// `pass`, or the refusal's status and code: `400 path_ambiguous`.
    verdict: String,
    /// Fields that the upstream must get from the edge.
    #[serde(default)]
    upstream: BTreeMap<String, String>,
    /// Fields that the answer must carry; an empty value: that it must not.
    #[serde(default)]
    answer: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A token to send as `Authorization: Bearer`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Token {
    /// Claims on top of the usual ones; null removes one, `+60` and `-60` are seconds from now.
    claims: BTreeMap<String, Value>,
    /// Header parameters on top of the usual ones; null removes one.
    header: BTreeMap<String, Value>,
    /// `issuer` (the default), `stranger` (a key that nobody published), `none` (no signature at all), or
    /// `public_as_secret` (HMAC with the issuer's public key as the secret).
    key: Option<String>,
}

/// A message signature to send.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sign {
    /// `device` (the key in the token), `partner` (the HMAC key `partner-1`), `stranger`.
    key: String,
    #[serde(default)]
    keyid: Option<String>,
    components: Vec<String>,
    /// Seconds from now; absent: the parameter is left out.
    created: Option<i64>,
    nonce: Option<String>,
    alg: Option<String>,
    /// `true` (the default) adds the Content-Digest of the body.
    #[serde(default = "yes")]
    digest: bool,
    /// Fields and body changed after signing.
    #[serde(default)]
    then: Then,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Then {
    headers: BTreeMap<String, String>,
    target: Option<String>,
    method: Option<String>,
    body: Option<String>,
}

fn get() -> String {
    "GET".into()
}
fn anything() -> String {
    "/anything".into()
}
fn loopback() -> IpAddr {
    [127, 0, 0, 1].into()
}
fn once() -> u32 {
    1
}
fn yes() -> bool {
    true
}

/// The moment at which cases begin.
const EPOCH_S: u64 = 1_767_225_600;
const PARTNER_SECRET: &[u8] = b"a partner's secret of 32 bytes!!";

struct Keys {
    issuer: SigningKey,
    stranger: SigningKey,
    device: SigningKey,
    jwks: Arc<KeySet>,
}

fn p256() -> SigningKey {
    let random = ring::rand::SystemRandom::new();
    let curve = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
    SigningKey::ecdsa_p256_pkcs8(pkcs8.as_ref()).unwrap()
}

fn jwk(key: &SigningKey) -> Value {
    let VerifyingKey::EcdsaP256(public) = key.verifying_key().unwrap() else { panic!() };
    let point = public.uncompressed();
    let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })
}

impl Keys {
    fn new() -> Self {
        let [issuer, stranger, device] = [p256(), p256(), p256()];
        let mut published = jwk(&issuer);
        published["kid"] = json!("k1");
        published["alg"] = json!("ES256");
        let jwks = KeySet::parse(json!({ "keys": [published] }).to_string().as_bytes()).unwrap();
        Self { issuer, stranger, device, jwks: Arc::new(jwks) }
    }

    fn token(&self, token: &Token, now_s: i64) -> String {
        let mut header = json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" });
        let mut claims = json!({
            "iss": "https://issuer.test", "aud": "torana", "sub": "user-1", "tenant": "acme",
            "device": "device-1", "iat": now_s, "exp": now_s + 300, "jti": "t-1",
            "scope": "payments:read payments:write", "cnf": { "jwk": jwk(&self.device) },
        });
        merge(&mut header, &token.header, now_s);
        merge(&mut claims, &token.claims, now_s);
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(&claims));
        let public = jwk(&self.issuer);
        let signature = match token.key.as_deref().unwrap_or("issuer") {
            "issuer" => self.issuer.sign(input.as_bytes()).unwrap(),
            "stranger" => self.stranger.sign(input.as_bytes()).unwrap(),
            "public_as_secret" => {
                SigningKey::hmac(public.to_string().as_bytes()).unwrap().sign(input.as_bytes()).unwrap()
            }
            "none" => Vec::new(),
            other => panic!("no key {other}"),
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn merge(base: &mut Value, on_top: &BTreeMap<String, Value>, now_s: i64) {
    for (name, value) in on_top {
        let relative =
            value.as_str().filter(|text| text.starts_with(['+', '-'])).and_then(|text| text.parse().ok());
        match (value, relative) {
            (Value::Null, _) => {
                base.as_object_mut().unwrap().remove(name);
            }
            (_, Some::<i64>(seconds)) => base[name] = json!(now_s + seconds),
            _ => base[name] = value.clone(),
        }
    }
}

/// What is sent.
struct Sent {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: String,
    peer: IpAddr,
}

impl Sent {
    fn new(step: &Step, keys: &Keys, now_s: i64) -> Self {
        let mut headers = Vec::new();
        for (name, values) in &step.headers {
            match values {
                OneOrMany::One(value) => headers.push((name.clone(), value.clone().into_bytes())),
                OneOrMany::Many(values) => {
                    headers.extend(values.iter().map(|value| (name.clone(), value.clone().into_bytes())));
                }
            }
        }
        if let Some(token) = &step.token {
            headers
                .push(("authorization".into(), format!("Bearer {}", keys.token(token, now_s)).into_bytes()));
        }
        let mut sent = Self {
            method: step.method.clone(),
            target: step.target.clone(),
            headers,
            body: step.body.clone(),
            peer: step.peer,
        };
        if let Some(sign) = &step.sign {
            sent.sign(sign, keys, now_s);
        }
        sent
    }

    fn sign(&mut self, sign: &Sign, keys: &Keys, now_s: i64) {
        if sign.digest {
            self.headers
                .push(("content-digest".into(), digest::content_digest(self.body.as_bytes()).into_bytes()));
        }
        let partner = SigningKey::hmac(PARTNER_SECRET).unwrap();
        let (key, keyid) = match sign.key.as_str() {
            "device" => (&keys.device, "device-1"),
            "partner" => (&partner, "partner-1"),
            "stranger" => (&keys.stranger, "device-1"),
            other => panic!("no key {other}"),
        };
        let components: Vec<&str> = sign.components.iter().map(String::as_str).collect();
        let mut params = message::Params::covering(&components).unwrap();
        params.created = sign.created.map(|offset| now_s + offset);
        params.nonce = sign.nonce.clone();
        params.keyid = Some(sign.keyid.clone().unwrap_or_else(|| keyid.to_owned()));
        params.alg = sign.alg.as_deref().map(|name| message::Algorithm::named(name).unwrap());
        let (path, query) = split(&self.target);
        let signed =
            message::Message::request(&self.method, "https", "edge.test", path, query, &self.headers);
        let fields = message::sign(&signed, "sig1", &params, key).unwrap();
        self.headers.push(("signature-input".into(), fields.signature_input.into_bytes()));
        self.headers.push(("signature".into(), fields.signature.into_bytes()));
        for (name, value) in &sign.then.headers {
            self.headers.retain(|(sent, _)| sent != name);
            if !value.is_empty() {
                self.headers.push((name.clone(), value.clone().into_bytes()));
            }
        }
        self.target = sign.then.target.clone().unwrap_or_else(|| self.target.clone());
        self.method = sign.then.method.clone().unwrap_or_else(|| self.method.clone());
        self.body = sign.then.body.clone().unwrap_or_else(|| self.body.clone());
    }

    fn request(&self) -> Request<'_> {
        let (path, query) = split(&self.target);
        let headers: Headers<'_> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        Request {
            method: &self.method,
            scheme: "https",
            authority: "edge.test",
            path,
            query,
            headers,
            peer: self.peer,
        }
    }
}

fn split(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

struct World<'k> {
    keys: &'k Keys,
    now_ms: Cell<u64>,
    state: Map,
    verifier: &'k dyn Verify,
}

impl<'k> World<'k> {
    fn new(keys: &'k Keys) -> Self {
        Self { keys, now_ms: Cell::new(EPOCH_S * 1_000), state: Map::default(), verifier: &Local }
    }
}

#[derive(Default)]
struct Map(HashMap<String, (u64, u64)>);

impl Cells for Map {
    fn get(&self, key: &str, now_us: u64) -> Option<u64> {
        self.0.get(key).filter(|(_, expires)| *expires > now_us).map(|(value, _)| *value)
    }
    fn put(&mut self, key: &str, value: u64, expires_us: u64) {
        self.0.insert(key.to_owned(), (value, expires_us));
    }
}

impl Host for World<'_> {
    fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }
    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        (issuer == "main").then(|| Arc::clone(&self.keys.jwks))
    }
    fn verifier(&self) -> &dyn Verify {
        self.verifier
    }
}

/// A policy of one route that accepts anything, with the case's filters on it.
fn policy(filter: &str, case: &Case) -> Result<Policy, String> {
    let mut filters = serde_json::to_value(&case.with).unwrap();
    filters[filter] = if case.config.is_null() { json!({}) } else { case.config.clone() };
    let tls = json!({ "certificate": "file:c", "key": "file:k" });
    let document = json!({
        "listeners": [{ "name": "l", "address": "127.0.0.1:1", "tls": tls }],
        "admin": { "address": "127.0.0.1:2" },
        "trusted_proxies": case.trusted_proxies,
        "upstreams": { "u": {
            "addresses": ["127.0.0.1:3"],
            "tls": { "server_name": "u", "ca": "file:a", "certificate": "file:c", "key": "file:k" },
        } },
        "issuers": { "main": {
            "issuer": "https://issuer.test", "audiences": ["torana"], "algorithms": ["ES256"],
            "jwks": { "file": "file:jwks.json" },
        } },
        "clients": { "acme-bank": { "tenant": case.client_tenant, "hmac_keys": [{ "id": "partner-1", "secret": "file:s" }] } },
        "routes": [{
            "name": "r", "methods": ["GET", "POST", "PUT", "DELETE"], "path": "/{*rest}", "upstream": "u",
            "filters": filters,
        }],
    });
    Policy::read(&document.to_string(), &|_| Ok(PARTNER_SECRET.to_vec()))
        .map_err(|mistakes| mistakes.iter().map(|m| m.in_file("case")).collect::<Vec<_>>().join("; "))
}

/// Runs one request as a data plane does, and tells its verdict as a case writes it.
fn decide(policy: &Policy, sent: &Sent, world: &mut World<'_>) -> (String, Context, Vec<(String, String)>) {
    let request = sent.request();
    let mut context = Context::new(sent.peer);
    let Match::Route(rule) = policy.route("GET", "/anything", None) else {
        panic!("the stock route is gone")
    };
    let chain = &policy.rules()[rule].chain;
    let decided = chain
        .head(&request, world, &mut context)
        .and_then(|()| chain.body(&request, sent.body.as_bytes(), world, &mut context))
        .and_then(|()| {
            let batch = chain.batch(&context).all();
            let answers = state::run(&batch, world.now_ms.get(), &mut world.state);
            chain.answered(&answers, &mut context)
        });
    let mut answer: Vec<(String, String)> =
        chain.response(&context).into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
    let verdict = match decided {
        Ok(()) => "pass".to_owned(),
        Err(Refused { refusal, .. }) => {
            answer.extend(refusal.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            format!("{} {}", refusal.status, refusal.code)
        }
    };
    (verdict, context, answer)
}

fn run(filter: &str, case: &Case, keys: &Keys) -> Result<(), String> {
    let policy = policy(filter, case)?;
    let mut world = World::new(keys);
    for (number, step) in case.requests.iter().enumerate() {
        world.now_ms.set(EPOCH_S * 1_000 + step.at_ms);
        let sent = Sent::new(step, keys, i64::try_from(world.now_ms.get() / 1_000).unwrap());
        let mut last = None;
        for _ in 0..step.times {
            last = Some(decide(&policy, &sent, &mut world));
        }
        let (verdict, context, answer) = last.ok_or("`times` is 0")?;
        let wrong = |what: String| Err(format!("request {}: {what}", number + 1));
        if verdict != step.verdict {
            return wrong(format!("expected `{}`, got `{verdict}`", step.verdict));
        }
        for (name, value) in &step.upstream {
            if !context.upstream.iter().any(|(n, v)| n == name && v == value) {
                return wrong(format!(
                    "the upstream should get `{name}: {value}`, got {:?}",
                    context.upstream
                ));
            }
        }
        for (name, value) in &step.answer {
            let found: Vec<_> = answer.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
            let expected: &[&str] = if value.is_empty() { &[] } else { &[value] };
            if found != expected {
                return wrong(format!("the answer's `{name}` should be {expected:?}, is {found:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn every_case_of_every_filter() {
    let keys = Keys::new();
    let mut failures = Vec::new();
    let mut count = 0;
    for filter in FilterSet::NAMES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/{filter}/cases.yaml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let file: File =
            serde_saphyr::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        assert!(!file.cases.is_empty(), "{filter} has no case");
        for case in &file.cases {
            count += 1;
            if let Err(why) = run(filter, case, &keys) {
                failures.push(format!("{filter}: {}: {why}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// A data plane that can verify nothing.
struct Unable;

impl Verify for Unable {
    fn verify(&self, key: &VerifyingKey, _message: &[u8], _signature: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError::Unsupported(key.algorithm()))
    }
}

/// Tokens and signatures are verified by the data plane's cryptography, not past it.
#[test]
fn the_data_plane_verifies() {
    let keys = Keys::new();
    for (filter, step, expected) in [
        ("jwt", "{ token: {}, verdict: '' }", "503 token_not_verifiable"),
        (
            "signature",
            "{ sign: { key: partner, created: 0, digest: false, components: ['@method', '@path', '@query'] }, verdict: '' }",
            "503 signature_not_verifiable",
        ),
    ] {
        let case: Case = serde_saphyr::from_str(&format!("name: {filter}\nrequests: [{step}]")).unwrap();
        let policy = policy(filter, &case).unwrap();
        let mut world = World { verifier: &Unable, ..World::new(&keys) };
        let sent = Sent::new(&case.requests[0], &keys, EPOCH_S as i64);
        assert_eq!(decide(&policy, &sent, &mut world).0, expected, "{filter}");
    }
}
