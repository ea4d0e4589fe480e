//! The same service with its events on Kafka, and the commands that an operator has there.

use serde_json::Value;

use crate::house::{House, accepted, status};

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_kafka() {
    if !engines::Kafka::is_installed() {
        return;
    }
    // Joining a group the first time takes a broker seconds.
    let mut house = House::build("").await;
    let kafka = engines::Kafka::start(&house.dir.path().join("kafka")).await.unwrap();
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
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    house.until("initiated", |house| !house.calls("initiate").is_empty()).await;
    house.callback(&core, &id, "DEBIT", "SUCCESS", "00").await;
    house.callback(&core, &id, "FINAL", "SUCCESS", "00").await;
    house.until("in the audit trail", |house| house.audited().len() == 3).await;
    let statuses: Vec<Value> = house.audited().iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses, ["PENDING", "DEBITED", "COMPLETED"]);
    assert!(house.audited().iter().all(|line| line["txnId"] == id && line["fromVPA"] == "a***@torana"));
    core.stop.send(()).unwrap();
    core.task.await.unwrap().unwrap();

    let (ok, said) = command(&["topics", "--dry-run"]);
    assert!(ok && said.matches("as it should be").count() == 7, "{said}");
    let (ok, said) = command(&["dlq", "list"]);
    assert!(ok && said.is_empty(), "{said}");
    let (ok, said) = command(&["dlq", "replay", "3-17"]);
    assert!(!ok && said.contains("is no letter"), "{said}");
}
