//! Health, readiness and metrics, over plain HTTP on loopback.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use certs::Watch;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bus::Bus;
use crate::metrics::Metrics;
use crate::roles::{Role, Roles};
use crate::store::Store;

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Admin {
    pub roles: Roles,
    /// None: no role of this instance needs it.
    pub store: Option<Arc<dyn Store>>,
    pub bus: Option<Arc<dyn Bus>>,
    /// `host:port` of npci-proxy.
    pub proxy: String,
    pub metrics: Arc<Metrics>,
    pub watch: Arc<Watch>,
}

const PROXY_ANSWERS_WITHIN: Duration = Duration::from_millis(500);

pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/readiness", get(readiness))
        .route("/metrics", get(metrics))
        .route("/certificates", get(certificates))
        .with_state(admin)
}

/// What the roles need. The proxy is only told of: while it is away payments are still taken, and sent later.
async fn readiness(State(admin): State<Admin>) -> Response {
    let mut missing = Vec::new();
    if let Some(store) = &admin.store
        && let Err(error) = store.figures().await
    {
        tracing::warn!(%error, "not ready");
        missing.push("store");
    }
    if let Some(bus) = &admin.bus
        && let Err(error) = bus.ready().await
    {
        tracing::warn!(%error, "not ready");
        missing.push("bus");
    }
    let mut away = Vec::new();
    if admin.roles.has(Role::Orchestrator) {
        let connected = timeout(PROXY_ANSWERS_WITHIN, TcpStream::connect(&admin.proxy)).await;
        if !matches!(connected, Ok(Ok(_))) {
            away.push("proxy");
        }
    }
    let ready = missing.is_empty();
    let roles: Vec<&str> = admin.roles.iter().map(Role::name).collect();
    let body = json!({"ready": ready, "roles": roles, "missing": missing, "away": away});
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn certificates(State(admin): State<Admin>) -> Response {
    Json(admin.watch.report()).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    if let Some(store) = &admin.store
        && let Ok(figures) = store.figures().await
    {
        admin.metrics.outbox.set(figures.outbox);
        admin.metrics.timers.set(figures.timers);
        admin.metrics.flagged.set(figures.flagged);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.text()).into_response()
}
