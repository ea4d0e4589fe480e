//! Whole lives of payments: a real service over mutual TLS, with a scripted npci-proxy on the other side.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by stopping")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
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
use txn_core::server::{Server, migrate};

/// What the proxy answers next; the last line is repeated.
#[derive(Debug, Default)]
struct Script {
    initiate: VecDeque<(u16, Value)>,
    inquire: VecDeque<(u16, Value)>,
    calls: Vec<(String, Value)>,
}

type Shared = Arc<Mutex<Script>>;

/// Answers with the script's next line; `"txnId"` and `"msgId"` are the request's.
fn play(script: &Shared, call: &str, headers: &HeaderMap, body: Value) -> Response {
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

struct House {
    dir: tempfile::TempDir,
    proxy: SocketAddr,
    script: Shared,
    rules: &'static str,
    store: String,
}

struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: oneshot::Sender<()>,
}

/// Encrypted by a device, so to speak.
const SECRET: &str = "Mi4wfHNlY3JldA==";

const QUICK: &str =
    "rules: {send_within_ms: 3000, resend_base_ms: 50, resend_max_ms: 100, send_settles_within_ms: 600,
    send_starts_within_ms: 500, status_checks_ms: [100, 200, 300], last_check_grace_ms: 100}";

impl House {
    async fn build(rules: &'static str) -> House {
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
        House { dir, proxy, script, rules, store: "{sqlite: {file: data/txn.db}}".to_owned() }
    }

    fn config(&self) -> Config {
        let text = format!(
            "psp: TOR\nlisten: 127.0.0.1:0\nadmin: 127.0.0.1:0\n\
             tls: {{certificate: txn-core.pem, key: txn-core.key, ca: internal-ca.pem}}\n\
             network: {{url: 'https://localhost:{}', timeout_ms: 500}}\n\
             store: {}\nbus: {{local: {{file: data/bus.db}}}}\n\
             timers: {{tick_ms: 20, lease_ms: 300}}\ndrain_timeout_ms: 2000\n{}\n",
            self.proxy.port(),
            self.store,
            self.rules
        );
        Config::parse(&text, self.dir.path()).unwrap()
    }

