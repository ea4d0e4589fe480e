//! The API as its callers see it, and `openapi.json` held against real answers.

use std::path::Path;

use axum::http::Method;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::orchestrator::Bounds;
use crate::store::{CredBlock, SqliteStore, WriterLimits};
use crate::txn::{Event, Txn};

/// Nothing in these tests reaches the network.
#[derive(Debug)]
struct Nobody;

#[async_trait::async_trait]
impl Network for Nobody {
    async fn initiate(&self, _: &Txn, _: Option<&CredBlock>, _: &Trace) -> Event {
        Event::OutcomeUnknown { sending: 1, reason: "nobody".into() }
    }
    async fn inquire(&self, _: &Txn) -> Event {
        Event::CheckUnanswered { reason: "nobody".into() }
    }
}

struct Edge {
    router: Router,
    api: Arc<Api>,
    gateway: Arc<certs::Facts>,
    proxy: Arc<certs::Facts>,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
    text: String,
}

impl Edge {
    async fn open() -> Edge {
        let dir = tempfile::tempdir().unwrap();
        certs::pki::init(dir.path(), false).unwrap();
        let facts = |name: &str| {
            let pem = std::fs::read(dir.path().join(name)).unwrap();
            Arc::new(certs::inspect_pem(&pem).unwrap().remove(0))
        };
        let (gateway, proxy) = (facts("gateway.pem"), facts("npci-proxy.pem"));
        let config = Config::parse(include_str!("../../config.example.yaml"), Path::new("")).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let file = dir.path().join("txn.db");
        let store =
            SqliteStore::open(&file, config.rules.clone(), &WriterLimits::default(), metrics.clone()).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let bounds = Bounds { sends: 1, inquiries: 1, send_starts_within_ms: 5_000 };
        let orchestrator = Orchestrator::new(store.clone(), Arc::new(Nobody), metrics.clone(), bounds);
        let api = Arc::new(Api {
            psp: config.psp.parse().unwrap(),
            config,
            store,
            orchestrator,
            metrics,
            hub: Hub::new(10),
            in_flight: Mutex::default(),
        });
        Edge { router: router(api.clone()), api, gateway, proxy, _dir: dir }
    }

    async fn call(
        &self,
        peer: Option<&Arc<certs::Facts>>,
        request: axum::http::request::Builder,
        body: String,
    ) -> Answer {
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(PeerCertificate(peer.cloned()));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        held_against_the_description(&method, &path, status, &body);
        Answer { status, headers, body, text }
    }

    async fn send(&self, body: &Value, change: impl FnOnce(&mut HeaderMap)) -> Answer {
        self.send_text(body["idempotencyKey"].as_str().unwrap_or_default(), body.to_string(), change).await
    }

    async fn send_text(&self, key: &str, body: String, change: impl FnOnce(&mut HeaderMap)) -> Answer {
        let mut request = axum::http::Request::post("/v1/transactions/send");
        let headers = request.headers_mut().unwrap();
        for (name, value) in caller("acme-lite") {
            headers.insert(name, value.parse().unwrap());
        }
        headers.insert("idempotency-key", key.parse().unwrap());
        change(headers);
        self.call(Some(&self.gateway), request, body).await
    }

    async fn find(&self, id: &str, change: impl FnOnce(&mut HeaderMap)) -> Answer {
        let mut request = axum::http::Request::get(format!("/v1/transactions/{id}"));
        let headers = request.headers_mut().unwrap();
        for (name, value) in caller("acme-lite") {
            headers.insert(name, value.parse().unwrap());
        }
        change(headers);
        self.call(Some(&self.gateway), request, String::new()).await
    }

    async fn network_event(&self, body: Value) -> Answer {
        let request = axum::http::Request::post("/internal/v1/network-events");
        self.call(Some(&self.proxy), request, body.to_string()).await
    }
}

