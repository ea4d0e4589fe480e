//! The state service: nonces, limits and issuers' keys for every Envoy worker of a policy.
//!
//! Owns the one memory that all workers share, so that a nonce is taken once and a limit holds across them. It
//! decides nothing: operations are the crate `filters`' and so is their arithmetic. It must never answer an
//! operation that it did not run, nor run part of a batch; nor tell anything but its health to a client that the policy
//! does not name.

mod flags;
mod plain;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use certs::pki::Purpose;
use certs::serve::{Limits, PeerCertificate};
use certs::{TlsFiles, Versions, Watch};
use filters::filter::Introspected;
use filters::policy::{At, Policy, StateService, StateTls};
use filters::state::{Op, Unanswered};
use serde_json::json;
use tokio::net::TcpListener;

use crate::client_keys::ClientKeys;
use crate::envoy::handed::Handed;
use crate::flags::{Audited, FeatureFlags};
use crate::introspection::{Answer, Introspection};
use crate::jwks::KeyStore;
use crate::load::{self, Loaded};
use crate::metrics::Metrics;
use crate::revoke::{self, Fields, Operators};
use crate::state::State as Remembered;

/// Most operations in one batch.
const MOST_OPS: usize = 64;
/// Longest batch, bytes.
const MOST_BYTES: usize = 64 * 1024;
/// Longest token that is asked about with what is around it, bytes.
const MOST_TOKEN_BYTES: usize = 40 * 1024;

#[derive(Debug)]
struct Service {
    policy: Policy,
    state: Arc<Remembered>,
    keys: Arc<KeyStore>,
    introspection: Introspection,
    /// `None`: whoever asks is not known, and is told no secret.
    client_keys: Option<ClientKeys>,
    /// The names of which a client's certificate must bear one; `None`: clients show none.
    allowed_clients: Option<Vec<String>>,
    /// Of this process, and no other.
    life: u64,
    flags: FeatureFlags,
    operators: Operators,
    metrics: Metrics,
    watch: Arc<Watch>,
    /// Envoy's files; `None`: Envoy reads its own.
    handed: Option<Arc<Handed>>,
}

/// Serves until `shutdown`, then finishes what is in flight. Meanwhile follows the files of the Envoy whose configuration
/// is in the folder `envoy`, if there is one.
pub async fn run(
    loaded: Loaded,
    envoy: Option<&Path>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let document = loaded.policy.document();
    let settings = document.state.service.as_ref().map(|At { value, .. }| value).context(
        "the policy has no `state.service`: write `state: { service: { address: \"127.0.0.1:7070\" } }`",
    )?;
    // Of its own: what the edge's listeners and upstreams show is followed as Envoy was told of it.
    let watch = Watch::new("gateway state");
    let metrics = Metrics::new()?;
    let handed = envoy.map(|folder| Handed::new(folder, &metrics)).transpose()?.map(Arc::new);
    let (own, of_envoy) = (Arc::clone(&watch), handed.clone());
    metrics.tell_of(move || {
        let of_envoy = of_envoy.as_ref().and_then(|handed| handed.watch());
        std::iter::once(Arc::clone(&own)).chain(of_envoy).collect()
    })?;
    let keys = Arc::new(KeyStore::new(&document.issuers, &loaded.folder, metrics.clone(), &watch)?);
    let introspection = Introspection::new(&document.issuers, &loaded.folder, metrics.clone(), &watch)?;
    let state = Arc::new(Remembered::new(&document.state, &loaded.folder, &metrics, &watch)?);
    let issuers = Arc::clone(&keys);
    watch.holds(move || issuers.report());
    let client_keys = match settings.knows_its_clients() {
        true => Some(ClientKeys::follow(document, &loaded.folder, &watch, None)?),
        false => None,
    };
    let fresh = tokio::spawn(Arc::clone(&keys).keep_fresh());
    let watched = Arc::clone(&state);
    let looking = tokio::spawn(async move { watched.keep_watch().await });
    let place = Place::open(settings, &loaded.folder, &watch).await?;
    let following = tokio::spawn(Arc::clone(&watch).run());
    let handing = handed.clone().map(|handed| tokio::spawn(handed.run()));
    let allowed_clients = settings.tls.as_ref().map(|tls| tls.allowed_clients.value.clone());
    let life = rand::random();
    // On loopback, on a socket, or known by its certificate.
    let operators = Operators::new(document, &loaded.folder, true)?;
    let policy = loaded.policy;
    let flags = FeatureFlags::follow(&policy, &loaded.folder, &watch, &Audited::default())?;
    let service = Service {
        policy,
        state,
        keys,
        introspection,
        client_keys,
        allowed_clients,
        life,
        flags,
        operators,
        metrics,
        watch,
        handed,
    };
    let app = app(Arc::new(service));
    let limits = Limits::default();
    match place {
        Place::Tls(listener, tls) => certs::serve::serve(listener, tls, app, limits, shutdown).await?,
        Place::Tcp(listener) => plain::serve(listener, app, limits, shutdown).await,
        Place::Socket(socket) => plain::serve(socket, app, limits, shutdown).await,
    }
    fresh.abort();
    looking.abort();
    following.abort();
    if let Some(handing) = handing {
        handing.abort();
    }
    tracing::info!("stopped");
    Ok(())
}

