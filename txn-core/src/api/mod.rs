//! The service's HTTP surface: who may call what, and every refusal as problem+json with a stable code.

mod callbacks;
mod events;
mod find;
mod note;
mod problem;
mod send;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use certs::serve::PeerCertificate;

pub use problem::Problem;

use crate::config::Config;
use crate::notify::Hub;
use crate::orchestrator::Orchestrator;
use crate::roles::Role;
use crate::store::{IdempotencyKey, Store, Trace};
use crate::txn::{PspCode, Vpa};

/// The description that clients read; a test holds it against real answers.
pub const OPENAPI: &str = include_str!("../../openapi.json");

/// No request body is longer.
const MAX_BODY: usize = 64 * 1024;

/// What the handlers share.
#[derive(Debug)]
pub struct Api {
    pub config: Config,
    pub psp: PspCode,
    pub store: Arc<dyn Store>,
    pub orchestrator: Orchestrator,
    pub hub: Arc<Hub>,
    pub metrics: Arc<crate::metrics::Metrics>,
    /// Keys whose first request has no answer yet.
    pub in_flight: Mutex<HashSet<IdempotencyKey>>,
}

/// All paths of the service listener that the roles serve.
pub fn router(api: Arc<Api>) -> Router {
    let mut public = Router::new().route("/openapi.json", get(openapi));
    let mut internal = Router::new();
    for role in api.config.roles.iter() {
        match role {
            Role::Api => {
                public = public
                    .route("/v1/transactions/send", post(send::send))
                    .route("/v1/transactions/{id}", get(find::find));
                internal = internal.route("/internal/v1/network-events", post(callbacks::network_event));
            }
            Role::Notify => public = public.route("/v1/transactions/{id}/events", get(events::events)),
            Role::Orchestrator | Role::Relay | Role::Audit => {}
        }
    }
    let peers = &api.config.peers;
    let public = public.layer(from_fn_with_state(Peer(peers.api.clone()), only_peer));
    let internal = internal.layer(from_fn_with_state(Peer(peers.callbacks.clone()), only_peer));
    public
        .merge(internal)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "not_found", "No such path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Not with this method")
        })
        .with_state(api)
}

/// The caller, as the gateway says; nobody else may call.
#[derive(Debug)]
struct Caller {
    tenant: String,
    subject: String,
    device: String,
    vpas: Vec<Vpa>,
    trace: Trace,
}

impl Caller {
    fn from_headers(headers: &HeaderMap) -> Result<Caller, Problem> {
        let tenant = text(headers, "x-torana-tenant").filter(|tenant| !tenant.is_empty());
        let subject = text(headers, "x-torana-subject").filter(|subject| !subject.is_empty());
        let (Some(tenant), Some(subject)) = (tenant, subject) else {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "identity_missing", "No tenant or subject"));
        };
        let vpas = text(headers, "x-torana-vpa").unwrap_or_default();
        Ok(Caller {
            tenant,
            subject,
            device: text(headers, "x-torana-device").unwrap_or_default(),
            vpas: vpas.split(',').filter_map(|vpa| vpa.trim().parse().ok()).collect(),
            trace: trace(headers),
        })
    }

    fn owns(&self, vpa: &Vpa) -> bool {
        self.vpas.contains(vpa)
    }
}

fn trace(headers: &HeaderMap) -> Trace {
    let short = |name| text(headers, name).filter(|value| value.len() <= 128);
    Trace { request_id: short("x-request-id"), traceparent: short("traceparent") }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The whole body, if it is not too long.
async fn whole(body: Body) -> Result<axum::body::Bytes, Problem> {
    axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too long or was cut off")
    })
}

/// The DNS name that has to be in the caller's certificate.
#[derive(Debug, Clone)]
struct Peer(String);

async fn only_peer(
    State(Peer(name)): State<Peer>,
    peer: Option<Extension<PeerCertificate>>,
    request: Request,
    next: Next,
) -> Response {
    let facts = peer.and_then(|Extension(PeerCertificate(facts))| facts);
    match facts {
        Some(facts) if facts.has_dns(&name) => next.run(request).await,
        _ => {
            tracing::warn!(
                path = request.uri().path(),
                expected = name,
                "a peer called what is not its to call"
            );
            Problem::new(StatusCode::FORBIDDEN, "peer_not_allowed", "Not with this certificate")
                .into_response()
        }
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
