//! Health, readiness, the policy that serves, certificates, flags, revocations, usage and metrics, on an address of their
//! own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use crate::browser::{self, FromPage};
use crate::flags::ofrep::{self, Asked};
use crate::gate::Gate;
use crate::listeners::Listeners;
use crate::reload::Reload;
use crate::revoke::{self, Caller, Door, Fields};
use crate::state::State;
use crate::usage;

pub(crate) struct Admin {
    gate: Arc<Gate>,
    reload: Arc<Reload<Listeners>>,
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let path = session.req_header().uri.path();
        if let Some(from_page) = self.page_refused(session.req_header()) {
            let (status, code, detail) = from_page.told();
            return answer(status, "application/json", revoke::problem(status, code, detail).1.to_string());
        }
        let reads = matches!(session.req_header().method, Method::GET | Method::HEAD);
        if !reads && READ_ONLY.contains(&path) {
            let (status, told) =
                revoke::problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "GET or HEAD");
            let mut refusal = answer(status, "application/json", told.to_string());
            refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        if let Some(asked) = ofrep::asked(path) {
            return self.evaluate(session, asked).await;
        }
        match path {
            "/health" => answer(StatusCode::OK, "application/json", r#"{"status":"up"}"#.into()),
            "/readiness" => self.readiness(),
            "/metrics" => {
                let standing = self.gate.standing();
                let metrics = &standing.metrics;
                metrics.state_entries.set(standing.state.entries() as i64);
                metrics.tell_revocations(&standing.state);
                answer(StatusCode::OK, "text/plain; version=0.0.4", metrics.text())
            }
            "/certificates" => match serde_json::to_string(&self.gate.edge().watch().report()) {
                Ok(report) => answer(StatusCode::OK, "application/json", report),
                Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            },
            "/flags" => {
                let told = self.gate.edge().flags().report(Some(&self.gate.metrics().flags));
                answer(StatusCode::OK, "application/json", told.to_string())
            }
            "/revocations" => self.revocations(session).await,
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
                "Here are /health, /readiness, /config, /certificates, /flags, /ofrep/v1/evaluate/flags, /revocations, \
                 /usage and /metrics.\n"
                    .into(),
            ),
        }
    }
}

/// Paths that change nothing.
const READ_ONLY: [&str; 7] =
    ["/health", "/readiness", "/metrics", "/certificates", "/flags", "/config", "/usage"];
/// Paths that probes and scrapers ask for, by whatever name they know.
const PROBED: [&str; 3] = ["/health", "/readiness", "/metrics"];

impl Admin {
    fn page_refused(&self, header: &RequestHeader) -> Option<FromPage> {
        let edge = self.gate.edge();
        let allowed = &edge.policy.document().admin.allowed_hosts;
        let is_probe = PROBED.contains(&header.uri.path());
        browser::cross_site(&header.headers)
            .or_else(|| browser::unknown_host(&header.headers, allowed).filter(|_| !is_probe))
    }

    pub(crate) fn new(gate: &Arc<Gate>, reload: &Arc<Reload<Listeners>>) -> Self {
        Self { gate: Arc::clone(gate), reload: Arc::clone(reload) }
    }

    fn readiness(&self) -> Response<Vec<u8>> {
        let edge = self.gate.edge();
        let missing = edge.missing();
        let document = edge.policy.document();
        let refused = self.gate.standing().state.refused(document);
        let (status, word) = if missing.is_empty() && !State::takes_out(&refused, document) {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        };
        answer(
            status,
            "application/json",
            serde_json::json!({
                "status": word, "missing": missing, "disabled_upstreams": edge.disabled(), "refused": refused,
                "revocations_age_s": self.gate.standing().state.revocations_age_s(),
            })
            .to_string(),
        )
    }

    /// What flags say of whomever the question names.
    async fn evaluate(&self, session: &mut ServerSession, asked: Asked) -> Response<Vec<u8>> {
        let (status, told) = match session.req_header().method.clone() {
            Method::POST => match tokio::time::timeout(BODY_WITHIN, body(session, ofrep::MOST_BYTES)).await {
                Ok(Some(body)) => {
                    let edge = self.gate.edge();
                    ofrep::answer(edge.flags(), &asked, &body, crate::now_ms() / 1_000)
                }
                Ok(None) | Err(_) => {
                    revoke::problem(StatusCode::BAD_REQUEST, "body", "send the whole of a short body")
                }
            },
            _ => revoke::problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "POST"),
        };
        answer(status, "application/json", told.to_string())
    }

    async fn revocations(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let (header, from) = (session.req_header(), session.client_addr());
        let field = |name| header.headers.get(name).map(|value| value.as_bytes().to_vec());
        let (authorization, content_type) = (field(header::AUTHORIZATION), field(header::CONTENT_TYPE));
        let (method, agent) = (header.method.clone(), field(header::USER_AGENT));
        let from = from.and_then(|from| from.as_inet()).map(ToString::to_string);
        let caller = Caller { door: Door::Admin, from, agent: agent.as_deref() };
        let fields =
            Fields { authorization: authorization.as_deref(), content_type: content_type.as_deref() };
        let (state, edge) = (&self.gate.standing().state, self.gate.edge());
        let operators = edge.operators();
        let (status, told) = match method {
            Method::GET => revoke::list(state, operators, fields),
            Method::POST => {
                match tokio::time::timeout(BODY_WITHIN, body(session, revoke::MOST_BYTES)).await {
                    Ok(Some(body)) => revoke::revoke(caller, state, operators, fields, &body).await,
                    Ok(None) | Err(_) => {
                        revoke::problem(StatusCode::BAD_REQUEST, "body", "send the whole of a short body")
                    }
                }
            }
            _ => revoke::problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "GET or POST"),
        };
        answer(status, "application/json", told.to_string())
    }
}

const BODY_WITHIN: Duration = Duration::from_secs(5);

/// The whole body; `None` when it breaks off or is too long.
async fn body(session: &mut ServerSession, most: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = session.read_request_body().await.ok()? {
        if body.len() + chunk.len() > most {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
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