fn caller(tenant: &str) -> [(&'static str, String); 5] {
    [
        ("x-torana-tenant", tenant.into()),
        ("x-torana-subject", "user-1".into()),
        ("x-torana-device", "e7f7-22cb-47aa".into()),
        ("x-torana-vpa", "other@torana, Alice@torana".into()),
        ("x-request-id", "r-1".into()),
    ]
}

fn payment(key: &str) -> Value {
    json!({
        "fromVPA": "alice@torana", "toVPA": "bob@torana", "amount": 150.75, "txnNote": "Subscription",
        "deviceId": "e7f7-22cb-47aa", "idempotencyKey": key
    })
}

fn with(key: &str, member: &str, value: Value) -> Value {
    let mut payment = payment(key);
    payment[member] = value;
    payment
}

#[tokio::test]
async fn a_payment_and_the_same_again() {
    let edge = Edge::open().await;
    let first = edge.send(&payment("k-1"), |_| {}).await;
    assert_eq!(first.status, 200, "{}", first.text);
    let id = first.body["txnId"].as_str().unwrap();
    assert_eq!(
        first.body,
        json!({"txnId": id, "status": "PENDING", "pollUri": format!("/v1/transactions/{id}")})
    );
    assert_eq!(first.headers.get("idempotency-replayed"), None);

    let again = edge.send(&with("k-1", "fromVPA", json!("ALICE@torana")), |_| {}).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    let quoted =
        edge.send(&payment("k-1"), |h| drop(h.insert("idempotency-key", "\"k-1\"".parse().unwrap()))).await;
    assert_eq!(quoted.status, 200);
    let fresh_pin = edge.send(&with("k-1", "credBlock", json!("Mi4wfHg=")), |_| {}).await;
    assert_eq!(fresh_pin.status, 200, "the PIN encrypted afresh is the same payment");
    let other = edge.send(&with("k-1", "amount", json!(150.76)), |_| {}).await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("idempotency_key_reused")));

    let found = edge.find(id, |_| {}).await;
    assert_eq!(found.status, 200);
    assert!(found.text.contains("\"amount\":150.75,"), "{}", found.text);
    assert_eq!(found.body["history"].as_array().unwrap().len(), 1);
    let upper = id.replace("TOR", "").to_uppercase();
    assert_eq!(edge.find(&format!("TOR{upper}"), |_| {}).await.status, 200);
    for change in [("x-torana-tenant", "other"), ("x-torana-subject", "user-2")] {
        let hidden = edge.find(id, |headers| {
            headers.insert(change.0, change.1.parse().unwrap());
            headers.remove("x-torana-vpa");
        });
        assert_eq!(hidden.await.body["code"], "transaction_not_found", "{change:?}");
    }
    let payee = edge.find(id, |headers| {
        headers.insert("x-torana-subject", "user-2".parse().unwrap());
        headers.insert("x-torana-vpa", "bob@torana".parse().unwrap());
    });
    assert_eq!(payee.await.status, 200, "who is paid may look");
    assert_eq!(edge.find("TOR1", |_| {}).await.status, 404);
}

