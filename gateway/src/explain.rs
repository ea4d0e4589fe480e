//! Why a request would be refused, or was: filter by filter, with the line of the policy that says so.
//!
//! Decides with the very code that serves, at a time that is told, in a world where nobody has asked for anything
//! before: limits are full and no nonce is taken. Reads the policy, the request and the issuers' keys; sends nothing to
//! an upstream and remembers nothing.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::Watch;
use filters::admission::{Admission, Draw};
use filters::certificate::Certificate;
use filters::chain::Refused;
use filters::filter::{Headers, Host, Introspected, Refusal, Request};
use filters::flags::{Evaluation, Flags};
use filters::jwt::KeySet;
use filters::policy::{Policy, RouteRule};
use filters::shape;
use filters::state::{Answer, Memory};

use crate::introspection::Introspection;
use crate::jwks::KeyStore;
use crate::load;
use crate::metrics::Metrics;
use crate::places::Places;

/// A request as it stands in a file: the lines of HTTP/1.1, an empty line, the body.
#[derive(Debug)]
pub struct Written {
    method: String,
    target: String,
    /// Names in lower case, in order.
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// What the request itself does not say.
#[derive(Debug)]
pub struct Around {
    pub from: IpAddr,
    /// DER.
    pub certificate: Option<Vec<u8>>,
    pub now_ms: u64,
}

impl Around {
    /// # Errors
    /// A certificate or a time that is none.
    pub fn read(from: IpAddr, certificate: Option<&Path>, at: Option<&str>) -> anyhow::Result<Self> {
        use rustls_pki_types::CertificateDer;
        use rustls_pki_types::pem::PemObject as _;
        let der = |file: &Path| {
            let der = CertificateDer::from_pem_file(file).with_context(|| file.display().to_string())?;
            anyhow::Ok(der.to_vec())
        };
        let now_ms = match at {
            None => crate::now_ms(),
            Some(text) => {
                let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
                let at = at.with_context(|| format!("--at {text}: write it as 2026-11-24T12:00:00Z"))?;
                u64::try_from(at.unix_timestamp_nanos() / 1_000_000).context("--at: after 1970")?
            }
        };
        Ok(Self { from, certificate: certificate.map(der).transpose()?, now_ms })
    }
}

/// What is told.
#[derive(Debug)]
pub struct Explained {
    pub passes: bool,
    pub text: String,
}

impl Written {
    /// Reads a file, or standard input for `-`.
    ///
    /// # Errors
    /// When it cannot be read, and those of [`Written::parse`].
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        // One more than is taken tells that there is more.
        let most = MOST_BYTES as u64 + 1;
        if file == Path::new("-") {
            std::io::stdin().lock().take(most).read_to_end(&mut bytes)?;
        } else {
            let opened = std::fs::File::open(file).with_context(|| file.display().to_string())?;
            opened.take(most).read_to_end(&mut bytes).with_context(|| file.display().to_string())?;
        }
        Self::parse(&bytes).with_context(|| file.display().to_string())
    }

    /// Reads a request as a person or a recorder writes it; lines end with LF or CRLF.
    ///
    /// # Errors
    /// Says which line is none of HTTP.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        ensure!(bytes.len() <= MOST_BYTES, "the request is larger than {MOST_BYTES} bytes");
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().context("there is no request line")?;
        let mut read = first.len();
        let first = std::str::from_utf8(first).context("line 1 is not text")?.trim_end();
        let mut words = first.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0" | "HTTP/2"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            bail!("line 1 is no request line, `GET /path HTTP/1.1` say: {first}");
        };
        let mut fields = Vec::new();
        for (number, line) in lines.enumerate() {
            read += line.len();
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':');
            let colon =
                colon.filter(|at| *at > 0).with_context(|| format!("line {} is no field", number + 2))?;
            let (name, value) = line.split_at(colon);
            let name = std::str::from_utf8(name).with_context(|| format!("line {}: its name", number + 2))?;
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            fields.push((name.to_ascii_lowercase(), value.to_vec()));
        }
        let body = bytes.get(read..).unwrap_or_default().to_vec();
        Ok(Self { method: method.to_owned(), target: target.to_owned(), fields, body })
    }

    fn request<'r>(&'r self, peer: IpAddr, certificate: Option<&'r Certificate>) -> Request<'r> {
        let headers: Headers<'_> =
            self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let headers = headers.beyond_connection();
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target.as_str(), None),
        };
        let authority = headers.one("host").ok().flatten().unwrap_or_default();
        Request { method: &self.method, scheme: "https", authority, path, query, headers, peer, certificate }
    }
}