    async fn start(&self) -> Running {
        let server = Server::bind(self.config()).await.unwrap();
        let (address, admin) = (server.address().unwrap(), server.admin_address().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _stopped = stopped.await;
        }));
        Running { address, admin, task, stop }
    }

    fn client(&self, name: &str) -> reqwest::Client {
        let (identity, trust) = identity(self.dir.path(), name);
        let tls = certs::client_config(&trust, Some(&identity), Versions::Tls13Only).unwrap();
        certs::client::https(tls, certs::client::ClientLimits::default()).unwrap()
    }

    fn answers(&self, initiate: &[(u16, Value)], inquire: &[(u16, Value)]) {
        let mut script = self.script.lock().unwrap();
        script.initiate = initiate.iter().cloned().collect();
        script.inquire = inquire.iter().cloned().collect();
    }

    fn calls(&self, call: &str) -> Vec<Value> {
        let script = self.script.lock().unwrap();
        script.calls.iter().filter(|(name, _)| name == call).map(|(_, body)| body.clone()).collect()
    }

    async fn try_send(&self, core: &Running, key: &str) -> reqwest::Response {
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

    async fn send(&self, core: &Running, key: &str) -> String {
        let answer = self.try_send(core, key).await;
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()["txnId"].as_str().unwrap().to_owned()
    }

    async fn callback(&self, core: &Running, txn_id: &str, stage: &str, result: &str, code: &str) -> Value {
        let body = json!({"msgId": format!("{stage}{result}{code}"), "txnId": txn_id, "stage": stage,
                          "result": result, "code": code});
        let url = format!("https://localhost:{}/internal/v1/network-events", core.address.port());
        let answer = self.client("npci-proxy").post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    async fn find(&self, core: &Running, txn_id: &str) -> Value {
        let url = format!("https://localhost:{}/v1/transactions/{txn_id}", core.address.port());
        as_alice(self.client("gateway").get(url)).send().await.unwrap().json().await.unwrap()
    }

    async fn ends(&self, core: &Running, txn_id: &str, status: &str) -> Value {
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

    async fn until(&self, what: &str, holds: impl Fn(&House) -> bool) {
        for _ in 0..200 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("never: {what}");
    }
}

fn identity(dir: &Path, name: &str) -> (Identity, Trust) {
    let identity =
        Identity::load(&dir.join(format!("{name}.pem")), &dir.join(format!("{name}.key"))).unwrap();
    (identity, Trust::load(&dir.join("internal-ca.pem")).unwrap())
}

fn as_alice(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("x-torana-tenant", "acme")
        .header("x-torana-subject", "user-1")
        .header("x-torana-device", "d-1")
        .header("x-torana-vpa", "alice@torana")
        .header("x-request-id", "r-1")
}

fn accepted() -> (u16, Value) {
    (200, json!({"ack": "ACCEPTED"}))
}
fn unavailable() -> (u16, Value) {
    (503, json!({"code": "network_unavailable", "sent": "no"}))
}
fn timed_out() -> (u16, Value) {
    (504, json!({"code": "network_timeout", "sent": "unknown"}))
}
fn status(stage: &str, result: &str, code: &str) -> (u16, Value) {
    (200, json!({"stage": stage, "result": result, "code": code}))
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_debited_completed() {
    let house = House::build(QUICK).await;
    house.answers(&[accepted()], &[status("FINAL", "PENDING", "01")]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    house.until("initiated", |house| !house.calls("initiate").is_empty()).await;
    let initiate = house.calls("initiate").remove(0);
    assert_eq!(initiate["txnId"], id);
    assert_eq!(initiate["msgId"].as_str().unwrap().len(), 35);
    assert_eq!((&initiate["amount"], &initiate["type"]), (&json!("150.75"), &json!("PAY")));
    assert_eq!(
        (&initiate["payerVpa"], &initiate["payeeVpa"]),
        (&json!("alice@torana"), &json!("bob@torana"))
    );
    assert_eq!(initiate["credBlock"], SECRET);
    assert_eq!(house.callback(&core, &id, "DEBIT", "SUCCESS", "00").await["applied"], true);
    assert_eq!(house.find(&core, &id).await["status"], "DEBITED");
    assert_eq!(house.callback(&core, &id, "FINAL", "SUCCESS", "00").await["applied"], true);
    assert_eq!(house.callback(&core, &id, "FINAL", "SUCCESS", "00").await["applied"], false);
    assert_eq!(house.find(&core, &id).await["status"], "COMPLETED");
    assert_eq!(house.calls("initiate").len(), 1);

    // Stops in order, and the PIN block is nowhere on the disk.
    core.stop.send(()).unwrap();
    core.task.await.unwrap().unwrap();
    for file in std::fs::read_dir(house.dir.path().join("data")).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_at_once() {
    let house = House::build(QUICK).await;
    house.answers(&[(200, json!({"ack": "REJECTED", "code": "U09", "reason": "…"}))], &[]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    assert_eq!(house.ends(&core, &id, "FAILED").await["code"], "U09");
    assert_eq!(house.calls("inquire").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn certainly_not_sent_is_sent_again_under_the_same_id() {
    let house = House::build(QUICK).await;
    house.answers(&[unavailable(), unavailable(), accepted()], &[status("FINAL", "SUCCESS", "00")]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    house.ends(&core, &id, "COMPLETED").await;
    let sent = house.calls("initiate");
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|call| call["txnId"] == id && call["credBlock"] == SECRET));
    let times: Vec<&str> = sent.iter().map(|call| call["initiatedAt"].as_str().unwrap()).collect();
    assert!(times.is_sorted() && times[0] < times[1], "each of its own sending: {times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_cannot_read_is_not_sent_again() {
    let house = House::build(QUICK).await;
    house.answers(&[(400, json!({"code": "bad_request", "sent": "no"}))], &[]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    let found = house.ends(&core, &id, "FAILED").await;
    assert_eq!(found["history"][1]["reason"], "bad_request", "{found}");
    assert_eq!((house.calls("initiate").len(), house.calls("inquire").len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn never_sent_is_given_up_when_it_is_too_late() {
    let house = House::build(
        "rules: {send_within_ms: 400, resend_base_ms: 50, resend_max_ms: 100, send_settles_within_ms: 600,
        send_starts_within_ms: 500}",
    )
    .await;
    house.answers(&[unavailable()], &[]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    let found = house.ends(&core, &id, "FAILED").await;
    assert_eq!(found["history"][1]["reason"], "not_sent_in_time");
    assert_eq!(house.calls("inquire").len(), 0, "nothing to ask about");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_asked_about_and_never_sent_again() {
    let ends = [
        (status("FINAL", "FAILURE", "NO"), "FAILED"),
        (status("FINAL", "SUCCESS", "00"), "COMPLETED"),
        (status("FINAL", "DEEMED", "RB"), "DEEMED"),
        (status("FINAL", "FAILURE", "21"), "REVERSED"),
        (status("DEBIT", "SUCCESS", "00"), "DEBITED"),
    ];
    for (answer, end) in ends {
        let house = House::build(QUICK).await;
        house.answers(&[timed_out()], &[answer]);
        let core = house.start().await;
        let id = house.send(&core, "k-1").await;
        house.ends(&core, &id, end).await;
        assert_eq!(house.calls("initiate").len(), 1, "{end}");
        // "Unknown to the network" counts at the last check alone.
        assert!(end != "FAILED" || house.calls("inquire").len() == 3, "{:?}", house.calls("inquire"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_asked_three_times_and_the_payment_stays_pending() {
    let house = House::build(QUICK).await;
    house.answers(&[accepted()], &[status("FINAL", "PENDING", "01")]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    house.until("asked three times", |house| house.calls("inquire").len() == 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(house.calls("inquire").len(), 3, "and no more");
    assert_eq!(house.find(&core, &id).await["status"], "PENDING");
    house.callback(&core, &id, "FINAL", "SUCCESS", "00").await;
    assert_eq!(house.find(&core, &id).await["status"], "COMPLETED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_refusal_is_no_check() {
    let house = House::build(QUICK).await;
    let refused = (429, json!({"code": "status_budget_exhausted", "sent": "no"}));
    house.answers(&[accepted()], &[refused, status("FINAL", "SUCCESS", "00")]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    // Without a Retry-After it is tried again after five seconds.
    house.until("refused", |house| house.calls("inquire").len() == 1).await;
    assert_eq!(house.find(&core, &id).await["status"], "PENDING");
    tokio::time::sleep(Duration::from_secs(4)).await;
    house.ends(&core, &id, "COMPLETED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_and_sends_nothing_twice() {
    let house = House::build(QUICK).await;
    // The first life ends while the proxy is away: some are waiting, some are marked as sent.
    house.answers(&[unavailable()], &[status("FINAL", "PENDING", "01")]);
    let core = house.start().await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(house.send(&core, &format!("k-{n}")).await);
    }
    core.task.abort();
    house.answers(&[accepted()], &[status("FINAL", "SUCCESS", "00")]);
    house.script.lock().unwrap().calls.clear();
    let core = house.start().await;
    for id in &ids {
        house.ends(&core, id, "COMPLETED").await;
        let sent = house.calls("initiate").iter().filter(|call| call["txnId"] == **id).count();
        assert!(sent <= 1, "accepted once, sent {sent} times");
    }
    core.task.abort();
    let core = house.start().await;
    for id in &ids {
        assert_eq!(house.find(&core, id).await["status"], "COMPLETED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_the_answer_is_503_and_nothing_is_lost() {
    let mut house = House::build(QUICK).await;
    let mut postgres = engines::Postgres::start(&house.dir.path().join("data")).await.unwrap();
    postgres.create_database("payments").await.unwrap();
    std::fs::write(house.dir.path().join("url"), postgres.url("payments")).unwrap();
    house.store = "{postgres: {url: 'file:url', acquire_timeout_ms: 250}}".to_owned();
    migrate(&house.config()).await.unwrap();
    house.answers(&[accepted()], &[status("FINAL", "SUCCESS", "00")]);
    let core = house.start().await;
    let before = house.send(&core, "before").await;
    house.ends(&core, &before, "COMPLETED").await;

    postgres.stop().await.unwrap();
    let found = as_alice(
        house
            .client("gateway")
            .get(format!("https://localhost:{}/v1/transactions/{before}", core.address.port())),
    );
    let mut refused = vec![found.send().await.unwrap()];
    for _ in 0..20 {
        refused.push(house.try_send(&core, "meanwhile").await);
    }
    for answer in refused {
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        let problem: Value = answer.json().await.unwrap();
        assert!(
            ["store_unavailable", "overloaded"].contains(&problem["code"].as_str().unwrap()),
            "{problem}"
        );
    }
    let readiness = format!("http://{}/readiness", core.admin);
    assert_eq!(reqwest::get(&readiness).await.unwrap().status(), 503);

    postgres.start_again().await.unwrap();
    let mut answer = house.try_send(&core, "meanwhile").await;
    for _ in 0..200 {
        if answer.status() == 200 {
            break;
        }
        assert_eq!(answer.status(), 503);
        tokio::time::sleep(Duration::from_millis(25)).await;
        answer = house.try_send(&core, "meanwhile").await;
    }
    let meanwhile = answer.json::<Value>().await.unwrap()["txnId"].as_str().unwrap().to_owned();
    house.ends(&core, &meanwhile, "COMPLETED").await;
    assert_eq!(house.send(&core, "meanwhile").await, meanwhile);
    assert_eq!(house.send(&core, "before").await, before);
    assert_eq!(reqwest::get(&readiness).await.unwrap().status(), 200);
    assert_eq!(house.calls("initiate").len(), 2);
    core.stop.send(()).unwrap();
    core.task.await.unwrap().unwrap();
}