/// Where it listens.
enum Place {
    Tls(TcpListener, certs::ServerTls),
    Tcp(TcpListener),
    Socket(plain::Socket),
}

impl Place {
    async fn open(settings: &StateService, folder: &Path, watch: &Watch) -> anyhow::Result<Self> {
        match (settings.address, &settings.socket, &settings.tls) {
            (Some(address), _, tls) => {
                let listener = TcpListener::bind(address).await.with_context(|| format!("{address}"))?;
                tracing::info!(%address, mutual_tls = tls.is_some(), "ready");
                Ok(match tls {
                    Some(files) => Self::Tls(listener, server_tls(files, address, folder, watch)?),
                    None => Self::Tcp(listener),
                })
            }
            (None, Some(path), _) => {
                let path = folder.join(path);
                let socket = plain::Socket::open(&path).await.with_context(|| path.display().to_string())?;
                tracing::info!(socket = %path.display(), "ready");
                Ok(Self::Socket(socket))
            }
            (None, None, _) => anyhow::bail!("the state service has neither `address` nor `socket`"),
        }
    }
}

fn server_tls(
    files: &StateTls,
    address: SocketAddr,
    folder: &Path,
    watch: &Watch,
) -> anyhow::Result<certs::ServerTls> {
    let file = |reference| load::file(folder, reference).map_err(anyhow::Error::msg);
    let files = TlsFiles {
        certificate: file(&files.certificate)?,
        key: file(&files.key)?,
        ca: file(&files.client_ca)?,
        crl: files.crl.as_ref().map(file).transpose()?,
        stale_crl: load::stale_crl(files.stale_crl),
    };
    let live = files.watch(watch, "state", Purpose::Server)?;
    live.serves(watch, "state", address);
    Ok(live.server(watch, Versions::Tls13Only, &[b"http/1.1"])?)
}