#[tokio::test]
async fn refusals_have_stable_codes_and_write_nothing() {
    let edge = Edge::open().await;
    let cases = [
        (with("k", "amount", json!(0)), 400, "amount_invalid"),
        (with("k", "amount", json!(-1)), 400, "amount_invalid"),
        (with("k", "amount", json!("150.75")), 400, "amount_invalid"),
        (with("k", "amount", json!(1.005)), 400, "amount_invalid"),
        (with("k", "amount", json!(null)), 400, "amount_invalid"),
        (with("k", "amount", json!(100_000.01)), 422, "amount_above_limit"),
        (with("k", "fromVPA", json!("alice")), 400, "vpa_invalid"),
        (with("k", "toVPA", json!("bob@bank@bank")), 400, "vpa_invalid"),
        (with("k", "toVPA", json!("ALICE@torana")), 400, "same_vpa"),
        (with("k", "fromVPA", json!("mallory@torana")), 403, "vpa_not_owned"),
        (with("k", "deviceId", json!("another")), 403, "device_mismatch"),
        (with("k", "deviceId", json!("")), 400, "body_invalid"),
        (with("k", "txnNote", json!("")), 400, "note_invalid"),
        (with("k", "txnNote", json!("é".repeat(51))), 400, "note_invalid"),
        (with("k", "txnNote", json!("a\nb")), 400, "note_invalid"),
        (with("k", "txnNote", json!("a\u{202e}b")), 400, "note_invalid"),
        (with("k", "credBlock", json!("x".repeat(4097))), 400, "body_invalid"),
        (with("k", "credBlock", json!("")), 400, "body_invalid"),
        (with("k", "credBlock", json!("2.0|x")), 400, "body_invalid"),
        (with("k", "credBlock", json!("Mi4w fHg=")), 400, "body_invalid"),
        (with("k", "credBlock", json!("MÌ4wfHg=")), 400, "body_invalid"),
        (with("k", "extra", json!(1)), 400, "body_invalid"),
        (with("k", "toVPA", json!(7)), 400, "body_invalid"),
    ];
    for (body, status, code) in cases {
        let answer = edge.send(&body, |_| {}).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{body}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    let texts = [
        (payment("k").to_string().replace("150.75", "1e3"), 400, "amount_invalid"),
        (payment("k").to_string().replace("150.75", "150.750"), 400, "amount_invalid"),
        (payment("k").to_string().replace('}', ",\"amount\":1}"), 400, "body_invalid"),
        (payment("k").to_string() + "{}", 400, "body_invalid"),
        ("not json".into(), 400, "body_invalid"),
        ("[]".into(), 400, "body_invalid"),
        ("x".repeat(70_000), 413, "body_too_large"),
    ];
    for (body, status, code) in texts {
        let answer = edge.send_text("k", body.clone(), |_| {}).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{body}");
    }
    let headers = [
        ("x-torana-tenant", None, 401, "identity_missing"),
        ("x-torana-subject", None, 401, "identity_missing"),
        ("x-torana-vpa", None, 403, "vpa_not_owned"),
        ("x-torana-device", None, 403, "device_mismatch"),
        ("idempotency-key", None, 400, "idempotency_key_mismatch"),
        ("idempotency-key", Some("other"), 400, "idempotency_key_mismatch"),
    ];
    for (name, value, status, code) in headers {
        let body = payment("k");
        let answer = edge.send(&body, |headers| {
            headers.remove(name);
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        });
        let answer = answer.await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{name} {value:?}");
    }
    assert_eq!(edge.api.store.figures().await.unwrap().outbox, 0, "nothing was written");
    assert_eq!(edge.send(&payment("k"), |_| {}).await.status, 200, "and the key is still free");
}

#[tokio::test]
async fn events_are_for_websockets() {
    let edge = Edge::open().await;
    let sent = edge.send(&payment("k-1"), |_| {}).await;
    let id = sent.body["txnId"].as_str().unwrap().to_owned();
    assert_eq!(edge.find(&format!("{id}/events"), |_| {}).await.body["code"], "upgrade_required");
}

#[tokio::test]
async fn only_the_right_peer() {
    let edge = Edge::open().await;
    let cases = [
        (Some(&edge.proxy), Method::POST, "/v1/transactions/send"),
        (None, Method::POST, "/v1/transactions/send"),
        (Some(&edge.proxy), Method::GET, "/v1/transactions/TOR1"),
        (Some(&edge.gateway), Method::POST, "/internal/v1/network-events"),
        (None, Method::POST, "/internal/v1/network-events"),
        (Some(&edge.proxy), Method::GET, "/openapi.json"),
    ];
    for (peer, method, path) in cases {
        let request = axum::http::Request::builder().method(method).uri(path);
        let answer = edge.call(peer, request, "{}".into()).await;
        assert_eq!((answer.status, &answer.body["code"]), (403, &json!("peer_not_allowed")), "{path}");
    }
    let request = axum::http::Request::get("/openapi.json");
    assert_eq!(edge.call(Some(&edge.gateway), request, String::new()).await.body["openapi"], "3.1.0");
    let request = axum::http::Request::get("/nowhere");
    assert_eq!(edge.call(Some(&edge.gateway), request, String::new()).await.body["code"], "not_found");
}

#[tokio::test]
async fn a_tenant_may_ask_for_409_on_every_duplicate() {
    let edge = Edge::open().await;
    let as_acme = |headers: &mut HeaderMap| drop(headers.insert("x-torana-tenant", "acme".parse().unwrap()));
    assert_eq!(edge.send(&with("k", "amount", json!(400_000)), as_acme).await.status, 200, "its own limit");
    for body in [with("k", "amount", json!(400_000)), payment("k")] {
        let again = edge.send(&body, as_acme).await;
        assert_eq!((again.status, &again.body["code"]), (409, &json!("duplicate_transaction")));
    }
}

#[tokio::test]
async fn a_key_in_flight_is_409() {
    let edge = Edge::open().await;
    let key = IdempotencyKey { tenant: "acme-lite".into(), route: "/v1/transactions/send", key: "k".into() };
    edge.api.in_flight.lock().unwrap().insert(key);
    let answer = edge.send(&payment("k"), |_| {}).await;
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("idempotency_in_flight")));
    edge.api.in_flight.lock().unwrap().clear();
    assert_eq!(edge.send(&payment("k"), |_| {}).await.status, 200);
    assert!(edge.api.in_flight.lock().unwrap().is_empty(), "and given back");
}

