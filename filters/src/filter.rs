//! What a filter is: a function from a request and its configuration to a verdict.
//!
//! Nothing here performs IO, reads a clock or draws randomness. Whatever a filter needs from the world it
//! asks of [`Host`]; whatever it must remember between requests it asks of the shared state, as
//! [`Op`](crate::state::Op)s that the chain collects into one batch.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::certificate::Certificate;
use crate::compression::Coding;
use crate::crypto::{Local, Verify, VerifyingKey, equal};
use crate::failure::Failure;
use crate::flags::{Flags, Seen};
use crate::jwt::{Claims, KeySet, Revocations};
use crate::policy::Keyring;
use crate::state::{Answer, Counted, Op};
use crate::upstream::{Outgoing, UpstreamAnswer};

/// One edge decision. Hooks run in this order; each defaults to letting the request pass.
///
/// 1. [`head`](Filter::head) before the body is read, so that a refusal costs no more than a header;
/// 2. [`body`](Filter::body) with the whole, capped body, before the upstream sees a byte of it;
/// 3. [`answered`](Filter::answered) once for each [`Op`] this filter asked for, after the one trip to
///    shared state;
/// 4. [`forward`](Filter::forward) when nothing refuses, with the request as the upstream will get it;
/// 5. [`answer`](Filter::answer) with the upstream's answer, whole, if [`reads_answer`](Filter::reads_answer);
/// 6. [`coding`](Filter::coding) with the header of the upstream's answer;
/// 7. [`response`](Filter::response) on every answer that leaves the edge, refusals included.
pub trait Filter: Send + Sync + std::fmt::Debug {
    /// The filter's name in the policy file, in metrics and in logs.
    fn name(&self) -> &'static str;

    /// Decides on the request line and headers.
    fn head(&self, _request: &Request<'_>, _host: &dyn Host, _context: &mut Context) -> Verdict {
        Verdict::Pass
    }

    /// Decides on the whole body. Only called when `head` passed.
    fn body(
        &self,
        _request: &Request<'_>,
        _body: &[u8],
        _host: &dyn Host,
        _context: &mut Context,
    ) -> Verdict {
        Verdict::Pass
    }

    /// Decides on a body that is forwarded as it arrives, before any of it. Called in place of [`body`](Filter::body),
    /// and only when the request has a body.
    fn body_begins(&self, _request: &Request<'_>) -> Verdict {
        Verdict::Pass
    }

    /// Decides on the answer of the shared state to one of this filter's operations.
    fn answered(&self, _op: &Op, _answer: &Answer, _context: &mut Context) -> Verdict {
        Verdict::Pass
    }

    /// Whether this filter has anything to add to requests that go to the upstream.
    fn forwards(&self) -> bool {
        false
    }

    /// Adds fields to the request that goes to the upstream.
    fn forward(&self, _outgoing: &Outgoing<'_>, _host: &dyn Host, _context: &mut Context) -> Verdict {
        Verdict::Pass
    }

    /// Whether this filter must see the upstream's answer whole before any of it leaves the edge.
    fn reads_answer(&self) -> bool {
        false
    }

    /// Decides on the upstream's answer, and may add fields to it.
    fn answer(
        &self,
        _request: &Request<'_>,
        _answer: &UpstreamAnswer<'_>,
        _host: &dyn Host,
        _context: &mut Context,
    ) -> Verdict {
        Verdict::Pass
    }

    /// Whether the upstream's answer is compressed on its way to the client.
    fn coding(&self, _request: &Request<'_>, _status: u16, _fields: &Headers<'_>) -> Coding {
        Coding::AsItComes
    }

