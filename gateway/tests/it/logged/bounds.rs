//! The limit of several that refused, and the bounds of upstreams.

use super::{SMALL, expect, explain};
use crate::running::{LOG, Recorder, TLS, pki, serve, until};

/// Where several have limits by one filter, the one that refused is pointed at; and the bound of an upstream that did.
#[tokio::test]
async fn the_limit_that_refused_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let recorder = Recorder::start(folder.path(), "core").await;
    let port = recorder.port;
    // Line 5 is the first.
    let policy = format!(
        r#"upstreams:
  core: {{ addresses: ["127.0.0.1:{port}"], tls: {TLS} }}
  tight:
    addresses: ["127.0.0.1:{port}"]
    tls: {TLS}
    max_in_flight: 1
tenants: {{ shop: {{ plan: small, hosts: [localhost] }} }}
plans:
  small:
    concurrency: [{{ name: few, by: tenant, most: 1 }}]
    quota:
      - {{ name: first, by: tenant, per: day, most: 900 }}
      - {{ name: daily, by: tenant, per: day, most: 4 }}
filters:
  tenant: {{ from: [host] }}
  rate_limit:
    limits:
      - {{ name: "every", by: ip, requests: 8, per_s: 36000 }}
routes:
  - name: own
    methods: [GET]
    path: /own
    upstream: core
    filters:
      quota:
        limits:
          - {{ name: first_own, by: route, per: day, most: 900 }}
          - {{ name: own, by: route, per: day, most: 2 }}
  - name: plan
    methods: [GET]
    path: /plan
    upstream: core
    filters: {{ quota: {{ limits: [{{ name: much, by: route, per: day, most: 900 }}] }} }}
  - name: every
    methods: [GET]
    path: /every
    upstream: core
    filters: {{ rate_limit: {{ limits: [{{ name: other, by: ip, requests: 900, per_s: 60 }}] }} }}
    except: [tenant]
  - {{ name: held, methods: [GET], path: /held, upstream: core, except: [rate_limit], filters: {{ concurrency: {{ limits: [{{ name: many, by: ip, most: 9 }}] }} }} }}
  - {{ name: tight, methods: [GET], path: /tight, rewrite: /held, upstream: tight, except: [tenant, rate_limit] }}
  - {{ name: slow, methods: [GET], path: /slow, rewrite: /held, upstream: core, timeout_ms: 300, except: [tenant, rate_limit] }}
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    // A place is given back behind the answer.
    let is_free = async || gateway.metric("gateway_requests_in_flight ").await == 0.0;
    let send = async |path: &str| {
        let answer = gateway.http.get(format!("{}{path}", gateway.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.headers()["x-request-id"].to_str().unwrap().to_owned())
    };
    let mut refused = Vec::new();
    for path in ["/held", "/tight"] {
        let seen = recorder.seen();
        let (first, second) = tokio::join!(send(path), async {
            until("the first is held", async || recorder.seen() > seen).await;
            let second = send(path).await;
            recorder.release.notify_one();
            second
        });
        assert_eq!(first.0, 200, "{path}");
        refused.push(second);
    }
    for (path, passes) in [("/own", 2), ("/plan", 1), ("/every", 5), ("/slow", 0)] {
        for _ in 0..passes {
            until("the place is free", is_free).await;
            assert_eq!(send(path).await.0, 200, "{path}");
        }
        until("the place is free", is_free).await;
        refused.push(send(path).await);
    }
    let log = folder.path().join(LOG);
    let last = refused.last().unwrap().1.clone();
    until("all is in the log", async || std::fs::read_to_string(&log).unwrap().contains(&last)).await;
    for ((status, request_id), expected) in refused.iter().zip([
        &["  concurrency  REFUSED    [edge.yaml:14], by limit `few` of plan `small`"][..],
        &["=> 503 upstream_overloaded, by the edge", "max_in_flight of upstream tight: 1  [edge.yaml:10]"],
        &["  quota        REFUSED    [edge.yaml:32], by limit `own`", "=> 429 quota_exceeded, by quota"],
        &["  quota        REFUSED    [edge.yaml:17], by limit `daily` of plan `small`"],
        &["  rate_limit   REFUSED    [edge.yaml:22], by limit `every`"],
        &["=> 504 upstream_timeout, by the edge", "timeout_ms of route slow: 300  [edge.yaml:46]"],
    ]) {
        assert!(*status >= 429, "{status} where {expected:?}");
        expect(folder.path(), LOG, request_id, 1, expected);
    }
}

/// After the upstream of [`SMALL`], of which the last line is 7: limits of a plan, and bounds that are written and that
/// are not.
const BOUNDS: &str = r#"    max_in_flight: 9
  spare:
    addresses: ["127.0.0.1:3"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:core.pem", key: "file:core.key" }
  own:
    addresses: ["127.0.0.1:4"]
    health: { path: /health, timeout_ms: 70 }
    timeout_ms: 80
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:core.pem", key: "file:core.key" }
tenants: { shop: { hosts: [shop.test] } }
plans: { a/b: { quota: [{ name: daily, by: tenant, per: day, most: 3 }] } }
default_plan: a/b
filters: { tenant: { from: [host] } }
routes:
  - { name: open, methods: [GET], path: /v1/open, upstream: core }
  - name: shared
    methods: [GET]
    path: /v1/shared
    upstreams: [{ upstream: core }, { upstream: spare }]
    timeout_ms: 200
  - { name: socket, methods: [GET], path: /v1/socket, websocket: {}, upstream: spare }
  - { name: each, methods: [GET], path: /v1/each, upstreams: [{ upstream: core }, { upstream: own }] }
  - { name: first, methods: [GET], path: /v1/first, upstream: own, timeout_ms: 90 }
"#;

/// Envoy's line has the limit in a field of its own, and of an upstream's bounds its own marks.
#[test]
fn a_line_of_either_plane_leads_to_the_limit_or_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let (head, _) = SMALL.split_once("filters:").unwrap();
    std::fs::write(folder.path().join("edge.yaml"), format!("{head}{BOUNDS}")).unwrap();
    let line = |id: &str, route: &str, status: u16, more: &str| {
        format!(
            r#"{{"timestamp":"2026-11-24T12:00:00Z","target":"access","request_id":"{id}","method":"GET","route":"{route}","policy":"0123456789ab","status":{status},"client_ip":"192.0.2.7",{more}}}"#
        )
    };
    let cases = [
        // Of Envoy.
        (
            line(
                "a",
                "open",
                429,
                r#""flags":"-","details":"","refused":"quota/quota_exceeded/open","limit":"plan:a/b/daily""#,
            ),
            &["  quota        REFUSED    [edge.yaml:18], by limit `daily` of plan `a/b`"][..],
        ),
        (
            line(
                "b",
                "open",
                503,
                r#""flags":"UO","details":"overflow","refused":null,"upstream":"core~0123456789abcdef""#,
            ),
            &["=> 503, by Envoy itself (overflow)", "max_in_flight of upstream core: 9  [edge.yaml:8]"],
        ),
        (
            line(
                "c",
                "shared",
                504,
                r#""flags":"UT","details":"response_timeout","upstream":"spare~0123456789abcdef""#,
            ),
            &["timeout_ms of route shared: 200  [edge.yaml:27]"],
        ),
        // Of the gateway.
        (
            line("d", "shared", 503, r#""code":"upstream_overloaded","filter":"edge","upstream":"spare""#),
            &["max_in_flight of upstream spare: 1024, as it is where none is written  [edge.yaml:10]"],
        ),
        (
            line("e", "shared", 503, r#""code":"upstream_overloaded","filter":"edge""#),
            &[
                "max_in_flight of upstream core: 9  [edge.yaml:8]",
                "max_in_flight of upstream spare: 1024, as",
            ],
        ),
        (
            line("f", "open", 504, r#""code":"upstream_timeout","filter":"edge","upstream":"core""#),
            &["timeout_ms of route open: 5000, as it is where none is written  [edge.yaml:22]"],
        ),
        (
            line("g", "socket", 200, r#""cut_off":"time_over","upstream":"spare""#),
            &[
                "timeout_ms of route socket: 5000, as it is where none is written  [edge.yaml:28]",
                "websocket of route socket: idle_timeout_ms 60000, most_s 3600  [edge.yaml:28]",
            ],
        ),
        // Who says how long an upstream may take.
        (
            line("i", "each", 504, r#""code":"upstream_timeout","filter":"edge","upstream":"own""#),
            &["timeout_ms of upstream own: 80  [edge.yaml:15]"],
        ),
        (
            line("j", "each", 504, r#""code":"upstream_timeout","filter":"edge""#),
            &[
                "timeout_ms of route each: 5000, as it is where none is written  [edge.yaml:29]",
                "timeout_ms of upstream own: 80  [edge.yaml:15]",
            ],
        ),
        (
            line("k", "first", 504, r#""code":"upstream_timeout","filter":"edge","upstream":"own""#),
            &["timeout_ms of route first: 90  [edge.yaml:30]"],
        ),
        // A limit that this policy does not have.
        (
            line("h", "open", 429, r#""code":"quota_exceeded","filter":"quota","limit":"monthly""#),
            &["  quota        REFUSED    by limit `monthly`"],
        ),
    ];
    let log: Vec<&str> = cases.iter().map(|(line, _)| line.as_str()).collect();
    std::fs::write(folder.path().join("edge.log"), log.join("\n") + "\n").unwrap();
    for (position, (line, expected)) in cases.iter().enumerate() {
        let id = &line[line.find("request_id").unwrap() + 13..][..1];
        expect(folder.path(), "edge.log", id, i32::from(position != 6), expected);
    }
    // Bounds are told of what they ended alone.
    let (_, told, _) = explain(folder.path(), "edge.log", "a");
    assert!(!told.contains("timeout_ms") && !told.contains("max_in_flight"), "{told}");
}
