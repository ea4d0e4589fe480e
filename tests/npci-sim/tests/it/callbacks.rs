//! Callbacks, from the network and from those who would like to be it.

use std::sync::atomic::Ordering;

use http::HeaderMap;
use npci_proxy::{seal::Asked, wire::Stamp};
use serde_json::json;

use crate::world::{Settings, World, https, txn, until};

fn news(msg: u32, txn_id: &str) -> String {
    json!({
        "msgId": txn(msg), "txnId": txn_id, "stage": "FINAL", "result": "SUCCESS", "code": "00",
        "at": Stamp { unix_ms: 0 },
    })
    .to_string()
}

#[tokio::test]
async fn strangers_do_not_get_in() {
    let world = World::new().await;
    let body = news(1, &txn(1));
    let headers = || world.signed_callback(&body, world.now_ms() / 1_000);
    for (who, identity) in
        [("no certificate", None), ("another CA", Some("partner")), ("our own CA", Some("npci-proxy"))]
    {
        let client = https(world.pki.path(), "network-ca", identity);
        let url = format!("{}/v1/callback", world.outside);
        assert!(client.post(url).headers(headers()).body(body.clone()).send().await.is_err(), "{who}");
    }
    // The network's CA, but not the network.
    let other = https(world.pki.path(), "network-ca", Some("psp"));
    let (status, problem) = world.post_callback(&other, headers(), &body).await;
    assert_eq!((status, &problem["code"]), (403, &json!("client_not_allowed")));
    assert!(world.core.events().is_empty());
}

#[tokio::test]
async fn what_is_not_a_callback() {
    let world = World::new().await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let (now_s, body) = (world.now_ms() / 1_000, news(1, &txn(1)));
    let without = |name: &str| {
        let mut headers = world.signed_callback(&body, now_s);
        headers.remove(name).unwrap();
        headers
    };
    let mut unsigned = without("signature");
    unsigned.remove("signature-input");
    let mut other_type = world.signed_callback(&body, now_s);
    other_type.insert("content-type", "text/plain".parse().unwrap());
    let large = "x".repeat(5_000);
    let odd = r#"{"msgId":"1"}"#.to_owned();
    let unknown = news(2, &format!("XXX{}", "0".repeat(32)));
    let replayed = world.signed_callback(&body, now_s);
    assert_eq!(world.post_callback(&network, replayed.clone(), &body).await.0, 200);
    let cases: Vec<(&str, HeaderMap, &str, &str)> = vec![
        ("bare", HeaderMap::new(), &body, "400 digest_missing"),
        ("no digest", without("content-digest"), &body, "400 digest_missing"),
        ("other body", world.signed_callback("{}", now_s), &body, "400 digest_mismatch"),
        ("unsigned", unsigned, &body, "401 signature_missing"),
        ("half signed", without("signature"), &body, "401 signature_invalid"),
        ("other content type", other_type, &body, "401 signature_invalid"),
        ("too old", world.signed_callback(&body, now_s - 400), &body, "401 created_too_old"),
        ("of the future", world.signed_callback(&body, now_s + 60), &body, "401 created_in_future"),
        ("replayed", replayed, &body, "401 nonce_replayed"),
        ("too large", world.signed_callback(&large, now_s), &large, "413 body_too_large"),
        ("odd", world.signed_callback(&odd, now_s), &odd, "400 bad_request"),
        ("unknown", world.signed_callback(&unknown, now_s), &unknown, "404 unknown_transaction"),
        // The same news with a fresh signature is a duplicate, and that is fine.
        ("again", world.signed_callback(&body, now_s), &body, "200"),
    ];
    for (name, headers, body, expected) in cases {
        let (status, problem) = world.post_callback(&network, headers, body).await;
        let answered = format!("{status} {}", problem["code"].as_str().unwrap_or(""));
        assert_eq!(answered.trim(), expected, "{name}");
    }
    let url = format!("{}/v1/callback?x=1", world.outside);
    let queried =
        network.post(url).headers(world.signed_callback(&body, now_s)).body(body.clone()).send().await;
    assert_eq!(queried.unwrap().status(), 400);
    let heard: Vec<bool> = world.core.events().iter().map(|(_, first)| *first).collect();
    assert_eq!(heard, [true, false], "one effect, one duplicate, nothing else");
}

