//! A service under test: its certificates, its files, and a scripted npci-proxy on the other side.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router, routing::post};
use certs::{ClientAuth, Identity, Trust, Versions};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use txn_core::config::Config;
use txn_core::server::Server;

/// What the proxy answers next; the last line is repeated.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) initiate: VecDeque<(u16, Value)>,
    pub(crate) inquire: VecDeque<(u16, Value)>,
    pub(crate) calls: Vec<(String, Value)>,
}

pub(crate) type Shared = Arc<Mutex<Script>>;

/// Answers with the script's next line; `"txnId"` and `"msgId"` are the request's.
pub(crate) fn play(script: &Shared, call: &str, headers: &HeaderMap, body: Value) -> Response {
    // The network's rule for peak hours: sendings and their status checks are both a user's.
    assert_eq!(headers["x-initiated-by"], "user", "{call}");
    let mut script = script.lock().unwrap();
    script.calls.push((call.to_owned(), body.clone()));
    let lines = if call == "initiate" { &mut script.initiate } else { &mut script.inquire };
    let line = if lines.len() > 1 { lines.pop_front() } else { lines.front().cloned() };
    let (status, mut answer) = line.unwrap_or((500, json!({"code": "unscripted"})));
    for name in ["txnId", "msgId"] {
        answer[name] = body[name].clone();
    }
    (StatusCode::from_u16(status).unwrap(), Json(answer)).into_response()
}

pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) proxy: SocketAddr,
    pub(crate) script: Shared,
    pub(crate) rules: &'static str,
    pub(crate) store: String,
    pub(crate) bus: String,
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) task: tokio::task::JoinHandle<anyhow::Result<()>>,
    pub(crate) stop: oneshot::Sender<()>,
}

/// Encrypted by a device, so to speak.
pub(crate) const SECRET: &str = "Mi4wfHNlY3JldA==";

pub(crate) const QUICK: &str =
    "rules: {send_within_ms: 3000, resend_base_ms: 50, resend_max_ms: 100, send_settles_within_ms: 600,
    send_starts_within_ms: 500, status_checks_ms: [100, 200, 300], last_check_grace_ms: 100}";