    /// Adds header fields to the answer.
    fn response(&self, _context: &Context, _fields: &mut Vec<(Cow<'static, str>, String)>) {}
}

/// What a filter may ask of the data plane that runs it.
pub trait Host {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;

    /// The current keys of an issuer named in the policy; `None` while none were ever loaded.
    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>>;

    /// The clients' keys as they are now; `None`: they are those that the policy was read with.
    fn keyring(&self) -> Option<Arc<Keyring>> {
        None
    }

    /// The tokens that are no longer believed; `None`: nobody can revoke any here.
    fn revocations(&self) -> Option<&Revocations> {
        None
    }

    /// What the issuer says of a token that is no JWT; `None`: it was not asked, or has not answered.
    fn introspected(&self, _issuer: &str, _token: &str) -> Option<Introspected> {
        None
    }

    /// The feature flags as they are now; `None`: none were ever read.
    fn flags(&self) -> Option<Arc<Flags>> {
        None
    }

    /// Who verifies signatures: the crate's own code, unless the data plane has something faster.
    fn verifier(&self) -> &dyn Verify {
        &Local
    }
}

/// What a filter decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    Pass,
    Refuse(Box<Refusal>),
}

impl Verdict {
    pub fn refuse(status: u16, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Refusal::new(status, code, detail).into()
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

/// A refusal as the client sees it: an RFC 9457 problem with a stable code and no internal detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Stable, machine-readable, `snake_case`.
    pub code: &'static str,
    /// One sentence for the person who debugs the client: what was wrong and what to send instead.
    pub detail: Cow<'static, str>,
    /// Fields that belong to the refusal, `WWW-Authenticate` or `Retry-After` say.
    pub headers: Vec<(&'static str, String)>,
    /// Set when the refusal rests on keys that may be out of date: the host fetches that issuer's keys, at a bounded
    /// rate, and decides once more. When it cannot fetch them now, it calls [`Refused::without_new_keys`].
    ///
    /// [`Refused::without_new_keys`]: crate::chain::Refused::without_new_keys
    pub stale_keys: Option<Box<StaleKeys>>,
    /// Set when the refusal rests on a token of which nothing is known: the host may ask that issuer, and decide once
    /// more.
    pub opaque_token: Option<Box<OpaqueToken>>,
    /// Which limit refuses, for operators alone.
    pub limit: Option<Box<LimitName>>,
}

/// Keys of an issuer that may be out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleKeys {
    /// The policy's name of the issuer.
    pub issuer: Arc<str>,
    /// Whether the refusal stays as it is when the keys cannot be fetched now. Otherwise it becomes 503.
    pub refuses_anyway: bool,
}

/// A token that only its issuer can read.
#[derive(Clone, PartialEq, Eq)]
pub struct OpaqueToken {
    /// The policy's name of the issuer.
    pub issuer: Arc<str>,
    pub text: String,
}

impl std::fmt::Debug for OpaqueToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpaqueToken").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What an issuer says of a token (RFC 7662 section 2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Introspected {
    /// It counts; its claims, as JSON.
    Active(Arc<str>),
    /// It does not, for whatever reason.
    Inactive,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            headers: Vec::new(),
            stale_keys: None,
            opaque_token: None,
            limit: None,
        }
    }

    /// Not a refusal but the whole answer, which the edge gives itself: 204, and nothing in it.
    pub(crate) fn no_content(code: &'static str) -> Self {
        Self::new(204, code, "")
    }

    /// Whether something is wrong with the request.
    pub fn refuses(&self) -> bool {
        self.status >= 400
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// By this limit.
    #[must_use]
    pub(crate) fn of_limit(self, limit: LimitName) -> Self {
        Self { limit: Some(Box::new(limit)), ..self }
    }

    /// The `application/problem+json` body.
    pub fn problem(&self, request_id: &str) -> String {
        serde_json::json!({
            "type": "about:blank",
            "title": reason(self.status),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "instance": format!("urn:uuid:{request_id}"),
        })
        .to_string()
    }
}

/// The refusal of a request whose verdict needs shared state that could not be asked.
pub(crate) fn state_unavailable() -> Verdict {
    Failure::StateUnavailable.refusal().into()
}

/// The standard reason phrase (RFC 9110 section 15), which RFC 9457 asks for as the title of `about:blank`.
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

/// A request as the edge received it, before its body.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// `https` on every TLS listener.
    pub scheme: &'a str,
    /// The `Host` field or `:authority`.
    pub authority: &'a str,
    /// The path exactly as it was sent, without the query. Signatures cover this form (RFC 9421 section 2.2.6), and the
    /// upstream receives it. Routes and filters decide on what [`decode`](crate::shape::decode) makes of it.
    pub path: &'a str,
    /// What follows the first `?`, without it.
    pub query: Option<&'a str>,
    pub headers: Headers<'a>,
    /// The address at the other end of the connection, before any trusted hop is considered.
    pub peer: IpAddr,
    /// The certificate that was shown and verified at the other end of the connection.
    pub certificate: Option<&'a Certificate>,
}

