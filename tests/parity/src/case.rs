//! What a case says: a filter's settings or a whole policy, requests, and what becomes of each.
//!
//! Requests of one case share one state and one clock, so that replays and limits can be told. Tokens and
//! signatures are made when the case runs: a case says what is in them, or what is wrong with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use filters::FilterSet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::saying::Says;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cases: Vec<Case>,
}

/// One policy and what it decides.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// The settings of the filter that the file belongs to.
    #[serde(default)]
    config: Value,
    /// Settings of other filters that the case needs.
    #[serde(default)]
    with: BTreeMap<String, Value>,
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// The tenant that the client with the key `partner-1` belongs to.
    pub client_tenant: Option<String>,
    /// Whether the listeners ask for client certificates. (None is required in the handshake.)
    #[serde(default)]
    pub client_certificates: bool,
    /// Whether there is an issuer whose tokens only it can read.
    #[serde(default)]
    pub introspection: bool,
    /// The issuer's name; absent: that of the usual tokens.
    pub issuer: Option<String>,
    /// Where the issuer's keys are; absent: in a file.
    pub jwks: Option<Value>,
    /// Algorithms of the issuer's tokens; empty: `ES256`.
    #[serde(default)]
    pub algorithms: Vec<String>,
    /// Clients of the policy besides the usual ones, or in their place. `at(60)` stands for a minute after the case
    /// began, `spki(acme)` for the pin of that certificate's key.
    #[serde(default)]
    pub clients: BTreeMap<String, Value>,
    /// Tenants and plans as a policy has them. A case begins within the first minute of a day, and never lasts from
    /// one into another unless it says so.
    #[serde(default)]
    pub tenants: BTreeMap<String, Value>,
    #[serde(default)]
    pub plans: BTreeMap<String, Value>,
    pub default_plan: Option<String>,
    /// Feature flags, as a file of flagd's has them under `flags`.
    #[serde(default)]
    flags: Map<String, Value>,
    /// Header fields that they may look at.
    #[serde(default)]
    pub flag_fields: BTreeMap<String, String>,
    /// Upstreams besides `u` and `v`. Without `tls` they have that of `u`.
    #[serde(default)]
    pub upstreams: BTreeMap<String, Value>,
    /// Filters of every route.
    #[serde(default)]
    pub everywhere: Value,
    /// Routes as a policy has them; absent: one that takes everything, with the filters above. The upstreams
    /// `u` and `v` are there.
    #[serde(default)]
    pub routes: Vec<Value>,
    /// Its limits are counted where they are: how much the shared state remembers is not compared.
    #[serde(default)]
    pub counted_here: bool,
    /// The state service listens on a socket, and so tells secrets too.
    #[serde(default)]
    pub state_socket: bool,
    /// The file with the address of a Redis that data planes share; absent: each has its own memory.
    pub redis: Option<PathBuf>,
    /// How long the state service, and its Redis, may take; absent: as long as any machine may need.
    pub state_timeout_ms: Option<u64>,
    /// Bounds of the state's memory.
    pub max_entries: Option<usize>,
    pub requests: Vec<Step>,
}

/// A request and what becomes of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Milliseconds after the case began.
    #[serde(default)]
    pub at_ms: u64,
    #[serde(default = "get")]
    pub method: String,
    #[serde(default = "anything")]
    pub target: String,
    /// A list of values sends the field once for each.
    #[serde(default)]
    pub headers: BTreeMap<String, OneOrMany>,
    /// Fields of so many bytes, on top.
    #[serde(default)]
    pub long_headers: BTreeMap<String, usize>,
    /// Fields of bytes that are no text, in hexadecimal, on top.
    #[serde(default)]
    pub byte_headers: BTreeMap<String, String>,
    /// So many fields `x-n: 1` on top.
    #[serde(default)]
    pub more_headers: usize,
    #[serde(default)]
    pub body: String,
    /// A body of so many bytes instead.
    pub long_body: Option<usize>,
    #[serde(default = "loopback")]
    pub peer: IpAddr,
    /// The client certificate that is shown: a name of [`crate::certificates`].
    pub certificate: Option<String>,
    pub token: Option<Token>,
    pub sign: Option<Sign>,
    /// The upstream signs its answer.
    pub answers: Option<Answers>,
    /// How the upstream words its answer.
    pub says: Option<Says>,
    /// What is revoked just before the request is sent, as `POST /revocations` is told it: `{ user: user-1 }`.
    pub revoke: Option<serde_json::Map<String, Value>>,
    /// How often the same bytes are sent; the verdict is the last one's.
    #[serde(default = "once")]
    pub times: u32,
    /// Bytes to send instead of a request; what has no request in it is not decided in process.
    pub raw: Option<String>,
    /// The request is still in flight when the next one comes, so it gives no place back.
    #[serde(default)]
    pub stays: bool,
    /// `pass`, or the refusal's status and code: `400 path_ambiguous`. Where there is no code: `400 -`.
    pub verdict: String,
    /// Fields that the upstream must get from the edge.
    #[serde(default)]
    pub upstream: BTreeMap<String, String>,
    /// Fields that the answer must carry; an empty value: that it must not.
    #[serde(default)]
    pub answer: BTreeMap<String, String>,
    /// A data plane that must differ.
    #[serde(default)]
    pub differs: BTreeMap<String, Difference>,
}

