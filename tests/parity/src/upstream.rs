//! An upstream that answers with what it was sent.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::in_process::UPSTREAM_ANSWER;

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
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
        let app = Router::new().fallback(move |headers: HeaderMap, body: Bytes| echo(name, headers, body));
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
        Ok(Self { address, task })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(name: &str, headers: HeaderMap, body: Bytes) -> Response {
    let fields = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let seen = Seen { upstream: name.to_owned(), fields, body: body.to_vec() };
    let text = serde_json::to_vec(&seen).unwrap_or_default();
    UPSTREAM_ANSWER
        .into_iter()
        .fold(Response::builder(), |answer, (name, value)| answer.header(name, value))
        .body(Body::from(text))
        .unwrap_or_default()
}
