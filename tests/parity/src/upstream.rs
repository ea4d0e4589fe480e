//! An upstream that answers with what it was sent, or, asked by the field `x-stay`, not while a case lasts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::in_process::UPSTREAM_ANSWER;

/// Longer than any case.
const STAY: Duration = Duration::from_secs(60);

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    kept: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// What an upstream was sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    pub upstream: String,
    /// Names and bytes.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Upstream {
    /// Starts one.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(name: &'static str, tls: Arc<rustls::ServerConfig>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let kept = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&kept);
        let app = Router::new().fallback(async move |headers: HeaderMap, body: Bytes| {
            if headers.contains_key("x-stay") {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(STAY).await;
            }
            echo(name, &headers, &body)
        });
        let task = tokio::spawn(async move {
            let _ = certs::serve::serve(
                listener,
                tls,
                app,
                certs::serve::Limits::default(),
                std::future::pending(),
            )
            .await;
        });
        Ok(Self { address, kept, task })
    }

    /// Requests that it was asked to keep so far.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn echo(name: &str, headers: &HeaderMap, body: &Bytes) -> Response {
    let fields = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let seen = Seen { upstream: name.to_owned(), fields, body: body.to_vec() };
    let text = serde_json::to_vec(&seen).unwrap_or_default();
    UPSTREAM_ANSWER
        .into_iter()
        .fold(Response::builder(), |answer, (name, value)| answer.header(name, value))
        .body(Body::from(text))
        .unwrap_or_default()
}
