//! `gateway explain --log`: what it tells of requests that a gateway decided, from the log that it wrote.

mod bounds;

use std::path::Path;
use std::process::Command;

use crate::running::{LOG, Recorder, TLS, pki, serve, until};

/// The lines of the policy after its listeners and admin address: the first is line 5.
fn policy(recorder: &Recorder) -> String {
    format!(
        r#"upstreams:
  core: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
filters:
  ip_access: {{ deny: [203.0.113.0/24] }}
  shape: {{}}
routes:
  - name: open
    methods: [GET, POST]
    path: /v1/vpa/{{vpa}}
    upstream: core
    filters:
      rate_limit: {{ limits: [{{ name: few, by: ip, requests: 2, per_s: 3600 }}] }}
  - {{ name: bare, methods: [POST], path: /v1/bare, upstream: core, except: [ip_access], filters: {{ idempotency: {{}} }} }}
"#,
        recorder.port
    )
}

fn explain(folder: &Path, log: &str, request_id: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["explain", "edge.yaml", "--log", log, "--request-id", request_id])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn expect(folder: &Path, log: &str, request_id: &str, status: i32, expected: &[&str]) {
    let (code, told, complained) = explain(folder, log, request_id);
    assert_eq!((code, complained.as_str()), (status, ""), "{told}");
    for line in expected {
        assert!(told.lines().any(|told| told.starts_with(line)), "expected {line}\ntold {told}");
    }
}

