//! Why an upstream cannot be reached: in the log, on `/config` and by `explain --log`.

use std::process::Command;

use super::nginx::Nginx;
use super::{SERVER_NAME, routes};
use crate::running::{LOG, Recorder, pki, serve, until};

#[tokio::test]
async fn the_cause_of_a_failure_is_told_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let nginx = Nginx::start(folder.path(), "").await;
    let strict = Recorder::start(folder.path(), "strict").await;
    let settings = |port: u16, tls: &str| {
        format!("addresses: [\"127.0.0.1:{port}\"], outlier: {{ failures: 0 }}, tls: {tls}")
    };
    let one_way = format!("{{ server_name: {SERVER_NAME}, ca: \"file:internal-ca.pem\" }}");
    let cases = [
        ("unknown_issuer", settings(nginx.tls, &one_way.replace("internal-ca", "edge-ca"))),
        ("wrong_name", settings(nginx.tls, &one_way.replace(SERVER_NAME, "other.test"))),
        ("not_tls", settings(nginx.plain, &one_way)),
        ("client_certificate_rejected", settings(strict.port, &one_way)),
        ("connection_refused", settings(1, &one_way)),
        ("name_unresolved", "addresses: [\"nosuch.invalid:80\"], tls: off".to_owned()),
        ("invalid_response", settings(nginx.plain, "off, protocol: h2c")),
    ];
    let policy = routes(&cases.clone());
    let gateway = serve(folder.path(), &policy).await;
    for (cause, _) in cases {
        let url = format!("{}/{cause}/x", gateway.url);
        for _ in 0..3 {
            let answer = gateway.http.get(&url).send().await.unwrap();
            assert!(matches!(answer.status().as_u16(), 502 | 503), "{cause}: {}", answer.status());
        }
        let answer = gateway.http.post(&url).send().await.unwrap();
        let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let config = gateway.admin("/config").await;
        let failure = &config["upstreams"][cause]["failures"][0];
        assert_eq!(failure["cause"], cause, "{config:#}");
        // Names are looked up whatever is asked for.
        let least = if cause == "name_unresolved" { 1 } else { 4 };
        assert!(failure["count"].as_u64() >= Some(least) && failure["detail"].is_string(), "{failure}");

        let log = || std::fs::read_to_string(folder.path().join(LOG)).unwrap();
        until("the access log has the request", async || log().contains(&request_id)).await;
        let lines = log();
        let of_upstream: Vec<&str> = lines
            .lines()
            .filter(|line| match cause {
                "name_unresolved" => line.contains("the name cannot be resolved"),
                _ => line.contains("no connection to the upstream") && line.contains(cause),
            })
            .collect();
        assert_eq!(of_upstream.len(), 1, "once in a while, not once a request: {of_upstream:?}");
        assert!(of_upstream[0].contains("\"level\":\"WARN\""), "{}", of_upstream[0]);

        let explained = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .args(["explain", "edge.yaml", "--log", LOG, "--request-id", &request_id])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let told = String::from_utf8(explained.stdout).unwrap() + &String::from_utf8_lossy(&explained.stderr);
        assert!(told.contains(&format!("no connection to the upstream ({cause}): ")), "{told}");
    }
}

#[tokio::test]
async fn a_changed_upstream_starts_without_the_old_ejection() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let nginx = Nginx::start(folder.path(), "").await;
    let policy = |name: &str| {
        let tls = format!("{{ server_name: {name}, ca: \"file:internal-ca.pem\" }}");
        let outlier = "outlier: { failures: 1, eject_ms: 600000 }";
        routes(&[("u", format!("addresses: [\"127.0.0.1:{}\"], {outlier}, tls: {tls}", nginx.tls))])
    };
    let gateway = serve(folder.path(), &policy("other.test")).await;
    for _ in 0..2 {
        assert_eq!(gateway.get("/u/x", &[]).await.0, 503);
    }
    assert_eq!(gateway.admin("/config").await["upstreams"]["u"]["addresses"][0]["serves"], false);
    gateway.change(folder.path(), &policy(SERVER_NAME));
    until("the new policy serves", async || gateway.admin("/config").await["reloads"] == 1).await;
    assert_eq!(gateway.get("/u/x", &[]).await, (200, "nginx".to_owned()));
}