impl House {
    pub(crate) async fn build(rules: &'static str) -> House {
        certs::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        certs::pki::init(dir.path(), false).unwrap();
        let script = Shared::default();
        let app = Router::new()
            .route(
                "/v1/initiateTransaction",
                post(async |State(script): State<Shared>, headers: HeaderMap, Json(body): Json<Value>| {
                    play(&script, "initiate", &headers, body)
                }),
            )
            .route(
                "/v1/statusInquiry",
                post(async |State(script): State<Shared>, headers: HeaderMap, Json(body): Json<Value>| {
                    play(&script, "inquire", &headers, body)
                }),
            )
            .with_state(script.clone());
        let (identity, trust) = identity(dir.path(), "npci-proxy");
        let tls = certs::server_config(
            &identity,
            ClientAuth::Required(trust),
            Versions::Tls13Only,
            &[b"h2", b"http/1.1"],
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let limits = certs::serve::Limits::default();
        tokio::spawn(certs::serve::serve(listener, tls.unwrap(), app, limits, std::future::pending()));
        let store = "{sqlite: {file: data/txn.db}}".to_owned();
        House { dir, proxy, script, rules, store, bus: "{local: {file: data/bus.db}}".to_owned() }
    }

    pub(crate) fn config(&self) -> String {
        format!(
            "psp: TOR\nlisten: 127.0.0.1:0\nadmin: 127.0.0.1:0\n\
             tls: {{certificate: txn-core.pem, key: txn-core.key, ca: internal-ca.pem}}\n\
             network: {{url: 'https://localhost:{}', timeout_ms: 500}}\n\
             store: {}\nbus: {}\n\
             timers: {{tick_ms: 20, lease_ms: 300}}\ndrain_timeout_ms: 2000\n{}\n",
            self.proxy.port(),
            self.store,
            self.bus,
            self.rules
        )
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_as("api,orchestrator,relay,notify,audit").await
    }

    /// With these roles. More than one process would not share SQLite; more than one service in a test may.
    pub(crate) async fn start_as(&self, roles: &str) -> Running {
        let mut config = Config::parse(&self.config(), self.dir.path()).unwrap();
        config.roles = roles.parse().unwrap();
        let server = Server::bind(config).await.unwrap();
        let admin = server.admin_address().unwrap();
        // Not every role is called.
        let address = server.address().unwrap_or(admin);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _stopped = stopped.await;
        }));
        Running { address, admin, task, stop }
    }

    pub(crate) fn client(&self, name: &str) -> reqwest::Client {
        let (identity, trust) = identity(self.dir.path(), name);
        let tls = certs::client_config(&trust, Some(&identity), Versions::Tls13Only).unwrap();
        certs::client::https(tls, certs::client::ClientLimits::default()).unwrap()
    }

    pub(crate) fn answers(&self, initiate: &[(u16, Value)], inquire: &[(u16, Value)]) {
        let mut script = self.script.lock().unwrap();
        script.initiate = initiate.iter().cloned().collect();
        script.inquire = inquire.iter().cloned().collect();
    }

    pub(crate) fn calls(&self, call: &str) -> Vec<Value> {
        let script = self.script.lock().unwrap();
        script.calls.iter().filter(|(name, _)| name == call).map(|(_, body)| body.clone()).collect()
    }

    pub(crate) async fn try_send(&self, core: &Running, key: &str) -> reqwest::Response {
        let body = json!({
            "fromVPA": "alice@torana", "toVPA": "bob@torana", "amount": 150.75, "txnNote": "Tea",
            "deviceId": "d-1", "idempotencyKey": key, "credBlock": SECRET
        });
        let request = self
            .client("gateway")
            .post(format!("https://localhost:{}/v1/transactions/send", core.address.port()))
            .header("idempotency-key", key)
            .json(&body);
        as_alice(request).send().await.unwrap()
    }

    pub(crate) async fn send(&self, core: &Running, key: &str) -> String {
        let answer = self.try_send(core, key).await;
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()["txnId"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn callback(
        &self,
        core: &Running,
        txn_id: &str,
        stage: &str,
        result: &str,
        code: &str,
    ) -> Value {
        let body = json!({"msgId": format!("{stage}{result}{code}"), "txnId": txn_id, "stage": stage,
                          "result": result, "code": code});
        let url = format!("https://localhost:{}/internal/v1/network-events", core.address.port());
        let answer = self.client("npci-proxy").post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    pub(crate) async fn find(&self, core: &Running, txn_id: &str) -> Value {
        let url = format!("https://localhost:{}/v1/transactions/{txn_id}", core.address.port());
        as_alice(self.client("gateway").get(url)).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn ends(&self, core: &Running, txn_id: &str, status: &str) -> Value {
        let mut found = Value::Null;
        for _ in 0..200 {
            found = self.find(core, txn_id).await;
            if found["status"] == status {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not {status}: {found}");
    }

    /// What `/readiness` says.
    pub(crate) async fn readiness(&self, core: &Running) -> (u16, Value) {
        let answer = reqwest::get(format!("http://{}/readiness", core.admin)).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The lines of the audit trail.
    pub(crate) fn audited(&self) -> Vec<Value> {
        let lines = files(&self.dir.path().join("data/audit")).into_iter().flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        });
        lines.collect()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&House) -> bool) {
        for _ in 0..1200 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("never: {what}");
    }
}

/// Every file in a folder and below it.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

pub(crate) fn identity(dir: &Path, name: &str) -> (Identity, Trust) {
    let identity =
        Identity::load(&dir.join(format!("{name}.pem")), &dir.join(format!("{name}.key"))).unwrap();
    (identity, Trust::load(&dir.join("internal-ca.pem")).unwrap())
}

pub(crate) fn as_alice(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("x-torana-tenant", "acme")
        .header("x-torana-subject", "user-1")
        .header("x-torana-device", "d-1")
        .header("x-torana-vpa", "alice@torana")
        .header("x-request-id", "r-1")
}

pub(crate) fn accepted() -> (u16, Value) {
    (200, json!({"ack": "ACCEPTED"}))
}
pub(crate) fn unavailable() -> (u16, Value) {
    (503, json!({"code": "network_unavailable", "sent": "no"}))
}
pub(crate) fn timed_out() -> (u16, Value) {
    (504, json!({"code": "network_timeout", "sent": "unknown"}))
}
pub(crate) fn status(stage: &str, result: &str, code: &str) -> (u16, Value) {
    (200, json!({"stage": stage, "result": result, "code": code}))
}