/// What a data plane decides instead, and what forces it to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub verdict: String,
    pub because: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// A token to send as `Authorization: Bearer`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// Claims on top of the usual ones; null removes one, `+60` and `-60` are seconds from now, `@60` seconds
    /// after the case began. The same claims are the same token.
    pub claims: BTreeMap<String, Value>,
    /// Header parameters on top of the usual ones; null removes one.
    pub header: BTreeMap<String, Value>,
    /// `issuer` (the default), `stranger` (a key that nobody published), `none` (no signature at all), or
    /// `public_as_secret` (HMAC with the issuer's public key as the secret).
    pub key: Option<String>,
    /// The certificate that the token is bound to (`cnf.x5t#S256`).
    pub bound_to: Option<String>,
    /// A token that only its issuer can read.
    pub opaque: bool,
}

/// A message signature to send.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sign {
    /// `device` (the key in the token), `partner` (the HMAC key `partner-1`), `stranger`.
    pub key: String,
    #[serde(default)]
    pub keyid: Option<String>,
    pub components: Vec<String>,
    /// Seconds from now; absent: the parameter is left out.
    pub created: Option<i64>,
    pub nonce: Option<String>,
    pub alg: Option<String>,
    /// `true` (the default) adds the Content-Digest of the body.
    #[serde(default = "yes")]
    pub digest: bool,
    /// Fields and body changed after signing.
    #[serde(default)]
    pub then: Then,
}

/// A signature of the upstream on its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answers {
    /// `partner` (the HMAC key `partner-1`) or `stranger`.
    pub key: String,
    pub keyid: String,
    pub components: Vec<String>,
    /// Seconds from now; null: the parameter is left out.
    pub created: Option<i64>,
    /// What it gives out as the request's nonce; absent: that.
    pub request_nonce: Option<String>,
    /// Fields changed after signing; an empty value: left out.
    pub then: BTreeMap<String, String>,
    /// The body is changed after signing.
    pub another_body: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Then {
    pub headers: BTreeMap<String, String>,
    pub target: Option<String>,
    pub method: Option<String>,
    pub body: Option<String>,
}

impl Default for Step {
    /// `GET /anything` from loopback, once.
    fn default() -> Self {
        Self {
            at_ms: 0,
            method: get(),
            target: anything(),
            headers: BTreeMap::new(),
            long_headers: BTreeMap::new(),
            byte_headers: BTreeMap::new(),
            more_headers: 0,
            body: String::new(),
            long_body: None,
            peer: loopback(),
            certificate: None,
            token: None,
            sign: None,
            answers: None,
            says: None,
            revoke: None,
            times: once(),
            raw: None,
            stays: false,
            verdict: String::new(),
            upstream: BTreeMap::new(),
            answer: BTreeMap::new(),
            differs: BTreeMap::new(),
        }
    }
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

/// A case and where it comes from.
#[derive(Debug)]
pub struct Named {
    /// The filter's name, or `policy/FILE`.
    pub family: String,
    pub case: Case,
}

impl Case {
    /// The file of its feature flags, if it has any, with one that says that they were read.
    pub fn flags_text(&self) -> Option<String> {
        let mut flags = self.flags.clone();
        if flags.is_empty() {
            return None;
        }
        let on = json!({ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" });
        flags.insert("parity-ready".to_owned(), on);
        Some(json!({ "flags": flags }).to_string())
    }

    /// Where that file is, among those that [`crate::document`] names.
    pub fn flags_file(&self, folder: &Path) -> Option<PathBuf> {
        Some(folder.join(format!("flags-{:x}.json", digest(&self.flags_text()?))))
    }
}

/// What tells one text from another.
pub(crate) fn digest(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Named {
    /// A case of a whole policy, written in a test.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(yaml: &str) -> anyhow::Result<Self> {
        Ok(Self { family: "policy/test".to_owned(), case: serde_saphyr::from_str(yaml)? })
    }

    /// The filters of the case's one route, when it has no routes of its own.
    pub fn filters(&self) -> Value {
        let Case { with, config, .. } = &self.case;
        let mut filters = json!(with);
        if FilterSet::NAMES.contains(&self.family.as_str()) {
            filters[&self.family] = if config.is_null() { json!({}) } else { config.clone() };
        }
        filters
    }
}

/// Every case of every filter, and every case of a whole policy.
///
/// # Errors
/// When a file is missing, cannot be read, or holds no case.
pub fn all() -> anyhow::Result<Vec<Named>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for filter in FilterSet::NAMES {
        files.push(((*filter).to_owned(), here.join(format!("../../filters/src/{filter}/cases.yaml"))));
    }
    let mut policies: Vec<PathBuf> = std::fs::read_dir(here.join("cases"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    policies.sort();
    for path in policies {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        files.push((format!("policy/{stem}"), path));
    }
    let mut named = Vec::new();
    for (family, path) in files {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let file: File = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        anyhow::ensure!(!file.cases.is_empty(), "{} has no case", path.display());
        named.extend(file.cases.into_iter().map(|case| Named { family: family.clone(), case }));
    }
    Ok(named)
}
