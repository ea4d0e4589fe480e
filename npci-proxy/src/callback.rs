//! What the network tells us: verified, then made durable by txn-core, then acknowledged, in this order.
//!
//! The checks, each before the next: client certificate (in TLS), its name, size of the body, content digest,
//! signature, freshness, nonce. The nonce is consumed only once the signature holds, so that nobody else can
//! use up the network's nonces; when txn-core is away the network comes back with a fresh one.
//!
//! Nonces are remembered in memory only, so what was created before this process started may be a replay of
//! what the one before it took, and is refused. The network loses nothing by it: it signs undelivered news
//! again, with a fresh `created`, at every attempt.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;

use crate::{
    clock::Clock,
    codec::{CALLBACK_PATH, Codec},
    config,
    core::{Core, CoreError},
    expiring::{Expiring, Remembered},
    freshness::{self, Stale},
    metrics::Metrics,
    peer,
    problem::Problem,
    seal::{Asked, Broken, Mark, Signer, Verifier},
    wire::{Ack, CallbackAck},
};

#[derive(Debug)]
pub struct Callbacks {
    codec: Codec,
    verifier: Verifier,
    signer: Signer,
    freshness: freshness::Rules,
    seen: Mutex<Expiring<String, ()>>,
    /// Since when nonces are remembered, Unix time.
    started_ms: i64,
    slots: Semaphore,
    body_max_bytes: usize,
    core: Arc<Core>,
    clock: Clock,
    metrics: Metrics,
}

impl Callbacks {
    pub fn new(
        config: &config::Config,
        signer: Signer,
        verifier: Verifier,
        core: Arc<Core>,
        clock: Clock,
        metrics: Metrics,
    ) -> Callbacks {
        let freshness = config.freshness;
        Callbacks {
            codec: Codec::Json,
            verifier,
            signer,
            freshness,
            seen: Mutex::new(Expiring::new(freshness.remember_ms(), freshness.nonces)),
            slots: Semaphore::new(config.outside.max_in_flight),
            body_max_bytes: config.outside.body_max_bytes,
            core,
            started_ms: clock.now_ms(),
            clock,
            metrics,
        }
    }

    pub fn router(self, allowed_clients: &[String]) -> Router {
        let routes = Router::new()
            .route(CALLBACK_PATH, post(receive))
            .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found") })
            .method_not_allowed_fallback(|| async {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
            })
            .with_state(Arc::new(self));
        peer::only(routes, allowed_clients)
    }

