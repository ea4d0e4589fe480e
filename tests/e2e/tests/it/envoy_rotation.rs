//! Certificates of an Envoy that is the edge, rotated while traffic flows.

use std::time::{Duration, Instant};

use std::sync::Arc;

use certs::pki::{Authority, Leaf};
use certs::{Facts, Identity, Trust, Versions, client_config, inspect_pem};
use e2e::command::certs;
use e2e::load::{self, Load, Target, ask};
use e2e::options;
use serde_json::json;
use stack::{Binaries, Edge, Service, Stack};
use tokio::io::AsyncReadExt as _;

const ROTATIONS: usize = 10;
/// What the issue promises of new connections.
const WITHIN_MS: u64 = 1_000;
/// The same, for a machine that has others to serve.
const PROMISED: Duration = Duration::from_secs(2);
/// More than long enough for anything here; the figures that are printed say how long it took.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(test: &str) -> anyhow::Result<(Binaries, Stack)> {
    let binaries = Binaries::build().await?;
    let stack = Stack::start(&binaries, options(test)?.edge(Edge::Envoy)).await?;
    Ok((binaries, stack))
}

/// Writes the configuration of the running Envoy anew, from the policy as it is now.
async fn configure(binaries: &Binaries, stack: &Stack) -> anyhow::Result<()> {
    let policy = stack.dir().join("config/edge.yaml");
    let made = tokio::process::Command::new(binaries.folder().join("gateway"))
        .arg("envoy")
        .arg(&policy)
        .arg("--module")
        .arg(stack::workspace().join("target/wasm/torana.wasm"))
        .arg("--out")
        .arg(policy.with_file_name("envoy"))
        .output()
        .await?;
    assert!(made.status.success(), "{made:?}");
    Ok(())
}

/// A listener's other certificates, chosen by the name that a client asks for, each renewed by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_choose_certificates() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-names").await?;
    let pki = stack.dir().join("pki");
    let ca = Authority::load(&pki.join("edge-ca.pem"), &pki.join("edge-ca.key"))?;
    let issue = |name: &str, names: &[&str]| -> anyhow::Result<String> {
        let [certificate, _] = ca.issue(&Leaf::new(name, names))?.write(&pki, name)?;
        Ok(inspect_pem(&std::fs::read(certificate)?)?.remove(0).serial_hex)
    };
    issue("shop", &["shop.test", "also.shop.test"])?;
    issue("wild", &["*.wild.test"])?;
    let policy = stack.dir().join("config/edge.yaml");
    let text = std::fs::read_to_string(&policy)?;
    let key = "key: file:../pki/edge.key";
    let more = r#"
      certificates:
        - { certificate: "file:../pki/shop.pem", key: "file:../pki/shop.key" }
        - { certificate: "file:../pki/wild.pem", key: "file:../pki/wild.key" }"#;
    assert!(text.contains(key), "{text}");
    std::fs::write(&policy, text.replacen(key, &format!("{key}{more}"), 1))?;
    configure(&binaries, &stack).await?;

    let trust = Trust::load(&pki.join("edge-ca.pem"))?;
    let port: u16 = stack.edge_url().rsplit(':').next().unwrap().parse()?;
    let facts = async |name: &'static str| -> anyhow::Result<Facts> {
        let tls = Arc::new(client_config(&trust, None, Versions::Tls12And13)?);
        let target = Target { port, tls, request: String::new() };
        load::shown(&target.connect_to(name).await?)
    };
    let began = Instant::now();
    while facts("shop.test").await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the name is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, expected) in [
        ("localhost", "CN=edge.torana.test"),
        ("shop.test", "CN=shop"),
        ("also.shop.test", "CN=shop"),
        ("x.wild.test", "CN=wild"),
    ] {
        assert_eq!(facts(name).await?.subject, expected, "{name}");
    }
    assert!(facts("other.test").await.is_err(), "the default does not bear that name");

    let (serial, began) = (issue("shop", &["shop.test", "also.shop.test"])?, Instant::now());
    while facts("shop.test").await?.serial_hex != serial {
        assert!(began.elapsed() < Duration::from_millis(WITHIN_MS), "the old one is still shown");
    }
    // Each is told of and asked for by a name of its own, and rotated as any other.
    let envoy = stack.envoy_bootstrap().unwrap();
    let envoy = envoy.to_str().unwrap();
    let said = certs(&binaries, stack.dir(), ["status", "--envoy", envoy]).await?.json;
    let listeners = said["services"][0]["listeners"].as_array().unwrap();
    let served =
        listeners.iter().map(|one| json!([one["server_names"][0], one["served"]["subject"]])).collect();
    let expected =
        json!([[null, "CN=edge.torana.test"], ["shop.test", "CN=shop"], ["*.wild.test", "CN=wild"]]);
    assert_eq!(serde_json::Value::Array(served), expected, "{said:#}");
    for name in ["shop", "wild"] {
        let file = format!("pki/{name}.pem");
        let rotate = ["rotate", &file, "--ca", "pki/edge-ca.pem", "--envoy", envoy];
        let said = certs(&binaries, stack.dir(), rotate).await?.fine()?;
        assert_eq!(said["users"].as_array().unwrap().len(), 1, "{said:#}");
    }
    stack.stop().await;
    Ok(())
}

