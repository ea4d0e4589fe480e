//! From txn-core to the network and back.

use serde_json::json;

use crate::world::{Settings, World, https, txn, until};

#[tokio::test]
async fn a_payment_is_acknowledged_settled_and_told() {
    let world = World::new().await;
    let (status, ack) = world.pay(1, "150.75").await;
    assert_eq!((status, &ack["ack"]), (200, &json!("ACCEPTED")), "{ack}");
    assert_eq!((ack["txnId"].as_str(), ack["msgId"].as_str()), (Some(&*txn(1)), Some(&*txn(1))));
    until("the payment is told", || async { world.core.told(&txn(1)).len() == 2 }).await;
    let mut told = world.core.told(&txn(1));
    told.sort();
    assert_eq!(told, ["DEBIT SUCCESS 00", "FINAL SUCCESS 00"]);
    let (_, again) = world.pay(1, "150.75").await;
    assert_eq!(again["ack"], "ACCEPTED");
    let (status, outcome) = world.status(1).await;
    assert_eq!((status, &outcome["stage"], &outcome["result"]), (200, &json!("FINAL"), &json!("SUCCESS")));
    assert_eq!(outcome["rrn"].as_str().unwrap().len(), 12);
    let one = world.sim(&format!("/ledger/{}", txn(1))).await;
    assert_eq!(one["entries"].as_array().unwrap().len(), 4);
    assert_eq!(one["payment"]["result"], "SUCCESS");
    world.assert_books().await;
    assert_eq!(world.readiness().await, (200, json!({"ready": true, "missing": []})));
    assert_eq!(world.metric(r#"npci_callbacks_total{verdict="applied"}"#).await, 2.0);
}

#[tokio::test]
async fn addresses_are_validated() {
    let world = World::new().await;
    for (vpa, valid, code) in [("bob@torana", true, "00"), ("nobody@torana", false, "ZH")] {
        let (status, answer) = world.call("/v1/validateVPA", &json!({"vpa": vpa, "msgId": txn(1)})).await;
        assert_eq!((status, &answer["valid"], &answer["code"]), (200, &json!(valid), &json!(code)), "{vpa}");
    }
}

#[tokio::test]
async fn every_fault_ends_as_the_ledger_says() {
    let world = World::new().await;
    let success: &[&str] = &["DEBIT SUCCESS 00", "FINAL SUCCESS 00"];
    let cases: &[(&str, serde_json::Value, &str, &[&str])] = &[
        ("duplicate", json!({"kind": "duplicate_callback"}), "ACCEPTED", success),
        ("replayed", json!({"kind": "replayed_callback"}), "ACCEPTED", success),
        ("bad signature", json!({"kind": "bad_signature"}), "ACCEPTED", &[]),
        ("silent", json!({"kind": "silent"}), "ACCEPTED", &[]),
        (
            "bad answer",
            json!({"kind": "bad_answer_signature"}),
            "502 network_answer_invalid unknown",
            success,
        ),
        ("unreachable", json!({"kind": "unreachable"}), "502 network_error unknown", &[]),
        ("reject", json!({"kind": "reject", "code": "U09"}), "REJECTED", &[]),
        ("decline", json!({"kind": "decline", "code": "ZA"}), "ACCEPTED", &["FINAL FAILURE U30"]),
        ("deemed", json!({"kind": "deemed"}), "ACCEPTED", &["DEBIT SUCCESS 00", "FINAL DEEMED RB"]),
        ("reversal", json!({"kind": "reversal"}), "ACCEPTED", &["DEBIT SUCCESS 00", "FINAL FAILURE U31"]),
        (
            "credit timeout",
            json!({"kind": "debit_then_credit_timeout"}),
            "ACCEPTED",
            &["DEBIT SUCCESS 00", "FINAL FAILURE U68"],
        ),
    ];
    for (number, (name, fault, acknowledged, told)) in (1..).zip(cases) {
        world.every_call(fault.clone()).await;
        let (status, answer) = world.pay(number, "1.00").await;
        let answered = match answer["ack"].as_str() {
            Some(ack) => ack.to_owned(),
            None => {
                format!("{status} {} {}", answer["code"].as_str().unwrap(), answer["sent"].as_str().unwrap())
            }
        };
        assert_eq!(&answered, acknowledged, "{name}: {answer}");
        until(name, || async { world.core.told(&txn(number)).len() == told.len() }).await;
        let mut heard = world.core.told(&txn(number));
        heard.sort();
        assert_eq!(&heard, told, "{name}");
        world.assert_books().await;
    }
    let duplicates = world.core.events().iter().filter(|(_, first)| !first).count();
    until("both pieces of news came twice", || async {
        world.core.events().iter().filter(|(_, first)| !first).count() == 2
    })
    .await;
    assert!(duplicates <= 2, "only the duplicated news came twice");
    until("replays were refused", || async {
        world.metric(r#"npci_callbacks_total{verdict="nonce_replayed"}"#).await == 2.0
    })
    .await;
    until("forged callbacks were refused", || async {
        world.metric(r#"npci_callbacks_total{verdict="signature_invalid"}"#).await == 16.0
    })
    .await;
    assert_eq!(world.core.told(&txn(3)), [""; 0], "nothing forged came through");

    // What the network did not tell, or told in vain, a status check finds.
    world.every_call(json!({"kind": "silent"})).await;
    for (number, expected) in [(3, "SUCCESS 00"), (4, "SUCCESS 00"), (6, "FAILURE NO")] {
        let (_, outcome) = world.status(number).await;
        let found =
            [&outcome["result"], &outcome["code"]].map(|value| value.as_str().unwrap_or("?")).join(" ");
        assert_eq!(found, expected, "{outcome}");
    }
    world.every_call(json!({"kind": "unreachable"})).await;
    let (status, problem) = world.status(3).await;
    assert_eq!(
        (status, &problem["code"], &problem["sent"]),
        (502, &json!("network_error"), &json!("unknown"))
    );
}

#[tokio::test]
async fn the_breaker_opens_on_a_silent_network_and_recovers() {
    let world = World::with(Settings { pay_timeout_ms: 300, ..Settings::default() }).await;
    world.every_call(json!({"kind": "slow", "ms": 30_000})).await;
    for number in 1..=3 {
        let (status, problem) = world.pay(number, "1.00").await;
        assert_eq!((status, &problem["code"]), (504, &json!("network_timeout")), "{problem}");
        assert_eq!(problem["sent"], "unknown");
    }
    let (status, problem) = world.pay(4, "1.00").await;
    assert_eq!((status, &problem["code"]), (503, &json!("network_unavailable")));
    assert_eq!((&problem["sent"], problem["retry_after"].as_u64().is_some()), (&json!("no"), true));
    assert_eq!(world.metric(r#"npci_breaker_state{api="pay"}"#).await, 2.0);
    assert_eq!(world.readiness().await, (503, json!({"ready": false, "missing": ["network_breaker"]})));
    assert_eq!(world.sim("/calls").await["totals"]["initiate"], 3, "nothing goes out while it is open");
    world.faults(json!([])).await;
    // The others are not affected, and what was sent has settled.
    assert_eq!(world.call("/v1/validateVPA", &json!({"vpa": "bob@torana", "msgId": txn(9)})).await.0, 200);
    until("what timed out has settled", || async { world.core.told(&txn(3)).len() == 2 }).await;
    world.pass_ms(10_000);
    assert_eq!(world.pay(5, "1.00").await.1["ack"], "ACCEPTED");
    assert_eq!(world.metric(r#"npci_breaker_state{api="pay"}"#).await, 0.0);
    world.assert_books().await;
}

#[tokio::test]
async fn a_payment_does_not_go_out_long_after_it_was_asked_for() {
    let world = World::new().await;
    // More often than the breaker would forgive: the network is not to blame.
    for ago_ms in [20_500, 21_000, 3_600_000, -6_000, -3_600_000] {
        let (status, problem) = world.pay_asked(1, "1.00", ago_ms).await;
        let said = (status, &problem["code"], &problem["sent"]);
        assert_eq!(said, (503, &json!("request_too_old"), &json!("no")), "{ago_ms} ms ago: {problem}");
    }
    assert!(world.sim("/calls").await["totals"].as_object().unwrap().is_empty(), "nothing went out");
    assert_eq!(world.status(1).await.1["code"], "NO");
    // Asked for again under the same id, it goes out; a clock that is a little off does not matter.
    for (number, ago_ms) in [(1, 0), (2, 15_000), (3, -3_000)] {
        assert_eq!(world.pay_asked(number, "1.00", ago_ms).await.1["ack"], "ACCEPTED", "{ago_ms} ms ago");
    }
    // Only payments age: a check is about something old.
    world.pass_ms(60_000);
    assert_eq!(world.status(1).await.0, 200);
    assert_eq!(
        world.metric(r#"npci_call_duration_seconds_count{api="pay",outcome="request_too_old"}"#).await,
        5.0
    );
}

#[tokio::test]
async fn status_checks_keep_to_the_budget() {
    let world = World::with(Settings { status_first_after_ms: 90_000, ..Settings::default() }).await;
    assert_eq!(world.pay(1, "1.00").await.0, 200);
    let (status, problem) = world.status(1).await;
    assert_eq!((status, &problem["code"]), (429, &json!("status_budget_exhausted")));
    assert!((1..=90).contains(&problem["retry_after"].as_u64().unwrap()) && problem["sent"] == "no");
    world.pass_ms(90_000);
    for _ in 0..3 {
        assert_eq!(world.status(1).await.0, 200);
    }
    assert_eq!(world.status(1).await.0, 429);
    assert_eq!(world.sim("/calls").await["transactions"][txn(1)]["status"], 3);
}

#[tokio::test]
async fn peak_hours_are_for_users() {
    // All but the last minute of the day are peak.
    let world = World::with(Settings { peak_hours: true, ..Settings::default() }).await;
    while (world.now_ms() + 19_800_000).rem_euclid(86_400_000) > 23 * 3_600_000 {
        world.pass_ms(3_600_000);
    }
    assert_eq!(world.pay(1, "1.00").await.0, 200, "payments are always a user's");
    let check = json!({"txnId": txn(1), "msgId": txn(2), "originalAt": world.now()});
    let address = json!({"vpa": "bob@torana", "msgId": txn(3)});
    for (path, body) in [("/v1/statusInquiry", &check), ("/v1/validateVPA", &address)] {
        for refused in [world.call_of("system", path, body).await, world.call(path, body).await] {
            let (status, problem) = refused;
            let said = (status, &problem["code"], &problem["sent"]);
            assert_eq!(said, (429, &json!("peak_hours"), &json!("no")), "{path}");
            assert!(problem["retry_after"].as_u64().is_some(), "{problem}");
        }
        // A user waits for the payment that is checked, whoever set the time of the check.
        assert_eq!(world.call_of("user", path, body).await.0, 200, "{path}");
    }
    let totals = &world.sim("/calls").await["totals"];
    assert_eq!(
        (&totals["status"], &totals["validate"]),
        (&json!(1), &json!(1)),
        "what was refused stayed here"
    );
}

#[tokio::test]
async fn what_inside_refuses() {
    let world = World::new().await;
    let good = json!({"vpa": "bob@torana", "msgId": txn(1)});
    for (path, body, expected) in [
        ("/v1/validateVPA", json!({"vpa": "bob", "msgId": txn(1)}), "400 bad_request"),
        ("/v1/validateVPA", json!({"vpa": "bob@torana", "msgId": "1"}), "400 bad_request"),
        ("/v1/validateVPA", json!([]), "400 bad_request"),
        ("/v1/validateVPA", json!("bob"), "400 bad_request"),
        ("/v1/validateVPA", json!({"vpa": ["bob@torana"], "msgId": txn(1)}), "400 bad_request"),
        ("/v1/validateVPA", json!({"vpa": "x".repeat(70_000), "msgId": txn(1)}), "413 body_too_large"),
        ("/v1/other", good.clone(), "404 not_found"),
    ] {
        let (status, problem) = world.call(path, &body).await;
        assert_eq!(format!("{status} {}", problem["code"].as_str().unwrap()), expected);
        assert_eq!(problem["sent"], "no");
        assert!(!problem.to_string().contains("bob"), "{problem}");
    }
    let url = format!("{}/v1/validateVPA", world.inside);
    let other = https(world.pki.path(), "internal-ca", Some("gateway"));
    assert_eq!(other.post(&url).json(&good).send().await.unwrap().status(), 403);
    for identity in [None, Some("network")] {
        let stranger = https(world.pki.path(), "internal-ca", identity);
        assert!(stranger.post(&url).json(&good).send().await.is_err(), "{identity:?}");
    }
    assert!(world.sim("/calls").await["totals"].as_object().unwrap().is_empty());
}

#[tokio::test]
async fn only_the_network_is_called() {
    let refused = |problem: (u16, serde_json::Value)| {
        assert_eq!(
            (problem.0, &problem.1["code"], &problem.1["sent"]),
            (503, &json!("network_unavailable"), &json!("no"))
        );
    };
    // Nobody there; somebody of another CA.
    for url in ["https://localhost:1", "https://localhost:{core}"] {
        let world = World::with(Settings { network_url: Some(url.into()), ..Settings::default() }).await;
        refused(world.pay(1, "1.00").await);
    }
    // The right CA and name, but not the pinned key.
    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned();
    let world = World::with(Settings { pins: vec![other], ..Settings::default() }).await;
    refused(world.pay(1, "1.00").await);
}

#[tokio::test]
async fn a_pin_that_fits_lets_calls_through() {
    use npci_proxy::pinned;
    certs::install_crypto_provider();
    let pki = tempfile::tempdir().unwrap();
    certs::pki::init(pki.path(), false).unwrap();
    let load = |name: &str| {
        certs::Identity::load(
            &pki.path().join(format!("{name}.pem")),
            &pki.path().join(format!("{name}.key")),
        )
        .unwrap()
    };
    let (network, psp) = (load("network"), load("psp"));
    let trust = certs::Trust::load(&pki.path().join("network-ca.pem")).unwrap();
    let tls = certs::server_config(
        &network,
        certs::ClientAuth::Required(trust.clone()),
        certs::Versions::Tls13Only,
        &[b"http/1.1"],
    )
    .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let app = axum::Router::new().route("/", axum::routing::get(|| async { "here" }));
    let serving = tokio::spawn(async move {
        let _ =
            certs::serve::serve(listener, tls, app, certs::serve::Limits::default(), std::future::pending())
                .await;
    });
    for (pins, reached) in [
        (vec![network.facts().spki_sha256.clone()], true),
        (vec![psp.facts().spki_sha256.clone(), network.facts().spki_sha256.clone()], true),
        (vec![psp.facts().spki_sha256.clone()], false),
    ] {
        let tls = pinned::client_config(&psp, &trust, &pins).unwrap();
        let client = certs::client::https(tls, certs::client::ClientLimits::default()).unwrap();
        assert_eq!(client.get(&url).send().await.is_ok(), reached, "{pins:?}");
    }
    assert!(pinned::client_config(&psp, &trust, &["nonsense".to_owned()]).is_err());
    serving.abort();
}
