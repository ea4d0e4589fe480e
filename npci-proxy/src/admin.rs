//! The admin address: alive, ready, figures. Plain HTTP, for loopback.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use certs::Watch;
use http::{StatusCode, header};
use serde_json::json;

use crate::{breaker, codec::Api, core::Core, metrics::Metrics, network::Network};

#[derive(Clone, Debug)]
pub struct Admin {
    pub network: Arc<Network>,
    pub core: Arc<Core>,
    pub metrics: Metrics,
    pub watch: Arc<Watch>,
}

impl Admin {
    pub fn router(self) -> Router {
        Router::new()
            .route("/health", get(|| async { Json(json!({"status": "up"})) }))
            .route("/readiness", get(readiness))
            .route("/metrics", get(metrics))
            .route("/certificates", get(certificates))
            .with_state(self)
    }
}

async fn readiness(State(admin): State<Admin>) -> impl IntoResponse {
    let (network, core) = tokio::join!(reachable(admin.network.url()), reachable(admin.core.url()));
    let breaker_closed = !matches!(admin.network.breaker_state(Api::Pay), breaker::State::Open { .. });
    let dependencies = [("network", network), ("txn-core", core), ("network_breaker", breaker_closed)];
    let missing: Vec<_> = dependencies.iter().filter(|(_, usable)| !usable).map(|(name, _)| name).collect();
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": missing.is_empty(), "missing": missing})))
}

/// Whether somebody listens there; says nothing about who.
async fn reachable(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connecting = tokio::net::TcpStream::connect((host, port));
    matches!(tokio::time::timeout(Duration::from_secs(1), connecting).await, Ok(Ok(_)))
}

async fn certificates(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.watch.report())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.text())
}