/// Ten rotations of what the edge serves and ten of what it shows its upstream: no request fails, no connection is
/// dropped, and whoever connects sees the new certificate within a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rotations_fail_no_request() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-rotation").await?;
    let envoy = stack.envoy_bootstrap().unwrap();
    let mut load = Load::of_questions(&stack).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROTATIONS {
        let began = Instant::now();
        let rotate =
            ["rotate", "pki/edge.pem", "--ca", "pki/edge-ca.pem", "--envoy", envoy.to_str().unwrap()];
        let said = certs(&binaries, stack.dir(), rotate).await?.fine()?;
        assert_eq!(said["users"].as_array().unwrap().len(), 1, "{said:#}");
        let serial = said["serial_hex"].as_str().unwrap().to_owned();
        rounds.push((began, said["waited_ms"].as_u64().unwrap(), serial));
        let renew = ["renew", "pki/gateway.pem", "--ca", "pki/internal-ca.pem"];
        certs(&binaries, stack.dir(), renew).await?.fine()?;
        load.check()?;
        // Until there are new connections from after the second that is promised.
        tokio::time::sleep((began + Duration::from_millis(WITHIN_MS + 500)).duration_since(Instant::now()))
            .await;
    }
    // Done when no connection is left that was made with an earlier certificate.
    let wait = ["wait", "pki/gateway.pem", "--envoy", envoy.to_str().unwrap()];
    let said = certs(&binaries, stack.dir(), wait).await?.fine()?;
    eprintln!("upstream connections of earlier certificates were gone after {}", said["waited_ms"]);
    let sent = load.stop().await?;
    let slowest_ms = rounds.iter().map(|(_, waited_ms, _)| *waited_ms).max().unwrap();
    eprintln!(
        "{} answered, {:.0} a second, {} new connections; the slowest rotation took {slowest_ms} ms",
        sent.answered,
        sent.per_s,
        sent.shown.len()
    );
    assert_eq!(sent.closed, 0, "connections were drained");
    for (index, (began, _, serial)) in rounds.iter().enumerate() {
        let (from, end) =
            (*began + Duration::from_millis(WITHIN_MS), rounds.get(index + 1).map(|next| next.0));
        let later: Vec<_> = sent.shown.iter().filter(|shown| shown.is_within(from, end)).collect();
        assert!(!later.is_empty(), "rotation {index}: nobody connected");
        assert!(later.iter().all(|shown| shown.serial_hex == *serial), "rotation {index}: {later:?}");
    }

    // A pair is handed over in one moment, so that Envoy never finds a half of one.
    let url =
        format!("{}/stats?format=json&filter=^sds.*key_rotation_failed", stack.admin_url(Service::Edge));
    let stats: serde_json::Value = stack.plain().get(url).send().await?.json().await?;
    let failed: Vec<_> = stats["stats"].as_array().unwrap().iter().map(|stat| &stat["value"]).collect();
    assert!(!failed.is_empty() && failed.iter().all(|failed| **failed == 0), "{stats:#}");
    let status = ["status", "--envoy", envoy.to_str().unwrap()];
    let said = certs(&binaries, stack.dir(), status).await?.fine()?;
    assert_eq!(said["services"][0]["listeners"][0]["served"]["protocol"], "TLSv1_3");
    stack.stop().await;
    Ok(())
}

