//! `gateway check`: what it says of good and bad policies, certificates and keys included.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

const POLICY: &str = r#"
listeners:
  - name: edge
    address: 127.0.0.1:0
    tls: { certificate: "file:edge.pem", key: "file:edge.key" }
admin: { address: 127.0.0.1:1 }
upstreams:
  txn-core:
    addresses: ["127.0.0.1:2"]
    tls: { server_name: txn-core.torana.internal, ca: "file:internal-ca.pem", certificate: "file:gateway.pem", key: "file:gateway.key" }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "env:ACME_SECRET" }] }
filters: { shape: {}, headers: {} }
routes:
  - { name: send, methods: [POST], path: /v1/send, upstream: txn-core, except: [shape] }
"#;

/// Exit status and output of `gateway check` on a policy in a folder with a development PKI.
fn check(folder: &Path, policy: &str) -> (i32, String) {
    check_with(folder, policy, &[])
}

fn check_with(folder: &Path, policy: &str, more: &[&str]) -> (i32, String) {
    fs::write(folder.join("edge.yaml"), policy).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["check", "edge.yaml"])
        .args(more)
        .current_dir(folder)
        .env("ACME_SECRET", "0123456789abcdef0123456789abcdef")
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn policies_are_read_as_they_would_be_served() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let loose = folder.path().join("loose.secret");
    fs::write(&loose, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    certs::file::write_secret(&folder.path().join("short.secret"), "short").unwrap();

    let (status, told) = check(folder.path(), POLICY);
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("route send -> txn-core: headers"), "{told}");
    assert!(told.contains("warning: edge.yaml:15:81: route `send` does without `shape`"), "{told}");

    for (from, to, expected) in [
        ("file:edge.pem", "file:none.pem", "edge.yaml:5:25: "),
        ("file:edge.pem", "file:none.pem", "none.pem"),
        ("file:edge.key", "file:gateway.key", "edge.yaml:5:25: "),
        ("file:edge.pem", "file:empty.pem", "empty.pem"),
        ("file:edge.pem", "env:EDGE", "edge.yaml:5:25: certificates and keys are files"),
        ("file:internal-ca.pem", "file:gateway.pem", "edge.yaml:10:55: "),
        ("env:ACME_SECRET", "env:NOBODYS_SECRET", "edge.yaml:12:45: env:NOBODYS_SECRET: "),
        ("env:ACME_SECRET", "file:loose.secret", "edge.yaml:12:45: file:loose.secret: "),
        ("env:ACME_SECRET", "file:loose.secret", "`defaultMode: 0440`"),
        (
            "127.0.0.1:1 }",
            "127.0.0.1:1, revocation_secret: \"file:short.secret\" }",
            "edge.yaml:6:51: admin.revocation_secret is at least 32 bytes",
        ),
        (
            "127.0.0.1:1 }",
            "127.0.0.1:1, revocation_secret: \"file:none.secret\" }",
            "edge.yaml:6:51: admin.revocation_secret: file:none.secret: ",
        ),
        ("listeners:", "listners:", "edge.yaml:2:1: unknown field `listners`"),
        ("routes:", "routes", "edge.yaml:1"),
    ] {
        assert!(POLICY.contains(from));
        let (status, told) = check(folder.path(), &POLICY.replacen(from, to, 1));
        assert_eq!(status, 1, "accepted with {to}: {told}");
        assert!(told.contains(expected), "with {to}\nexpected {expected}\ntold     {told}");
    }
}

/// What the shared state is asked with is read as it would be served: it stands at the place of its address.
#[test]
fn shared_state_is_read_as_it_would_be_served() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    let (secret, elsewhere) = (folder.path().join("url"), folder.path().join("away"));
    for (written, more, expected) in [
        (Some("redis://127.0.0.1:6379/0\n".as_bytes()), "url: \"file:url\"", ""),
        (Some(b"rediss://redis.test/0"), "url: \"file:url\", ca: \"file:internal-ca.pem\"", ""),
        (None, "url: \"file:away\"", "state.redis: file:away: "),
        (None, "url: \"env:NOBODYS_REDIS\"", "state.redis: env:NOBODYS_REDIS: "),
        (
            Some(b"nonsense"),
            "url: \"file:url\"",
            "state.redis: its address is not one: write redis://host:port/0",
        ),
        (Some(b"\xff"), "url: \"file:url\"", "state.redis: its address is no text"),
        (Some(b"redis://10.0.0.1/0"), "url: \"file:url\"", "off the host write rediss://, which is TLS"),
        (
            Some(b"rediss://redis.test/#insecure"),
            "url: \"file:url\"",
            "its address switches verification off: remove `#insecure`",
        ),
        (Some(b"rediss://redis.test/0"), "url: \"file:url\", ca: \"file:none.pem\"", "none.pem"),
    ] {
        assert!(!elsewhere.exists());
        if let Some(written) = written {
            certs::file::write_secret(&secret, "").unwrap();
            fs::write(&secret, written).unwrap();
        }
        let state = format!("state: {{ redis: {{ {more} }} }}\nroutes:");
        let (status, told) = check(folder.path(), &POLICY.replacen("routes:", &state, 1));
        assert_eq!(status == 0, expected.is_empty(), "{more}: {told}");
        let place = if expected.is_empty() { "edge.yaml: ok" } else { "edge.yaml:14:24: state.redis: " };
        assert!(
            told.contains(expected) && told.contains(place),
            "{more}\nexpected {expected}\ntold     {told}"
        );
    }
}

#[test]
fn a_pipeline_may_take_warnings_for_mistakes() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    let signed = POLICY.replace(
        ", except: [shape] }",
        ", timeout_ms: 5000, filters: { signature: {}, nonce: { window_s: 60 } } }",
    );
    for (policy, more, expected) in [
        (POLICY, &[][..], 0),
        (POLICY, &["--deny-warnings"], 1),
        (&signed, &["--deny-warnings"], 0),
        (&signed.replace("shape: {}", "shpe: {}"), &["--deny-warnings"], 1),
    ] {
        let (status, told) = check_with(folder.path(), policy, more);
        assert_eq!(status, expected, "{more:?}: {told}");
    }
}

/// What the clock has to do with it: keys that count no longer, or will not soon.
#[test]
fn times_of_keys_are_held_against_the_clock() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    for (key, expected) in [
        (
            "not_after: 2020-01-01T00:00:00Z",
            "key `acme-1` counts no longer since 2020-01-01T00:00:00Z; remove it",
        ),
        ("not_after: 2020-01-01T00:00:00Z", "no key counts any more, and none will"),
        (
            "not_before: 2999-01-01T00:00:00Z",
            "no key counts from now to 2999-01-01T00:00:00Z, when `acme-1` begins",
        ),
    ] {
        let policy = POLICY.replace("env:ACME_SECRET\"", &format!("env:ACME_SECRET\", {key}"));
        let (status, told) = check(folder.path(), &policy);
        assert_eq!(status, 0, "{told}");
        assert!(
            told.contains("warning: edge.yaml:12:29: client `acme`: ") && told.contains(expected),
            "{told}"
        );
    }
}

#[test]
fn a_missing_policy_is_told_by_name() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gateway")).args(["check", "nowhere.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("nowhere.yaml: "));
}

#[test]
fn the_schema_is_json_and_describes_every_filter() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).arg("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let filters = schema["$defs"]["FilterSet"]["properties"].as_object().unwrap();
    let known: Vec<_> = filters::FilterSet::NAMES.to_vec();
    assert!(known.iter().all(|name| filters.contains_key(*name)), "{filters:?}");
}
