//! `testssl.sh` against every listener: no weakness that it rates above low.
//!
//! It takes a minute, so it is a step of its own: `tests/run tls`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use e2e::options;
use engines::{Program, ports};
use serde::Deserialize;
use stack::{Binaries, Edge, Service, Stack};
use tokio::task::JoinSet;

/// Findings that say nothing about how these listeners speak TLS.
const EXPECTED: [(&str, &str); 4] = [
    ("engine_problem", "of the scanner's own OpenSSL: it cannot speak GOST"),
    ("cert_revocation", "our lists are files, and no CA of the web: who verifies our clients has them"),
    (
        "optimal_proto",
        "the scanner's OpenSSL has no client certificate to show, so its HTTP checks are left out",
    ),
    ("service", "the same"),
];

/// What must have been looked at: a scan that broke off proves nothing.
const LOOKED_AT: [&str; 12] = [
    "SSLv2",
    "SSLv3",
    "TLS1",
    "TLS1_1",
    "TLS1_3",
    "cipherlist_NULL",
    "cipherlist_3DES_IDEA",
    "cipherlist_STRONG",
    "cert_chain_of_trust",
    "secure_client_renego",
    "heartbleed",
    "RC4",
];

/// What is not offered, whatever the scanner thinks of it.
const NOT_OFFERED: [&str; 6] =
    ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "cipherlist_3DES_IDEA", "cipherlist_AVERAGE"];

#[derive(Debug, Deserialize)]
struct Finding {
    id: String,
    severity: String,
    finding: String,
}

/// A listener, its name and the CA of its certificate.
struct Listener {
    what: &'static str,
    name: &'static str,
    port: u16,
    ca: PathBuf,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: tests/run tls"]
async fn no_listener_has_a_weakness() -> anyhow::Result<()> {
    let binaries = Binaries::build().await?;
    let stack = Stack::start(&binaries, options("testssl")?.edge(Edge::Gateway)).await?;
    let with_envoy = Stack::start(&binaries, options("testssl-envoy")?.edge(Edge::Envoy)).await?;
    let (_state, state_port) = state(&binaries, &stack).await?;
    let port = |url: &str| -> anyhow::Result<u16> {
        Ok(url.rsplit(':').next().context("an address has a port")?.parse()?)
    };
    let ca = |stack: &Stack, name: &str| stack.dir().join("pki").join(name);
    let outside = outside(&stack)?;
    let listeners = [
        ("gateway", "edge.torana.test", port(stack.edge_url())?, ca(&stack, "edge-ca.pem")),
        ("envoy", "edge.torana.test", port(with_envoy.edge_url())?, ca(&with_envoy, "edge-ca.pem")),
        (
            "txn-core",
            "txn-core.torana.internal",
            port(stack.url(Service::TxnCore))?,
            ca(&stack, "internal-ca.pem"),
        ),
        (
            "npci-proxy inside",
            "npci-proxy.torana.internal",
            port(stack.url(Service::NpciProxy))?,
            ca(&stack, "internal-ca.pem"),
        ),
        ("npci-proxy outside", "psp.torana.test", outside, ca(&stack, "network-ca.pem")),
        ("state service", "gateway.torana.internal", state_port, ca(&stack, "internal-ca.pem")),
    ];
    let mut scans = JoinSet::new();
    for (what, name, port, ca) in listeners {
        let listener = Listener { what, name, port, ca };
        let file = stack.dir().join(format!("testssl-{port}.json"));
        scans.spawn(async move {
            let findings = scan(&listener, &file).await;
            (listener.what, findings)
        });
    }
    let mut weak = Vec::new();
    for (what, findings) in scans.join_all().await {
        let findings = findings.with_context(|| what.to_owned())?;
        let by_id: BTreeMap<&str, &Finding> = findings.iter().map(|one| (one.id.as_str(), one)).collect();
        for id in LOOKED_AT {
            assert!(by_id.contains_key(id), "{what}: {id} was not looked at: {:?}", by_id.keys());
        }
        for id in NOT_OFFERED {
            assert!(by_id[id].finding.starts_with("not offered"), "{what}: {:?}", by_id[id]);
        }
        let rated = findings.iter().filter(|one| !matches!(one.severity.as_str(), "OK" | "INFO" | "LOW"));
        let rated = rated.filter(|one| EXPECTED.iter().all(|(id, _)| one.id != *id));
        weak.extend(rated.map(|one| format!("{what}: {} {} {}", one.severity, one.id, one.finding)));
        let speaks = ["TLS1_2", "TLS1_3"].map(|id| by_id.get(id).map_or("?", |one| one.finding.as_str()));
        let at_the_edge = matches!(what, "gateway" | "envoy");
        assert_eq!(speaks[0] == "offered", at_the_edge, "{what}: TLS 1.2 is for clients outside alone");
        eprintln!("{what}: {} findings; TLS 1.2 {}, 1.3 {}", findings.len(), speaks[0], speaks[1]);
    }
    assert!(weak.is_empty(), "{weak:#?}");
    with_envoy.stop().await;
    stack.stop().await;
    Ok(())
}

async fn scan(listener: &Listener, file: &Path) -> anyhow::Result<Vec<Finding>> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let options = ["--quiet", "--color", "0", "--warnings", "off", "--nodns", "min", "--ip", "127.0.0.1"];
    // Protocols, ciphers, forward secrecy, preferences, the certificate, and every known vulnerability.
    let checks = ["-p", "-s", "-f", "-P", "-S", "-U"];
    let output = tokio::process::Command::new("testssl")
        .args(options)
        .args(checks)
        .arg("--add-ca")
        .arg(&listener.ca)
        .arg("--jsonfile")
        .arg(file)
        .arg(format!("{}:{}", listener.name, listener.port))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run testssl; tests/run install brings it")?;
    let text = std::fs::read(file).with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
    Ok(serde_json::from_slice(&text)?)
}

