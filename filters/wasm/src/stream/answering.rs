//! What the module does with an answer on its way to the client.

use std::rc::Rc;
use std::sync::Arc;

use filters::admission::{Admission, JOINED, asks_for_websocket};
use filters::chain::Refused;
use filters::compression::Coding;
use filters::failure::Failure;
use filters::filter::Headers;
use filters::jwt::Claims;
use filters::upstream::MOST_ANSWER_BYTES;

use super::{Flow, Phase, Stream};
use crate::envoy::Envoy;
use crate::plugin::Now;

/// An open WebSocket, which ends when its token is revoked.
#[derive(Debug)]
pub struct Opened {
    pub token: Arc<Claims>,
    /// Whether it stays open when the token expires.
    pub outlives_token: bool,
}

/// HTTP's status of an answer that opens a WebSocket.
const SWITCHING_PROTOCOLS: u16 = 101;

/// So many fields are set one by one; more are cheaper set all at once, which takes three calls.
const FEW: usize = 3;

/// What becomes of the upstream's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answering {
    /// It goes on as it comes.
    AsItComes,
    /// It is awaited whole, to be decided on.
    Whole,
    /// It was refused, and something else was answered.
    Refused,
}

/// What Envoy says of answers of its own in place of an upstream's, at its beginning. Anything else, and nothing at
/// all, is taken for the upstream's word: that is then verified, or does not pass.
const OWN: [&[u8]; 9] = [
    b"cluster_not_found",
    b"maintenance_mode",
    b"no_healthy_upstream",
    b"overload",
    b"response_timeout",
    b"upstream_max_stream_duration_reached",
    b"upstream_per_try_timeout",
    b"upstream_reset_",
    b"upstream_response_timeout",
];

fn is_envoys_own(details: Option<&[u8]>) -> bool {
    details.is_some_and(|details| OWN.iter().any(|own| details.starts_with(own)))
}

/// The status among an answer's fields; 0: there is none.
fn status(told: &[(String, Vec<u8>)]) -> u16 {
    let status = told.iter().find(|(name, _)| name == ":status");
    status.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or_default()
}

/// An answer's fields but for the pseudo fields.
fn headers(told: &[(String, Vec<u8>)]) -> Headers<'_> {
    let own = told.iter().filter(|(name, _)| !name.starts_with(':'));
    own.map(|(name, value)| (name.as_str(), value.as_slice())).collect()
}

/// Fields that are for the upstream's connection alone (RFC 9110 section 7.6.1). Envoy removes those that are always so,
/// and needs those that frame the body or open a WebSocket.
fn named_by_connection(connection: &[u8]) -> impl Iterator<Item = String> {
    const KEPT: [&str; 6] =
        ["close", "connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"];
    let names = String::from_utf8_lossy(connection).to_ascii_lowercase();
    let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
    let is_token = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    names.into_iter().filter(move |name| is_token(name) && !KEPT.contains(&name.as_str()))
}

impl Stream {
    /// An answer's header has come, whoever gives it; `whole`: and nothing else will.
    pub fn answer(&mut self, whole: bool, envoy: &dyn Envoy) -> Flow {
        let decides = matches!(self.phase, Phase::Admitted)
            && self.admission.as_ref().is_some_and(|admission| admission.reads_answer(&self.plugin.policy));
        // What Envoy answers itself when the upstream fails is no answer of the upstream's.
        if decides && !is_envoys_own(envoy.answer_details().as_deref()) {
            self.answering = Answering::Whole;
            return if whole { self.answered_whole(0, envoy) } else { Flow::Pause };
        }
        if matches!(self.phase, Phase::Admitted) {
            if envoy.answer_field(":status").is_some_and(|status| status == b"101")
                && !self.asked_for_websocket()
            {
                // To a protocol that nobody asked for (RFC 9110 section 15.2.2).
                return self.refuse_answer(&Failure::UpstreamFailed.into(), envoy);
            }
            if let Some(connection) = envoy.answer_field("connection") {
                named_by_connection(&connection).for_each(|name| envoy.set_answer_field(&name, None));
            }
        }
        if let Some(variant) = self.variant() {
            self.plugin.count_variant(variant, status(&envoy.answer_fields()), envoy);
        }
        self.dress(self.coding(whole, envoy), envoy);
        Flow::Continue
    }

    fn asked_for_websocket(&self) -> bool {
        self.admission
            .as_ref()
            .is_some_and(|admission| asks_for_websocket(&self.received.request(admission.peer())))
    }

    /// The WebSocket that the answer opens, if a token came with the request.
    pub fn opens_websocket(&self, envoy: &dyn Envoy) -> Option<Opened> {
        let admission = self.admission.as_ref().filter(|_| matches!(self.phase, Phase::Admitted))?;
        let outlives_token = admission.rule(&self.plugin.policy)?.websocket?.outlives_token;
        let token = Arc::clone(admission.context().token.as_ref()?);
        (status(&envoy.answer_fields()) == SWITCHING_PROTOCOLS).then_some(Opened { token, outlives_token })
    }

    /// The experiment that the request is part of, and its variant, once it is on its way.
    fn variant(&self) -> Option<(&str, &str)> {
        let admission = self.admission.as_ref().filter(|_| matches!(self.phase, Phase::Admitted))?;
        admission.variant(&self.plugin.policy)
    }

