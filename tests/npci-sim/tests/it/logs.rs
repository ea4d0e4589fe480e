//! What both processes log, at the finest level, names nobody.

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::world::{World, https, txn, until};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of the whole test process.
fn log() -> &'static Written {
    static LOG: OnceLock<Written> = OnceLock::new();
    LOG.get_or_init(|| {
        let (written, filter) = (Written::default(), EnvFilter::new("npci_proxy=trace,npci_sim=trace"));
        let writer = written.clone();
        tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(move || writer.clone()).init();
        written
    })
}

#[tokio::test]
async fn nothing_private_is_logged() {
    let log = log();
    let world = World::new().await;
    let body = json!({
        "txnId": txn(1), "msgId": txn(1), "type": "PAY", "payerVpa": "alice@torana", "payeeVpa": "bob@torana",
        "amount": "1.00", "note": "for Asha", "deviceId": "device-4711", "credBlock": "Y3JlZGVudGlhbHM", "initiatedAt": world.now(),
    });
    assert_eq!(world.call("/v1/initiateTransaction", &body).await.0, 200);
    until("the payment is told", || async { world.core.told(&txn(1)).len() == 2 }).await;
    world.status(1).await;
    let fault = json!({"kind": "reject", "code": "U09", "reason": "alice@torana blocked"});
    world.every_call(fault).await;
    assert_eq!(world.pay(2, "1.00").await.1["reason"], "alice@torana blocked");
    world.faults(json!([])).await;
    world.call("/v1/validateVPA", &json!({"vpa": "alice@torana", "msgId": txn(1)})).await;
    world.call("/v1/validateVPA", &json!({"vpa": "alice@torana", "msgId": "alice@torana"})).await;
    let network = https(world.pki.path(), "network-ca", Some("network"));
    let odd = r#"{"msgId":"alice@torana"}"#;
    world.post_callback(&network, world.signed_callback(odd, world.now_ms() / 1_000), odd).await;

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("a***@torana") && text.contains("callback is durable"), "{text}");
    for private in [
        "alice@",
        "bob@",
        "pinned@",
        "Alice",
        "blocked",
        "Asha",
        "device-4711",
        "Y3JlZGVudGlhbHM",
        "abababab",
        "cdcdcdcd",
        "sig1=",
    ] {
        let line = text.lines().find(|line| line.contains(private));
        assert!(line.is_none(), "{private}: {line:?}");
    }
}
