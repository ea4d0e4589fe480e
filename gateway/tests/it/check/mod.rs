//! `gateway check`: what it says of good and bad policies, certificates and keys included.

mod all_at_once;
mod certificates;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

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
    let output = gateway(folder, &[&["check", "edge.yaml"], more].concat());
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The first error or warning, without the line of the file below it.
fn first_line(told: &str) -> &str {
    told.lines().next().unwrap_or_default()
}

fn gateway(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
        .current_dir(folder)
        .env("ACME_SECRET", "0123456789abcdef0123456789abcdef")
        .env("SENTINELS", "redis://127.0.0.1:26379/0")
        .output()
        .unwrap()
}

/// A pipeline has none of the files and variables that a policy names.
#[test]
fn what_can_be_said_without_files_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (status, told) = check_with(folder.path(), POLICY, &["--without-files"]);
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("edge.yaml: ok, as far as its files do not say otherwise\n"), "{told}");
    assert!(told.contains("route `send` does without `shape`"), "{told}");
    let (status, _) = check_with(folder.path(), POLICY, &["--without-files", "--deny-warnings"]);
    assert_eq!(status, 1);
    let wrong = POLICY.replace("methods: [POST]", "methods: [PSOT]");
    let (status, told) = check_with(folder.path(), &wrong, &["--without-files"]);
    assert!(status == 1 && told.contains("did you mean `POST`?"), "{told}");
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
        (
            "file:edge.pem",
            "env:EDGE",
            "edge.yaml:5:25: what is followed while the edge runs must be a file, so that it can be replaced: write `file:PATH`",
        ),
        ("file:internal-ca.pem", "file:gateway.pem", "edge.yaml:10:55: "),
        (
            "env:ACME_SECRET",
            "env:NOBODYS_SECRET",
            "edge.yaml:12:45: env:NOBODYS_SECRET: the environment has no variable of that name",
        ),
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

/// What is in a file that is no policy is told in words for who put it there.
#[test]
fn files_that_hold_something_else() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, expected) in [
        (&b"admin:\n  \xff"[..], "edge.yaml: it is no UTF-8 text: look at line 2"),
        (b"\xff\xfea\0", "edge.yaml: it is no UTF-8 text: look at line 1"),
    ] {
        fs::write(folder.path().join("edge.yaml"), bytes).unwrap();
        let told = gateway(folder.path(), &["check", "edge.yaml"]);
        let expected = format!("error: {expected}\n\n1 error in edge.yaml\n");
        assert_eq!(String::from_utf8(told.stdout).unwrap(), expected);
    }
    let told = gateway(folder.path(), &["check", "."]);
    let expected =
        "error: .: it is not a file; name a file, not a folder, a pipe or a device\n\n1 error in .\n";
    assert_eq!(String::from_utf8(told.stdout).unwrap(), expected);
}

/// Keys of issuers that are files.
#[test]
fn files_of_keys_are_read_as_they_would_be_served() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    const KEY: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"KID","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let keys = |ids: &[&str]| {
        let keys: Vec<_> = ids.iter().map(|id| KEY.replace("KID", id)).collect();
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    };
    let policy = POLICY.replace(
        "filters:",
        "issuers:\n  dev: { issuer: i, audiences: [a], algorithms: [EdDSA],\n    jwks: { file: \"file:jwks.json\" } }\nfilters:",
    );
    let named = |what: &str| format!("edge.yaml:15:19: issuer `dev`: {what}");
    for (written, expected) in [
        (Some(keys(&["a", "b"])), "edge.yaml: ok".to_owned()),
        (None, named("cannot read jwks.json: No such file or directory")),
        (Some("keys".to_owned()), named("jwks.json: not a JWK set")),
        (Some("{}".to_owned()), named("jwks.json: not a JWK set")),
        (
            Some(keys(&[])),
            named("jwks.json: the key set has no P-256, P-384, Ed25519 or RSA key that verifies signatures"),
        ),
        (Some(keys(&["a", "a"])), named("jwks.json: the key set has two keys of one id and algorithm")),
        (Some(keys(&["a"; 257])), named("jwks.json: the key set has more than 262144 bytes or 64 keys")),
        (Some(" ".repeat(256 * 1024 + 1)), named("jwks.json is larger than 262144 bytes")),
    ] {
        let file = folder.path().join("jwks.json");
        let _ = fs::remove_file(&file);
        if let Some(written) = &written {
            fs::write(file, written).unwrap();
        }
        let (status, told) = check(folder.path(), &policy);
        assert_eq!(status == 0, expected.ends_with(": ok"), "{written:.99?}: {told}");
        assert!(told.contains(&expected), "{written:.99?}\nexpected {expected}\ntold     {told}");
    }
}