#[tokio::test]
async fn requests_are_found_in_the_log_with_what_decided() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let recorder = Recorder::start(folder.path(), "core").await;
    let gateway = serve(folder.path(), &policy(&recorder)).await;
    let send = async |method: reqwest::Method, path: &str| {
        let url = format!("{}{path}", gateway.url);
        let answer = gateway.http.request(method, url).header("x-note", "a header").send().await.unwrap();
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    use reqwest::Method;
    let passed = send(Method::GET, "/v1/vpa/alice@bank?secret=1").await;
    send(Method::GET, "/v1/vpa/alice@bank").await;
    let limited = send(Method::GET, "/v1/vpa/alice@bank").await;
    let keyless = send(Method::POST, "/v1/bare").await;
    let nowhere = send(Method::GET, "/v2").await;
    let log = folder.path().join(LOG);
    until("all is in the log", async || std::fs::read_to_string(&log).unwrap().contains(&nowhere)).await;

    expect(
        folder.path(),
        LOG,
        &passed,
        0,
        &[
            "GET /v1/vpa/a***@bank from 127.0.0.1 at ",
            "route open  [edge.yaml:11]",
            "  ip_access    passed     [edge.yaml:8]",
            "  rate_limit   passed     [edge.yaml:16]",
            "=> 200, answered by core",
        ],
    );
    expect(
        folder.path(),
        LOG,
        &limited,
        1,
        &[
            "  shape        passed     [edge.yaml:9]",
            "  rate_limit   REFUSED    [edge.yaml:16]",
            "=> 429 rate_limited, by rate_limit",
            "note: a log has no header fields, no query and no body;",
        ],
    );
    expect(
        folder.path(),
        LOG,
        &keyless,
        1,
        &[
            "route bare  [edge.yaml:17]",
            "  shape        passed     [edge.yaml:9]",
            "  idempotency  REFUSED    [edge.yaml:17]",
            "  ip_access    left out by `except` of the route",
            "=> 400 idempotency_key_missing, by idempotency",
        ],
    );
    expect(folder.path(), LOG, &nowhere, 1, &["no route", "=> 404 route_not_found, by the edge"]);
    let (code, _, complained) = explain(folder.path(), LOG, "00000000-0000-7000-8000-000000000000");
    assert!(code == 1 && complained.contains("no line of the access log has the request id"), "{complained}");
    let (code, _, complained) = explain(folder.path(), "none.log", &passed);
    assert!(code == 1 && complained.starts_with("none.log: "), "{complained}");

    // By then another policy is in the file.
    let file = folder.path().join("edge.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("name: open", "name: opened").replace("idempotency: {}", "shape: {}"))
        .unwrap();
    let another = ["note: the policy "];
    expect(
        folder.path(),
        LOG,
        &passed,
        0,
        &[&another[..], &["route open, which this policy does not have"]].concat(),
    );
    let other_filter = ["  idempotency  REFUSED, and is no filter of this route in this policy"];
    expect(folder.path(), LOG, &keyless, 1, &[&another[..], &other_filter].concat());
}

/// A policy that nobody serves, for lines that are made up.
const SMALL: &str = r#"
listeners: [{ name: edge, address: "127.0.0.1:0", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }]
admin: { address: "127.0.0.1:1" }
upstreams:
  core:
    addresses: ["127.0.0.1:2"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:core.pem", key: "file:core.key" }
filters: { shape: {} }
routes:
  - { name: open, methods: [GET], path: /v1/open, upstream: core }
"#;

/// Of a request that went before anybody answered, nobody knows how far it came.
#[test]
fn what_was_cut_off_before_an_answer_tells_nothing_of_filters() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("edge.yaml"), SMALL).unwrap();
    let line = |id: &str, status: u16, more: &str| {
        format!(
            r#"{{"timestamp":"2026-11-24T12:00:00Z","target":"access","request_id":"{id}","method":"GET","path":"/v1/open","route":"open","policy":"0123456789ab","status":{status},"client_ip":"192.0.2.7",{more}}}"#
        )
    };
    let log = [
        line("a", 0, r#""cut_off":"client_gone""#),
        line("b", 200, r#""cut_off":"upstream_broke""#),
        line("c", 413, r#""cut_off":"client_gone","code":"body_too_large","filter":"shape""#),
        line("d", 0, r#""flags":"DC","details":"downstream_remote_disconnect","refused":null"#),
        line("e", 0, r#""flags":"-""#),
    ];
    std::fs::write(folder.path().join("edge.log"), log.join("\n") + "\n").unwrap();
    for (id, status, says, outcome) in [
        ("a", 1, "unknown ", "=> no answer: cut off before there was one (client_gone)"),
        ("b", 0, "passed ", "=> 200, answered by core, cut off (upstream_broke)"),
        ("c", 1, "REFUSED ", "=> 413 body_too_large, by shape"),
        ("d", 1, "unknown ", "=> no answer: cut off before there was one (downstream_remote_disconnect)"),
        ("e", 1, "unknown ", "=> no answer: cut off before there was one"),
    ] {
        expect(folder.path(), "edge.log", id, status, &[&format!("  shape        {says}"), outcome]);
    }
}

/// Envoy's lines have other fields.
#[test]
fn a_line_of_envoy_tells_as_much() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("edge.yaml"), SMALL).unwrap();
    let line = |id: &str, status: u16, details: &str, refused: &str| {
        let route = if details.is_empty() { "null" } else { "\"open\"" };
        format!(
            r#"{{"timestamp":"2026-11-24T12:00:00.000001Z","target":"access","request_id":"{id}","traceparent":null,"method":"GET","route":{route},"policy":"0123456789ab","status":{status},"flags":"-","refused":{refused},"details":"{details}","duration_ms":3,"upstream":"core","client_ip":"192.0.2.7","bytes_received":0,"bytes_sent":20}}"#
        )
    };
    let log = [
        line("a", 200, "via_upstream", "null"),
        line("b", 413, "", "\"shape/body_too_large/open\""),
        line("c", 503, "no_healthy_upstream", "null"),
        // What a client sent.
        line("d", 200, "via_upstream", "\"shape/body_too_large/open\""),
        line("e", 503, "no_healthy_upstream", "\"no filter/of/ours\""),
        line("f", 404, "", "\"edge/route_not_found/\""),
    ];
    std::fs::write(folder.path().join("envoy.log"), log.join("\n") + "\n").unwrap();
    let head = "GET (path not logged) from 192.0.2.7 at 2026-11-24T12:00:00.000001Z";
    let another = "note: the policy 0123456789ab decided, and edge.yaml is ";
    let passed = ["route open  [edge.yaml:10]", "  shape        passed ", "=> 200, answered by core"];
    let refused =
        ["route open  [edge.yaml:10]", "  shape        REFUSED ", "=> 413 body_too_large, by shape"];
    let away = ["  shape        unknown ", "=> 503, by Envoy itself (no_healthy_upstream)"];
    let nowhere = ["no route", "=> 404 route_not_found, by the edge"];
    for (id, status, expected) in [
        ("a", 0, &passed[..]),
        ("b", 1, &refused),
        ("c", 1, &away),
        ("d", 0, &passed),
        ("e", 1, &away),
        ("f", 1, &nowhere),
    ] {
        expect(folder.path(), "envoy.log", id, status, &[&[head, another][..], expected].concat());
    }
}
