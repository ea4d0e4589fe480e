//! One request's way through the module.

pub mod answering;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filters::admission::{Admission, asks_for_websocket};
use filters::certificate::Certificate;
use filters::chain::Refused;
use filters::failure::Failure;
use filters::filter::{Headers, OpaqueToken, Refusal, Request};
use filters::shape::{Config, TRANSFER_CODING, framing_ambiguous, streamed_too_much};
use filters::state::{Answer, Begun, Full, Trip, Unanswered};

use self::answering::Answering;
use crate::envoy::{Answered, Envoy};
use crate::keys::Waiting;
use crate::plugin::{CLIENT_IP, LIMIT, Now, Plugin, REFUSED, Refreshing, VARIANT};
use crate::trip::{ask, said};

/// What Envoy is to do with the part of the request that it has just told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    Continue,
    /// Keep it, and everything after it, until the request is resumed or answered.
    Pause,
}

/// The field by which Envoy's routes are told apart: the policy's own matcher has chosen one.
pub const ROUTE_FIELD: &str = "x-torana-route";

/// The field by which a route's upstreams are told apart, where it has several: the position in their order.
pub const SHARE_FIELD: &str = "x-torana-share";

/// The field that tells Envoy that the module has refused the request and worded the refusal: `FILTER/CODE/ROUTE`.
pub const REFUSED_FIELD: &str = "x-torana-refused";

const WEBSOCKET_KEY: &str = "sec-websocket-key";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// One request.
#[derive(Debug)]
pub struct Stream {
    plugin: Rc<Plugin>,
    received: Received,
    admission: Option<Admission>,
    phase: Phase,
    /// The whole body, once it has come.
    body: Option<Vec<u8>>,
    /// Bytes of a body that is forwarded as it arrives.
    streamed: usize,
    /// What becomes of the upstream's answer.
    answering: Answering,
    /// The time of what Envoy last told; asked once each time, for asking is a call.
    now_ms: u64,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was decided.
    New,
    /// The header awaits fresh keys.
    Refreshing {
        issuer: Arc<str>,
        _counted: Waiting,
    },
    /// The header awaits what an issuer says of its token.
    Introspecting(Box<OpaqueToken>),
    /// The header passed; the body is awaited.
    Headed,
    /// The shared state was asked.
    Asked(Trip),
    /// The request is the upstream's.
    Admitted,
    Refused,
}

/// A request's header, as Envoy told it.
#[derive(Debug, Default)]
struct Received {
    method: String,
    scheme: String,
    authority: String,
    target: String,
    /// Envoy's own word, whatever the client sent.
    forwarded_proto: String,
    fields: Vec<(String, Vec<u8>)>,
    certificate: Option<Arc<Certificate>>,
}

impl Received {
    /// The header, and what Envoy says of the peer. What Envoy tells in fields was not sent by the client.
    fn new(told: Vec<(String, Vec<u8>)>, plugin: &Plugin) -> (Self, Option<String>) {
        let (peer_field, certificate_field) =
            (plugin.peer_field.as_deref(), plugin.certificate_field.as_deref());
        let mut peer = None;
        let mut received = Self { fields: Vec::with_capacity(told.len()), ..Self::default() };
        for (name, value) in told {
            let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap_or_default();
            match name.as_str() {
                ":method" => received.method = text(&value),
                ":scheme" => received.scheme = text(&value),
                ":path" => received.target = text(&value),
                ":authority" => {
                    received.authority = text(&value);
                    received.fields.push(("host".to_owned(), value));
                }
                pseudo if pseudo.starts_with(':') => {}
                TRANSFER_CODING if value.is_empty() => {}
                TRANSFER_CODING => received.fields.push(("transfer-encoding".to_owned(), value)),
                FORWARDED_PROTO => received.forwarded_proto = text(&value),
                told if Some(told) == peer_field => peer = Some(text(&value)),
                told if Some(told) == certificate_field => {
                    received.certificate = Some(plugin.certificates.told(&value));
                }
                _ => received.fields.push((name, value)),
            }
        }
        (received, peer)
    }

    /// Whether the request names a transfer coding, and so must have a body. Envoy understands no coding but one that is
    /// `chunked` to the letter, and calls the request whole after the header of any other. What follows it would be the
    /// next request.
    fn names_transfer_coding(&self) -> bool {
        self.fields.iter().any(|(name, _)| name == "transfer-encoding")
    }

    fn request(&self, peer: IpAddr) -> Request<'_> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target.as_str(), None),
        };
        let headers: Headers<'_> =
            self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let headers = headers.beyond_connection();
        Request {
            method: &self.method,
            scheme: "https",
            authority: &self.authority,
            path,
            query,
            headers,
            peer,
            certificate: self.certificate.as_deref(),
        }
    }
}