const MOST_BYTES: usize = 2 * shape::Config::MOST_BODY_BYTES;

/// The issuers' keys and the time.
struct World {
    keys: KeyStore,
    flags: Option<Arc<Flags>>,
    introspection: Introspection,
    now_ms: u64,
}

impl Host for World {
    fn now_ms(&self) -> u64 {
        self.now_ms
    }
    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.keys.keys(issuer)
    }
    fn flags(&self) -> Option<Arc<Flags>> {
        self.flags.clone()
    }
    fn introspected(&self, issuer: &str, token: &str) -> Option<Introspected> {
        self.introspection.known(issuer, token)
    }
}

/// What would become of a request, told for a person.
///
/// # Errors
/// Of the policy's files: those that `check` tells.
pub async fn explain(file: &Path, written: &Written, around: &Around) -> anyhow::Result<Explained> {
    let read = load::read(file).map_err(|mistakes| anyhow::anyhow!(load::told(&mistakes, file)))?;
    let load::PolicyFile { text: policy_text, folder, policy } = read;
    let watch = Watch::new("gateway");
    let keys = KeyStore::new(&policy.document().issuers, &folder, Metrics::new()?, &watch)?;
    let introspection =
        Introspection::new(&policy.document().issuers, &folder, Metrics::new()?, &watch, None)?;
    let mut notes = vec![];
    keys.fetch_missing().await;
    for issuer in keys.missing() {
        notes.push(format!("issuer {issuer}: its keys cannot be had now, so no token of it can be believed"));
    }
    let flags = match crate::flags::file(policy.document(), &folder).map(|path| crate::flags::read(&path)) {
        None => None,
        Some(Ok(flags)) => Some(Arc::new(flags)),
        Some(Err(why)) => {
            notes.push(format!("flags: none can be read, so none says anything: {why}"));
            None
        }
    };
    let world = World { keys, flags, introspection, now_ms: around.now_ms };

    let certificate = around.certificate.as_deref().map(Certificate::new);
    let request = written.request(around.from, certificate.as_ref());
    let draw = Draw { request_id: rand::random(), trace_id: 1, span_id: 1 };
    let mut admission = Admission::new(around.from, None, draw);
    if let Err(Refused { refusal: Refusal { opaque_token: Some(token), .. }, .. }) =
        admission.head(&policy, &request, &world)
    {
        world.introspection.ask(&token.issuer, &token.text).await;
    }
    let (stage, decided) = decide(&policy, &mut admission, &request, &written.body, &world);

    let places = Places::new(file, &policy, &policy_text);
    let mut told = Told { places, text: String::new() };
    told.request(written, around);
    let plan = admission.context().tenant.as_ref().and_then(|tenant| tenant.plan.as_deref());
    told.decision(admission.rule(&policy), plan, stage, &decided);
    told.learned(&admission);
    told.outcome(&policy, &admission, &decided);
    if admission.context().identity().is_some() {
        let file = file.display();
        notes.push(format!(
            "whether its token is revoked was not looked at: `gateway revoke {file} --list` tells what is"
        ));
    }
    for note in notes {
        let _ = writeln!(told.text, "note: {note}");
    }
    Ok(Explained { passes: decided.is_ok(), text: told.text })
}

/// How far a decision came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Header,
    Body,
    State,
    Forward,
}

fn decide(
    policy: &Policy,
    admission: &mut Admission,
    request: &Request<'_>,
    body: &[u8],
    world: &World,
) -> (Stage, Result<(), Refused>) {
    if let Err(refused) = admission.head(policy, request, world) {
        return (Stage::Header, Err(refused));
    }
    if let Err(refused) = admission.body(policy, request, body, world) {
        return (Stage::Body, Err(refused));
    }
    // A memory that began long ago, or it would refuse what was signed before it.
    let mut memory = Memory::new(ENTRIES, world.now_ms.saturating_sub(REMEMBERS_SINCE_MS));
    let answers: Result<Vec<Answer>, _> = memory.run(&admission.batch(policy).all(), world.now_ms);
    if let Err(refused) = admission.answered(policy, answers) {
        return (Stage::State, Err(refused));
    }
    (Stage::Forward, admission.forward(policy, request, world).map(drop))
}

