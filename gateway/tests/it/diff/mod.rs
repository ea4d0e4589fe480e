//! `gateway diff`: what it says changes, for whom, and which way.

mod access;

use std::fs;
use std::path::Path;
use std::process::Command;

/// None of the files that it names is there. Line 1 is the empty one.
const OLD: &str = r#"
listeners:
  - name: edge
    address: 127.0.0.1:8443
    tls:
      certificate: file:edge.pem
      key: file:edge.key
      client_certificates: { ca: "file:clients.pem", crl: "file:clients.crl" }
admin: { address: "127.0.0.1:9100" }
upstreams:
  core:
    addresses: ["127.0.0.1:9001"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
  next:
    addresses: ["127.0.0.1:9002"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
issuers:
  main: { issuer: "https://issuer.test", audiences: [upi], algorithms: [ES256], jwks: { file: "file:jwks.json" } }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "env:NOBODY_HAS_THIS" }] }
filters:
  shape: {}
  jwt: {}
  rate_limit: { limits: [{ name: user, by: ip, requests: 60, per_s: 30 }] }
routes:
  - name: send
    methods: [POST]
    path: /v1/send
    upstream: core
    filters: { jwt: { scopes: [pay] }, signature: {}, nonce: {} }
  - name: status
    methods: [GET]
    path: /v1/status
    upstream: core
  - { name: next, methods: [GET], path: /v2/status, upstream: next }
"#;

/// Exit status, output and complaints of `gateway diff` from [`OLD`] to another policy.
fn diff(folder: &Path, new: &str, more: &[&str]) -> (i32, String, String) {
    between(folder, OLD, new, more)
}

