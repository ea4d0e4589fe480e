//! Where the network takes calls: verifies them as the real one does, and answers at once.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use certs::serve::PeerCertificate;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use npci_proxy::{
    codec::Api,
    expiring::Remembered,
    peer,
    problem::Problem,
    seal::{Asked, Mark},
    wire::{Pay, Rrn, StatusAnswer, StatusInquiry, ValidateVpa},
};
use serde::Serialize;

use crate::{calls::Call, fault::Fault, settlement::Settler, sim::Sim};

const BODY_MAX_BYTES: usize = 64 * 1024;

pub fn router(settler: Arc<Settler>) -> Router {
    let allowed = settler.sim().config.front.allowed_clients.clone();
    let route = |api: Api| {
        post(move |State(settler): State<Arc<Settler>>, request: Request| receive(api, settler, request))
    };
    let routes = Api::ALL
        .into_iter()
        .fold(Router::new(), |router, api| router.route(api.path(), route(api)))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found") })
        .with_state(settler);
    peer::only(routes, &allowed)
}

/// What to answer, and how badly.
struct Answer {
    body: Result<Vec<u8>, Problem>,
    fault: Option<Fault>,
}

async fn receive(api: Api, settler: Arc<Settler>, request: Request) -> Response {
    let sim = settler.sim();
    let (parts, body) = request.into_parts();
    if let Some(PeerCertificate(Some(facts))) = parts.extensions.get() {
        sim.calls().came_with(&facts.serial_hex);
    }
    let Ok(body) = to_bytes(body, BODY_MAX_BYTES).await else {
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large").into_response();
    };
    let mark = match admit(sim, api, &parts.headers, &body) {
        Ok(mark) => mark,
        Err(problem) => {
            tracing::warn!(api = api.name(), code = problem.code, "call refused");
            sim.calls().refused(problem.code);
            return problem.into_response();
        }
    };
    let answer = match api {
        Api::Pay => pay(&settler, &body),
        Api::Status => status(sim, &body),
        Api::Validate => validate(sim, &body),
    };
    match &answer.fault {
        Some(Fault::Slow { ms }) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        Some(Fault::Unreachable) => return Body::new(Cut).into_response(),
        _ => {}
    }
    signed(sim, api, &mark, answer)
}

fn admit(sim: &Sim, api: Api, headers: &HeaderMap, body: &[u8]) -> Result<Mark, Problem> {
    let unauthorized = |code| Problem::new(StatusCode::UNAUTHORIZED, code);
    let mark = sim
        .verifier
        .verify_request(("POST", api.path()), headers, body, sim.clock.now_ms())
        .map_err(|broken| unauthorized("signature_invalid").detail(broken.to_string()))?;
    let now_ms = sim.clock.now_ms();
    sim.freshness
        .check(mark.created_s, now_ms)
        .map_err(|stale| unauthorized("not_fresh").detail(stale.to_string()))?;
    let mut seen = sim.seen.lock().unwrap_or_else(PoisonError::into_inner);
    match seen.remember(now_ms, mark.nonce.clone(), ()) {
        Remembered::New => Ok(mark),
        Remembered::Known => Err(unauthorized("nonce_replayed")),
        Remembered::Full => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "nonce_store_full")),
    }
}

fn pay(settler: &Arc<Settler>, body: &[u8]) -> Answer {
    let sim = settler.sim();
    let pay: Pay = match serde_json::from_slice(body) {
        Ok(pay) => pay,
        Err(error) => return malformed(&error),
    };
    sim.calls().count(Call::Initiate, Some(pay.txn_id.as_str()));
    let mut network = sim.network();
    if network.fault_of(&pay) == Some(Fault::Unreachable) {
        return Answer {
            body: Err(Problem::new(StatusCode::BAD_GATEWAY, "cut")),
            fault: Some(Fault::Unreachable),
        };
    }
    match network.initiate(&pay, rrn()) {
        Ok(initiated) => {
            drop(network);
            tracing::info!(txn_id = %pay.txn_id, payer = %pay.payer_vpa, payee = %pay.payee_vpa, ack = ?initiated.ack.ack, "payment taken in");
            if let Some(after_ms) = initiated.settle_after_ms {
                settler.settle(pay.txn_id, after_ms);
            }
            Answer { body: json(&initiated.ack), fault: initiated.fault }
        }
        Err(_) => Answer { body: Err(Problem::new(StatusCode::CONFLICT, "txn_id_reused")), fault: None },
    }
}

fn status(sim: &Sim, body: &[u8]) -> Answer {
    let inquiry: StatusInquiry = match serde_json::from_slice(body) {
        Ok(inquiry) => inquiry,
        Err(error) => return malformed(&error),
    };
    sim.calls().count(Call::Status, Some(inquiry.txn_id.as_str()));
    let network = sim.network();
    let (outcome, fault) = (network.status(&inquiry.txn_id), network.fault_of_inquiry(&inquiry.txn_id));
    Answer { body: json(&StatusAnswer { txn_id: inquiry.txn_id, msg_id: inquiry.msg_id, outcome }), fault }
}

fn validate(sim: &Sim, body: &[u8]) -> Answer {
    let asked: ValidateVpa = match serde_json::from_slice(body) {
        Ok(asked) => asked,
        Err(error) => return malformed(&error),
    };
    sim.calls().count(Call::Validate, None);
    let network = sim.network();
    Answer { body: json(&network.validate(&asked.vpa)), fault: network.fault_of_vpa(&asked.vpa) }
}

fn signed(sim: &Sim, api: Api, mark: &Mark, answer: Answer) -> Response {
    let (status, mut headers, body) = match answer.body {
        Ok(body) => {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (StatusCode::OK, headers, body)
        }
        Err(problem) => {
            let (headers, body) = problem.parts();
            (problem.status, headers, body)
        }
    };
    let signer = if answer.fault == Some(Fault::BadAnswerSignature) { &sim.forger } else { &sim.signer };
    let asked = Asked { method: "POST", path: api.path(), nonce: &mark.nonce };
    let fresh = Mark::fresh(sim.clock.now_ms());
    match signer.sign_answer(asked, status.as_u16(), &mut headers, &body, &fresh) {
        Ok(()) => (status, headers, body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be signed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn malformed(error: &serde_json::Error) -> Answer {
    let detail = format!("line {}, column {}", error.line(), error.column());
    Answer { body: Err(Problem::new(StatusCode::BAD_REQUEST, "bad_request").detail(detail)), fault: None }
}

fn json(answer: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(answer).map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error"))
}

/// Twelve random digits.
fn rrn() -> Option<Rrn> {
    let digits = uuid::Uuid::new_v4().as_u128() % 1_000_000_000_000;
    format!("{digits:012}").parse().ok()
}

/// A body that breaks the connection instead of arriving.
struct Cut;

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())))
    }
}
