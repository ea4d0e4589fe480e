//! Whole lives of payments: a real service over mutual TLS, with a scripted npci-proxy on the other side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod events;
mod house;
mod on_kafka;
mod on_postgres;

use std::time::Duration;

use serde_json::json;

use self::house::{House, QUICK, SECRET, accepted, files, status, timed_out, unavailable};

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
    house.until("in the audit trail", |house| house.audited().len() == 3).await;
    core.stop.send(()).unwrap();
    core.task.await.unwrap().unwrap();
    for path in files(&house.dir.path().join("data")) {
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