fn between(folder: &Path, old: &str, new: &str, more: &[&str]) -> (i32, String, String) {
    fs::write(folder.join("old.yaml"), old).unwrap();
    fs::write(folder.join("new.yaml"), new).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["diff", "old.yaml", "new.yaml"])
        .args(more)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn each_change_is_told_with_whom_it_concerns_and_which_way_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (open, send, limit) = (
        "    path: /v1/status\n    upstream: core\n",
        "{ jwt: { scopes: [pay] }, signature: {}, nonce: {} }",
        "requests: 60, per_s: 30",
    );
    for (from, to, expected) in [
        // Who may call.
        (
            open,
            "    path: /v1/status\n    upstream: core\n    except: [jwt]\n",
            &[
                "lets more in:",
                "  ! route status: anybody may call it now  [new.yaml:31]",
                "  ! route status: jwt is gone; it was { ",
                "warnings that are new:",
                "  new.yaml:35:14: route `status` does without `jwt`",
            ][..],
        ),
        (
            "  jwt: {}\n",
            "",
            &["  ! routes status, next: anybody may call it now", "  ! routes status, next: jwt is gone"],
        ),
        (
            "  shape: {}\n",
            "",
            &["  ! every route: shape is gone; it was { content_types: [application/json]"],
        ),
        (
            "  shape: {}\n",
            "  shape: {}\n  client_cert: { mode: optional }\n",
            &[
                "lets less in:",
                "  - every route: client_cert is required now: { clients: [], mode: optional }",
            ],
        ),
        (
            send,
            "{ jwt: {}, signature: {}, nonce: {} }",
            &["  ! route send: jwt.scopes: - pay, none is left  [new.yaml:26]"],
        ),
        (
            send,
            "{ jwt: { scopes: [pay, admin] }, signature: {}, nonce: {} }",
            &["  - route send: jwt.scopes: + admin"],
        ),
        (
            send,
            "{ jwt: { scopes: [pay] }, signature: {} }",
            &["  ! route send: nonce is gone; it was { max_length: 128"],
        ),
        (
            send,
            "{ jwt: { scopes: [pay] }, signature: { clients: [acme] }, nonce: { window_s: 60 } }",
            &[
                "  - route send: signature.clients: + acme, none before",
                "  - route send: nonce.window_s: 300 -> 60",
            ],
        ),
        // Who passes is another matter.
        (
            "  shape: {}\n",
            "  shape: {}\n  compression: {}\n",
            &["changes otherwise:", "  ~ every route: compression is"],
        ),
        // How often, with by whom it is counted.
        (
            limit,
            "requests: 600, per_s: 30",
            &[
                "  ! every route: rate_limit.limits.user.requests: 60 -> 600 (by ip, counted shared, mode enforce, per_s 30)",
            ],
        ),
        (
            limit,
            "requests: 60, per_s: 60",
            &["  - every route: rate_limit.limits.user.per_s: 30 -> 60 (by ip"],
        ),
        (
            limit,
            "requests: 60, per_s: 30, counted: here",
            &["  ! every route: rate_limit.limits.user.counted: shared -> here"],
        ),
        (
            "by: ip",
            "by: user",
            &[
                "  ~ every route: rate_limit.limits.user.by: ip -> user (counted shared, mode enforce, per_s 30, requests 60)",
            ],
        ),
        (
            limit,
            "requests: 60, per_s: 30, mode: shadow",
            &["  ! every route: rate_limit.limits.user.mode: enforce -> shadow (by ip"],
        ),
        // Who may call.
        (
            "routes:\n",
            "default_plan: small\nplans: { small: { quota: [{ name: d, by: tenant, per: day, most: 5 }] } }\n\
             tenants: { acme: {} }\nroutes:\n",
            &[
                "  ! tenant acme and tenants that the policy does not name: default_plan: is new: small",
                "  ! tenants.acme: is new",
            ],
        ),
        // What may be called.
        (
            "  - { name: next",
            "  - { name: refund, methods: [POST], path: /v1/refund, upstream: core }\n  - { name: next",
            &[
                "  ! route refund: is new: { filters: [shape, jwt, rate_limit], methods: [POST], path: /v1/refund, retries: 0, timeout_ms: 5000, upstream: core }  [new.yaml:35]",
            ],
        ),
        (
            "  - { name: next, methods: [GET], path: /v2/status, upstream: next }\n",
            "",
            &["lets less in:", "  - route next: is gone  [old.yaml:35]"],
        ),
        ("name: next,", "name: status2,", &["  ~ route status2: name: next -> status2  [new.yaml:35]"]),
        (
            "  - { name: next, methods: [GET], path: /v2/status, upstream: next }\n",
            "  - { name: status2, methods: [GET], path: /v2/status, upstream: next, except: [shape] }\n",
            &["  ! route status2: shape is gone"],
        ),
        (
            limit,
            "requests: 60, per_s: 30, burst: 5",
            &["  - every route: rate_limit.limits.user.burst: 60 -> 5 (by ip"],
        ),
        // Whose requests another route gets, which may ask for less.
        (
            "    path: /v1/status\n    upstream: core\n",
            "    path: /v1/health\n    upstream: core\n  - { name: any, methods: [GET], path: \"/v1/{x}\", upstream: core, except: [jwt] }\n",
            &[
                "  ! route any: is new and anybody may call it: ",
                "  ! route any: GET /v1/status comes here now, to route status before, so without jwt  [new.yaml:35]",
                "  ~ route status: path: /v1/status -> /v1/health",
            ],
        ),
        (
            "    path: /v1/send\n    upstream: core\n    filters: { jwt: { scopes: [pay] }, signature: {}, nonce: {} }\n",
            "    path: /v1/pay\n    upstream: core\n    filters: { jwt: { scopes: [pay] }, signature: {}, nonce: {} }\n  - { name: any, methods: [POST], path: \"/v1/{x}\", upstream: core, filters: { jwt: {}, signature: {}, nonce: {} } }\n",
            &[
                "  ! route any: POST /v1/send comes here now, to route send before, and asks for less: jwt.scopes  [new.yaml:31]",
            ],
        ),
        ("methods: [POST]", "methods: [POST, PUT]", &["  ! route send: methods: + PUT"]),
        ("path: /v1/send", "path: /v1/pay", &["  ~ route send: path: /v1/send -> /v1/pay"]),
        (
            open,
            "    path: /v1/status\n    upstreams: [{ upstream: core, weight: 95 }, { upstream: next, weight: 5 }]\n    timeout_ms: 900\n",
            &[
                "  ~ route status: upstream: core -> core 95, next 5",
                "  ~ route status: timeout_ms: 5000 -> 900",
            ],
        ),
        // In effect there, whoever states it.
        (
            "[\"127.0.0.1:9001\"]\n",
            "[\"127.0.0.1:9001\"]\n    timeout_ms: 900\n",
            &[
                "  ~ routes send, status: timeout_ms: 5000 -> 900",
                "  ~ routes send, status: upstreams.core.timeout_ms: is new: 900",
            ],
        ),
        // The rest.
        (
            "acme: {",
            "zeta: { hmac_keys: [{ id: z, secret: \"env:Z\" }] }\n  acme: {",
            &[
                "  ! clients.zeta: is new: { api_keys: [], certificates: [], hmac_keys: [{ encoding: raw, id: z, secret: env:Z }] }",
            ],
        ),
        (
            "{ id: acme-1,",
            "{ id: acme-2,",
            &["  ! clients.acme.hmac_keys.acme-2: is new", "  - clients.acme.hmac_keys.acme-1: is gone"],
        ),
        ("audiences: [upi]", "audiences: [upi, web]", &["  ! issuers.main.audiences: + web"]),
        (
            ", crl: \"file:clients.crl\"",
            "",
            &["  ! listeners.edge.tls.client_certificates.crl: is gone; it was file:clients.crl"],
        ),
        (
            "ca: \"file:clients.pem\",",
            "ca: \"file:clients.pem\", required: true,",
            &["  - listeners.edge.tls.client_certificates.required: false -> true"],
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[\"127.0.0.1:9003\"]",
            &["  ~ routes send, status: upstreams.core.addresses: + 127.0.0.1:9003, - 127.0.0.1:9001"],
        ),
        (
            "admin:",
            "trusted_proxies: [10.0.0.0/8]\nadmin:",
            &["  ! trusted_proxies: + 10.0.0.0/8, none before"],
        ),
        // What a running gateway refuses.
        (
            "admin: {",
            "state: { memory: { max_entries: 3000000 } }\nadmin: {",
            &[
                "  ~ state.memory.max_entries: 2000000 -> 3000000",
                "`state` changes: a running gateway refuses this policy and must be restarted",
            ],
        ),
        ("127.0.0.1:9100", "127.0.0.1:9101", &["`admin` changes: a running gateway refuses"]),
    ] {
        assert!(OLD.contains(from), "the case for {to:?} changes nothing");
        let (status, told, complained) = diff(folder.path(), &OLD.replacen(from, to, 1), &[]);
        assert_eq!((status, complained.as_str()), (1, ""), "with {to}\n{told}");
        for line in expected {
            assert!(
                told.lines().any(|told| told.starts_with(line)),
                "with {to}\nexpected {line}\ntold {told}"
            );
        }
    }
}

