//! A real gateway between a client and upstreams that record, for tests over the wire.

#![allow(dead_code, reason = "each test uses its part")]

pub mod issuer;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::response::IntoResponse;
use axum::{Json, Router};
use certs::serve::PeerCertificate;
use filters::signature::{digest, message};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Where a gateway's log is, in its folder.
pub const LOG: &str = "gateway.log";

pub const SECRET: &str = "a partner's secret of 32 bytes!!";

/// A gateway that is killed when the test ends.
#[derive(Debug)]
pub struct Gateway {
    pub child: Child,
    /// The beginning of its policy: listeners and admin address.
    pub head: String,
    pub url: String,
    pub admin: String,
    pub http: reqwest::Client,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An upstream that answers every request with the header fields that arrived, and under `:body`, `:path` and
/// `:name` the rest; on `/health` with what it is told to.
#[derive(Debug)]
pub struct Recorder {
    pub port: u16,
    pub seen: Arc<AtomicUsize>,
    /// The status of `/health`.
    pub health: Arc<AtomicU16>,
    /// Answers one request to `/held`.
    pub release: Arc<tokio::sync::Notify>,
}

impl Recorder {
    pub async fn start(folder: &Path, name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pem = |name: &str| folder.join(name);
        let identity = certs::Identity::load(&pem("txn-core.pem"), &pem("txn-core.key")).unwrap();
        let clients = certs::ClientAuth::Required(certs::Trust::load(&pem("internal-ca.pem")).unwrap());
        let tls =
            certs::server_config(&identity, clients, certs::Versions::Tls13Only, &[b"http/1.1"]).unwrap();
        let (seen, health) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(200)));
        let release = Arc::new(tokio::sync::Notify::new());
        let (count, status) = (Arc::clone(&seen), Arc::clone(&health));
        let released = Arc::clone(&release);
        let app = Router::new().fallback(async move |request: Request| {
            if request.uri().path() == "/health" {
                let status = axum::http::StatusCode::from_u16(status.load(Ordering::Relaxed)).unwrap();
                return status.into_response();
            }
            count.fetch_add(1, Ordering::Relaxed);
            if request.uri().path() == "/held" {
                released.notified().await;
            }
            record(name, request).await.into_response()
        });
        let limits = certs::serve::Limits::default();
        tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
        Self { port, seen, health, release }
    }

    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }
}

async fn record(name: &str, request: Request) -> Json<BTreeMap<String, String>> {
    let mut seen = BTreeMap::new();
    seen.insert(":name".to_owned(), name.to_owned());
    seen.insert(":path".to_owned(), request.uri().to_string());
    if let Some(peer) = request.extensions().get::<std::net::SocketAddr>() {
        seen.insert(":peer".to_owned(), peer.to_string());
    }
    if let Some(PeerCertificate(Some(facts))) = request.extensions().get() {
        seen.insert(":serial".to_owned(), facts.serial_hex.clone());
    }
    for (name, value) in request.headers() {
        seen.entry(name.to_string()).or_insert_with(String::new).push_str(value.to_str().unwrap_or("?"));
    }
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
    seen.insert(":body".to_owned(), String::from_utf8_lossy(&body).into_owned());
    Json(seen)
}

/// Lines of the log that are the audit's.
pub fn audited(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join(LOG)).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}

/// A development PKI in the folder.
pub fn pki(folder: &Path) {
    certs::install_crypto_provider();
    certs::pki::init(folder, false).unwrap();
}

/// Puts a certificate on the list of the CA that issued it.
pub fn revoke(folder: &Path, ca: &str, name: &str) {
    use certs::pki::{Authority, crl};
    let at = |name: &str, ending: &str| folder.join(format!("{name}.{ending}"));
    let facts = certs::inspect_pem(&std::fs::read(at(name, "pem")).unwrap()).unwrap().remove(0);
    let digits = facts.serial_hex.as_bytes().chunks(2);
    let serial =
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    let authority = Authority::load(&at(ca, "pem"), &at(ca, "key")).unwrap();
    let reason = crl::Reason::KeyCompromise;
    crl::revoke(&at(ca, "crl"), &authority, &[serial], reason, time::Duration::days(1)).unwrap();
}