/// The port of the listener that the network calls.
fn outside(stack: &Stack) -> anyhow::Result<u16> {
    let config = std::fs::read_to_string(stack.dir().join("config/npci-proxy.yaml"))?;
    let after = config.split("outside:\n  listen: 127.0.0.1:").nth(1).context("it listens outside")?;
    Ok(after.lines().next().unwrap_or_default().parse()?)
}

/// A state service with TLS: the stack's own is on loopback without.
async fn state(binaries: &Binaries, stack: &Stack) -> anyhow::Result<(Program, u16)> {
    let config = stack.dir().join("config");
    let policy = std::fs::read_to_string(config.join("edge.yaml"))?;
    let address = ports::v4()?;
    let own = "certificate: file:../pki/gateway.pem, key: file:../pki/gateway.key";
    let tls = format!(
        "tls: {{ {own}, client_ca: file:../pki/internal-ca.pem, \
         allowed_clients: [gateway.torana.internal], client: {{ server_name: gateway.torana.internal, ca: file:../pki/internal-ca.pem, {own} }} }}"
    );
    let (before, after) =
        policy.split_once("  service:\n    address: ").context("the policy has a state service")?;
    let after = after.split_once('\n').context("with more after it")?.1;
    let policy = format!("{before}  service:\n    address: {address}\n    {tls}\n{after}");
    let file = config.join("state-with-tls.yaml");
    std::fs::write(&file, policy)?;
    let mut command = Command::new(binaries.folder().join("gateway"));
    let mut program = Program::spawn(
        "state",
        command.arg("state").arg(&file),
        &stack.dir().join("logs/state-with-tls.log"),
    )?;
    let listens = async || tokio::net::TcpStream::connect(address).await.is_ok();
    program.ready(std::time::Duration::from_secs(30), listens).await?;
    Ok((program, address.port()))
}
