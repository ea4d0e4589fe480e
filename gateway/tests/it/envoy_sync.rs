//! `gateway state --envoy`: what it puts into the copy that Envoy reads, what it marks, and what it tells of both.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use certs::pki::crl::{self, Reason};
use certs::pki::{Authority, KeyAlgorithm, Leaf};
use serde_json::Value;
use time::Duration;

use crate::running::{SECRET, TLS, free_port, pki, revoke, until};

/// A state service beside no Envoy: only the files are looked at.
struct House {
    dir: tempfile::TempDir,
    state: Child,
    url: String,
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.state.kill();
        let _ = self.state.wait();
    }
}

impl House {
    fn start() -> House {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        pki(dir.path());
        let tls = TLS.replace("server_name", r#"crl: "file:internal-ca.crl", server_name"#);
        let policy = format!(
            r#"
listeners:
  - name: edge
    address: "127.0.0.1:1"
    tls: {{ certificate: "file:edge.pem", key: "file:edge.key", client_certificates: {{ ca: "file:partner-ca.pem", crl: "file:partner-ca.crl" }} }}
admin: {{ address: "127.0.0.1:2" }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:3"], tls: {tls} }} }}
state: {{ service: {{ address: "127.0.0.1:{port}" }} }}
routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]
"#
        );
        std::fs::write(dir.path().join("edge.yaml"), policy).unwrap();
        let mut command = gateway(dir.path(), &["state", "edge.yaml", "--envoy", "out"]);
        let state = command.stdout(Stdio::null()).spawn().unwrap();
        House { dir, state, url: format!("http://127.0.0.1:{port}") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self) {
        let made = gateway(self.dir.path(), &["envoy", "edge.yaml", "--out", "out"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn authority(&self, name: &str) -> Authority {
        let at = |ending: &str| self.at(&format!("{name}.{ending}"));
        Authority::load(&at("pem"), &at("key")).unwrap()
    }

    fn renew(&self, name: &str, ca: &str) -> String {
        let names = if name == "edge" {
            ["edge.torana.test", "localhost", "127.0.0.1", "::1"].as_slice()
        } else {
            &["gateway.torana.internal"]
        };
        let issued = self.authority(ca).issue(&Leaf::new(names[0], names)).unwrap();
        issued.write(self.dir.path(), name).unwrap();
        serial(issued.certificate_pem.as_bytes())
    }

    async fn get(&self, path: &str) -> Option<String> {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(format!("{}{path}", self.url)).send().await.ok()?.text().await.ok()
    }

    /// A line of the metrics, and its value.
    async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await?;
        text.lines().find_map(|told| told.strip_prefix(line)?.trim().parse().ok())
    }

    async fn handed(&self, wanted: f64) {
        until(&format!("handed {wanted}"), async || {
            self.metric("gateway_envoy_handed ").await == Some(wanted)
        })
        .await;
    }

    /// A file of the copy, by its set and its ending.
    fn copied(&self, set: &str, ending: &str) -> Option<Vec<u8>> {
        let mut all = std::fs::read_dir(self.at("out/served/now")).ok()?;
        let named = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(&format!("{set}~")) && name.ends_with(ending)
        };
        std::fs::read(all.find_map(|entry| Some(entry.ok()?.path()).filter(|path| named(path)))?).ok()
    }

    fn copied_serial(&self, set: &str) -> Option<String> {
        self.copied(set, "pem").map(|pem| serial(&pem))
    }

    /// What is written down for `certs`.
    fn told(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.at("out/gateway/report.json")).unwrap()).unwrap()
    }

    /// Of the one listener, and of the one cluster that has an upstream.
    fn marks(&self) -> [Value; 2] {
        ["listeners.json", "clusters.json"].map(|file| {
            let text = std::fs::read(self.at("out").join(file)).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()["resources"][0]["metadata"]["filter_metadata"]
                ["torana"]["mark"]
                .clone()
        })
    }
}

fn gateway(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(arguments).current_dir(folder).env("ACME_SECRET", SECRET);
    command
}

fn serial(pem: &[u8]) -> String {
    certs::inspect_pem(pem).unwrap().remove(0).serial_hex
}

#[tokio::test]
async fn what_is_accepted_is_handed_over_and_told() {
    let house = House::start();
    // It serves nonces and limits before there is an Envoy.
    house.handed(0.0).await;
    house.configure();
    house.handed(1.0).await;
    for (name, kind) in [
        ("listener/edge", "certificate"),
        ("listener/edge/clients", "ca"),
        ("listener/edge/clients", "crl"),
        ("upstream/u", "certificate"),
        ("upstream/u/ca", "ca"),
        ("upstream/u/ca", "crl"),
    ] {
        let line = format!(r#"certs_expiry_seconds{{kind="{kind}",name="{name}"}}"#);
        assert!(house.metric(&line).await.is_some_and(|seconds| seconds > 0.0), "{line}");
    }

    for (name, ca, set) in [("edge", "edge-ca", "listener-edge"), ("gateway", "internal-ca", "upstream-u")] {
        let serial = house.renew(name, ca);
        until(name, async || house.copied_serial(set).as_ref() == Some(&serial)).await;
        let text = |ending| String::from_utf8(house.copied(set, ending).unwrap()).unwrap();
        let key = certs::inspect_key_pem(text("key").as_bytes()).unwrap().unwrap();
        let facts = certs::inspect_pem(text("pem").as_bytes()).unwrap().remove(0);
        assert_eq!(key.spki_sha256, facts.spki_sha256, "{name}");
        let told: Value = serde_json::from_str(&house.get("/certificates").await.unwrap()).unwrap();
        let told =
            [&told["listeners"][0], &told["clients"][0]].map(|part| part["serving"]["serial_hex"].clone());
        assert!(told.contains(&serial.into()), "{name}: {told:?}");
    }

    // What Envoy could not use is refused, and what the gateway would refuse.
    let (before, ca) = (house.copied_serial("upstream-u"), house.authority("internal-ca"));
    let leaf = Leaf::new("gateway.torana.internal", &["gateway.torana.internal"]);
    let issued = ca.issue(&Leaf { key: KeyAlgorithm::Ed25519, ..leaf }).unwrap();
    issued.write(house.dir.path(), "gateway").unwrap();
    let line = r#"cert_reload_failures_total{name="upstream/u",reason="not_for_envoy"}"#;
    until("it is refused", async || house.metric(line).await == Some(1.0)).await;
    assert_eq!(house.copied_serial("upstream-u"), before);
    let before = house.copied_serial("listener-edge");
    std::fs::write(house.at("edge.key"), std::fs::read(house.at("gateway.key")).unwrap()).unwrap();
    let line = r#"cert_reload_failures_total{name="listener/edge",reason="key_mismatch"}"#;
    until("it is refused", async || house.metric(line).await == Some(1.0)).await;
    assert_eq!(house.copied_serial("listener-edge"), before);
    until("it is written down", async || {
        let reason = &house.told()["listeners"][0]["last_failure"]["reason"];
        reason.as_str().is_some_and(|why| why.contains("edge.key"))
    })
    .await;
}

/// A listener or cluster is marked anew, and so drained, when somebody is no longer believed, and only then.
#[tokio::test]
async fn marks_change_with_whom_is_believed() {
    let house = House::start();
    house.configure();
    house.handed(1.0).await;
    let mut before = house.marks();
    assert!(before.iter().all(Value::is_string), "{before:?}");
    // Which CA, whether somebody is revoked, and which of the two marks change.
    for (ca, revoked, changed) in [
        ("partner-ca", None, [false, false]),
        ("partner-ca", Some("partner"), [true, false]),
        ("partner-ca", None, [false, false]),
        ("internal-ca", Some("txn-core"), [false, true]),
        ("internal-ca", None, [false, false]),
    ] {
        let told = house.told();
        match revoked {
            Some(name) => revoke(house.dir.path(), ca, name),
            None => {
                let (list, authority) = (house.at(&format!("{ca}.crl")), house.authority(ca));
                crl::revoke(&list, &authority, &[], Reason::Unspecified, Duration::days(2)).unwrap();
            }
        }
        // Written down when all of it is done.
        until("the list is handed over", async || house.told() != told).await;
        let set = if ca == "partner-ca" { "listener-edge-clients" } else { "upstream-u-ca" };
        let signed = std::fs::read(house.at(&format!("{ca}.crl"))).unwrap();
        assert_eq!(base64(&house.copied(set, "crl").unwrap()), base64(&signed));
        let now = house.marks();
        let differ: Vec<bool> = now.iter().zip(&before).map(|(now, before)| now != before).collect();
        assert_eq!(differ, changed, "{ca} {revoked:?}");
        before = house.marks();
    }
}

/// What is in PEM, whatever its lines are called.
fn base64(pem: &[u8]) -> String {
    let text = String::from_utf8_lossy(pem);
    text.lines().filter(|line| !line.starts_with('-')).collect()
}

/// What is in the way of the copy is told, and what was accepted meanwhile is handed over when it is gone.
#[tokio::test]
async fn what_cannot_be_handed_over_is_told_and_tried_again() {
    let house = House::start();
    house.configure();
    house.handed(1.0).await;
    std::fs::rename(house.at("out/served"), house.at("out/aside")).unwrap();
    std::fs::write(house.at("out/served"), "no folder").unwrap();
    let serial = house.renew("edge", "edge-ca");
    house.handed(0.0).await;
    std::fs::remove_file(house.at("out/served")).unwrap();
    std::fs::rename(house.at("out/aside"), house.at("out/served")).unwrap();
    house.handed(1.0).await;
    assert_eq!(house.copied_serial("listener-edge"), Some(serial));
}