fn app(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/state", post(run_batch).layer(DefaultBodyLimit::max(MOST_BYTES)))
        .route("/v1/keys", get(keys))
        .route("/v1/client-keys", get(client_keys))
        .route("/v1/keys/refresh", post(refresh_keys).layer(DefaultBodyLimit::max(1_024)))
        .route("/v1/introspect", post(introspect).layer(DefaultBodyLimit::max(MOST_TOKEN_BYTES)))
        .route("/v1/revocations", get(changes))
        .route("/v1/flags", get(flags::told))
        .route("/flags", get(flags::report))
        .route(
            "/revocations",
            get(revocations).post(revoke_one).layer(DefaultBodyLimit::max(revoke::MOST_BYTES)),
        )
        .route("/certificates", get(certificates))
        .route("/usage", get(usage))
        .route_layer(from_fn_with_state(Arc::clone(&service), only_allowed_clients))
        .route("/health", get(|| async { Json(json!({ "status": "up" })) }))
        .route("/readiness", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(service)
}

/// A certificate of the right CA says who its holder is, not that it may ask here.
async fn only_allowed_clients(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let Some(allowed) = &service.allowed_clients else { return next.run(request).await };
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
    match service.state.run_for_places(ops).await {
        Ok(answers) => {
            service.metrics.state_batches.with_label_values(&["run"]).inc();
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
    let (etag, body) = service.keys.published();
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response()
}

/// The clients' secrets that are in files, to whom the socket or its certificate lets ask.
async fn client_keys(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let Some(keys) = &service.client_keys else {
        let why = "secrets are told on a socket or over mutual TLS only";
        return (StatusCode::FORBIDDEN, Json(json!({ "code": "not_told_here", "detail": why })))
            .into_response();
    };
    let (generation, body) = keys.written();
    let etag = format!("\"{:x}-{generation}\"", service.life);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let body = Bytes::copy_from_slice(body.as_bytes());
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response()
}

/// Fetches the keys of the issuer that the body names, at the rate that the policy bounds, and answers with all.
async fn refresh_keys(State(service): State<Arc<Service>>, issuer: String) -> Response {
    if service.keys.refresh_unknown(&issuer).await {
        keys(State(service), HeaderMap::new()).await
    } else {
        service.refuse(StatusCode::TOO_MANY_REQUESTS, "not_refreshed", "there are no newer keys, or not yet")
    }
}

/// A token that only its issuer can read.
#[derive(serde::Deserialize)]
struct Opaque {
    issuer: String,
    token: String,
}

/// What the issuer says of a token, and for how long that counts.
async fn introspect(State(service): State<Arc<Service>>, body: Bytes) -> Response {
    let Ok(Opaque { issuer, token }) = serde_json::from_slice(&body) else {
        return service.refuse(StatusCode::BAD_REQUEST, "token_malformed", "name an `issuer` and a `token`");
    };
    let Some(Answer { said, until_ms }) = service.introspection.ask(&issuer, &token).await else {
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
struct Known {
    epoch: String,
    after: u64,
}

/// What has been revoked, or taken back, since a worker last asked.
async fn changes(State(service): State<Arc<Service>>, Query(known): Query<Known>) -> Response {
    let told = service.state.revoked().told(&known.epoch, known.after);
    let outcome = if told.is_news() { "told" } else { "unchanged" };
    service.metrics.revocation_pulls.with_label_values(&[outcome]).inc();
    Json(told).into_response()
}

fn fields(headers: &HeaderMap) -> Fields<'_> {
    let field = |name| headers.get(name).map(header::HeaderValue::as_bytes);
    Fields { authorization: field(header::AUTHORIZATION), content_type: field(header::CONTENT_TYPE) }
}

async fn revocations(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let (status, told) = revoke::list(&service.state, &service.operators, fields(&headers));
    (status, Json(told)).into_response()
}

async fn revoke_one(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let (status, told) = revoke::revoke(&service.state, &service.operators, fields(&headers), &body).await;
    (status, Json(told)).into_response()
}

async fn readiness(State(service): State<Arc<Service>>) -> Response {
    let mut missing = service.keys.missing();
    if !service.state.revoked().list().is_known() {
        missing.push("list of what is revoked");
    }
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let age_s = service.state.revocations_age_s();
    (status, Json(json!({ "missing": missing, "revocations_age_s": age_s }))).into_response()
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let entries = service.state.entries();
    service.metrics.tell_revocations(&service.state);
    service.metrics.state_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], service.metrics.text()).into_response()
}

/// What tenants have used, as the gateway's admin address tells it.
async fn usage(State(service): State<Arc<Service>>, uri: Uri) -> Response {
    match crate::usage::told(&service.policy, &service.state, uri.query()).await {
        Ok(told) => Json(told).into_response(),
        Err(untold) => (untold.status(), format!("{untold}\n")).into_response(),
    }
}

async fn certificates(State(service): State<Arc<Service>>) -> Response {
    let mut report = service.watch.report();
    if let Some(handed) = &service.handed {
        let of_envoy = handed.report();
        report.listeners.extend(of_envoy.listeners);
        report.clients.extend(of_envoy.clients);
    }
    Json(report).into_response()
}

impl Service {
    fn refuse(&self, status: StatusCode, code: &'static str, detail: &str) -> Response {
        self.metrics.state_batches.with_label_values(&[code]).inc();
        (status, Json(json!({ "code": code, "detail": detail }))).into_response()
    }
}