/// A list that arrives: within a second a client that it revokes is refused on its next connection, and its open
/// connections are drained, 2 s here. A list that revokes nobody closes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_refused_and_cut_off() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-revoked").await?;
    let pki = stack.dir().join("pki");
    let ca = Authority::load(&pki.join("partner-ca.pem"), &pki.join("partner-ca.key"))?;
    ca.issue(&Leaf::new("other", &["partner-other.partner.test"]))?.write(&pki, "other")?;
    let edge_ca = Trust::load(&pki.join("edge-ca.pem"))?;
    let port: u16 = stack.edge_url().rsplit(':').next().unwrap().parse()?;
    let target = |name: &str| -> anyhow::Result<Target> {
        let id = Identity::load(&pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key")))?;
        let tls = Arc::new(client_config(&edge_ca, Some(&id), Versions::Tls12And13)?);
        let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
        Ok(Target { port, tls, request })
    };
    let (lost, other) = (target("partner")?, target("other")?);
    let (mut open, mut stays) = (lost.connect().await?, other.connect().await?);
    ask(&mut open, &lost.request).await?;

    // Signed anew, with nobody on it.
    let handed = async || log_lines(&stack, "new files are handed to Envoy");
    let before = handed().await;
    certs(&binaries, stack.dir(), ["revoke", "--ca", "pki/partner-ca.pem"]).await?.fine()?;
    until("the list is handed over", async || Ok(handed().await > before)).await?;
    let drained = "open connections are drained";
    assert_eq!(log_lines(&stack, drained), 0);
    ask(&mut stays, &other.request).await?;

    let began = Instant::now();
    let revoke = ["revoke", "--ca", "pki/partner-ca.pem", "pki/partner.pem", "--reason", "key-compromise"];
    certs(&binaries, stack.dir(), revoke).await?.fine()?;
    let refused = async |target: &Target| {
        let asked = async { ask(&mut target.connect().await?, &target.request).await };
        asked.await.is_err()
    };
    until("a revoked client is refused", async || Ok(refused(&lost).await)).await?;
    let after = began.elapsed();
    assert!(after < PROMISED, "a revoked client was refused after {after:?}");
    let closed = tokio::time::timeout(PATIENCE, open.read_to_end(&mut Vec::new())).await;
    closed.expect("its open connection was not closed").ok();
    eprintln!("refused after {after:?}, its open connection closed after {:?}", began.elapsed());
    assert_eq!(log_lines(&stack, drained), 1);
    // It stays so, and everybody else is let in.
    assert!(refused(&lost).await);
    assert!(!refused(&other).await);
    assert_eq!(stack.http().get(format!("{}/openapi.json", stack.edge_url())).send().await?.status(), 200);
    stack.stop().await;
    Ok(())
}

/// An upstream that is revoked gets no request from Envoy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_upstream_gets_no_request() -> anyhow::Result<()> {
    let binaries = Binaries::build().await?;
    let list = "/upstreams/txn-core/tls/crl";
    let options = options("envoy-upstream")?.edge(Edge::Envoy);
    let options = options.set(Service::Edge, list, "file:../pki/internal-ca.crl".into());
    let stack = Stack::start(&binaries, options).await?;
    let status = async || -> anyhow::Result<u16> {
        Ok(stack.http().get(format!("{}/openapi.json", stack.edge_url())).send().await?.status().as_u16())
    };
    assert_eq!(status().await?, 200);
    let began = Instant::now();
    let revoke = ["revoke", "--ca", "pki/internal-ca.pem", "pki/txn-core.pem"];
    certs(&binaries, stack.dir(), revoke).await?.fine()?;
    until("the upstream is believed no more", async || Ok(status().await? == 503)).await?;
    eprintln!("no request after {:?}", began.elapsed());
    for _ in 0..5 {
        assert_eq!(status().await?, 503);
    }
    stack.stop().await;
    Ok(())
}

/// While the state service is away Envoy keeps what it has; what was replaced meanwhile is served when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_keeps_what_it_has_while_the_state_service_is_away() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-away").await?;
    let envoy = stack.envoy_bootstrap().unwrap();
    let envoy = envoy.to_str().unwrap();
    let serial = async || -> anyhow::Result<serde_json::Value> {
        let said = certs(&binaries, stack.dir(), ["status", "--envoy", envoy]).await?;
        Ok(said.json["services"][0]["listeners"][0]["served"]["serial_hex"].clone())
    };
    let before = serial().await?;
    stack.kill(Service::State);
    certs(&binaries, stack.dir(), ["renew", "pki/edge.pem", "--ca", "pki/edge-ca.pem"]).await?.fine()?;
    let waited = ["wait", "pki/edge.pem", "--envoy", envoy, "--timeout-s", "2"];
    let said = certs(&binaries, stack.dir(), waited).await?;
    assert_eq!((said.status, serial().await?), (1, before), "{said:?}");
    stack.restart(Service::State).await?;
    certs(&binaries, stack.dir(), ["wait", "pki/edge.pem", "--envoy", envoy]).await?.fine()?;
    stack.stop().await;
    Ok(())
}

/// How often the state service has said so.
fn log_lines(stack: &Stack, said: &str) -> usize {
    let log = std::fs::read_to_string(stack.dir().join("logs/state.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains(said)).count()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !so().await? {
        assert!(began.elapsed() < PATIENCE, "{what}: it did not come to pass");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