impl Stream {
    pub fn new(plugin: Rc<Plugin>) -> Self {
        Self {
            plugin,
            received: Received::default(),
            admission: None,
            phase: Phase::New,
            body: None,
            streamed: 0,
            answering: Answering::AsItComes,
            now_ms: 0,
        }
    }

    /// The header has come; `whole`: and nothing else will.
    pub fn header(&mut self, whole: bool, envoy: &dyn Envoy) -> Flow {
        let plugin = Rc::clone(&self.plugin);
        let (received, told) = Received::new(envoy.request_fields(), &plugin);
        self.received = received;
        let peer = match &plugin.peer_field {
            Some(_) => told.as_deref().and_then(ip),
            None => envoy.peer().as_deref().and_then(ip),
        };
        let (Some(peer), Some(draw)) = (peer, plugin.draw(envoy)) else {
            envoy.warn("Envoy does not tell who sends the request, or has no randomness");
            envoy.answer(500, &[], b"");
            self.phase = Phase::Refused;
            return Flow::Pause;
        };
        let traceparent =
            self.received.request(peer).headers.one("traceparent").ok().flatten().map(str::to_owned);
        self.admission = Some(Admission::new(peer, traceparent.as_deref(), draw));
        // What follows the header of a WebSocket is no body, and does not come before the answer.
        if whole || asks_for_websocket(&self.received.request(peer)) {
            self.body = Some(Vec::new());
        }
        self.now_ms = envoy.now_ms();
        if whole && self.received.names_transfer_coding() {
            return self.headed(Err(framing_ambiguous()), envoy);
        }
        let refused = match self.head() {
            Ok(()) => return self.headed(Ok(()), envoy),
            Err(refused) => refused,
        };
        let Refusal { stale_keys, opaque_token, .. } = &refused.refusal;
        let waits_for = match (stale_keys, opaque_token) {
            (Some(stale), _) => match self.plugin.refresh(&stale.issuer, envoy) {
                Refreshing::Asked(_counted) => {
                    Some(Phase::Refreshing { issuer: Arc::clone(&stale.issuer), _counted })
                }
                Refreshing::Current => None,
                Refreshing::NotNow { retry_after_s } => {
                    return self.headed(Err(refused.without_new_keys(retry_after_s)), envoy);
                }
            },
            (None, Some(token)) => {
                self.plugin.introspect(token, envoy).map(|_| Phase::Introspecting(token.clone()))
            }
            (None, None) => None,
        };
        match waits_for {
            Some(phase) => {
                self.phase = phase;
                Flow::Pause
            }
            None => self.headed(Err(refused), envoy),
        }
    }

    /// `length` bytes of body have come; `whole`: and nothing else will.
    pub fn body(&mut self, length: usize, whole: bool, envoy: &dyn Envoy) -> Flow {
        let streams = self.streams();
        if whole && length == 0 && self.streamed == 0 && self.received.names_transfer_coding() {
            return match self.phase {
                Phase::Refused => Flow::Pause,
                _ => self.refuse(&framing_ambiguous(), envoy),
            };
        }
        match (&self.phase, streams) {
            (Phase::Admitted, Some(most)) => return self.forward(length, most, envoy),
            // The SDK cannot tell Envoy to hold back a body and go on with it later. `check` lets no route come here that
            // asks shared state; keys and introspection can be waited for all the same.
            (Phase::Refreshing { .. } | Phase::Introspecting(_) | Phase::Asked(_), Some(_)) if length > 0 => {
                return self.refuse(&Failure::StateUnavailable.into(), envoy);
            }
            (_, _) => {}
        }
        match self.phase {
            Phase::Admitted => return Flow::Continue,
            Phase::Refused => return Flow::Pause,
            Phase::New
            | Phase::Refreshing { .. }
            | Phase::Introspecting(_)
            | Phase::Headed
            | Phase::Asked(_) => {}
        }
        if length > Config::MOST_BODY_BYTES {
            return self.refuse(&Failure::BodyTooLarge.into(), envoy);
        }
        if !whole {
            return Flow::Pause;
        }
        self.now_ms = envoy.now_ms();
        self.body = Some(if length == 0 { Vec::new() } else { envoy.request_body(length) });
        match self.phase {
            Phase::Headed => self.whole(envoy),
            Phase::New
            | Phase::Refreshing { .. }
            | Phase::Introspecting(_)
            | Phase::Asked(_)
            | Phase::Admitted
            | Phase::Refused => Flow::Pause,
        }
    }

    /// The limit of a body that is forwarded as it arrives.
    fn streams(&self) -> Option<usize> {
        self.admission.as_ref()?.streams(&self.plugin.policy)
    }

