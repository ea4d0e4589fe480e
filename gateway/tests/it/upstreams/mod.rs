//! Upstreams that we did not write: plain HTTP, TLS of one side, names that are resolved.

mod authorization;
mod disabled;
mod failures;
mod http2;
mod nginx;
mod requests;
mod responses;

use self::nginx::Nginx;
use crate::running::{pki, serve, serve_with, until};

/// The end of a policy with a route to each of these upstreams.
fn routes(upstreams: &[(&str, String)]) -> String {
    let mut text = String::from("filters: { headers: {} }\nupstreams:\n");
    for (name, settings) in upstreams {
        text.push_str(&format!("  {name}: {{ {settings} }}\n"));
    }
    text.push_str("routes:\n");
    for (name, _) in upstreams {
        text.push_str(&format!(
            "  - {{ name: {name}, methods: [GET, POST], path: \"/{name}/{{*rest}}\", upstream: {name}, timeout_ms: 5000 }}\n"
        ));
    }
    text
}

const SERVER_NAME: &str = "txn-core.torana.internal";
const LISTENER: &str = r#"{ certificate: "file:edge.pem", key: "file:edge.key" }"#;

#[tokio::test]
async fn an_ordinary_server_is_an_upstream() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let nginx = Nginx::start(folder.path(), "").await;
    let (plain, tls) = (nginx.plain, nginx.tls);
    let policy = routes(&[
        ("plain", format!("addresses: [\"127.0.0.1:{plain}\"], tls: off, health: {{ path: / }}")),
        (
            "one-way",
            format!(
                "addresses: [\"127.0.0.1:{tls}\"], tls: {{ server_name: {SERVER_NAME}, ca: \"file:internal-ca.pem\" }}"
            ),
        ),
        ("system", format!("addresses: [\"127.0.0.1:{tls}\"], tls: {{ server_name: {SERVER_NAME} }}")),
        // Its certificate is verified, and bears another name.
        ("other-name", format!("addresses: [\"127.0.0.1:{tls}\"], tls: {{ server_name: other.test }}")),
        // Signed by another CA.
        (
            "other-ca",
            format!(
                "addresses: [\"127.0.0.1:{tls}\"], tls: {{ server_name: {SERVER_NAME}, ca: \"file:edge-ca.pem\" }}"
            ),
        ),
        ("named", format!("addresses: [\"localhost:{plain}\"], tls: off")),
        (
            "unknown-name",
            format!("addresses: [\"nowhere.invalid:{plain}\"], tls: off, connect_timeout_ms: 2000"),
        ),
    ]);
    let system = folder.path().join("internal-ca.pem").display().to_string();
    let gateway = serve_with(folder.path(), LISTENER, &policy, &[("SSL_CERT_FILE", system)]).await;
    for (route, expected) in [
        ("plain", (200, "nginx")),
        ("one-way", (200, "nginx")),
        ("system", (200, "nginx")),
        ("named", (200, "nginx")),
        ("other-name", (503, "upstream_unreachable")),
        ("other-ca", (503, "upstream_unreachable")),
        ("unknown-name", (503, "upstream_unreachable")),
    ] {
        let (status, told) = gateway.get(&format!("/{route}/x"), &[]).await;
        assert_eq!((status, told.as_str()), expected, "{route}");
    }
    let line = format!("gateway_upstream_healthy{{address=\"127.0.0.1:{plain}\",upstream=\"plain\"}} ");
    until("the plain upstream is probed", async || gateway.metric(&line).await == 1.0).await;
}

#[tokio::test]
async fn a_policy_that_begins_to_name_a_host_refuses_no_request_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let nginx = Nginx::start(folder.path(), "").await;
    let policy =
        |host: &str| routes(&[("named", format!("addresses: [\"{host}:{}\"], tls: off", nginx.plain))]);
    let gateway = serve(folder.path(), &policy("127.0.0.1")).await;
    gateway.change(folder.path(), &policy("localhost"));
    until("the new policy serves", async || {
        let (status, told) = gateway.get("/named/x", &[]).await;
        assert_eq!((status, told.as_str()), (200, "nginx"));
        gateway.admin("/config").await["reloads"] == 1
    })
    .await;
}

/// The system's CAs are needed only by an upstream that names none.
#[test]
fn the_systems_cas_must_be_there_when_an_upstream_names_none() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let head = "listeners:\n  - { name: edge, address: \"127.0.0.1:8443\", tls: { certificate: \"file:edge.pem\", key: \
        \"file:edge.key\" } }\nadmin: { address: \"127.0.0.1:9100\" }\n";
    for (tls, expected) in [
        (
            "{ server_name: core.test }",
            "edge.yaml:6:58: without `ca` the system's CAs are needed, and they cannot be used: cannot read nowhere.pem: \
             No such file or directory (os error 2); check that the file exists and that this user may read it; write \
             `ca`, or install `ca-certificates`",
        ),
        ("{ server_name: core.test, ca: \"file:internal-ca.pem\" }", ""),
        ("off", ""),
    ] {
        let policy = routes(&[("one", format!("addresses: [\"127.0.0.1:1\"], tls: {tls}"))]);
        std::fs::write(folder.path().join("edge.yaml"), format!("{head}{policy}")).unwrap();
        let checked = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
            .args(["check", "edge.yaml"])
            .current_dir(folder.path())
            .env("SSL_CERT_FILE", "nowhere.pem")
            .output()
            .unwrap();
        let told = String::from_utf8(checked.stdout).unwrap();
        let told = told.replace(&format!("{}/", folder.path().display()), "");
        if expected.is_empty() {
            assert!(checked.status.success(), "{tls}: {told}");
        } else {
            assert_eq!(told.lines().next(), Some(format!("error: {expected}").as_str()), "{tls}");
        }
    }
}
