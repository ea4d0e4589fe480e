//! Health, readiness, the policy that serves, certificates, usage and metrics, on an address of their own.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use crate::gate::Gate;
use crate::reload::Reload;
use crate::usage;

pub(crate) struct Admin {
    gate: Arc<Gate>,
    reload: Arc<Reload>,
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        match session.req_header().uri.path() {
            "/health" => answer(StatusCode::OK, "application/json", r#"{"status":"up"}"#.into()),
            "/readiness" => self.readiness(),
            "/metrics" => {
                let standing = self.gate.standing();
                let metrics = &standing.metrics;
                metrics.state_entries.set(standing.state.entries() as i64);
                answer(StatusCode::OK, "text/plain; version=0.0.4", metrics.text())
            }
            "/certificates" => match serde_json::to_string(&self.gate.edge().watch().report()) {
                Ok(report) => answer(StatusCode::OK, "application/json", report),
                Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            },
            "/config" => answer(StatusCode::OK, "application/json", self.reload.report().to_string()),
            "/usage" => {
                let query = session.req_header().uri.query();
                match usage::told(&self.gate.edge().policy, &self.gate.standing().state, query).await {
                    Ok(told) => answer(StatusCode::OK, "application/json", told.to_string()),
                    Err(untold) => answer(untold.status(), "text/plain", format!("{untold}\n")),
                }
            }
            _ => answer(
                StatusCode::NOT_FOUND,
                "text/plain",
                "Here are /health, /readiness, /config, /certificates, /usage and /metrics.\n".into(),
            ),
        }
    }
}

impl Admin {
    pub(crate) fn new(gate: &Arc<Gate>, reload: &Arc<Reload>) -> Self {
        Self { gate: Arc::clone(gate), reload: Arc::clone(reload) }
    }

    fn readiness(&self) -> Response<Vec<u8>> {
        let missing = self.gate.edge().missing();
        let (status, word) = if missing.is_empty() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        };
        answer(
            status,
            "application/json",
            serde_json::json!({ "status": word, "missing": missing }).to_string(),
        )
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Vec<u8>> {
    let mut response = Response::new(body.into_bytes());
    *response.status_mut() = status;
    let length = response.body().len().into();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length);
    response
}
