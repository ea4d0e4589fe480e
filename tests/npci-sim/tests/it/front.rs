//! The simulated network is no pushover: it takes the provider's own, fresh, signed calls only.

use http::HeaderMap;
use npci_proxy::seal::{Asked, Mark, Signer};
use serde_json::json;

use crate::world::{World, answer, https, txn, until};

const PATH: &str = "/v1/validateVPA";

#[tokio::test]
async fn what_the_network_refuses() {
    let world = World::new().await;
    let body = json!({"vpa": "bob@torana", "msgId": txn(1)}).to_string();
    let url = format!("{}{PATH}", world.sim_front);
    for (who, identity) in [("no certificate", None), ("another CA", Some("gateway"))] {
        let client = https(world.pki.path(), "network-ca", identity);
        assert!(client.post(&url).body(body.clone()).send().await.is_err(), "{who}");
    }
    let psp = https(world.pki.path(), "network-ca", Some("psp"));
    let now_s = world.now_ms() / 1_000;
    let sign = |key: &str, path: &str, created_s: i64| {
        let mark = Mark { created_s, ..Mark::fresh(0) };
        let signer = Signer::hmac("torana-psp", &world.secret(key)).unwrap();
        let mut headers = HeaderMap::new();
        signer.sign_request(("POST", path), &mut headers, body.as_bytes(), &mark).unwrap();
        (headers, mark)
    };
    let right = sign("psp-signing.key", PATH, now_s);
    for (name, headers, expected) in [
        ("unsigned", HeaderMap::new(), "401 signature_invalid"),
        ("another key", sign("network-signing.key", PATH, now_s).0, "401 signature_invalid"),
        ("another path", sign("psp-signing.key", "/v1/statusInquiry", now_s).0, "401 signature_invalid"),
        ("old", sign("psp-signing.key", PATH, now_s - 400).0, "401 not_fresh"),
        ("of the future", sign("psp-signing.key", PATH, now_s + 60).0, "401 not_fresh"),
        ("right", right.0.clone(), "200"),
        ("replayed", right.0.clone(), "401 nonce_replayed"),
    ] {
        let sent = psp.post(&url).headers(headers).body(body.clone()).send().await.unwrap();
        let (status, problem) = answer(sent).await;
        assert_eq!(
            format!("{status} {}", problem["code"].as_str().unwrap()).trim_end_matches(" 00"),
            expected,
            "{name}"
        );
    }
    // Its answers are signed for the request.
    let (headers, mark) = sign("psp-signing.key", PATH, now_s);
    let sent = psp.post(&url).headers(headers).body(body.clone()).send().await.unwrap();
    let (status, headers) = (sent.status().as_u16(), sent.headers().clone());
    let verifier = npci_proxy::seal::Verifier::hmac("npci", &world.secret("network-signing.key")).unwrap();
    let asked = Asked { method: "POST", path: PATH, nonce: &mark.nonce };
    assert!(verifier.verify_answer(asked, status, &headers, &sent.bytes().await.unwrap(), 0).is_ok());
    assert_eq!(world.sim("/calls").await["refused"]["nonce_replayed"], 1);
}

#[tokio::test]
async fn the_admin_address() {
    let world = World::new().await;
    assert_eq!(world.pay(1, "1.00").await.0, 200);
    until("settled", || async { world.core.told(&txn(1)).len() == 2 }).await;
    let books = world.sim("/ledger").await;
    let bob =
        books["accounts"].as_array().unwrap().iter().find(|account| account["vpa"] == "bob@torana").unwrap();
    assert_eq!(bob, &json!({"vpa": "bob@torana", "holder": "Bob", "bank": "torana", "balance_paise": 100}));
    let debit = &books["entries"][0];
    assert_eq!(
        (&debit["txnId"], &debit["leg"], &debit["account"], &debit["amount_paise"]),
        (&json!(txn(1)), &json!("DEBIT"), &json!("alice@torana"), &json!(-100))
    );
    assert_eq!(world.sim("/ledger/unknown").await["code"], "transaction_not_found");
    let calls = world.sim("/calls").await;
    assert_eq!(calls["transactions"][txn(1)], json!({"initiate": 1, "callback_attempt": 2}));
    let client = reqwest::Client::new();
    let faults = format!("{}/faults", world.sim_admin);
    let wrong = client.put(&faults).body(r#"{"rules":[{"match":{"any":true},"fault":{"kind":"odd"}}]}"#);
    assert_eq!(wrong.send().await.unwrap().status(), 400);
    let rules = json!([{"match": {"amount": "1.00"}, "fault": {"kind": "reject", "code": "U09"}}]);
    world.faults(rules.clone()).await;
    assert_eq!(world.sim("/faults").await, json!({ "rules": rules }));
    assert_eq!(world.pay(2, "1.00").await.1["ack"], "REJECTED");
    let reset = client.post(format!("{}/reset", world.sim_admin)).send().await.unwrap();
    assert_eq!(reset.status(), 200);
    let books = world.sim("/ledger").await;
    assert_eq!((books["entries"].as_array().unwrap().len(), &books["balanced"]), (0, &json!(true)));
    assert_eq!(world.sim("/faults").await, json!({"rules": []}));
}

#[tokio::test]
async fn a_pin_goes_from_the_device_to_the_bank() {
    let world = World::new().await;
    let key = world.sim("/keys").await["banks"]["torana"]["public_key"].as_str().unwrap().to_owned();
    let binding = npci_sim::pin::binding("pinned@torana", "bob@torana", "1.00");
    for (number, pin, ends) in [(1, "1234", "FINAL SUCCESS 00"), (2, "4321", "FINAL FAILURE U30")] {
        let block = npci_sim::pin::encrypt(&key, pin, &binding).unwrap();
        let body = json!({
            "txnId": txn(number), "msgId": txn(number), "type": "PAY", "payerVpa": "pinned@torana",
            "payeeVpa": "bob@torana", "amount": "1.00", "note": "tea", "credBlock": block,
            "initiatedAt": world.now(),
        });
        assert_eq!(world.call("/v1/initiateTransaction", &body).await.0, 200);
        until(ends, || async { world.core.told(&txn(number)).iter().any(|told| told == ends) }).await;
    }
}