#[tokio::test]
async fn a_restart_forgets_nonces_and_takes_nothing_from_before_it() {
    let mut world = World::new().await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let body = news(1, &txn(1));
    let captured = world.signed_callback(&body, world.now_ms() / 1_000);
    assert_eq!(world.post_callback(&network, captured.clone(), &body).await.0, 200);
    world.restart_proxy().await;
    let (status, problem) = world.post_callback(&network, captured, &body).await;
    assert_eq!((status, &problem["code"]), (401, &json!("created_before_start")));
    assert_eq!(world.metric(r#"npci_callbacks_total{verdict="created_before_start"}"#).await, 1.0);
    let now_s = world.now_ms() / 1_000;
    for (created_s, expected) in [(now_s - 60, 401), (now_s - 2, 401), (now_s, 200)] {
        let headers = world.signed_callback(&body, created_s);
        assert_eq!(world.post_callback(&network, headers, &body).await.0, expected, "{}", created_s - now_s);
    }
    let heard: Vec<bool> = world.core.events().iter().map(|(_, first)| *first).collect();
    assert_eq!(heard, [true, false], "the network's next attempt is a duplicate, the replay is nothing");
}

#[tokio::test]
async fn only_the_network_uses_up_a_nonce() {
    let world = World::new().await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let body = news(1, &txn(1));
    let right = world.signed_callback(&body, world.now_ms() / 1_000);
    let mut forged = right.clone();
    forged.insert("signature", "sig1=:AAAA:".parse().unwrap());
    assert_eq!(world.post_callback(&network, forged, &body).await.0, 401);
    assert_eq!(world.post_callback(&network, right.clone(), &body).await.0, 200);
    assert_eq!(world.post_callback(&network, right, &body).await.1["code"], "nonce_replayed");
}

#[tokio::test]
async fn an_acknowledgement_is_signed_for_its_callback() {
    let world = World::new().await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let body = news(1, &txn(1));
    let sent = world.signed_callback(&body, world.now_ms() / 1_000);
    let input = sent["signature-input"].to_str().unwrap().to_owned();
    let nonce = input.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let url = format!("{}/v1/callback", world.outside);
    let answer = network.post(url).headers(sent).body(body).send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    let asked = |nonce| Asked { method: "POST", path: "/v1/callback", nonce };
    let verifier = world.psp_verifier();
    assert!(verifier.verify_answer(asked(&nonce), status, &headers, &body, 0).is_ok());
    assert!(verifier.verify_answer(asked("0000000000000000"), status, &headers, &body, 0).is_err());
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&body).unwrap(),
        json!({"msgId": txn(1), "ack": "ACCEPTED"})
    );
}

#[tokio::test]
async fn while_txn_core_is_away_nothing_is_acknowledged() {
    let world = World::new().await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let body = news(1, &txn(1));
    let sign = || world.signed_callback(&body, world.now_ms() / 1_000);
    world.core.away.store(true, Ordering::SeqCst);
    let (status, problem) = world.post_callback(&network, sign(), &body).await;
    assert_eq!((status, &problem["code"]), (503, &json!("core_unavailable")));
    assert!(problem["retry_after"].as_u64().is_some());
    // The simulator keeps trying.
    assert_eq!(world.pay(2, "1.00").await.0, 200);
    until("callbacks were answered with 503", || async {
        world.sim("/calls").await["callback_answers"]["503"].as_u64() > Some(1)
    })
    .await;
    assert!(world.core.events().is_empty());
    world.core.away.store(false, Ordering::SeqCst);
    assert_eq!(world.post_callback(&network, sign(), &body).await.0, 200, "a fresh nonce gets through");
    until("the news arrived", || async { world.core.told(&txn(2)).len() == 2 }).await;
}

#[tokio::test]
async fn a_full_nonce_memory_refuses_rather_than_forgets() {
    let world = World::with(Settings { nonces: 2, ..Settings::default() }).await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let send = async |msg: u32, expected: &str| {
        let body = news(msg, &txn(1));
        let headers = world.signed_callback(&body, world.now_ms() / 1_000);
        let (status, problem) = world.post_callback(&network, headers, &body).await;
        assert_eq!(format!("{status} {}", problem["code"].as_str().unwrap_or("")).trim(), expected);
    };
    send(1, "200").await;
    send(2, "200").await;
    send(3, "503 nonce_store_full").await;
    world.pass_ms(400_000);
    send(3, "200").await;
}

/// Both sides' keys give way to the next while payments go on: each is acknowledged and told, before, in the overlap and
/// after. Then nobody is believed with an old key any more.
#[tokio::test]
async fn keys_give_way_without_a_failed_payment() {
    let now_s = npci_proxy::clock::Clock::system().now_ms() / 1_000;
    let at = |seconds: i64| npci_proxy::keys::Moment::from_unix_s(now_s + seconds).unwrap();
    let keys = |id: &str, file: &str| {
        format!(
            "[{{ key_id: {id}, key: \"file:{file}.key\", not_after: \"{}\" }}, {{ key_id: {id}-2, key: \"file:{file}-2.key\", \
             not_before: \"{}\" }}]",
            at(600),
            at(300),
        )
    };
    let settings = Settings {
        network_keys: keys("npci", "network-signing"),
        psp_keys: keys("torana-psp", "psp-signing"),
        ..Settings::default()
    };
    let world = World::with(settings).await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let mut passed_s = 0;
    for (number, after_s, old_key_counts) in [(1, 0, true), (2, 400, true), (3, 700, false)] {
        world.pass_ms((after_s - passed_s) * 1_000);
        passed_s = after_s;
        let (status, ack) = world.pay(number, "1.00").await;
        assert_eq!((status, &ack["ack"]), (200, &json!("ACCEPTED")), "{after_s} s: {ack}");
        until("the payment is told", || async { world.core.told(&txn(number)).len() == 2 }).await;
        let body = news(100 + number, &txn(number));
        let headers = world.signed_callback(&body, world.now_ms() / 1_000);
        let (status, problem) = world.post_callback(&network, headers, &body).await;
        match old_key_counts {
            true => assert_eq!(status, 200, "{after_s} s: {problem}"),
            false => {
                assert_eq!((status, &problem["code"]), (401, &json!("signature_invalid")), "{after_s} s")
            }
        }
    }
    let report = world.proxy_report().await;
    let told: Vec<_> = report.keys.iter().map(|key| (key.owner.as_str(), key.id.as_str())).collect();
    assert_eq!(
        told,
        [("ours", "torana-psp"), ("ours", "torana-psp-2"), ("network", "npci"), ("network", "npci-2")]
    );
    assert!(world.metric(r#"certs_expiry_seconds{kind="key",name="network/network/npci"}"#).await > 0.0);
}
