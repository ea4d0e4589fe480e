//! The façade that txn-core calls. Owns the network's rules about status checks and peak hours, since this
//! is the only door.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Request, State, rejection::BytesRejection},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    budget::{self, Spent},
    clock::Clock,
    codec::{Api, CodecError, Exchange},
    config,
    expiring::Expiring,
    network::{CallError, Network},
    peak_hours, peer,
    problem::{Problem, Sent},
    wire::{Id, Pay, StatusInquiry, ValidateVpa},
};

const BODY_MAX_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub struct Inside {
    network: Arc<Network>,
    budget: budget::Rules,
    spent: Mutex<Expiring<Id, Spent>>,
    peak_hours: Option<peak_hours::Rules>,
    clock: Clock,
}

impl Inside {
    pub fn new(network: Arc<Network>, config: &config::Config, clock: Clock) -> Inside {
        let checks = config.status_checks;
        // Entries outlive the window by the time of one call.
        let spent = Expiring::new(checks.within_ms.saturating_add(60_000), checks.payments);
        Inside {
            network,
            budget: checks.rules(),
            spent: Mutex::new(spent),
            peak_hours: config.peak_hours.clone(),
            clock,
        }
    }

    pub fn router(self, allowed_clients: &[String]) -> Router {
        let routes = Router::new()
            .route(Api::Pay.path(), post(pay))
            .route(Api::Status.path(), post(status))
            .route(Api::Validate.path(), post(validate))
            .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found").sent(Sent::No) })
            .method_not_allowed_fallback(|| async {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed").sent(Sent::No)
            })
            .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
            .with_state(Arc::new(self));
        peer::only(routes, allowed_clients)
    }

    async fn call<E>(&self, request: &E, caller: &Caller) -> Result<Response, CallError>
    where
        E: Exchange,
        E::Answer: Serialize + std::fmt::Debug,
    {
        let answer = self.network.call(request, &caller.request_id).await?;
        let (request_id, traceparent) = (&caller.request_id, &caller.traceparent);
        tracing::info!(api = E::API.name(), request_id, traceparent, ?answer, "answered by the network");
        Ok(Json(answer).into_response())
    }

    /// Takes one check out of the payment's budget.
    fn take_check(&self, inquiry: &StatusInquiry) -> Result<(), Problem> {
        let now_ms = self.clock.now_ms();
        let started_ms = inquiry.original_at.unix_ms;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = spent.entry(now_ms, inquiry.txn_id.clone(), || Spent { started_ms, checks: 0 });
        let refused = Problem::new(StatusCode::TOO_MANY_REQUESTS, "status_budget_exhausted").sent(Sent::No);
        match budget::decide(&self.budget, spent, now_ms) {
            budget::Verdict::Allowed => {
                spent.checks += 1;
                Ok(())
            }
            budget::Verdict::TooSoon { retry_after_ms } => {
                Err(refused.detail("too soon after the payment").retry_after_ms(retry_after_ms))
            }
            budget::Verdict::Exhausted => {
                Err(refused.detail("no further status check of this payment is allowed"))
            }
        }
    }

    /// A check that the network never saw is not spent.
    fn give_check_back(&self, inquiry: &StatusInquiry) {
        let started_ms = inquiry.original_at.unix_ms;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let spent =
            spent.entry(self.clock.now_ms(), inquiry.txn_id.clone(), || Spent { started_ms, checks: 0 });
        spent.checks = spent.checks.saturating_sub(1);
    }

    fn check_peak_hours(&self, caller: &Caller) -> Result<(), Problem> {
        let Some(rules) = &self.peak_hours else { return Ok(()) };
        match (caller.initiated_by, peak_hours::ends_in_ms(rules, self.clock.now_ms())) {
            (Initiator::User, _) | (_, None) => Ok(()),
            (Initiator::System, Some(ends_in_ms)) => {
                Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "peak_hours")
                    .detail("in peak hours only calls that a user started are made")
                    .sent(Sent::No)
                    .retry_after_ms(ends_in_ms))
            }
        }
    }
}

async fn pay(State(inside): State<Arc<Inside>>, caller: Caller, Body(pay): Body<Pay>) -> Answer {
    let now_ms = inside.clock.now_ms();
    inside
        .spent
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(now_ms, pay.txn_id.clone(), || Spent { started_ms: now_ms, checks: 0 });
    inside.call(&pay, &caller).await.map_err(Problem::from)
}

async fn status(
    State(inside): State<Arc<Inside>>,
    caller: Caller,
    Body(inquiry): Body<StatusInquiry>,
) -> Answer {
    inside.check_peak_hours(&caller)?;
    inside.take_check(&inquiry)?;
    inside.call(&inquiry, &caller).await.map_err(|error| {
        if error.sent() == Sent::No {
            inside.give_check_back(&inquiry);
        }
        error.into()
    })
}

async fn validate(
    State(inside): State<Arc<Inside>>,
    caller: Caller,
    Body(validate): Body<ValidateVpa>,
) -> Answer {
    inside.check_peak_hours(&caller)?;
    inside.call(&validate, &caller).await.map_err(Problem::from)
}

type Answer = Result<Response, Problem>;

/// What the caller says about the call itself.
struct Caller {
    request_id: String,
    traceparent: Option<String>,
    initiated_by: Initiator,
}

/// Who started a call, by the header `x-initiated-by`; see [`peak_hours`].
#[derive(Clone, Copy)]
enum Initiator {
    /// Also txn-core, when it checks a payment that a user is waiting for.
    User,
    /// Also whoever does not say.
    System,
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Caller, Self::Rejection> {
        let text = |name: &str| header_text(&parts.headers, name);
        Ok(Caller {
            request_id: text("x-request-id").unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            traceparent: text("traceparent"),
            initiated_by: match text("x-initiated-by").as_deref() {
                Some("user") => Initiator::User,
                _ => Initiator::System,
            },
        })
    }
}

/// A short visible-ASCII header, or nothing.
fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (1..=128).contains(&text.len()).then(|| text.to_owned())
}

/// A body that is the message it should be.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Problem> {
        let body = Bytes::from_request(request, state).await.map_err(|error: BytesRejection| {
            match error.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large")
                }
                _ => Problem::new(StatusCode::BAD_REQUEST, "bad_request")
                    .detail("the body did not arrive whole"),
            }
            .sent(Sent::No)
        })?;
        serde_json::from_slice(&body).map(Body).map_err(|error| {
            // Where, not what: serde quotes a value that it did not expect.
            let detail = CodecError::from(error).to_string();
            Problem::new(StatusCode::BAD_REQUEST, "bad_request").detail(detail).sent(Sent::No)
        })
    }
}