/// What issuers are asked with.
#[test]
fn issuers_are_asked_with_what_there_is() {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    const GONE: &str = "none: No such file or directory (os error 2); check that the file exists and that this user may read it";
    const NO_FILE: &str =
        "what is followed while the edge runs must be a file, so that it can be replaced: write `file:PATH`";
    let jwks = "algorithms: [EdDSA],\n    jwks: { url: \"https://i\",\n      ca: \"CA\", crl: \"CRL\" }";
    let asked = "introspection: { url: \"https://i\", client_id: e, client_secret: \"SECRET\",\n\n      ca: \"CA\", crl: \"CRL\" }";
    for (issuer, from, to, place, expected) in [
        (jwks, "", "", "ok", "edge.yaml: ok"),
        (asked, "", "", "ok", "edge.yaml: ok"),
        (jwks, "file:internal-ca.pem", "file:none", "edge.yaml:16:11: ", GONE),
        (asked, "file:internal-ca.pem", "file:none", "edge.yaml:16:11: ", GONE),
        (jwks, "file:internal-ca.crl", "file:none", "edge.yaml:16:40: ", GONE),
        (jwks, "file:internal-ca.crl", "file:edge.pem", "edge.yaml:16:40: ", "edge.pem"),
        (asked, "file:internal-ca.crl", "file:edge.pem", "edge.yaml:16:40: ", "edge.pem"),
        (jwks, "file:internal-ca.pem", "env:CA", "edge.yaml:16:11: ", NO_FILE),
        (
            asked,
            "env:ACME_SECRET",
            "file:none",
            "edge.yaml:14:8: issuer `dev`: introspection: client_secret: ",
            GONE,
        ),
    ] {
        let issuer = issuer.replace("CA\"", "file:internal-ca.pem\"").replace("CRL", "file:internal-ca.crl");
        let issuer = issuer.replace("SECRET", "env:ACME_SECRET").replacen(from, to, 1);
        let issuers = format!("issuers:\n  dev: {{ issuer: i, audiences: [a], {issuer} }}\nfilters:");
        let (status, told) = check(folder.path(), &POLICY.replacen("filters:", &issuers, 1));
        assert_eq!(status == 0, place == "ok", "{to}: {told}");
        let line = told.lines().find(|line| line.contains(place) && line.contains(expected));
        assert!(
            line.is_some_and(|line| line.matches("No such file").count() <= 1),
            "{to}: {expected}\n{told}"
        );
    }
}

