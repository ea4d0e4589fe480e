//! An upstream that answers with what it was sent, or, asked by the field `x-stay`, not before it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::answering::{Seen, answer};

/// How long a request stays of which nobody says more: longer than any case.
const STAY: Duration = Duration::from_secs(60);

/// More than any edge passes on.
const MOST_BODY_BYTES: usize = 1024 * 1024;

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    kept: Arc<AtomicUsize>,
    let_go: Arc<Notify>,
    go_on: Arc<Notify>,
    task: JoinHandle<()>,
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
        let (let_go, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let lets_go = Arc::clone(&let_go);
        let goes_on = Arc::clone(&go_on);
        let app = Router::new().fallback(async move |asked: Request| {
            let (asked, body) = asked.into_parts();
            if asked.headers.contains_key("x-stay") {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = tokio::time::timeout(STAY, lets_go.notified()).await;
            }
            let body = to_bytes(body, MOST_BODY_BYTES).await.unwrap_or_default();
            // Not 200, and so no pass, when the case asks for what there is not.
            echo(name, &asked, &body, &goes_on).unwrap_or_else(|why| {
                let mut response = Response::new(Body::from(format!("{why:#}")));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            })
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
        Ok(Self { address, kept, let_go, go_on, task })
    }

    /// Requests that it was asked to keep so far.
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Answers one request that it keeps.
    pub fn let_go(&self) {
        self.let_go.notify_one();
    }

    /// Lets the second half of an answer come that was to come in halves.
    pub fn go_on(&self) {
        self.go_on.notify_one();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn echo(name: &str, asked: &Parts, body: &Bytes, go_on: &Arc<Notify>) -> anyhow::Result<Response> {
    let fields = &asked.headers;
    let fields = fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let target = asked.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let seen = Seen { upstream: name.to_owned(), target, fields, body: body.to_vec() };
    let made = answer(asked.method.as_str(), &seen)?;
    let builder = Response::builder().status(made.status);
    let response = made
        .fields
        .iter()
        .fold(builder, |answer, (name, value)| answer.header(name.as_str(), value.as_slice()));
    Ok(response.body(made.length.body(made.body, go_on))?)
}