    /// Signature, freshness and nonce.
    fn admit(&self, headers: &HeaderMap, body: &[u8]) -> Result<Mark, Problem> {
        let now_ms = self.clock.now_ms();
        let mark =
            self.verifier.verify_request(("POST", CALLBACK_PATH), headers, body, now_ms).map_err(broken)?;
        self.freshness.check(mark.created_s, now_ms).map_err(|stale| {
            let code = match stale {
                Stale::TooOld => "created_too_old",
                Stale::InFuture => "created_in_future",
            };
            Problem::new(StatusCode::UNAUTHORIZED, code).detail(stale.to_string())
        })?;
        // `created` has whole seconds: the second in which we started counts as before.
        if mark.created_s.saturating_mul(1_000) < self.started_ms {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "created_before_start")
                .detail("created before this service started; sign again"));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.remember(now_ms, mark.nonce.clone(), ()) {
            Remembered::New => Ok(mark),
            Remembered::Known => Err(Problem::new(StatusCode::UNAUTHORIZED, "nonce_replayed")
                .detail("this nonce was used before; sign again with a fresh one")),
            Remembered::Full => {
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "nonce_store_full").retry_after_ms(5_000))
            }
        }
    }

    /// What txn-core makes of an admitted callback.
    async fn deliver(&self, body: &[u8], request_id: &str) -> Result<(CallbackAck, &'static str), Problem> {
        let callback = self.codec.callback(body).map_err(|error| {
            tracing::warn!(request_id, %error, "a signed callback has a wrong shape");
            Problem::new(StatusCode::BAD_REQUEST, "bad_request").detail(error.to_string())
        })?;
        let busy = |code| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code).retry_after_ms(1_000);
        let _slot = self.slots.try_acquire().map_err(|_| busy("too_many_callbacks"))?;
        let (txn_id, msg_id) = (&callback.txn_id, &callback.msg_id);
        match self.core.deliver(&callback, request_id).await {
            Ok(applied) => {
                tracing::info!(request_id, %txn_id, %msg_id, outcome = ?callback.outcome, applied, "callback is durable");
                let verdict = if applied { "applied" } else { "duplicate" };
                Ok((CallbackAck { msg_id: callback.msg_id, ack: Ack::Accepted }, verdict))
            }
            Err(error) => {
                tracing::warn!(request_id, %txn_id, %msg_id, %error, "callback is not durable");
                Err(match error {
                    CoreError::UnknownTransaction => {
                        Problem::new(StatusCode::NOT_FOUND, "unknown_transaction")
                    }
                    CoreError::Refused(_) => Problem::new(StatusCode::BAD_GATEWAY, "callback_refused"),
                    CoreError::Away => busy("core_unavailable"),
                })
            }
        }
    }

    /// An answer that the network can verify as ours.
    fn signed(&self, mark: &Mark, status: StatusCode, mut headers: HeaderMap, body: Vec<u8>) -> Response {
        let asked = Asked { method: "POST", path: CALLBACK_PATH, nonce: &mark.nonce };
        let fresh = Mark::fresh(self.clock.now_ms());
        match self.signer.sign_answer(asked, status.as_u16(), &mut headers, &body, &fresh) {
            Ok(()) => (status, headers, Body::from(body)).into_response(),
            Err(error) => {
                tracing::error!(%error, "an answer to a callback could not be signed");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error").into_response()
            }
        }
    }
}

async fn receive(State(callbacks): State<Arc<Callbacks>>, request: Request) -> Response {
    let request_id = uuid::Uuid::new_v4().to_string();
    let refuse = |problem: &Problem| {
        tracing::warn!(request_id, code = problem.code, "callback refused");
        callbacks.metrics.callback(problem.code);
    };
    let query = request.uri().query().is_some();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, callbacks.body_max_bytes).await else {
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
        refuse(&problem);
        return problem.into_response();
    };
    // The signature covers the path only.
    if query {
        let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_request").detail("a callback has no query");
        refuse(&problem);
        return problem.into_response();
    }
    let mark = match callbacks.admit(&parts.headers, &body) {
        Ok(mark) => mark,
        Err(problem) => {
            refuse(&problem);
            return problem.into_response();
        }
    };
    let answer = callbacks.deliver(&body, &request_id).await.and_then(|(ack, verdict)| {
        let body = callbacks
            .codec
            .callback_ack(&ack)
            .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error"))?;
        Ok((body, verdict))
    });
    match answer {
        Ok((body, verdict)) => {
            callbacks.metrics.callback(verdict);
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            callbacks.signed(&mark, StatusCode::OK, headers, body)
        }
        Err(problem) => {
            refuse(&problem);
            let (headers, body) = problem.parts();
            callbacks.signed(&mark, problem.status, headers, body)
        }
    }
}

fn broken(broken: Broken) -> Problem {
    let (status, code) = match broken {
        Broken::DigestMissing => (StatusCode::BAD_REQUEST, "digest_missing"),
        Broken::DigestMismatch => (StatusCode::BAD_REQUEST, "digest_mismatch"),
        Broken::SignatureMissing => (StatusCode::UNAUTHORIZED, "signature_missing"),
        Broken::Malformed
        | Broken::CoversTooLittle
        | Broken::UnknownKey
        | Broken::Invalid
        | Broken::OtherRequest => (StatusCode::UNAUTHORIZED, "signature_invalid"),
    };
    Problem::new(status, code).detail(broken.to_string())
}
