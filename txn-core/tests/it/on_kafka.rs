//! The same service with its events on Kafka, and the commands that an operator has there.

use serde_json::{Value, json};

use crate::house::{House, accepted, status};

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_kafka() {
    if !engines::Kafka::is_installed() {
        return;
    }
    // Joining a group the first time takes a broker seconds.
    let mut house = House::build("").await;
    let mut kafka = engines::Kafka::start(&house.dir.path().join("kafka")).await.unwrap();
    house.bus =
        format!("{{kafka: {{brokers: ['{}'], prefix: life., retention_ms: 86400000}}}}", kafka.address());
    let file = house.dir.path().join("txn-core.yaml");
    std::fs::write(&file, house.config()).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_txn-core"));
        let output = command.args(arguments).arg("--config").arg(&file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (ok, said) = command(&["topics", "--dry-run"]);
    assert!(!ok && said.contains("missing") && said.contains("7 of 7"), "{said}");
    let (ok, said) = command(&["topics", "--replication-factor", "1"]);
    assert!(ok && said.matches("made").count() == 7, "{said}");
    house.answers(&[accepted()], &[status("FINAL", "PENDING", "01")]);
    // Three instances, as a fleet would have them.
    let core = house.start_as("api,notify").await;
    let worker = house.start_as("orchestrator,relay").await;
    let audit = house.start_as("audit").await;
    let id = house.send(&core, "k-1").await;
    house.until("initiated", |house| !house.calls("initiate").is_empty()).await;
    house.callback(&core, &id, "DEBIT", "SUCCESS", "00").await;
    house.callback(&core, &id, "FINAL", "SUCCESS", "00").await;
    house.until("in the audit trail", |house| house.audited().len() == 3).await;
    let statuses: Vec<Value> = house.audited().iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses, ["PENDING", "DEBITED", "COMPLETED"]);
    assert!(house.audited().iter().all(|line| line["txnId"] == id && line["fromVPA"] == "a***@torana"));
    for (instance, roles, away) in [
        (&core, json!(["api", "notify"]), json!([])),
        (&worker, json!(["orchestrator", "relay"]), json!([])),
        (&audit, json!(["audit"]), json!([])),
    ] {
        let expected = json!({"ready": true, "roles": roles, "missing": [], "away": away});
        assert_eq!(house.readiness(instance).await, (200, expected));
    }
    for instance in [core, worker, audit] {
        instance.stop.send(()).unwrap();
        instance.task.await.unwrap().unwrap();
    }

    let (ok, said) = command(&["topics", "--replication-factor", "1", "--dry-run"]);
    assert!(ok && said.matches("as it should be").count() == 7, "{said}");
    let (ok, said) = command(&["dlq", "list"]);
    assert!(ok && said.is_empty(), "{said}");
    let (ok, said) = command(&["dlq", "replay", "3-17"]);
    assert!(!ok && said.contains("is no letter"), "{said}");

    // Without Kafka payments are still taken; who needs it says so.
    kafka.stop().await.unwrap();
    let api = house.start_as("api").await;
    assert_eq!(house.readiness(&api).await.0, 200, "an api opens no bus");
    house.send(&api, "k-2").await;
    for (roles, missing) in
        [("relay", json!(["bus"])), ("orchestrator", json!(["bus"])), ("audit", json!(["bus"]))]
    {
        let instance = house.start_as(roles).await;
        let (status, said) = house.readiness(&instance).await;
        assert_eq!((status, &said["missing"]), (503, &missing), "{roles}");
        instance.stop.send(()).unwrap();
        instance.task.await.unwrap().unwrap();
    }
    api.stop.send(()).unwrap();
    api.task.await.unwrap().unwrap();
}
