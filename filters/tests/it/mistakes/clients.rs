//! Of `clients`: their keys, certificates and API keys.

use filters::policy::{Policy, Secret};

use super::{ASKS, GOOD, read, with_certificates};

#[test]
fn a_short_secret_and_a_missing_one_are_told_without_their_content() {
    for (secret, expected) in [
        (Ok(b"too short".to_vec()), "p.yaml:12:45: file:acme.secret: "),
        (Err("No such file".to_owned()), "p.yaml:12:45: file:acme.secret: No such file"),
    ] {
        let mistakes = Policy::read(GOOD, &|_| secret.clone().map(Secret::from)).unwrap_err();
        let told = mistakes[0].in_file("p.yaml");
        assert!(told.starts_with(expected), "{told}");
        assert!(!told.contains("too short"), "{told}");
    }
}

#[test]
fn client_certificates_that_cannot_be_meant() {
    let good = "{ dns: pay.bank.test }";
    for (certificates, filters, asks, expected) in [
        (good, "{ client_cert: {} }", true, ""),
        (good, "{ client_cert: { mode: off } }", false, ""),
        (good, "{ client_cert: { mode: optional, clients: [bank] } }", false, ""),
        (
            good,
            "{ client_cert: {} }",
            false,
            "route `send`: client_cert: a client certificate is required, and no listener asks for one: write `client_certificates` under its `tls`",
        ),
        (good, "{ jwt: { bound_to: certificate } }", false, "no issuer is left"),
        (
            good,
            "{ client_cert: { clients: [bonk] } }",
            true,
            "client_cert: `clients`: there is no client `bonk` that has `certificates`",
        ),
        (
            good,
            "{ client_cert: { clients: [acme] } }",
            true,
            "there is no client `acme` that has `certificates`",
        ),
        (
            good,
            "{ client_cert: { mode: off, clients: [bank] } }",
            true,
            "client_cert: `clients` needs `mode: required` or `mode: optional`",
        ),
        (
            good,
            "{ client_cert: { mode: sometimes } }",
            true,
            "`mode`: `sometimes` is none of off, optional, required",
        ),
        ("", "{}", true, "client `bank` needs `hmac_keys` or `certificates` or `api_keys`"),
        ("{}", "{}", true, "p.yaml:12:26: client `bank`: a certificate is known by"),
        ("{ dns: '*.bank.test' }", "{}", true, "`*.bank.test` is not a DNS name"),
        ("{ spki_sha256: AAAA }", "{}", true, "in base64, as `certs show` prints it"),
        (
            "{ dns: a.test }, { dns: a.test }",
            "{}",
            true,
            "clients `bank` and `bank` would have the same certificate",
        ),
        ("{ cn: bank }", "{}", true, "unknown field `cn`"),
    ] {
        match read(&with_certificates(certificates, filters, asks)) {
            Ok(_) => assert_eq!(expected, "", "accepted: {certificates} {filters}"),
            Err(told) => {
                assert!(!expected.is_empty() && told.contains(expected), "{certificates} {filters}: {told}");
            }
        }
    }
    let nobody = GOOD.replace("key: \"file:edge.key\" }", ASKS) + "    filters: { client_cert: {} }\n";
    assert!(
        read(&nobody)
            .unwrap_err()
            .contains("client_cert: no client of the policy has `certificates`, so nobody could pass")
    );
}

#[test]
fn keys_whose_times_cannot_be_meant() {
    let key = |rest: &str| GOOD.replace("acme.secret\" }", &format!("acme.secret\", {rest} }}"));
    for (rest, expected) in [
        ("not_before: 2026-01-01T00:00:00Z, not_after: \"2026-01-01T00:00:00Z\"", ""),
        (
            "not_before: 2026-01-02T00:00:00Z, not_after: 2026-01-01T00:00:00Z",
            "p.yaml:12:29: key `acme-1`: `not_after` lies before `not_before`",
        ),
        ("not_after: tomorrow", "not a time; write it as RFC 3339 has it, \"2026-11-01T00:00:00Z\" say"),
        ("not_after: 2026-01-01", "not a time; write it as RFC 3339 has it"),
    ] {
        match read(&key(rest)) {
            Ok(_) => assert_eq!(expected, "", "accepted: {rest}"),
            Err(told) => assert!(!expected.is_empty() && told.contains(expected), "{rest}: {told}"),
        }
    }
    let policy = read(&key("not_after: 2026-01-01T00:00:00Z")).unwrap();
    let told = |now_ms: u64| -> Vec<String> {
        policy.window_warnings(now_ms).iter().map(|warning| warning.in_file("p.yaml")).collect()
    };
    assert_eq!(told(1_735_689_600_000), Vec::<String>::new(), "a year before");
    let soon = told(1_767_225_600_000 - 86_400_000);
    assert!(
        soon.len() == 1 && soon[0].starts_with("p.yaml:12:29: client `acme`: its last key, `acme-1`, ends"),
        "{soon:?}"
    );
}