/// Header fields in the order received. Names are lower-case; values are bytes, for a client may send any.
#[derive(Clone, Debug, Default)]
pub struct Headers<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Headers<'a> {
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + '_ {
        self.0.iter().copied()
    }

    /// Every value of the field, in order.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The field's only value as text. A repeated field and one that is not visible ASCII are both refused:
    /// two readers could understand them differently.
    pub fn one(&self, name: &str) -> Result<Option<&'a str>, Ambiguous> {
        let mut values = self.all(name);
        let Some(first) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Ambiguous::Repeated);
        }
        match std::str::from_utf8(first) {
            Ok(text) if text.bytes().all(|b| (b' '..=b'~').contains(&b)) => Ok(Some(text.trim())),
            Ok(_) | Err(_) => Err(Ambiguous::NotText),
        }
    }

    /// The fields of a request without those that its `Connection` fields name: they are for one connection alone (RFC 9110
    /// section 7.6.1), so no filter may decide on them.
    #[must_use]
    pub fn beyond_connection(self) -> Self {
        if !self.0.iter().any(|(name, _)| *name == "connection") {
            return self;
        }
        let named: Vec<String> = self.named_by_connection().collect();
        Self(self.0.into_iter().filter(|(name, _)| !named.iter().any(|named| named == name)).collect())
    }

    /// The fields that the `Connection` fields name, in lower case. Left out is what frames or routes a message, and what
    /// the edge itself writes.
    pub(crate) fn named_by_connection(&self) -> impl Iterator<Item = String> {
        const KEPT: [&str; 6] =
            ["connection", "content-length", "host", "transfer-encoding", "upgrade", "x-forwarded-proto"];
        let words = self.all("connection").flat_map(|value| value.split(|byte| *byte == b','));
        let names = words.filter_map(|word| std::str::from_utf8(word.trim_ascii()).ok());
        names.map(str::to_ascii_lowercase).filter(|name| !name.is_empty() && !KEPT.contains(&name.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> FromIterator<(&'a str, &'a [u8])> for Headers<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a [u8])>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// Why a single-valued field has no single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    #[error("the field is sent more than once")]
    Repeated,
    #[error("the field is not visible ASCII")]
    NotText,
}

/// What the filters learned of one request, for the filters after them and for the upstream.
#[derive(Clone, Debug)]
pub struct Context {
    /// The client's address: the peer's, or what a trusted hop says of it.
    pub client_ip: IpAddr,
    /// Set by `client_cert`, or by `signature` when a client's key signed: of one request both are the same.
    pub client: Option<Client>,
    /// What the token says, set by `jwt`. It may be revoked while what it opened is open.
    pub token: Option<Arc<Claims>>,
    /// Set by `tenant`.
    pub tenant: Option<Tenant>,
    /// What feature flags have said of the request.
    pub flags: Seen,
    /// What limits in shadow would have refused the request for.
    pub would_refuse: Vec<WouldRefuse>,
    /// Set by `signature` once the signature holds over everything the policy wants covered.
    pub signed: Option<Signed>,
    /// The idempotency key of the request line's header, set by `idempotency`.
    pub idempotency_key: Option<String>,
    /// Fields to set on the request to the upstream. Only the edge may set them: a client's own are removed.
    pub upstream: Vec<(Cow<'static, str>, String)>,
    /// Fields to add to the answer, whatever it is.
    pub answer: Vec<(&'static str, String)>,
    /// What to give back to shared state when the request leaves.
    pub(crate) held: Vec<Op>,
    pub(crate) ops: Vec<Asked>,
    pub(crate) asking: usize,
}

impl Context {
    pub fn new(peer: IpAddr) -> Self {
        Self {
            client_ip: peer,
            client: None,
            token: None,
            tenant: None,
            flags: Seen::default(),
            would_refuse: Vec::new(),
            signed: None,
            idempotency_key: None,
            upstream: Vec::new(),
            answer: Vec::new(),
            held: Vec::new(),
            ops: Vec::new(),
            asking: 0,
        }
    }

    /// The sender is this client.
    pub(crate) fn identify(&mut self, client: Client) {
        self.tell("x-torana-client", client.name.to_string());
        if let Some(tenant) = &client.tenant {
            self.tell("x-torana-tenant", tenant.to_string());
        }
        self.client = Some(client);
    }

    /// Sets a field on the request to the upstream, in place of any of that name.
    pub(crate) fn tell(&mut self, name: impl Into<Cow<'static, str>>, value: String) {
        let name = name.into();
        self.upstream.retain(|(told, _)| *told != name);
        self.upstream.push((name, value));
    }

    /// A limit in shadow would have refused the request.
    pub(crate) fn note_shadow(&mut self, filter: &'static str, limit: &str) {
        self.would_refuse.push(WouldRefuse { filter, limit: limit.to_owned() });
    }

    /// Who sends the request, as its token says.
    pub fn identity(&self) -> Option<&Identity> {
        Some(&self.token.as_ref()?.identity)
    }

    /// The name of the sender's tenant: what `tenant` found, otherwise what the token or the client says.
    pub fn tenant_name(&self) -> Option<&str> {
        let found = self.tenant.as_ref().map(|tenant| &*tenant.name);
        let told = || self.identity()?.tenant.as_deref();
        found.or_else(told).or_else(|| self.client.as_ref()?.tenant.as_deref())
    }

    /// Adds an operation to the request's one batch for shared state.
    pub fn ask(&mut self, op: Op) {
        self.ask_of(Counted::Shared, op);
    }

    /// Adds an operation to the request's one batch.
    pub fn ask_of(&mut self, counted: Counted, op: Op) {
        self.ops.push(Asked { filter: self.asking, counted, op });
    }
}

/// An operation and the position in the chain of the filter that asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) filter: usize,
    pub(crate) counted: Counted,
    pub(crate) op: Op,
}

/// The tenant of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub name: Arc<str>,
    /// The plan whose limits hold for it; `None`: none does.
    pub plan: Option<Arc<str>>,
}

/// What a request would have been refused for, did the limit not have `mode: shadow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WouldRefuse {
    pub filter: &'static str,
    /// The limit's name.
    pub limit: String,
}

