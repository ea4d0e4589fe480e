//! A throw-away PKI and a listener for the tests beside it.
#![allow(dead_code, reason = "each test file uses its share")]
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::http::Version;
use axum::routing;
use certs::client::{ClientLimits, https};
use certs::pki::{Authority, Leaf};
use certs::serve::{Limits, PeerCertificate, serve};
use certs::{Identity, ServerTls, Trust, install_crypto_provider};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Pki {
    dir: tempfile::TempDir,
    pub server: Identity,
    pub client: Identity,
}

impl Pki {
    pub fn new() -> Pki {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create("test CA").unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        let identity = |leaf: &Leaf| {
            let [certificate, key] = ca.issue(leaf).unwrap().write(dir.path(), &leaf.common_name).unwrap();
            Identity::load(&certificate, &key).unwrap()
        };
        let server = identity(&Leaf::new("server.test", &["localhost", "127.0.0.1"]));
        let client = identity(&Leaf::new("client.test", &["client.test"]));
        Pki { dir, server, client }
    }

    pub fn trust(&self) -> Trust {
        Trust::load(&self.dir.path().join("ca.pem")).unwrap()
    }
}

pub struct Server {
    pub port: u16,
    pub stop: oneshot::Sender<()>,
    pub done: JoinHandle<std::io::Result<()>>,
}

pub async fn listen(tls: impl Into<ServerTls>) -> Server {
    listen_within(tls, Limits::default()).await
}

pub async fn listen_within(tls: impl Into<ServerTls>, limits: Limits) -> Server {
    let app = Router::new()
        .route("/who", routing::get(who))
        .route("/version", routing::get(|version: Version| async move { format!("{version:?}") }))
        .route("/hour", routing::get(|| tokio::time::sleep(Duration::from_secs(3600))))
        .route(
            "/slow",
            routing::get(|| async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                "finished"
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    let done = tokio::spawn(serve(listener, tls.into(), app, limits, shutdown));
    Server { port, stop, done }
}

async fn who(Extension(peer): Extension<PeerCertificate>) -> String {
    peer.0.map_or_else(|| "nobody".into(), |facts| facts.subject.clone())
}

/// The body of the answer, or the whole story of the failure.
pub async fn get_url(client: &reqwest::Client, port: u16, path: &str) -> Result<String, String> {
    let answer = client.get(format!("https://localhost:{port}{path}")).send().await;
    let answer = answer.map_err(|e| format!("{e:?}"))?;
    answer.text().await.map_err(|e| format!("{e:?}"))
}

pub async fn get(tls: rustls::ClientConfig, port: u16, path: &str) -> Result<String, String> {
    get_url(&https(tls, ClientLimits::default()).unwrap(), port, path).await
}