/// An upstream that reads the header of a request, and does with its connection what it is told to.
pub async fn raw_upstream<F>(
    folder: &Path,
    serve: impl Fn(String, ServerStream<TcpStream>) -> F + Clone + Send + 'static,
) -> u16
where
    F: Future<Output = Option<()>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let at = |name: &str| folder.join(name);
    let identity = certs::Identity::load(&at("txn-core.pem"), &at("txn-core.key")).unwrap();
    let clients = certs::ClientAuth::Required(certs::Trust::load(&at("internal-ca.pem")).unwrap());
    let tls = certs::server_config(&identity, clients, certs::Versions::Tls13Only, &[b"http/1.1"]).unwrap();
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let asked = header(&mut stream).await?;
                serve(asked, stream).await
            });
        }
    });
    port
}

/// What comes until an empty line.
pub async fn header(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&read).into_owned())
}

/// A connection to the gateway.
pub async fn connect(
    folder: &Path,
    gateway: &Gateway,
    identity: Option<&certs::Identity>,
    protocol: &[u8],
) -> ClientStream<TcpStream> {
    let trust = certs::Trust::load(&folder.join("edge-ca.pem")).unwrap();
    let mut tls = certs::client_config(&trust, identity, certs::Versions::Tls12And13).unwrap();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let address = gateway.url.trim_start_matches("https://").replace("localhost", "127.0.0.1");
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(tls)).connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

/// The lines of a gateway's access log about a path: route, status and what cut it off.
pub fn logged(folder: &Path, path: &str) -> Vec<(String, u64, String)> {
    let log = std::fs::read_to_string(folder.join(LOG)).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_path = lines.filter(|line| line["path"] == path);
    let word = |line: &serde_json::Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    of_path
        .map(|line| (word(&line, "route"), line["status"].as_u64().unwrap_or(9_999), word(&line, "cut_off")))
        .collect()
}

/// What a client asks a WebSocket with, but the path.
pub const ASKS_FOR_WEBSOCKET: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What opens one.
pub const OPENS_WEBSOCKET: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// How the policy says that an upstream is known.
pub const TLS: &str = r#"{ server_name: txn-core.torana.internal, ca: "file:internal-ca.pem", certificate: "file:gateway.pem", key: "file:gateway.key" }"#;