impl std::fmt::Display for WouldRefuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.filter, self.limit)
    }
}

/// A limit of the policy, in logs `NAME` or `plan:PLAN/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitName {
    pub name: String,
    /// The plan that has it; `None`: the route, or every route.
    pub plan: Option<Arc<str>>,
}

impl std::fmt::Display for LimitName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.plan {
            Some(plan) => write!(f, "plan:{plan}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// As it is told.
impl From<&str> for LimitName {
    fn from(told: &str) -> Self {
        let of_plan = told.strip_prefix("plan:").and_then(|told| told.rsplit_once('/'));
        match of_plan {
            Some((plan, name)) => Self { name: name.to_owned(), plan: Some(plan.into()) },
            None => Self { name: told.to_owned(), plan: None },
        }
    }
}

/// A client of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its name in the policy.
    pub name: Arc<str>,
    /// The tenant that it belongs to, if it may only act for one.
    pub tenant: Option<Arc<str>>,
}

impl Client {
    /// Whether it may act with this token: one of its tenant, if it has one.
    pub fn may_act_for(&self, identity: &Identity) -> bool {
        self.tenant.is_none() || self.tenant.as_deref() == identity.tenant.as_deref()
    }

    /// The refusal of a token of another tenant. Only who has proven to be the client may hear it.
    pub(crate) fn of_another_tenant(&self) -> Refusal {
        let detail = "The client that sends this belongs to another tenant than the access token.";
        Refusal::new(403, "client_tenant_mismatch", detail)
    }
}

/// Who sends the request, as a verified token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The policy's name of the issuer.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `tenant`.
    pub tenant: Option<String>,
    /// `device`: the device the token is bound to.
    pub device: Option<String>,
    /// `scope`, split at spaces.
    pub scopes: BTreeSet<String>,
    /// `cnf`: what the sender must prove.
    pub binding: Binding,
}

/// What a token is bound to (RFC 7800): who bears it must prove to hold that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// The token has no `cnf`.
    #[default]
    None,
    /// `cnf.jwk`. That the sender holds it is for `signature` to see, with `signer: device`.
    Key(VerifyingKey),
    /// `cnf.x5t#S256`: the connection's certificate (RFC 8705 section 3.1), which `jwt` has compared.
    Certificate(Thumbprint),
    /// Both.
    KeyAndCertificate(VerifyingKey, Thumbprint),
    /// The token is bound by means that are not understood here, a key's thumbprint say.
    /// Nobody can prove that here, so `jwt` refuses it.
    NotUnderstood,
}

impl Binding {
    /// The key whose holder alone may use the token.
    pub fn key(&self) -> Option<&VerifyingKey> {
        match self {
            Self::Key(key) | Self::KeyAndCertificate(key, _) => Some(key),
            Self::None | Self::Certificate(_) | Self::NotUnderstood => None,
        }
    }

    /// The certificate whose holder alone may use the token.
    pub fn certificate(&self) -> Option<&Thumbprint> {
        match self {
            Self::Certificate(thumbprint) | Self::KeyAndCertificate(_, thumbprint) => Some(thumbprint),
            Self::None | Self::Key(_) | Self::NotUnderstood => None,
        }
    }
}

/// The SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thumbprint(pub [u8; 32]);

impl Thumbprint {
    /// Whether it is that certificate's, in the same time whatever differs.
    pub fn is_of(&self, certificate: &Certificate) -> bool {
        equal(&self.0, certificate.sha256())
    }
}

/// A message signature that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub keyid: String,
    /// `created`, seconds since the Unix epoch.
    pub created: i64,
    pub nonce: Option<String>,
}
