//! `gateway explain`: what it says of requests, and which line of the policy it points to.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Line 1 is the empty one.
const POLICY: &str = r#"
listeners: [{ name: edge, address: "127.0.0.1:0", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }]
admin: { address: "127.0.0.1:1" }
upstreams:
  core:
    addresses: ["127.0.0.1:2"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:core.pem", key: "file:core.key" }
issuers:
  main:
    issuer: https://issuer.test
    audiences: [upi]
    algorithms: [ES256]
    jwks: { file: "file:jwks.json" }
tenants: { shop: { plan: small, hosts: [shop.test] } }
plans:
  small: { quota: [{ name: daily, by: tenant, per: day, most: 1 }] }
filters:
  ip_access: { deny: [203.0.113.0/24] }
  shape: {}
  # The token, jwt: everywhere.
  jwt: {}
  headers: {}
routes:
  - name: send
    methods: [POST]
    path: /v1/send
    upstream: core
    filters:
      idempotency: {}
      jwt: { scopes: [pay] }
  - { name: open, methods: [GET, POST], path: /v1/open, upstream: core, except: [jwt], filters: { idempotency: {} } }
  - { name: shop, methods: [GET], path: /v1/shop, upstream: core, except: [jwt], filters: { tenant: { from: [host] } } }
  - name: device
    methods: [GET]
    path: /v1/device
    upstream: core
    filters:
      quota:
        limits:
          - { name: each, by: user, per: day, most: 9 }
          - { name: device, by: device, per: day, most: 9 }
"#;

const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"one","alg":"ES256",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// Of `u-1`, with the scope `pay`, for ten minutes from 2026-11-24T12:00:00Z, signed by the key of RFC 7517 appendix A.2.
const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6Im9uZSIsInR5cCI6ImF0K2p3dCJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0IiwiYXVkIjoidXBpIiwic3ViIjoidS0xIiwiaWF0IjoxNzk1NTIxNjAwLCJleHAiOjE3OTU1MjIyMDAsInNjb3BlIjoicGF5In0.RoH9kqABsAXsI4sCnlFG3YuC1au_69ALaZLWbHiNqqzn0iRAeYknD4yt6DGhHjVHhzPq6CrsueB5frMQc-YTPQ";

fn explain(folder: &Path, request: &str, more: &[&str]) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["explain", "edge.yaml", "-"])
        .args(more)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that is told nonsense does not wait for a request.
    let _unread = child.stdin.take().unwrap().write_all(request.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn each_request_is_told_filter_by_filter_with_the_line_that_decides() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("edge.yaml"), POLICY).unwrap();
    fs::write(folder.path().join("jwks.json"), JWKS).unwrap();
    let send = "POST /v1/send HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                idempotency-key: 0123456789\r\n\r\n{\"idempotencyKey\": \"0123456789\"}";
    for (request, more, status, expected) in [
        (
            "GET /v1/open HTTP/1.1\nhost: a\nidempotency-key: 0123456789\n\n",
            &[][..],
            0,
            &[
                "route open  [edge.yaml:31]",
                "ip_access    passes     [edge.yaml:18]",
                "shape        passes     [edge.yaml:19]",
                "idempotency  passes     [edge.yaml:31]",
                "jwt          left out by `except` of the route",
                "=> goes to core, within 5000 ms",
            ][..],
        ),
        (
            send,
            &[],
            1,
            &[
                "route send  [edge.yaml:24]",
                "idempotency  passes     [edge.yaml:29]",
                "jwt          REFUSES    [edge.yaml:30]",
                "headers      not asked  [edge.yaml:22]",
                "=> 401 ",
            ],
        ),
        (
            "GET /v1/open HTTP/1.1\nhost: a\nidempotency-key: 0123456789\n\n",
            &["--from", "203.0.113.9"],
            1,
            &[
                "from 203.0.113.9",
                "ip_access    REFUSES    [edge.yaml:18]",
                "shape        not asked",
                "=> 403 ",
            ],
        ),
        (
            "GET /v1/open HTTP/1.1\nhost: a\nidempotency-key: 0123456789\n\n",
            &["--at", "2026-11-24T12:00:00Z"],
            0,
            &["GET /v1/open from 127.0.0.1 at 2026-11-24T12:00:00Z"],
        ),
        (
            "POST /v1/open HTTP/1.1\nhost: a\ncontent-type: application/json\nidempotency-key: 0123456789\n\n{",
            &[],
            1,
            &["shape        REFUSES", "idempotency  not asked about the body", "=> 400 "],
        ),
        (
            "GET /v1/shop HTTP/1.1\nhost: shop.test\n\n",
            &[],
            0,
            &[
                "tenant       passes     [edge.yaml:32]",
                "quota        passes     [edge.yaml:16]",
                "tenant: shop",
                "plan: small",
                "=> goes to core",
            ],
        ),
        (
            "GET /v1/shop HTTP/1.1\nhost: a\n\n",
            &[],
            1,
            &["tenant       REFUSES    [edge.yaml:32]", "=> 400 tenant_missing"],
        ),
        ("GET /elsewhere HTTP/1.1\nhost: a\n\n", &[], 1, &["no route", "=> 404 route_not_found"]),
        ("DELETE /v1/open HTTP/1.1\nhost: a\n\n", &[], 1, &["no route", "=> 405 method_not_allowed"]),
    ] {
        let (code, told, complained) = explain(folder.path(), request, more);
        assert_eq!((code, complained.as_str()), (status, ""), "{request}\n{told}");
        for line in expected {
            assert!(told.contains(line), "{request}\nexpected {line}\ntold {told}");
        }
    }
    // Whether a token is revoked, only the edges know; where none was believed there is nothing to ask them.
    let with_token = send.replace("host: a", &format!("host: a\r\nauthorization: Bearer {TOKEN}"));
    let note = "note: whether its token is revoked was not looked at: `gateway revoke edge.yaml --list` tells what is";
    for (at, status, is_noted) in [("2026-11-24T12:01:00Z", 0, true), ("2026-11-24T12:11:00Z", 1, false)] {
        let (code, told, _) = explain(folder.path(), &with_token, &["--at", at]);
        assert_eq!((code, told.lines().any(|line| line == note)), (status, is_noted), "{at}\n{told}");
    }
    // A token of no device.
    let device = format!("GET /v1/device HTTP/1.1\nhost: a\nauthorization: Bearer {TOKEN}\n\n");
    let (code, told, _) = explain(folder.path(), &device, &["--at", "2026-11-24T12:01:00Z"]);
    let line = "  quota        REFUSES    [edge.yaml:41], by limit `device`";
    assert!(code == 1 && told.lines().any(|told| told == line), "{told}");
    for (request, more, expected) in [
        ("nonsense", &[][..], "line 1 is no request line"),
        ("GET / HTTP/1.1\nhost\n\n", &[], "line 2 is no field"),
        ("", &[], "there is no request line"),
        ("GET / HTTP/1.1\n\n", &["--at", "noon"], "--at noon"),
        ("GET / HTTP/1.1\n\n", &["--certificate", "none.pem"], "none.pem"),
    ] {
        let (code, told, complained) = explain(folder.path(), request, more);
        assert_eq!((code, told.as_str()), (1, ""), "{request}");
        assert!(complained.contains(expected), "{request}: {complained}");
    }
    fs::remove_file(folder.path().join("jwks.json")).unwrap();
    let (_, told, _) = explain(folder.path(), send, &[]);
    assert!(told.contains("note: issuer main: its keys cannot be had now"), "{told}");
    fs::write(folder.path().join("edge.yaml"), POLICY.replace("shape: {}", "shpe: {}")).unwrap();
    let (code, _, complained) = explain(folder.path(), send, &[]);
    assert!(code == 1 && complained.contains("edge.yaml:19:3: unknown field `shpe`"), "{complained}");
}
