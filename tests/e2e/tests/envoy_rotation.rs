//! Certificates of an Envoy that is the edge, rotated while traffic flows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::time::{Duration, Instant};

use std::sync::Arc;

use certs::client::{ClientLimits, https};
use certs::pki::{Authority, Leaf};
use certs::{Facts, Identity, Trust, Versions, client_config, inspect_pem};
use e2e::command::certs;
use e2e::load::{self, Target};
use e2e::options;
use e2e::traffic::Traffic;
use stack::{Binaries, Edge, Stack};

const ROTATIONS: usize = 10;
/// What the issue promises of new connections.
const WITHIN_MS: u64 = 1_000;

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
    stack.stop().await;
    Ok(())
}

/// Ten rotations of what the edge serves and ten of what it shows its upstream: no request fails, and whoever connects
/// sees the new certificate within a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rotations_fail_no_request() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-rotation").await?;
    let envoy = stack.envoy_bootstrap().unwrap();
    let traffic = Traffic::start(&stack)?;
    let mut slowest_ms = 0;
    for rotation in 0..ROTATIONS {
        for (leaf, ca) in [("edge", "edge-ca"), ("gateway", "internal-ca")] {
            let (leaf, ca) = (format!("pki/{leaf}.pem"), format!("pki/{ca}.pem"));
            let rotate = ["rotate", &leaf, "--ca", &ca, "--envoy", envoy.to_str().unwrap()];
            let said = certs(&binaries, stack.dir(), rotate).await?.fine()?;
            assert_eq!(said["users"].as_array().unwrap().len(), 1, "{said:#}");
            slowest_ms = slowest_ms.max(said["waited_ms"].as_u64().unwrap());
            assert!(slowest_ms < WITHIN_MS, "rotation {rotation} of {leaf}: {said:#}");
        }
        let before = traffic.answered();
        while traffic.answered() < before + 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let sent = traffic.end().await;
    assert!(sent.failed.is_empty(), "{} of {}: {:?}", sent.failed.len(), sent.answered, &sent.failed[..1]);
    eprintln!(
        "{} answered, {} a second; the slowest rotation took {slowest_ms} ms",
        sent.answered, sent.per_s
    );

    let status = ["status", "--envoy", envoy.to_str().unwrap()];
    let said = certs(&binaries, stack.dir(), status).await?.fine()?;
    assert_eq!(said["services"][0]["listeners"][0]["served"]["protocol"], "TLSv1_3");
    stack.stop().await;
    Ok(())
}

/// A list that arrives: a client that it revokes is refused on its next connection within a second. Envoy asks no list
/// about connections that are open; the next `gateway envoy` has those drained.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_refused() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-revoked").await?;
    let pki = stack.dir().join("pki");
    let (edge_ca, partner) = (Trust::load(&pki.join("edge-ca.pem"))?, pki.join("partner.pem"));
    let partner = Identity::load(&partner, &partner.with_extension("key"))?;
    let client = |id: Option<&Identity>| -> anyhow::Result<reqwest::Client> {
        let tls = client_config(&edge_ca, id, Versions::Tls12And13)?;
        Ok(https(
            tls,
            ClientLimits { pool_idle_timeout: Duration::from_secs(60), ..ClientLimits::default() },
        )?)
    };
    let url = format!("{}/openapi.json", stack.edge_url());
    let open = client(Some(&partner))?;
    assert_eq!(open.get(&url).send().await?.status(), 200);

    let began = Instant::now();
    let revoke = ["revoke", "--ca", "pki/partner-ca.pem", "pki/partner.pem", "--reason", "key-compromise"];
    certs(&binaries, stack.dir(), revoke).await?.fine()?;
    while client(Some(&partner))?.get(&url).send().await.is_ok() {
        assert!(began.elapsed() < Duration::from_millis(WITHIN_MS), "a revoked client is let in");
    }
    eprintln!("refused after {} ms", began.elapsed().as_millis());
    // It stays so, and everybody else is let in.
    assert!(client(Some(&partner))?.get(&url).send().await.is_err());
    assert_eq!(client(None)?.get(&url).send().await?.status(), 200);

    // The connection that is open stays so until its listener is replaced and drained, 2 s here.
    assert_eq!(open.get(&url).send().await?.status(), 200, "Envoy asks no list about open connections");
    configure(&binaries, &stack).await?;
    let began = Instant::now();
    while open.get(&url).send().await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20), "its connection is still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("its open connection ended after {} ms", began.elapsed().as_millis());
    assert_eq!(stack.http().get(&url).send().await?.status(), 200);
    stack.stop().await;
    Ok(())
}

/// Files that do not belong together, are half there or not at all leave Envoy with what it has, and `certs status`
/// says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_is_not() -> anyhow::Result<()> {
    let (binaries, stack) = start("envoy-bad-files").await?;
    let envoy = stack.envoy_bootstrap().unwrap();
    let (certificate, key) = (stack.dir().join("pki/edge.pem"), stack.dir().join("pki/edge.key"));
    let status = async || certs(&binaries, stack.dir(), ["status", "--envoy", envoy.to_str().unwrap()]).await;
    let good = [std::fs::read(&certificate)?, std::fs::read(&key)?];
    let served = status().await?.fine()?["services"][0]["listeners"][0]["served"]["serial_hex"].clone();
    let half = &good[0][..good[0].len() / 2];
    let other = std::fs::read(stack.dir().join("pki/gateway.pem"))?;
    for (case, text) in [("half", half), ("empty", b""), ("another's", other.as_slice())] {
        // As an atomic replacement does it, so that Envoy looks.
        let new = stack.dir().join("pki/edge.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, &certificate)?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let said = status().await?;
        assert_eq!(said.status, 1, "{case}: {said:?}");
        assert_eq!(said.json["services"][0]["listeners"][0]["served"]["serial_hex"], served, "{case}");
        let answer = stack.http().get(format!("{}/openapi.json", stack.edge_url())).send().await?;
        assert_eq!(answer.status(), 200, "{case}");
    }
    for (path, text) in [(&certificate, &good[0]), (&key, &good[1])] {
        let new = stack.dir().join("pki/edge.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)?;
    }
    assert_eq!(status().await?.fine()?["services"][0]["listeners"][0]["served"]["serial_hex"], served);
    stack.stop().await;
    Ok(())
}