/// A client with API keys, and a route that asks for one.
#[test]
fn api_keys_that_cannot_be_meant() {
    const HASH: &str = "7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069";
    const OTHER: &str = "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969";
    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let key = |id: &str, sha256: &str| format!("{{ id: {id}, sha256: {sha256} }}");
    let both = |one: &str, other: &str| format!("{one}, {other}");
    for (keys, filters, expected) in [
        (key("k1", HASH), "{ api_key: {} }", ""),
        (both(&key("k1", HASH), &key("k2", OTHER)), "{ api_key: { clients: [bank] } }", ""),
        (
            key("k1", HASH),
            "{ api_key: { clients: [bonk] } }",
            "api_key: `clients`: there is no client `bonk` that has `api_keys`",
        ),
        (
            key("k1", HASH),
            "{ api_key: { clients: [acme] } }",
            "there is no client `acme` that has `api_keys`",
        ),
        (key("k1", "hunter2"), "{}", "p.yaml:12:22: client `bank`: API key `k1`: `sha256` is 64 lower-case"),
        (key("k1", &HASH.to_uppercase()), "{}", "`sha256` is 64 lower-case hexadecimal digits"),
        (key("k1", NOTHING), "{}", "`sha256` is the hash of nothing"),
        (both(&key("k1", HASH), &key("k1", OTHER)), "{}", "its `id` is empty or used twice"),
        (both(&key("k1", HASH), &key("k2", HASH)), "{}", "its `sha256` is that of another key"),
        (format!("{{ id: k, sha256: {HASH}, key: torana_x }}"), "{}", "unknown field `key`"),
        (
            format!(
                "{{ id: k, sha256: {HASH}, not_before: 2026-01-02T00:00:00Z, not_after: 2026-01-01T00:00:00Z }}"
            ),
            "{}",
            "`not_after` lies before `not_before`",
        ),
    ] {
        let text = GOOD.replace("clients:\n", &format!("clients:\n  bank: {{ api_keys: [{keys}] }}\n"));
        match read(&format!("{text}    filters: {filters}\n")) {
            Ok(_) => assert_eq!(expected, "", "accepted: {keys} {filters}"),
            Err(told) => assert!(!expected.is_empty() && told.contains(expected), "{keys} {filters}: {told}"),
        }
    }
    let many: Vec<String> =
        (0..1_025).map(|number| key(&format!("k{number}"), &format!("{number:064x}"))).collect();
    let text =
        GOOD.replace("clients:\n", &format!("clients:\n  bank: {{ api_keys: [{}] }}\n", many.join(", ")));
    assert!(read(&text).unwrap_err().contains("API key `k1024`: there are more than 1024 API keys"));
    let nobody = format!("{GOOD}    filters: {{ api_key: {{}} }}\n");
    assert!(
        read(&nobody)
            .unwrap_err()
            .contains("api_key: no client of the policy has `api_keys`, so nobody could pass")
    );
    let known =
        GOOD.replace("clients:\n", &format!("clients:\n  bank: {{ api_keys: [{}] }}\n", key("k", HASH)));
    let policy = read(&format!("{known}    filters: {{ api_key: {{}} }}\n")).unwrap();
    let told =
        |policy: &Policy, what: &str| policy.warnings().iter().any(|warning| warning.message.contains(what));
    assert!(!told(&policy, "anybody may call it"), "an API key says who calls: {:?}", policy.warnings());
    let unused = "client `bank`: no route has an `api_key` for its keys";
    assert!(!told(&policy, unused));
    assert!(told(&read(&known).unwrap(), unused));
}