const ENTRIES: usize = 1_000;
const REMEMBERS_SINCE_MS: u64 = 24 * 3_600_000;

/// The text that is told, and where in the policy things stand.
struct Told<'p> {
    places: Places<'p>,
    text: String,
}

impl Told<'_> {
    fn request(&mut self, written: &Written, around: &Around) {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(around.now_ms) * 1_000_000)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        let _ = writeln!(self.text, "{} {} from {} at {at}", written.method, written.target, around.from);
    }

    fn decision(
        &mut self,
        rule: Option<&RouteRule>,
        plan: Option<&str>,
        stage: Stage,
        decided: &Result<(), Refused>,
    ) {
        let Some(rule) = rule else {
            let _ = writeln!(self.text, "no route");
            return;
        };
        let place = self.places.of_route(rule);
        let _ = writeln!(self.text, "route {}{place}", rule.name);
        let refused_by = decided.as_ref().err().map(|refused| refused.filter);
        // Filters decide in turn, on the header first: none after the one that refuses was asked.
        let mut asked = true;
        for name in rule.chain.names() {
            let refuses = refused_by == Some(name);
            let says = match (refuses, asked, stage) {
                (true, ..) => "REFUSES",
                (false, true, _) | (false, false, Stage::State | Stage::Forward) => "passes",
                (false, false, Stage::Header) => "not asked",
                (false, false, Stage::Body) => "not asked about the body",
            };
            asked &= !refuses;
            let limit = decided
                .as_ref()
                .err()
                .filter(|_| refuses)
                .and_then(|refused| refused.refusal.limit.as_deref());
            let place = self.places.of_refusal(rule, plan, name, limit);
            let _ = writeln!(self.text, "  {name:<12} {says:<9}{place}");
        }
        for name in rule.except.iter().filter(|name| rule.chain.names().all(|used| used != *name)) {
            let _ = writeln!(self.text, "  {name:<12} left out by `except` of the route");
        }
    }

    fn learned(&mut self, admission: &Admission) {
        let context = admission.context();
        let mut facts = vec![("client address", Some(context.client_ip.to_string()))];
        let identity = context.identity();
        facts.push(("subject", identity.map(|who| who.subject.to_string())));
        facts.push(("tenant", context.tenant_name().map(str::to_owned)));
        let plan = context.tenant.as_ref().and_then(|tenant| tenant.plan.as_deref());
        facts.push(("plan", plan.map(str::to_owned)));
        facts.push(("client", context.client.as_ref().map(|client| client.name.to_string())));
        for (what, fact) in facts.into_iter().filter_map(|(what, fact)| Some((what, fact?))) {
            let _ = writeln!(self.text, "{what}: {fact}");
        }
        for (flag, Evaluation { variant, reason }) in context.flags.said() {
            let variant = variant.as_deref().unwrap_or("says nothing");
            let _ = writeln!(self.text, "flag {flag}: {variant} ({reason})");
        }
    }

    fn outcome(&mut self, policy: &Policy, admission: &Admission, decided: &Result<(), Refused>) {
        match (decided, admission.rule(policy)) {
            (Ok(()), Some(rule)) => {
                let chosen = admission.share(policy).filter(|_| rule.flag.is_some());
                let shares = rule.upstreams.iter().zip(&rule.timeouts_ms).enumerate();
                let may_be = |position| chosen.is_none_or(|(chosen, _)| chosen == position);
                let shares = shares.filter(|(position, _)| may_be(*position)).map(|(_, share)| share);
                let (to, mut times): (Vec<_>, Vec<_>) =
                    shares.map(|(share, ms)| (share.upstream.as_str(), format!("{ms} ms"))).unzip();
                if times.iter().all(|time| Some(time) == times.first()) {
                    times.truncate(1);
                }
                let sticks = rule.sticky.map(|by| format!(", always the same for the same {}", by.name()));
                let by_flag = rule.flag.as_ref().map(|flag| format!(", as flag {flag} says"));
                let (to, sticks) = (to.join(" or "), sticks.or(by_flag).unwrap_or_default());
                let _ = writeln!(self.text, "=> goes to {to}{sticks}, within {}", times.join(" or "));
            }
            (Ok(()), None) => {}
            (Err(Refused { refusal, .. }), _) => {
                let _ = writeln!(self.text, "=> {} {}: {}", refusal.status, refusal.code, refusal.detail);
            }
        }
    }
}
