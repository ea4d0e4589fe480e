//! One request's way through the edge, whichever data plane carries it: first the route, then the filters on
//! the header, on the whole body and on what shared state says; at last the fields that go to the upstream and
//! to the client.
//!
//! Owns every decision between a request and its upstream. The data plane only moves bytes: it calls the steps
//! in order, none after a refusal but [`answer_fields`](Admission::answer_fields) and
//! [`leaves`](Admission::leaves).

use std::borrow::Cow;
use std::net::IpAddr;

use crate::chain::{Chain, Refused};
use crate::client_address::client_address;
use crate::compression::Coding;
use crate::failure::Failure;
use crate::filter::{Context, Headers, Host, Refusal, Request};
use crate::flags::Seen;
use crate::policy::{Match, Policy, Preflight, RouteRule, Share, version};
use crate::state::{Answer, Batch, Full, Op};
use crate::trace::{TraceContext, request_id};
use crate::upstream::{MOST_ANSWER_BYTES, Outgoing, UpstreamAnswer, UpstreamFields};
use crate::{cors, shape};

/// What the edge knows of one request.
#[derive(Debug)]
pub struct Admission {
    peer: IpAddr,
    request_id: String,
    trace: TraceContext,
    rule: Option<usize>,
    /// Chooses among upstreams where nothing else does.
    lot: u32,
    context: Context,
}

/// Random numbers that make a request's names; fresh for each request.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub request_id: u128,
    pub trace_id: u128,
    pub span_id: u64,
}

impl Admission {
    /// Of a request from `peer`. `traceparent` is the client's, if it sent exactly one.
    pub fn new(peer: IpAddr, traceparent: Option<&str>, draw: Draw) -> Self {
        // A listener of both families sees IPv4 senders with IPv6 addresses; they are the same senders.
        let peer = peer.to_canonical();
        Self {
            peer,
            request_id: request_id(draw.request_id),
            trace: TraceContext::continued(traceparent, (draw.trace_id, draw.span_id)),
            rule: None,
            lot: draw.span_id as u32,
            context: Context::new(peer),
        }
    }

