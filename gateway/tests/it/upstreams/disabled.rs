//! A certificate for an upstream that has expired before the gateway starts.

use std::path::Path;
use std::process::Command;

use certs::pki::{Authority, Leaf, Purpose};
use time::{Duration, OffsetDateTime};

use super::{SERVER_NAME, routes};
use crate::running::{LOG, Recorder, pki, serve, until};

/// A certificate of ours and its key, `NAME.pem` and `NAME.key`, that is valid until then.
fn issue(folder: &Path, name: &str, not_after: OffsetDateTime) {
    let at = |ending: &str| folder.join(format!("internal-ca.{ending}"));
    let ca = Authority::load(&at("pem"), &at("key")).unwrap();
    let leaf = Leaf::new("gateway.torana.internal", &["gateway.torana.internal"]);
    let not_before = not_after - Duration::days(2);
    let leaf = Leaf { purpose: Purpose::Client, not_before, not_after, ..leaf };
    ca.issue(&leaf).unwrap().write(folder, name).unwrap();
}

fn settings(port: u16, name: &str) -> String {
    format!(
        "addresses: [\"127.0.0.1:{port}\"], tls: {{ server_name: {SERVER_NAME}, ca: \"file:internal-ca.pem\", certificate: \
         \"file:{name}.pem\", key: \"file:{name}.key\" }}"
    )
}

#[tokio::test]
async fn an_expired_certificate_disables_its_upstream_alone() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let now = OffsetDateTime::now_utc();
    issue(folder.path(), "late", now - Duration::days(1));
    let port = Recorder::start(folder.path(), "recorder").await.port;
    let policy = routes(&[("good", settings(port, "gateway")), ("late", settings(port, "late"))]);
    let gateway = serve(folder.path(), &policy).await;
    assert_eq!(gateway.get("/good/x", &[]).await, (200, "recorder".to_owned()));
    assert_eq!(gateway.get("/late/x", &[]).await, (503, "upstream_unreachable".to_owned()));
    let readiness = gateway.admin("/readiness").await;
    assert_eq!(readiness["status"], "ready", "the others are served: {readiness}");
    let why = readiness["disabled_upstreams"]["late"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("late.pem") && why.contains("expired"), "{readiness}");
    assert_eq!(gateway.admin("/config").await["upstreams"]["late"]["disabled"], why);
    let log = std::fs::read_to_string(folder.path().join(LOG)).unwrap();
    let line = log.lines().find(|line| line.contains("the upstream is disabled")).expect("the log names it");
    assert!(line.contains("\"ERROR\"") && line.contains("\"upstream\":\"late\""), "{line}");
    // `check` is for what is to be deployed.
    let checked = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["check", "edge.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(!checked.status.success() && String::from_utf8_lossy(&checked.stdout).contains("expired"));

    issue(folder.path(), "late", now + Duration::days(1));
    until("it comes back by itself", async || gateway.get("/late/x", &[]).await.0 == 200).await;
    assert_eq!(gateway.admin("/readiness").await["disabled_upstreams"], serde_json::json!({}));
    assert_eq!(gateway.get("/good/x", &[]).await, (200, "recorder".to_owned()));

    // While it runs, a certificate that is good is not given up for one that is not.
    issue(folder.path(), "late", now - Duration::days(1));
    gateway.change(folder.path(), &format!("{policy}# The same.\n"));
    until("the change is refused", async || !gateway.admin("/config").await["refused"].is_null()).await;
    assert_eq!(gateway.get("/late/x", &[]).await, (200, "recorder".to_owned()));
}

#[test]
fn a_gateway_with_nothing_to_serve_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    issue(folder.path(), "late", OffsetDateTime::now_utc() - Duration::days(1));
    let head = "listeners:\n  - { name: edge, address: \"127.0.0.1:0\", tls: { certificate: \"file:edge.pem\", key: \
        \"file:edge.key\" } }\nadmin: { address: \"127.0.0.1:1\" }\n";
    let policy = routes(&[("late", settings(1, "late"))]);
    std::fs::write(folder.path().join("edge.yaml"), format!("{head}{policy}")).unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["serve", "edge.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let log = String::from_utf8(ended.stdout).unwrap();
    assert!(!ended.status.success() && log.contains("policy refused") && log.contains("late.pem"), "{log}");
}