#[tokio::test]
async fn callbacks_are_durable_and_act_once() {
    let edge = Edge::open().await;
    let sent = edge.send(&payment("k"), |_| {}).await;
    let id = sent.body["txnId"].as_str().unwrap();
    let event = |msg: &str, txn: &str, stage: &str, result: &str, code: &str| {
        json!({"msgId": msg, "txnId": txn, "stage": stage, "result": result, "code": code, "rrn": "123456789012",
               "at": "2026-01-01T00:00:00.000Z", "unknownMember": true})
    };
    let cases = [
        (event("M1", id, "DEBIT", "SUCCESS", "00"), 200, json!({"msgId": "M1", "applied": true})),
        (event("M1", id, "DEBIT", "SUCCESS", "00"), 200, json!({"msgId": "M1", "applied": false})),
        (event("M2", id, "DEBIT", "SUCCESS", "00"), 200, json!({"msgId": "M2", "applied": false})),
        (event("M3", id, "FINAL", "SUCCESS", "00"), 200, json!({"msgId": "M3", "applied": true})),
        (event("M4", id, "FINAL", "FAILURE", "Z9"), 200, json!({"msgId": "M4", "applied": false})),
    ];
    for (body, status, mut want) in cases {
        want["ack"] = json!("ACCEPTED");
        let answer = edge.network_event(body.clone()).await;
        assert_eq!((answer.status, answer.body), (status, want), "{body}");
    }
    for (body, status, code) in [
        (
            event("M5", "TOR0198c0de0000700080000000000000ff", "FINAL", "SUCCESS", "00"),
            404,
            "unknown_transaction",
        ),
        (event("M5", "rubbish", "FINAL", "SUCCESS", "00"), 404, "unknown_transaction"),
        (event("M 5", id, "FINAL", "SUCCESS", "00"), 400, "body_invalid"),
        (event("M5", id, "FINAL", "SUCCESS", "0'0--xxxxxx"), 400, "body_invalid"),
        (event("M5", id, "MIDDLE", "SUCCESS", "00"), 400, "body_invalid"),
    ] {
        let answer = edge.network_event(body.clone()).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{body}");
    }
    let found = edge.find(id, |_| {}).await;
    assert_eq!((&found.body["status"], &found.body["rrn"]), (&json!("COMPLETED"), &json!("123456789012")));
    let told: Vec<_> = found.body["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["status"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["PENDING", "DEBITED", "COMPLETED"]);
    assert!(edge.api.metrics.text().contains("txn_conflicts_total 1"));
}

/// Every answer has to be one that `openapi.json` promises for its path, member by member.
fn held_against_the_description(method: &Method, path: &str, status: u16, body: &Value) {
    let api: Value = serde_json::from_str(OPENAPI).unwrap();
    let path = match path.strip_prefix("/v1/transactions/TOR") {
        Some(id) if id.ends_with("/events") => "/v1/transactions/{id}/events",
        Some(_) => "/v1/transactions/{id}",
        None => path,
    };
    let operation = &api["paths"][path][method.as_str().to_lowercase()];
    if operation.is_null() || body["code"] == "peer_not_allowed" {
        return;
    }
    let response = &operation["responses"][status.to_string()];
    let media = if status == 200 { "application/json" } else { "application/problem+json" };
    let schema = &response["content"][media]["schema"];
    assert!(schema.is_object(), "{method} {path} may answer {status}: say so in openapi.json");
    if status != 200 {
        let code = body["code"].as_str().unwrap();
        let described = response["description"].as_str().unwrap();
        assert!(described.contains(code), "{code} is not described for {status}");
    }
    conforms(&api, schema, body, path);
}

fn conforms(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return conforms(api, &api["components"]["schemas"][name], value, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value}");
    }
    match schema["type"].as_str().unwrap() {
        "string" => assert!(value.is_string(), "{at}: {value}"),
        "number" => assert!(value.is_number(), "{at}: {value}"),
        "integer" => assert!(value.is_i64() || value.is_u64(), "{at}: {value}"),
        "array" => {
            value.as_array().unwrap().iter().for_each(|item| conforms(api, &schema["items"], item, at))
        }
        "object" => {
            for name in schema["required"].as_array().unwrap() {
                assert!(value.get(name.as_str().unwrap()).is_some(), "{at}: {name} is missing");
            }
            for (name, value) in value.as_object().unwrap() {
                let schema = &schema["properties"][name];
                assert!(schema.is_object(), "{at}: {name} is not described");
                conforms(api, schema, value, &format!("{at}/{name}"));
            }
        }
        other => panic!("{at}: {other}"),
    }
}