    /// Lets a piece of the body go on, if it is within the limit.
    fn forward(&mut self, length: usize, most: usize, envoy: &dyn Envoy) -> Flow {
        self.streamed = self.streamed.saturating_add(length);
        match self.streamed <= most {
            true => Flow::Continue,
            // After the response has begun, Envoy resets the stream.
            false => self.refuse(&streamed_too_much(most), envoy),
        }
    }

    /// Trailers have come, so the body, of which Envoy keeps all there is, is whole.
    pub fn trailers(&mut self, envoy: &dyn Envoy) -> Flow {
        if self.body.is_none() && !matches!(self.phase, Phase::Admitted | Phase::Refused) {
            self.now_ms = envoy.now_ms();
            let body = envoy.request_body(Config::MOST_BODY_BYTES + 1);
            self.body = Some(body);
            if matches!(self.phase, Phase::Headed) {
                return self.whole(envoy);
            }
        }
        match self.phase {
            Phase::Admitted => Flow::Continue,
            Phase::New
            | Phase::Refreshing { .. }
            | Phase::Introspecting(_)
            | Phase::Headed
            | Phase::Asked(_)
            | Phase::Refused => Flow::Pause,
        }
    }

    /// A call of ours was answered, or was not.
    pub fn called(&mut self, answered: &Answered, envoy: &dyn Envoy) {
        self.now_ms = envoy.now_ms();
        let flow = match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::Refreshing { issuer, _counted } => {
                let fetched = self.plugin.keys_refreshed(&issuer, answered, self.now_ms, envoy);
                let decided = self.head().map_err(|refused| match fetched {
                    Ok(()) => refused,
                    Err(retry_after_s) => refused.without_new_keys(retry_after_s),
                });
                self.headed(decided, envoy)
            }
            Phase::Introspecting(token) => {
                self.plugin.introspected(&token, answered, self.now_ms);
                let decided = self.head();
                self.headed(decided, envoy)
            }
            Phase::Asked(trip) => {
                let plugin = Rc::clone(&self.plugin);
                let limits = plugin.limits_when_away;
                let ended = trip.end(said(answered), limits, self.now_ms, &mut plugin.local.borrow_mut());
                plugin.left(ended.untold, envoy);
                self.answered(ended.answers, envoy)
            }
            other @ (Phase::New | Phase::Headed | Phase::Admitted | Phase::Refused) => {
                self.phase = other;
                return;
            }
        };
        if flow == Flow::Continue {
            envoy.resume();
        }
    }

    /// The request has ended, however it did.
    pub fn ended(&mut self, envoy: &dyn Envoy) {
        if let Phase::Asked(trip) = std::mem::replace(&mut self.phase, Phase::Refused) {
            self.plugin.left(trip.abandon(), envoy);
        }
        if let Some(admission) = &mut self.admission {
            self.plugin.left(admission.leaves(), envoy);
        }
    }

    fn head(&mut self) -> Result<(), Refused> {
        let Some(admission) = &mut self.admission else { return Err(Failure::StateUnavailable.into()) };
        let now = Now { plugin: &self.plugin, now_ms: self.now_ms };
        admission.head(&self.plugin.policy, &self.received.request(admission.peer()), &now)
    }

    fn headed(&mut self, decided: Result<(), Refused>, envoy: &dyn Envoy) -> Flow {
        if let Some(admission) = &self.admission
            && admission.context().client_ip != admission.peer()
        {
            envoy.note(CLIENT_IP, &admission.context().client_ip.to_string());
        }
        match decided {
            Err(refused) => self.refuse(&refused, envoy),
            Ok(()) => {
                self.phase = Phase::Headed;
                if self.body.is_some() || self.streams().is_some() { self.whole(envoy) } else { Flow::Pause }
            }
        }
    }

    /// Decides on the body and asks state.
    fn whole(&mut self, envoy: &dyn Envoy) -> Flow {
        let plugin = Rc::clone(&self.plugin);
        let Some(admission) = &mut self.admission else {
            return self.refuse(&Failure::StateUnavailable.into(), envoy);
        };
        let now_ms = self.now_ms;
        let now = Now { plugin: &plugin, now_ms };
        let request = self.received.request(admission.peer());
        let decided = match (self.body.take(), admission.streams(&plugin.policy)) {
            (Some(body), _) => admission.body(&plugin.policy, &request, &body, &now),
            (None, Some(_)) => admission.body_begins(&plugin.policy, &request),
            (None, None) => Err(Failure::StateUnavailable.into()),
        };
        if let Err(refused) = decided {
            return self.refuse(&refused, envoy);
        }
        let batch = admission.batch(&plugin.policy);
        if batch.is_empty() {
            plugin.note_shadows(&admission.context().would_refuse, envoy);
            return self.admit(envoy);
        }
        let begun = Trip::begin(batch, now_ms, &mut plugin.local.borrow_mut());
        match begun {
            Begun::Answered(answers) => self.answered(answers, envoy),
            Begun::Asking(mut trip) => {
                let ops = trip.ask(plugin.releases());
                if ask(&ops).and_then(|body| plugin.ask_state(&body, envoy)).is_some() {
                    self.phase = Phase::Asked(trip);
                    return Flow::Pause;
                }
                let (away, limits) = (Err(Unanswered::Away), plugin.limits_when_away);
                let ended = trip.end(away, limits, now_ms, &mut plugin.local.borrow_mut());
                plugin.left(ended.untold, envoy);
                self.answered(ended.answers, envoy)
            }
        }
    }

    fn answered(&mut self, answers: Result<Vec<Answer>, Full>, envoy: &dyn Envoy) -> Flow {
        let Some(admission) = &mut self.admission else {
            return self.refuse(&Failure::StateUnavailable.into(), envoy);
        };
        let decided = admission.answered(&self.plugin.policy, answers);
        self.plugin.note_shadows(&admission.context().would_refuse, envoy);
        match decided {
            Ok(()) => self.admit(envoy),
            Err(refused) => self.refuse(&refused, envoy),
        }
    }

    fn admit(&mut self, envoy: &dyn Envoy) -> Flow {
        let plugin = Rc::clone(&self.plugin);
        let Some(admission) = &mut self.admission else {
            return self.refuse(&Failure::StateUnavailable.into(), envoy);
        };
        let now = Now { plugin: &plugin, now_ms: self.now_ms };
        let request = self.received.request(admission.peer());
        let fields = match admission.forward(&plugin.policy, &request, &now) {
            Ok(fields) => fields,
            Err(refused) => return self.refuse(&refused, envoy),
        };
        let Some(rule) = admission.rule(&plugin.policy) else {
            return self.refuse(&Failure::StateUnavailable.into(), envoy);
        };
        if let Some((experiment, variant)) = admission.variant(&plugin.policy) {
            envoy.note(VARIANT, &format!("{experiment}={variant}"));
        }
        // One by one: Envoy takes longer to replace all fields than to set a few.
        for name in &fields.remove {
            envoy.set_request_field(name, None);
        }
        if self.received.names_transfer_coding() {
            envoy.set_request_field(TRANSFER_CODING, None);
        }
        for (name, value) in &fields.set {
            if *name != FORWARDED_PROTO || self.received.forwarded_proto != *value {
                envoy.set_request_field(name, Some(value));
            }
        }
        if let (Some(_), Some(field)) = (&self.received.certificate, &plugin.certificate_field) {
            envoy.set_request_field(field, None);
        }
        if rule.upstreams.len() > 1 {
            let Some((position, _)) = admission.share(&plugin.policy) else {
                return self.refuse(&Failure::UpstreamUnreachable.into(), envoy);
            };
            envoy.set_request_field(SHARE_FIELD, Some(&position.to_string()));
        }
        envoy.set_request_field(ROUTE_FIELD, Some(&rule.name));
        // Over HTTP/2 a client sends no key (RFC 8441 section 5.1), and the upstream expects one over HTTP/1.1.
        let has_key = request.headers.all(WEBSOCKET_KEY).next().is_some();
        if asks_for_websocket(&request)
            && !has_key
            && let Some(draw) = plugin.draw(envoy)
        {
            let key = STANDARD.encode(draw.request_id.to_be_bytes());
            envoy.set_request_field(WEBSOCKET_KEY, Some(&key));
        }
        plugin.note_flags(&admission.context().flags, envoy);
        self.phase = Phase::Admitted;
        Flow::Continue
    }

    fn refuse(&mut self, refused: &Refused, envoy: &dyn Envoy) -> Flow {
        let undecided = !matches!(self.phase, Phase::Admitted | Phase::Refused);
        self.phase = Phase::Refused;
        if let Some(admission) = &self.admission {
            if undecided {
                self.plugin.note_flags(&admission.context().flags, envoy);
            }
            let (fields, body) = admission.problem(&refused.refusal);
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            // By the field Envoy tells our refusals from its own, which it words as ours. Once the request is on its way its
            // fields cannot be set any more: the SDK panics.
            if undecided {
                let route = admission.rule(&self.plugin.policy).map_or("", |rule| rule.name.as_str());
                let said = format!("{}/{}/{route}", refused.filter, refused.refusal.code);
                envoy.set_request_field(REFUSED_FIELD, Some(&said));
                envoy.note(REFUSED, &said);
            }
            if let Some(limit) = &refused.refusal.limit {
                envoy.note(LIMIT, &limit.to_string());
            }
            envoy.answer(refused.refusal.status, &fields, body.as_bytes());
        } else {
            envoy.answer(500, &[], b"");
        }
        Flow::Pause
    }
}

/// The address of `127.0.0.1:4711`.
fn ip(peer: &str) -> Option<IpAddr> {
    peer.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| peer.parse()).ok()
}