    /// Whether Envoy's compressor, which comes next, is to compress the upstream's answer; `whole`: it has no body.
    fn coding(&self, whole: bool, envoy: &dyn Envoy) -> Coding {
        let compresses = |admission: &&Admission| admission.compresses(&self.plugin.policy);
        let admission = match self.phase {
            Phase::Admitted => self.admission.as_ref().filter(compresses),
            Phase::New
            | Phase::Refreshing { .. }
            | Phase::Introspecting(_)
            | Phase::Headed
            | Phase::Asked(_)
            | Phase::Refused => None,
        };
        let Some(admission) = admission else { return Coding::AsItComes };
        if is_envoys_own(envoy.answer_details().as_deref()) {
            return Coding::AsItComes;
        }
        let told = envoy.answer_fields();
        let (status, fields) = (status(&told), headers(&told));
        let request = self.received.request(admission.peer());
        let coding = admission.coding(&self.plugin.policy, &request, (status, &fields));
        if whole { coding.of_nothing() } else { coding }
    }

    /// `length` bytes of the answer's body have come; `whole`: and nothing else will.
    pub fn answer_body(&mut self, length: usize, whole: bool, envoy: &dyn Envoy) -> Flow {
        match self.answering {
            Answering::AsItComes => Flow::Continue,
            Answering::Refused => Flow::Pause,
            Answering::Whole if length > MOST_ANSWER_BYTES => {
                self.refuse_answer(&Failure::AnswerTooLarge.into(), envoy)
            }
            Answering::Whole if whole => self.answered_whole(length, envoy),
            Answering::Whole => Flow::Pause,
        }
    }

    /// The answer's trailers have come, so its body is whole.
    pub fn answer_trailers(&mut self, envoy: &dyn Envoy) -> Flow {
        match self.answering {
            Answering::AsItComes => Flow::Continue,
            Answering::Refused => Flow::Pause,
            Answering::Whole => self.answered_whole(MOST_ANSWER_BYTES + 1, envoy),
        }
    }

    /// Decides on the answer, of whose body at most so many bytes are there.
    fn answered_whole(&mut self, most: usize, envoy: &dyn Envoy) -> Flow {
        let plugin = Rc::clone(&self.plugin);
        let Some(admission) = &mut self.admission else { return Flow::Pause };
        let told = envoy.answer_fields();
        let body = if most == 0 { Vec::new() } else { envoy.answer_body(most) };
        self.now_ms = envoy.now_ms();
        let now = Now { plugin: &plugin, now_ms: self.now_ms };
        let request = self.received.request(admission.peer());
        let answered = status(&told);
        let answer = (answered, headers(&told), body.as_slice());
        match admission.answer(&plugin.policy, &request, answer, &now) {
            Ok(()) => {
                self.answering = Answering::AsItComes;
                if let Some(variant) = self.variant() {
                    plugin.count_variant(variant, answered, envoy);
                }
                self.dress(Coding::AsItComes, envoy);
                Flow::Continue
            }
            Err(refused) => self.refuse_answer(&refused, envoy),
        }
    }

    fn refuse_answer(&mut self, refused: &Refused, envoy: &dyn Envoy) -> Flow {
        self.answering = Answering::Refused;
        if let Some(variant) = self.variant() {
            self.plugin.count_variant(variant, refused.refusal.status, envoy);
        }
        let Some(admission) = &self.admission else { return Flow::Pause };
        let (fields, body) = admission.problem(&refused.refusal);
        // The module does not see this answer leave, so it carries the fields of every answer from the start.
        let every = admission.answer_fields(&self.plugin.policy);
        let own = fields.iter().map(|(name, value)| (*name, value.as_str()));
        let own = own.filter(|(name, _)| !every.iter().any(|(every, _)| every == name));
        let fields: Vec<(&str, &str)> =
            own.chain(every.iter().map(|(name, value)| (&**name, value.as_str()))).collect();
        envoy.answer(refused.refusal.status, &fields, body.as_bytes());
        Flow::Pause
    }

    /// Adds what belongs on every answer.
    fn dress(&self, coding: Coding, envoy: &dyn Envoy) {
        let Some(admission) = &self.admission else { return };
        let ours = admission.answer_fields(&self.plugin.policy);
        let joined = |name: &str| JOINED.contains(&name);
        // What the upstream says, that is: our own answers carry only what we said.
        let hides =
            |name: &str| matches!(self.phase, Phase::Admitted) && admission.hides(&self.plugin.policy, name);
        let is_cross_origin = hides("access-control-allow-origin");
        if ours.len() <= FEW
            && coding == Coding::AsItComes
            && !is_cross_origin
            && !ours.iter().any(|(name, _)| joined(name))
        {
            for (name, value) in &ours {
                envoy.set_answer_field(name, Some(value));
            }
            return;
        }
        let told = envoy.answer_fields();
        let told = told.iter().filter(|(name, _)| !hides(name));
        let kept = told.filter(|(name, _)| joined(name) || !ours.iter().any(|(own, _)| own == name));
        let kept = kept.map(|(name, value)| (name.as_str(), value.as_slice()));
        let all: Vec<(&str, &[u8])> =
            kept.chain(ours.iter().map(|(name, value)| (&**name, value.as_bytes()))).collect();
        let edits = coding.edits(&all.iter().copied().collect());
        let edited = edits.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?.as_bytes())));
        let kept = all.into_iter().filter(|(name, _)| !edits.iter().any(|(edited, _)| edited == name));
        envoy.set_answer_fields(kept.chain(edited).collect());
    }
}