    /// A UUID of ours: a client's own would let it forge our logs.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The other end of the connection.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    pub fn trace(&self) -> &TraceContext {
        &self.trace
    }

    /// What the filters learned.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The rule that serves the request, once [`head`](Self::head) found it.
    pub fn rule<'p>(&self, policy: &'p Policy) -> Option<&'p RouteRule> {
        policy.rules().get(self.rule?)
    }

    /// Finds the route and decides on the header. May be called again, when a first refusal rests on keys that
    /// were renewed since ([`Refusal::stale_keys`]).
    pub fn head(&mut self, policy: &Policy, request: &Request<'_>, host: &dyn Host) -> Result<(), Refused> {
        self.context = Context { flags: Seen::of(policy.flag_file()), ..Context::new(self.peer) };
        self.context.client_ip = client_address(request, &policy.document().trusted_proxies)?;
        let position = match find(policy, request)? {
            Found::Rule(position) => position,
            // Answered or refused: it is of no route.
            Found::Preflight(chain) => {
                chain.head(request, host, &mut self.context)?;
                return Err(route_not_found().into());
            }
        };
        self.rule = Some(position);
        let rule = policy.rules().get(position).ok_or_else(route_not_found)?;
        rule.chain.head(request, host, &mut self.context)?;
        if let Some(flag) = &rule.flag {
            self.context.flag(flag, request, host);
        }
        Ok(())
    }

    /// Who of the route's upstreams serves the request, and which in their order that is. Known once the header was
    /// decided on; the same each time.
    pub fn share<'p>(&self, policy: &'p Policy) -> Option<(usize, &'p Share)> {
        let rule = self.rule(policy)?;
        let position = rule.share(&self.context, self.lot)?;
        Some((position, rule.upstreams.get(position)?))
    }

    /// The experiment, or the flag, that the request is shared out by, and the variant that it sees.
    pub fn variant<'p>(&self, policy: &'p Policy) -> Option<(&'p str, &'p str)> {
        let rule = self.rule(policy)?;
        let experiment = rule.experiment.as_deref().or(rule.flag.as_deref())?;
        Some((experiment, self.share(policy)?.1.variant.as_deref()?))
    }

    /// Decides on the whole body.
    pub fn body(
        &mut self,
        policy: &Policy,
        request: &Request<'_>,
        body: &[u8],
        host: &dyn Host,
    ) -> Result<(), Refused> {
        if body.len() > shape::Config::MOST_BODY_BYTES {
            return Err(Failure::BodyTooLarge.into());
        }
        let rule = self.rule(policy).ok_or_else(route_not_found)?;
        rule.chain.body(request, body, host, &mut self.context)
    }

    /// The limit, bytes, of a body that is forwarded as it arrives; `None`: the whole body is decided on first.
    pub fn streams(&self, policy: &Policy) -> Option<usize> {
        self.rule(policy)?.streams
    }

    /// Decides on a body that is forwarded as it arrives, before any of it. Called in place of [`body`](Self::body).
    pub fn body_begins(&mut self, policy: &Policy, request: &Request<'_>) -> Result<(), Refused> {
        let rule = self.rule(policy).ok_or_else(route_not_found)?;
        rule.chain.body_begins(request, &mut self.context)
    }

    /// What to ask of state, shared state in one trip; empty when nothing is asked.
    pub fn batch(&self, policy: &Policy) -> Batch {
        self.rule(policy).map(|rule| rule.chain.batch(&self.context)).unwrap_or_default()
    }

    /// Decides on what state said, answer for operation.
    pub fn answered(&mut self, policy: &Policy, answers: Result<Vec<Answer>, Full>) -> Result<(), Refused> {
        let answers = answers.map_err(|Full| Failure::StateFull)?;
        let rule = self.rule(policy).ok_or_else(route_not_found)?;
        rule.chain.answered(&answers, &mut self.context)
    }

    /// What the request gives back to shared state when it leaves, however it ends. Answers once.
    pub fn leaves(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.context.held)
    }

    /// What becomes of the fields that the client sent, once nothing refuses.
    pub fn forward(
        &mut self,
        policy: &Policy,
        request: &Request<'_>,
        host: &dyn Host,
    ) -> Result<UpstreamFields, Refused> {
        let rule = self.rule(policy).ok_or_else(route_not_found)?;
        let mut fields =
            UpstreamFields { path: rule.rewrite.clone(), ..self.upstream_fields(policy, request) };
        if let Some((experiment, variant)) = self.variant(policy) {
            fields.set.push((EXPERIMENT.into(), format!("{experiment}={variant}")));
        }
        if rule.chain.forwards() {
            let told = self.context.upstream.len();
            let outgoing = Outgoing { request, fields: &fields, nonce: &self.nonce() };
            rule.chain.forward(&outgoing, host, &mut self.context)?;
            fields.set.extend(self.context.upstream.iter().skip(told).cloned());
        }
        Ok(fields)
    }

    /// Whether the upstream's answer must be whole before any of it leaves: the policy has it verified or signed.
    pub fn reads_answer(&self, policy: &Policy) -> bool {
        self.rule(policy).is_some_and(|rule| rule.chain.reads_answer())
    }

    /// Decides on the upstream's whole answer.
    pub fn answer(
        &mut self,
        policy: &Policy,
        request: &Request<'_>,
        (status, headers, body): (u16, Headers<'_>, &[u8]),
        host: &dyn Host,
    ) -> Result<(), Refused> {
        if body.len() > MOST_ANSWER_BYTES {
            return Err(Failure::AnswerTooLarge.into());
        }
        let rule = self.rule(policy).ok_or_else(route_not_found)?;
        let path = rule.rewrite.as_deref().unwrap_or(request.path);
        let answer = UpstreamAnswer { status, headers, body, path, nonce: &self.nonce() };
        rule.chain.answer(request, &answer, host, &mut self.context)
    }

    /// Whether the upstream's answer is compressed, by its header.
    pub fn coding(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        (status, fields): (u16, &Headers<'_>),
    ) -> Coding {
        self.rule(policy).map_or(Coding::AsItComes, |rule| rule.chain.coding(request, status, fields))
    }

    /// Whether any answer to this request could be compressed.
    pub fn compresses(&self, policy: &Policy) -> bool {
        self.rule(policy).is_some_and(|rule| rule.chain.compresses())
    }

    /// What marks this request, and its answer, as new: its id, as a signature's parameters may write it.
    fn nonce(&self) -> String {
        self.request_id.replace('-', "")
    }

    fn upstream_fields(&self, policy: &Policy, request: &Request<'_>) -> UpstreamFields {
        let upstream = self.share(policy).and_then(|(_, share)| policy.upstream(&share.upstream));
        let forwards = upstream.is_some_and(|upstream| upstream.forward_authorization.value);
        let is_kept = |name: &str| forwards && name == "authorization";
        let hidden = |name: &&str| shape::edge_only(name) || HIDDEN.contains(name) && !is_kept(name);
        let sent = request.headers.iter().map(|(name, _)| name);
        let mut remove: Vec<String> = sent.filter(hidden).map(str::to_owned).collect();
        remove.extend(request.headers.named_by_connection());
        remove.sort_unstable();
        remove.dedup();
        let mut set = vec![
            ("x-request-id".into(), self.request_id.clone()),
            ("traceparent".into(), self.trace.to_string()),
            ("x-forwarded-for".into(), self.context.client_ip.to_string()),
            ("x-forwarded-proto".into(), "https".to_owned()),
        ];
        set.extend(self.context.upstream.iter().cloned());
        UpstreamFields { remove, set, path: None }
    }

    /// The fields of every answer to this request, whoever gives it; they replace those of the same names, but for
    /// [`JOINED`].
    pub fn answer_fields(&self, policy: &Policy) -> Vec<(Cow<'static, str>, String)> {
        let chain: &Chain = self.rule(policy).map_or(policy.everywhere(), |rule| &rule.chain);
        let mut fields = chain.response(&self.context);
        let deprecation = self.rule(policy).map(|rule| rule.deprecation.as_slice()).unwrap_or_default();
        fields.extend(deprecation.iter().map(|(name, value)| (Cow::Borrowed(*name), value.clone())));
        fields.push((Cow::Borrowed("x-request-id"), self.request_id.clone()));
        fields
    }

    /// Whether a field of the upstream's answer is not for the client: it tells what is behind the edge, or speaks of pages
    /// of other origins where the policy does.
    pub fn hides(&self, policy: &Policy, name: &str) -> bool {
        HIDDEN_FROM_CLIENTS.contains(&name)
            || name.starts_with("access-control-")
                && self.rule(policy).is_some_and(|rule| rule.chain.names().any(|filter| filter == "cors"))
    }

    /// A refusal's own fields and its body.
    pub fn problem(&self, refusal: &Refusal) -> (Vec<(&'static str, String)>, String) {
        if !refusal.refuses() {
            return (refusal.headers.clone(), String::new());
        }
        let mut fields = vec![("content-type", "application/problem+json".to_owned())];
        fields.extend(refusal.headers.iter().cloned());
        (fields, refusal.problem(&self.request_id))
    }
}

/// Fields that have done their work at the edge: what the upstream needs of the token is in fields of ours.
const HIDDEN: [&str; 3] = ["authorization", "expect", "x-api-key"];

/// The field that names to the upstream the experiment and the variant.
pub const EXPERIMENT: &str = "x-torana-experiment";

/// Fields of every answer that stand beside an upstream's of the same name: lists that both have a part in.
pub const JOINED: [&str; 2] = ["vary", "link"];

/// Fields of an answer that tell what is behind the edge, and that no client needs.
pub const HIDDEN_FROM_CLIENTS: [&str; 1] = ["server"];

/// Who decides on a request.
enum Found<'p> {
    /// The rule that serves it, by its position.
    Rule(usize),
    /// What answers a preflight that could be of several.
    Preflight(&'p Chain),
}

fn find<'p>(policy: &'p Policy, request: &Request<'_>) -> Result<Found<'p>, Refused> {
    if request.headers.iter().any(|(_, value)| has_blank_at_an_end(value)) {
        return Err(Failure::Malformed.into());
    }
    // Two hosts, or two readings of one. Envoy joins repeated ones with a comma.
    match request.headers.one("host") {
        Ok(host)
            if shape::is_authority(host.unwrap_or(request.authority)) && !request.authority.is_empty() => {}
        Ok(_) | Err(_) => {
            return Err(Refusal::new(400, "host_ambiguous", "Name the host, once.").into());
        }
    }
    let upgrade = Upgrade::asked(request);
    if upgrade == Upgrade::Other {
        return Err(upgrade_unsupported());
    }
    let Some(path) = shape::decode(request.path) else { return Err(path_ambiguous()) };
    if !request.query.is_none_or(shape::is_query) {
        let detail =
            "Encode what a query cannot have: blanks, quotes, < and >, #, %00, and % without two digits.";
        return Err(Refusal::new(400, "query_malformed", detail).into());
    }
    let version = version(&request.headers).map_err(|_| version_ambiguous(""))?;
    let unasked = |rule: &RouteRule| upgrade == Upgrade::WebSocket && rule.websocket.is_none();
    if let Some(method) = cors::preflight(request.method, &request.headers) {
        let found = match (version, policy.route(method, &path, version)) {
            (None, _) => policy.preflight(method, &path),
            // No browser names one.
            (Some(_), Match::Route(position)) => Some(Preflight::Rule(position)),
            (
                Some(_),
                Match::MethodNotAllowed(_)
                | Match::VersionUnknown(_)
                | Match::VersionAmbiguous(_)
                | Match::NotFound,
            ) => None,
        };
        let has_cors = |rule: &RouteRule| rule.chain.names().any(|name| name == "cors");
        match found {
            Some(Preflight::Versions(chain)) => return Ok(Found::Preflight(chain)),
            Some(Preflight::Rule(position)) if policy.rules().get(position).is_some_and(has_cors) => {
                return Ok(Found::Rule(position));
            }
            Some(Preflight::Rule(_)) | None => {}
        }
    }
    match policy.route(request.method, &path, version) {
        Match::Route(rule) if policy.rules().get(rule).is_some_and(unasked) => Err(upgrade_unsupported()),
        Match::Route(rule) => Ok(Found::Rule(rule)),
        Match::NotFound => Err(route_not_found().into()),
        Match::VersionUnknown(versions) => {
            let detail = format!("Ask for one of the versions {}.", versions.join(", "));
            Err(Refusal::new(400, "version_unknown", detail).into())
        }
        Match::VersionAmbiguous(of_path) => {
            Err(version_ambiguous(&format!(" This path is of version {of_path}.")))
        }
        Match::MethodNotAllowed(methods) => {
            let refusal = Refusal::new(405, "method_not_allowed", "This path has no such method.");
            Err(refusal.header("allow", methods.join(", ")).into())
        }
    }
}

/// The refusal of a target that two readers could understand differently.
pub fn path_ambiguous() -> Refused {
    let detail =
        "Send the path plainly: no empty or dot segments, no parameters, and encode none but @ : + , = ~.";
    Refusal::new(400, "path_ambiguous", detail).into()
}

fn version_ambiguous(why: &str) -> Refused {
    let ask = "Ask for one version, in the path, in X-API-Version or in the media type that you accept.";
    Refusal::new(400, "version_ambiguous", format!("{ask}{why}")).into()
}

/// Whether a reader of HTTP/1.1 would read another value. Over HTTP/2 blanks at the ends are part of a value. The last two
/// are blanks in Latin-1.
fn has_blank_at_an_end(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t' | 0x85 | 0xa0));
    is_blank(value.first()) || is_blank(value.last())
}

/// Another protocol that the client would go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upgrade {
    None,
    WebSocket,
    Other,
}

impl Upgrade {
    fn asked(request: &Request<'_>) -> Self {
        let upgrades = |value: &[u8]| {
            value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        };
        let headers = &request.headers;
        if headers.all("upgrade").next().is_none() || !headers.all("connection").any(upgrades) {
            return Self::None;
        }
        let to = headers.one("upgrade").ok().flatten().unwrap_or_default();
        // With a body it would not be told what of it is the other protocol's.
        let has_body = headers.all("transfer-encoding").next().is_some()
            || headers.all("content-length").any(|length| length != b"0");
        let is_one = to.eq_ignore_ascii_case("websocket") && request.method == "GET" && !has_body;
        if is_one { Self::WebSocket } else { Self::Other }
    }
}

/// Whether the request asks for a WebSocket: it has no body, and what follows its header is not HTTP.
pub fn asks_for_websocket(request: &Request<'_>) -> bool {
    Upgrade::asked(request) == Upgrade::WebSocket
}

fn upgrade_unsupported() -> Refused {
    let detail = "No other protocol is spoken here. Send the request without Upgrade.";
    Refusal::new(400, "upgrade_unsupported", detail).into()
}

pub(crate) fn route_not_found() -> Refusal {
    Refusal::new(404, "route_not_found", "There is nothing here.")
}

impl From<Refusal> for Refused {
    /// A refusal of the edge itself.
    fn from(refusal: Refusal) -> Self {
        Self { filter: Self::EDGE, refusal }
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        failure.refusal().into()
    }
}
