//! An issuer whose tokens only it can read: a token is its claims in base64url, so that nothing has to be told twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use filters::filter::Introspected;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The edge's secret there.
pub const CLIENT_SECRET: &str = "the edge's secret at its issuer!";
/// The claim by which a case says that the issuer fails: `500`, `garbage`, `slow` or `huge`.
const FAILS: &str = "fails";

/// A running issuer.
#[derive(Debug)]
pub struct Introspection {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Introspection {
    /// Starts one.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(tls: Arc<rustls::ServerConfig>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(AtomicUsize::new(0));
        let app = Router::new().route("/introspect", post(introspect)).with_state(Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let limits = certs::serve::Limits::default();
            let _ = certs::serve::serve(listener, tls, app, limits, std::future::pending()).await;
        });
        Ok(Self { address, asked, task })
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Introspection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A token with these claims.
pub fn token(claims: &Value) -> String {
    URL_SAFE_NO_PAD.encode(claims.to_string())
}

/// What such an issuer says of a token; `None`: nothing that can be understood.
pub fn said(token: &str) -> Option<Introspected> {
    let claims = URL_SAFE_NO_PAD.decode(token).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let Some(claims @ Value::Object(_)) = claims else { return Some(Introspected::Inactive) };
    if claims.get(FAILS).is_some() {
        return None;
    }
    Some(match claims["active"].as_bool() {
        Some(true) => Introspected::Active(claims.to_string().into()),
        Some(false) | None => Introspected::Inactive,
    })
}

async fn introspect(State(asked): State<Arc<AtomicUsize>>, headers: HeaderMap, body: String) -> Response {
    asked.fetch_add(1, Ordering::Relaxed);
    let secret = CLIENT_SECRET.replace('\'', "%27").replace(' ', "%20").replace('!', "%21");
    let known = format!("Basic {}", STANDARD.encode(format!("edge:{secret}")));
    if headers.get("authorization").is_none_or(|sent| sent != known.as_str()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let token = body.split('&').find_map(|field| field.strip_prefix("token=")).unwrap_or_default();
    let json = |text: String| ([("content-type", "application/json")], text).into_response();
    match said(token) {
        Some(Introspected::Active(claims)) => json(claims.to_string()),
        Some(Introspected::Inactive) => json("{\"active\":false}".to_owned()),
        None => {
            let text = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
            let claims: Value = serde_json::from_slice(&text).unwrap_or_default();
            match claims[FAILS].as_str() {
                Some("garbage") => json("<html>active: true".to_owned()),
                Some("huge") => json(format!("{{\"active\":true,\"x\":\"{}\"}}", "x".repeat(100_000))),
                Some("slow") => {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    json(claims.to_string())
                }
                Some(_) | None => (StatusCode::INTERNAL_SERVER_ERROR, claims.to_string()).into_response(),
            }
        }
    }
}
