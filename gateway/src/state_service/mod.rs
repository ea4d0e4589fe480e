//! The state service: nonces, limits and issuers' keys for every Envoy worker of a policy.
//!
//! Owns the one memory that all workers share, so that a nonce is taken once and a limit holds across them. It
//! decides nothing: operations are the crate `filters`' and so is their arithmetic. It must never answer an
//! operation that it did not run, nor run part of a batch; nor tell anything but its health to a client that the policy
//! does not name.

mod flags;
mod known;
mod place;
mod plain;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{Extensions, HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use certs::Watch;
use certs::serve::PeerCertificate;
use filters::filter::Introspected;
use filters::policy::At;
use filters::state::{Op, Unanswered};
use serde_json::json;
use tokio::task::JoinSet;

use self::known::Known;
use self::place::Place;
use self::plain::Peer;
use crate::browser;
use crate::envoy::handed::Handed;
use crate::flags::Audited;
use crate::introspection::Answer;
use crate::jwks::Refetch;
use crate::load::Loaded;
use crate::metrics::Metrics;
use crate::reload::{HangUp, Reload};
use crate::revoke::{self, Caller, Door, Fields};
use crate::state::State as Remembered;

/// Most operations in one batch.
const MOST_OPS: usize = 64;
/// Longest batch, bytes.
const MOST_BYTES: usize = 64 * 1024;
/// Longest token that is asked about with what is around it, bytes.
const MOST_TOKEN_BYTES: usize = 40 * 1024;

/// What is asked is answered with what is known of the policy that serves when it comes, whatever takes over meanwhile.
#[derive(Debug)]
struct Service {
    standing: Standing,
    known: ArcSwap<Known>,
}

/// What stays while policies come and go.
#[derive(Debug)]
struct Standing {
    state: Arc<Remembered>,
    metrics: Metrics,
    /// The names of which a client's certificate must bear one; `None`: clients show none.
    allowed_clients: Option<Vec<String>>,
    /// What was told of changes of flags.
    flags_audited: Audited,
    /// Follows the files of the state and of the place where the service listens.
    watch: Arc<Watch>,
    /// Envoy's files; `None`: Envoy reads its own.
    handed: Option<Arc<Handed>>,
}

/// Serves until `shutdown`, then finishes what is in flight. Meanwhile follows the policy's file, and the files of the
/// Envoy whose configuration is in the folder `envoy`, if there is one.
pub async fn run(
    file: &Path,
    loaded: Loaded,
    envoy: Option<&Path>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let hang_up = HangUp::receive().context("SIGHUP cannot be received")?;
    let document = loaded.policy.document();
    let settings = document.state.service.as_ref().map(|At { value, .. }| value.clone()).context(
        "the policy has no `state.service`: write `state: { service: { address: \"127.0.0.1:7070\" } }`",
    )?;
    let folder = loaded.folder.clone();
    let metrics = Metrics::new()?;
    let watch = Watch::new("gateway state");
    let state = Arc::new(Remembered::new(&document.state, &folder, &metrics, &watch)?);
    let handed = envoy.map(|folder| Handed::new(folder, &metrics)).transpose()?.map(Arc::new);
    let allowed_clients = settings.tls.as_ref().map(|tls| tls.allowed_clients.value.clone());
    let flags_audited = Audited::default();
    let standing = Standing { state, metrics, allowed_clients, flags_audited, watch, handed };
    let known = ArcSwap::from_pointee(Known::new(loaded, &standing, None)?);
    let service = Arc::new(Service { standing, known });
    let Standing { state, metrics, watch, handed, .. } = &service.standing;
    let told = Arc::clone(&service);
    metrics.tell_of(move || {
        let of_envoy = told.standing.handed.as_ref().and_then(|handed| handed.watch());
        std::iter::once(Arc::clone(&told.known().watch)).chain(of_envoy).collect()
    })?;
    let reload = Reload::new(file, &service, hang_up);
    let place = Place::open(&settings, &folder, watch).await?;
    // They end when this does.
    let mut work = JoinSet::new();
    let (watched, following) = (Arc::clone(state), Arc::clone(&reload));
    work.spawn(async move { watched.keep_watch().await });
    work.spawn(async move { following.run().await });
    work.spawn(Arc::clone(watch).run());
    if let Some(handed) = handed {
        work.spawn(Arc::clone(handed).run());
    }
    place.serve(app(&service, reload), shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Every browser on the host can send a request here.
async fn never_from_pages(request: Request, next: Next) -> Response {
    match browser::cross_site(request.headers()) {
        Some(from_page) => {
            let (status, code, detail) = from_page.told();
            let (status, told) = revoke::problem(status, code, detail);
            (status, Json(told)).into_response()
        }
        None => next.run(request).await,
    }
}

fn app(service: &Arc<Service>, reload: Arc<Reload<Service>>) -> Router {
    Router::new()
        .route("/v1/state", post(run_batch).layer(DefaultBodyLimit::max(MOST_BYTES)))
        .route("/v1/keys", get(keys))
        .route("/v1/client-keys", get(client_keys))
        .route("/v1/keys/refresh", post(refresh_keys).layer(DefaultBodyLimit::max(1_024)))
        .route("/v1/introspect", post(introspect).layer(DefaultBodyLimit::max(MOST_TOKEN_BYTES)))
        .route("/v1/revocations", get(changes))
        .route("/v1/flags/{file}", get(flags::told))
        .route("/flags", get(flags::report))
        .route(
            "/revocations",
            get(revocations).post(revoke_one).layer(DefaultBodyLimit::max(revoke::MOST_BYTES)),
        )
        .route("/certificates", get(certificates))
        .route("/usage", get(usage))
        .route("/config", get(async move || Json(reload.report())))
        .route_layer(from_fn_with_state(Arc::clone(service), only_allowed_clients))
        .route_layer(from_fn(never_from_pages))
        .route("/health", get(|| async { Json(json!({ "status": "up" })) }))
        .route("/readiness", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(service))
}

/// A certificate of the right CA says who its holder is, not that it may ask here.
async fn only_allowed_clients(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let Some(allowed) = &service.standing.allowed_clients else { return next.run(request).await };
    let shown = request.extensions().get::<PeerCertificate>().and_then(|shown| shown.0.as_ref());
    if shown.is_some_and(|facts| allowed.iter().any(|name| facts.has_dns(name))) {
        return next.run(request).await;
    }
    let subject = shown.map(|facts| facts.subject.as_str());
    tracing::warn!(subject, path = request.uri().path(), "a client that the policy does not name is refused");
    service.refuse(
        StatusCode::FORBIDDEN,
        "client_not_allowed",
        "the certificate names no client of this service",
    )
}

/// A JSON list of operations in, the list of their answers out.
async fn run_batch(State(service): State<Arc<Service>>, body: Bytes) -> Response {
    let ops: Vec<Op> = match serde_json::from_slice(&body) {
        Ok(ops) => ops,
        Err(why) => return service.refuse(StatusCode::BAD_REQUEST, "batch_malformed", &why.to_string()),
    };
    if ops.len() > MOST_OPS {
        let why = format!("a batch has at most {MOST_OPS} operations");
        return service.refuse(StatusCode::BAD_REQUEST, "batch_too_long", &why);
    }
    match service.standing.state.run_for_places(ops).await {
        Ok(answers) => {
            service.standing.metrics.state_batches.with_label_values(&["run"]).inc();
            Json(answers).into_response()
        }
        Err(why @ Unanswered::Full) => {
            service.refuse(StatusCode::INSUFFICIENT_STORAGE, "state_full", &why.to_string())
        }
        Err(why @ Unanswered::Away) => {
            service.refuse(StatusCode::SERVICE_UNAVAILABLE, "state_away", &why.to_string())
        }
    }
}

/// The keys of every issuer that has any.
async fn keys(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    published(&service.known(), &headers)
}

fn published(known: &Known, headers: &HeaderMap) -> Response {
    let (etag, body) = known.issuers.keys.published();
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response()
}

/// The clients' secrets that are in files, to whom the socket or its certificate lets ask.
async fn client_keys(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let known = service.known();
    let Some(keys) = &known.client_keys else {
        let why = "secrets are told on a socket or over mutual TLS only";
        return (StatusCode::FORBIDDEN, Json(json!({ "code": "not_told_here", "detail": why })))
            .into_response();
    };
    let (generation, body) = keys.written();
    let etag = format!("\"{:x}-{generation}\"", known.life);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let body = Bytes::copy_from_slice(body.as_bytes());
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response()
}

/// Fetches the keys of the issuer that is known as the body says, at the rate that the policy bounds. Answers with the keys
/// of all issuers, and with `retry_after_s` when that issuer's could not be fetched now.
async fn refresh_keys(State(service): State<Arc<Service>>, known_as: String) -> Response {
    let known = service.known();
    let issuers = &known.issuers;
    let Some(issuer) = issuers.named(&known_as) else {
        return service.refuse(StatusCode::NOT_FOUND, "issuer_unknown", "the policy has no such issuer");
    };
    match issuers.keys.refresh_unknown(issuer).await {
        Refetch::Current => published(&known, &HeaderMap::new()),
        Refetch::NotNow { retry_after_s } => {
            let body = issuers.keys.published_with(Some(retry_after_s));
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
    }
}

/// A token that only its issuer can read.
#[derive(serde::Deserialize)]
struct Opaque {
    /// What it is known as.
    issuer: String,
    token: String,
}

/// What the issuer says of a token, and for how long that counts.
async fn introspect(State(service): State<Arc<Service>>, body: Bytes) -> Response {
    let Ok(Opaque { issuer, token }) = serde_json::from_slice(&body) else {
        return service.refuse(StatusCode::BAD_REQUEST, "token_malformed", "name an `issuer` and a `token`");
    };
    let known = service.known();
    let answer = match known.issuers.named(&issuer) {
        Some(issuer) => known.issuers.introspection.ask(issuer, &token).await,
        None => None,
    };
    let Some(Answer { said, until_ms }) = answer else {
        let why = "the issuer cannot be asked about it";
        return service.refuse(StatusCode::SERVICE_UNAVAILABLE, "introspection_unavailable", why);
    };
    let claims = match &said {
        Introspected::Active(claims) => Some(&**claims),
        Introspected::Inactive => None,
    };
    Json(json!({ "claims": claims, "until_ms": until_ms })).into_response()
}

/// Which changes of the list of what is revoked a worker knows.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Heard {
    epoch: String,
    after: u64,
}

/// What has been revoked, or taken back, since a worker last asked.
async fn changes(State(service): State<Arc<Service>>, Query(heard): Query<Heard>) -> Response {
    let told = service.standing.state.revoked().told(&heard.epoch, heard.after);
    let outcome = if told.is_news() { "told" } else { "unchanged" };
    service.standing.metrics.revocation_pulls.with_label_values(&[outcome]).inc();
    Json(told).into_response()
}

fn fields(headers: &HeaderMap) -> Fields<'_> {
    let field = |name| headers.get(name).map(header::HeaderValue::as_bytes);
    Fields { authorization: field(header::AUTHORIZATION), content_type: field(header::CONTENT_TYPE) }
}

async fn revocations(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let (status, told) = revoke::list(&service.standing.state, &service.known().operators, fields(&headers));
    (status, Json(told)).into_response()
}

async fn revoke_one(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    let (state, known) = (&service.standing.state, service.known());
    let plain = extensions.get::<Peer>().map(|peer| peer.0.to_string());
    let from = plain.or_else(|| extensions.get::<SocketAddr>().map(SocketAddr::to_string));
    let agent = headers.get(header::USER_AGENT).map(header::HeaderValue::as_bytes);
    let caller = Caller { door: Door::StateService, from, agent };
    let (status, told) = revoke::revoke(caller, state, &known.operators, fields(&headers), &body).await;
    (status, Json(told)).into_response()
}

async fn readiness(State(service): State<Arc<Service>>) -> Response {
    let known = service.known();
    let mut missing = known.issuers.keys.missing();
    if !service.standing.state.revoked().list().is_known() {
        missing.push("list of what is revoked");
    }
    if !service.standing.state.is_known() {
        missing.push("first word of the shared state");
    }
    let document = known.policy.document();
    let refused = service.standing.state.refused(document);
    let is_ready = missing.is_empty() && !Remembered::takes_out(&refused, document);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let age_s = service.standing.state.revocations_age_s();
    let report = json!({ "missing": missing, "refused": refused, "revocations_age_s": age_s });
    (status, Json(report)).into_response()
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let Standing { state, metrics, .. } = &service.standing;
    metrics.tell_revocations(state);
    metrics.state_entries.set(i64::try_from(state.entries()).unwrap_or(i64::MAX));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.text()).into_response()
}

/// What tenants have used, as the gateway's admin address tells it.
async fn usage(State(service): State<Arc<Service>>, uri: Uri) -> Response {
    match crate::usage::told(&service.known().policy, &service.standing.state, uri.query()).await {
        Ok(told) => Json(told).into_response(),
        Err(untold) => (untold.status(), format!("{untold}\n")).into_response(),
    }
}

async fn certificates(State(service): State<Arc<Service>>) -> Response {
    let mut report = service.known().watch.report();
    if let Some(handed) = &service.standing.handed {
        let of_envoy = handed.report();
        report.listeners.extend(of_envoy.listeners);
        report.clients.extend(of_envoy.clients);
    }
    Json(report).into_response()
}

impl Service {
    /// What is known now.
    fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    fn refuse(&self, status: StatusCode, code: &'static str, detail: &str) -> Response {
        self.standing.metrics.state_batches.with_label_values(&[code]).inc();
        (status, Json(json!({ "code": code, "detail": detail }))).into_response()
    }
}