/// Envoy believes no list of revoked certificates that is past its time.
#[test]
fn what_envoy_cannot_do_is_told_where_it_would_serve() {
    const TOLD: &str = "`stale_crl: allow` is for the gateway: Envoy believes no list that is past its time, and `gateway envoy` refuses the policy";
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    let asking = POLICY.replacen(
        "\"file:edge.key\" }",
        "\"file:edge.key\",\n      client_certificates: { ca: \"file:partner-ca.pem\", crl: \"file:partner-ca.crl\", stale_crl: allow } }",
        1,
    );
    let upstream =
        POLICY.replacen("server_name:", "crl: \"file:internal-ca.crl\", stale_crl: allow, server_name:", 1);
    for (policy, place) in [(&asking, Some("6:96")), (&upstream, Some("10:52")), (&POLICY.to_owned(), None)] {
        let at_envoy = format!("{policy}state: {{ service: {{ address: \"127.0.0.1:3\" }} }}\n");
        let (_, told) = check(folder.path(), policy);
        assert!(!told.contains("stale_crl"), "{told}");
        let (status, told) = check(folder.path(), &at_envoy);
        assert_eq!(status, 0, "{told}");
        let warnings: Vec<_> = told.lines().filter(|line| line.contains("`stale_crl")).collect();
        let expected: Vec<_> =
            place.iter().map(|place| format!("warning: edge.yaml:{place}: {TOLD}")).collect();
        assert_eq!(warnings, expected, "{told}");
        let made = gateway(folder.path(), &["envoy", "edge.yaml"]);
        assert_eq!(made.status.success(), place.is_none());
        let complaint = String::from_utf8(made.stderr).unwrap();
        let expected = place.map(|place| format!("edge.yaml:{place}: {TOLD}\n")).unwrap_or_default();
        assert!(complaint.contains(&expected), "{complaint}");
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
            "state.redis: its address is not one: write redis://host:port/0, rediss://user:password@host:port/0 or redis+unix:///path",
        ),
        (Some(b"\xff"), "url: \"file:url\"", "state.redis: its address is no text"),
        (
            Some(b"redis://10.0.0.1/0"),
            "url: \"file:url\"",
            "state.redis: it holds nonces and limits: off the host write rediss://, which is TLS",
        ),
        (
            Some(b"rediss://redis.test/#insecure"),
            "url: \"file:url\"",
            "its address switches verification off: remove `#insecure`",
        ),
        (Some(b"rediss://redis.test/0"), "url: \"file:url\", ca: \"file:none.pem\"", "none.pem"),
        (Some(b"rediss://a.test/0\nrediss://b.test/0\n"), "url: \"file:url\", cluster: true", ""),
        (
            Some(b"rediss://a.test/0 rediss://b.test/0"),
            "url: \"file:url\"",
            "state.redis: it has several addresses: write one, or beside `url` either `cluster: true` or `sentinel`",
        ),
        (
            Some("redis://127.0.0.1\n".repeat(17).leak().as_bytes()),
            "url: \"file:url\", cluster: true",
            "state.redis: it has more than 16 addresses: write a few, the others are found",
        ),
        (
            Some(b"redis+unix:///run/redis.sock"),
            "url: \"file:url\", cluster: true",
            "state.redis: Sentinels and Cluster nodes have no socket: write redis:// or rediss://",
        ),
        (
            Some(b"rediss://u:one@a.test/0\nrediss://u:two@b.test/0"),
            "url: \"file:url\", cluster: true",
            "state.redis: its addresses differ in more than host and port: write the same scheme, user, password and database",
        ),
        (
            Some(b"rediss://a.test/1"),
            "url: \"file:url\", cluster: true",
            "state.redis: a Cluster has one database: write rediss://user:password@host:port/0",
        ),
        (Some(b"rediss://a.test/1"), "url: \"file:url\", sentinel: { master: torana }", ""),
        (
            Some(b"\xff"),
            "url: \"env:SENTINELS\", sentinel: { master: torana, password: \"file:url\" }",
            "state.redis: the password of its Sentinels is no text",
        ),
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

/// What is warned of and meant is told once, to whoever accepts it.
#[test]
fn warnings_that_are_meant_are_not_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let accepted = folder.path().join("edge.accepted");
    let told_with = |text: &str| {
        fs::write(&accepted, text).unwrap();
        let more = ["--without-files", "--deny-warnings", "--accept", "edge.accepted"];
        check_with(folder.path(), POLICY, &more)
    };
    let warnings = |told: &str| {
        let lines = told.lines().filter_map(|line| line.strip_prefix("warning: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (status, told) = told_with("");
    let all = warnings(&told);
    assert!(status == 1 && all.len() > 1, "{told}");
    // As they are told, less their place.
    let messages: Vec<&str> = all.iter().map(|line| line.splitn(4, ':').last().unwrap().trim()).collect();
    let meant = messages.join("\n");
    for (text, left) in [
        (format!("# open until the app signs\n\n{meant}\n"), vec![]),
        (meant.replacen(messages[0], "", 1), vec![all[0].clone()]),
        (
            format!("{meant}\nroute `gone`: whatever\n"),
            vec![format!(
                "edge.accepted:{}:1: nothing in the policy is warned of like this: remove the line",
                messages.len() + 1
            )],
        ),
    ] {
        let (status, told) = told_with(&text);
        assert_eq!(warnings(&told), left, "{text}");
        assert_eq!(status == 0, left.is_empty(), "{told}");
    }
    fs::remove_file(&accepted).unwrap();
    let (status, told) = check_with(folder.path(), POLICY, &["--without-files", "--accept", "edge.accepted"]);
    assert!(status == 1 && told.starts_with("error: edge.accepted: No such file"), "{told}");
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
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("error: nowhere.yaml: "));
}

#[test]
fn the_schema_is_json_and_describes_every_filter() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).arg("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let filters = schema["$defs"]["FilterSet"]["properties"].as_object().unwrap();
    let known: Vec<_> = filters::FilterSet::NAMES.to_vec();
    assert!(known.iter().all(|name| filters.contains_key(*name)), "{filters:?}");
}