/// Serves a policy without its listeners and its admin address, in a folder with a PKI, until it answers.
pub async fn serve(folder: &Path, policy: &str) -> Gateway {
    serve_on(folder, r#"{ certificate: "file:edge.pem", key: "file:edge.key" }"#, policy).await
}

/// The same, with a listener whose `tls` says more.
pub async fn serve_on(folder: &Path, tls: &str, policy: &str) -> Gateway {
    serve_with(folder, tls, policy, &[]).await
}

/// The same, with more in the gateway's environment.
pub async fn serve_with(folder: &Path, tls: &str, policy: &str, env: &[(&str, String)]) -> Gateway {
    for _ in 0..3 {
        if let Some(gateway) = served(folder, tls, policy, env).await {
            return gateway;
        }
    }
    panic!("the gateway does not answer");
}

/// `None` when it ends at once: another process was given one of its ports meanwhile.
async fn served(folder: &Path, tls: &str, policy: &str, env: &[(&str, String)]) -> Option<Gateway> {
    let (edge, admin) = (free_port(), free_port());
    let head = format!(
        r#"
listeners:
  - {{ name: edge, address: "127.0.0.1:{edge}", tls: {tls} }}
admin: {{ address: "127.0.0.1:{admin}" }}
"#
    );
    std::fs::write(folder.join("edge.yaml"), format!("{head}{policy}")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["serve", "edge.yaml"])
        .current_dir(folder)
        .env("ACME_SECRET", SECRET)
        .env("GATEWAY_DRAIN_DELAY_S", "0")
        .env("GATEWAY_DRAIN_S", "1")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdout(std::fs::File::create(folder.join(LOG)).unwrap())
        .spawn()
        .unwrap();
    let http = client(folder, None);
    let (url, admin) = (format!("https://localhost:{edge}"), format!("http://127.0.0.1:{admin}"));
    let mut gateway = Gateway { child, head, url, admin, http };
    for _ in 0..400 {
        if gateway.http.get(&gateway.url).send().await.is_ok() {
            return Some(gateway);
        }
        if gateway.child.try_wait().unwrap().is_some() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the gateway does not answer");
}

/// Who trusts the edge's CA, with one of the folder's identities or without.
pub fn client(folder: &Path, identity: Option<&str>) -> reqwest::Client {
    let trust = certs::Trust::load(&folder.join("edge-ca.pem")).unwrap();
    let at = |name: &str, ending: &str| folder.join(format!("{name}.{ending}"));
    let identity = identity.map(|name| certs::Identity::load(&at(name, "pem"), &at(name, "key")).unwrap());
    let tls = certs::client_config(&trust, identity.as_ref(), certs::Versions::Tls12And13).unwrap();
    certs::client::https(tls, certs::client::ClientLimits::default()).unwrap()
}

/// What 500 requests a second were told while something else went on; one in ten on a connection of its own.
pub async fn under_load<F>(
    folder: &Path,
    ask: impl Fn(reqwest::Client) -> F + Clone + Send + 'static,
    meanwhile: impl Future<Output = ()>,
) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send,
{
    let done = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for sender in 0..10 {
        let kept = client(folder, None);
        let (done, folder, ask) = (Arc::clone(&done), folder.to_owned(), ask.clone());
        load.spawn(async move {
            let mut told = Vec::new();
            // Each 50 a second.
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while !done.load(Ordering::Relaxed) {
                ticks.tick().await;
                told.push(ask(if sender == 0 { client(&folder, None) } else { kept.clone() }).await);
            }
            told
        });
    }
    meanwhile.await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    done.store(true, Ordering::Relaxed);
    load.join_all().await.into_iter().flatten().collect()
}

impl Gateway {
    /// Status, and the name of the upstream that answered or the code of the refusal.
    pub async fn get(&self, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let request = self.http.get(format!("{}{path}", self.url));
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = answer.json().await.unwrap();
        let told = if status == 200 { &body[":name"] } else { &body["code"] };
        (status, told.as_str().unwrap_or_default().to_owned())
    }

    /// Puts another policy in place of the one that it was started with, after the same beginning.
    pub fn change(&self, folder: &Path, policy: &str) {
        self.replace(folder, &format!("{}{policy}", self.head));
    }

    /// Puts a whole other policy in place.
    pub fn replace(&self, folder: &Path, policy: &str) {
        std::fs::write(folder.join("edge.yaml.new"), policy).unwrap();
        std::fs::rename(folder.join("edge.yaml.new"), folder.join("edge.yaml")).unwrap();
    }

    /// What its admin address says of a path, JSON.
    pub async fn admin(&self, path: &str) -> serde_json::Value {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(format!("{}{path}", self.admin)).send().await.unwrap().json().await.unwrap()
    }

    /// Posts a body that is signed with a client's key, `(keyid, secret)`; status, and the code of the refusal.
    pub async fn send_signed(&self, path: &str, key: (&str, &str), nonce: &str) -> (u16, String) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        self.send_signed_at(path, key, nonce, now).await
    }

    /// The same, signed at that time, Unix seconds.
    pub async fn send_signed_at(
        &self,
        path: &str,
        key: (&str, &str),
        nonce: &str,
        now: u64,
    ) -> (u16, String) {
        let (keyid, secret) = key;
        let authority = self.url.trim_start_matches("https://");
        let body = "{}";
        let mut headers = vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("content-digest".to_owned(), digest::content_digest(body.as_bytes())),
        ];
        let components = ["@method", "@path", "@query", "content-digest", "content-type"];
        let mut params = message::Params::covering(&components).unwrap();
        params.created = Some(i64::try_from(now).unwrap());
        params.nonce = Some(nonce.to_owned());
        params.keyid = Some(keyid.to_owned());
        let key = message::SigningKey::hmac(secret.as_bytes()).unwrap();
        let fields = {
            let signed = message::Message::request("POST", "https", authority, path, None, &headers);
            message::sign(&signed, "sig1", &params, &key).unwrap()
        };
        headers.push(("signature-input".to_owned(), fields.signature_input));
        headers.push(("signature".to_owned(), fields.signature));
        let request = self.http.post(format!("{}{path}", self.url)).body(body);
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = answer.json().await.unwrap();
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    }

    /// What `/usage` tells.
    pub async fn usage(&self, query: &str) -> (u16, serde_json::Value) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(format!("{}/usage{query}", self.admin)).send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// The value of a line of the metrics, 0 when it is not there.
    pub async fn metric(&self, line: &str) -> f64 {
        let text = reqwest::Client::builder().no_proxy().build().unwrap();
        let text = text.get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|told| told.strip_prefix(line));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: it did not come to pass");
}