/// Where several upstreams serve a route, each has its own time.
#[test]
fn what_each_upstream_of_a_route_has() {
    let folder = tempfile::tempdir().unwrap();
    let shared = OLD.replacen("upstream: next }", "upstreams: [{ upstream: core }, { upstream: next }] }", 1);
    let stated = shared.replacen("9002\"]\n", "9002\"]\n    timeout_ms: 300\n", 1);
    let (status, told, _) = between(folder.path(), &shared, &stated, &[]);
    for line in [
        "  ~ route next: timeout_ms: 5000 -> core 5000, next 300",
        "  ~ route next: upstreams.next.timeout_ms: is new: 300",
    ] {
        assert!(
            status == 1 && told.lines().any(|told| told.starts_with(line)),
            "expected {line}\ntold {told}"
        );
    }
}

/// What decides does not change with where it is written, so that is told as what it is.
#[test]
fn policies_that_mean_the_same_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("", ""),
        ("routes:", "# What may be called.\nroutes:"),
        ("  shape: {}\n", "  shape: { max_headers: 64 }\n"),
        (
            "    upstream: core\n    filters: {",
            "    timeout_ms: 5000\n    upstreams: [{ upstream: core, weight: 3 }]\n    filters: { shape: {},",
        ),
        ("methods: [GET], path: /v2/status", "path: /v2/status, methods: [GET]"),
    ] {
        let (status, told, _) = diff(folder.path(), &OLD.replacen(from, to, 1), &[]);
        assert!(status == 0 && told.ends_with(": both mean the same\n"), "with {to}: {told}");
    }
    let (status, told, _) = diff(folder.path(), OLD, &["--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["changes"]), (0, &serde_json::json!([])));
}

/// Who does without a filter that refuses nobody asks for no less.
#[test]
fn another_route_without_compression_is_no_looser() {
    let folder = tempfile::tempdir().unwrap();
    let open = "    path: /v1/status\n    upstream: core\n";
    for (filter, told) in [
        (
            "compression: {}",
            "  ~ route any: GET /v1/status comes here now, to route status before  [new.yaml:36]",
        ),
        (
            "ip_access: { deny: [10.0.0.0/8] }",
            "  ! route any: GET /v1/status comes here now, to route status before, so without ip_access  [new.yaml:36]",
        ),
    ] {
        let old = OLD.replacen(open, &format!("{open}    filters: {{ {filter} }}\n"), 1);
        let any = "  - { name: any, methods: [GET], path: \"/v1/{x}\", upstream: core }\n  - { name: next";
        let new =
            old.replacen("path: /v1/status", "path: /v1/health", 1).replacen("  - { name: next", any, 1);
        let (_, text, _) = between(folder.path(), &old, &new, &[]);
        assert!(text.lines().any(|line| line == told), "{filter}: expected {told}\ntold {text}");
    }
}

#[test]
fn a_program_is_told_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let new = OLD.replacen("requests: 60", "requests: 600", 1).replacen("max_length: 1", "", 1);
    let (status, told, _) = diff(folder.path(), &new, &["--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let expected = serde_json::json!([{
        "effect": "looser", "routes": ["send", "status", "next"], "every_route": true, "what": "field",
        "path": "rate_limit.limits.user.requests", "before": 60, "after": 600,
        "beside": { "by": "ip", "per_s": 30, "counted": "shared", "mode": "enforce" }, "line": 0,
    }]);
    assert_eq!((status, &told["changes"]), (1, &expected));
    assert_eq!(told["new"]["file"], "new.yaml");
}

#[test]
fn a_policy_with_mistakes_is_compared_with_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (status, told, complained) = diff(folder.path(), &OLD.replacen("shape:", "shap:", 1), &[]);
    assert_eq!((status, told.as_str()), (2, ""));
    assert!(complained.starts_with("new.yaml:22:3: unknown field `shap`"), "{complained}");
}
