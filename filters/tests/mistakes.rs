//! What a policy's writer is told: every mistake with its place and, where it can be guessed, its mending; and
//! what is no mistake but worth a second look.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use filters::policy::{Policy, Secret};

const GOOD: &str = r#"
listeners:
  - name: edge
    address: 127.0.0.1:8443
    tls: { certificate: "file:edge.pem", key: "file:edge.key" }
admin: { address: 127.0.0.1:9100 }
upstreams:
  txn-core:
    addresses: ["127.0.0.1:9001"]
    tls: { server_name: txn-core.internal, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "file:acme.secret" }] }
filters:
  shape: {}
routes:
  - name: send
    methods: [POST]
    path: /v1/transactions/send
    upstream: txn-core
"#;

fn read(text: &str) -> Result<Policy, String> {
    Policy::read(text, &|_| Ok(vec![7; 32].into())).map_err(|mistakes| {
        mistakes.iter().map(|mistake| mistake.in_file("p.yaml")).collect::<Vec<_>>().join("\n")
    })
}

/// What the filter `signing` wants of its settings.
#[test]
fn messages_are_signed_with_keys_that_there_are() {
    for (settings, expected) in [
        ("{ to_upstream: { key: acme-1 } }", ""),
        ("{ to_upstream: { key: acme-1 }, from_upstream: { key: acme-1 }, to_client: { key: acme-1 } }", ""),
        ("{ to_upstream: { key: acme-1 }, from_upstream: { key: '' } }", "`from_upstream` names no key"),
        ("{}", "name at least one of `to_upstream` and `to_client`"),
        ("{ from_upstream: { key: acme-1 } }", "name at least one of"),
        (
            "{ to_client: { key: acme-1 }, from_upstream: { key: acme-1 } }",
            "`from_upstream` needs `to_upstream`",
        ),
        ("{ to_upstream: { key: acme-2 } }", "there is no key `acme-2` among the `hmac_keys` of `clients`"),
        (
            "{ to_upstream: { key: acme-1 }, from_upstream: { key: acme-1, max_age_s: 0 } }",
            "`max_age_s` is between 1 and 3600, `max_skew_s` at most 300",
        ),
    ] {
        let told = read(&format!("{GOOD}    filters: {{ signing: {settings} }}\n")).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
}

#[test]
fn a_good_policy_is_accepted() {
    let policy = read(GOOD).unwrap();
    assert_eq!(policy.rules().len(), 1);
}

#[test]
fn every_mistake_has_a_place_and_a_message() {
    for (from, to, expected) in [
        ("admin:", "admn:", "p.yaml:6:1: unknown field `admn`, expected one of"),
        ("admin:", "admn:", "did you mean `admin`?"),
        (
            "upstream: txn-core",
            "upstream: txn-cor",
            "p.yaml:19:15: there is no upstream `txn-cor`; did you mean `txn-core`?",
        ),
        ("upstream: txn-core", "upstream: zzz", "p.yaml:19:15: there is no upstream `zzz`; known: txn-core"),
        ("127.0.0.1:8443", "localhost", "p.yaml:4:14: "),
        ("127.0.0.1:8443", "127.0.0.1:9100", "p.yaml:3:5: 127.0.0.1:9100 is used twice"),
        ("\"file:edge.pem\"", "inline", "p.yaml:5:25: keys, certificates and secrets are references"),
        ("server_name: txn-core.internal", "server_name: ''", "p.yaml:10:25: `server_name` is empty"),
        ("[\"127.0.0.1:9001\"]", "[]", "p.yaml:9:5: upstream `txn-core` has no address"),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    rewrite: /{id}\n",
            "p.yaml:20:14: `/{id}` is not a path; `rewrite` is one, without parameters",
        ),
        (
            "acme.secret\"",
            "acme.secret\", encoding: hex",
            "file:acme.secret: it is not pairs of hexadecimal digits",
        ),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    filters: { signature: { clients: [acme, other] } }\n",
            "signature: `clients`: there is no client `other` that has a key",
        ),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    mirror: { upstream: txn-core }\n    filters: { signing: { to_upstream: { key: acme-1 } } }\n",
            "route `send`: `mirror` would hand somebody else requests that are signed as ours",
        ),
        ("[POST]", "[post]", "p.yaml:16:5: route `send`: `post` is not an HTTP method"),
        ("[POST]", "[]", "p.yaml:16:5: route `send` names no method"),
        ("[POST]", "[POST, POST]", "POST /v1/transactions/send is served by a route above"),
        ("/v1/transactions/send", "/v1//send", "p.yaml:16:5: route `send`: `/v1//send` is not a path"),
        ("/v1/transactions/send", "/v1/{a}{b}", "path `/v1/{a}{b}`: "),
        ("shape: {}", "shap: {}", "did you mean `shape`?"),
        ("shape: {}", "shape: { max_body_byte: 1 }", "did you mean `max_body_bytes`?"),
        (
            "shape: {}",
            "shape: { max_body_bytes: 999999 }",
            "p.yaml:14:3: route `send`: shape: `max_body_bytes` is at most 65536",
        ),
        ("shape: {}", "ip_access: { allow: [10.0.0.0/40] }", "p.yaml:14:"),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    except: [shap]",
            "p.yaml:20:14: there is no filter `shap`; did you mean `shape`?",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    except: [headers]",
            "`headers` is not a filter of every route",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    timeout_ms: 0",
            "route `send`: `timeout_ms` is at least 1",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: A, by: ip, requests: 1, per_s: 1 }] } }",
            "p.yaml:20:14: route `send`: rate_limit: limit name `A`: use lower-case letters",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: a, by: usr, requests: 1, per_s: 1 }] } }",
            "did you mean `user`?",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: a, by: user, requests: 0, per_s: 1 }] } }",
            "limit `a`: `requests` must be between 1 and 1000000",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [], algorithms: [ES256], jwks: { url: 'http://i' } }\nfilters:\n",
            "p.yaml:14:8: issuer `dev` needs `audiences`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { url: 'http://i' } }\nfilters:\n",
            "issuer `dev`: `jwks.url` must begin with https://",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [HS256], jwks: { file: 'file:j' } }\nfilters:\n",
            "unknown variant `HS256`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: {} }\nfilters:\n",
            "issuer `dev` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { discovery: openid, url: 'https://i' } }\nfilters:\n",
            "issuer `dev` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'http://i', audiences: [a], algorithms: [ES256], jwks: { discovery: openid } }\nfilters:\n",
            "issuer `dev`: `jwks.discovery` needs an `issuer` that is an https:// address",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i/?t=1', audiences: [a], algorithms: [ES256], jwks: { discovery: oauth } }\nfilters:\n",
            "issuer `dev`: `jwks.discovery` needs an `issuer` that is an https:// address",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { discovery: oidc } }\nfilters:\n",
            "unknown variant `oidc`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a] }\nfilters:\n",
            "p.yaml:14:8: issuer `dev` needs `jwks` or `introspection`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'http://i', ca: 'file:c', client_id: e, client_secret: 'file:s' } }\nfilters:\n",
            "issuer `dev`: introspection: `url` must begin with https://",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e } }\nfilters:\n",
            "introspection: the edge is known there by a `client_secret`, or by a `certificate` and its `key`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: inline } }\nfilters:\n",
            "keys, certificates and secrets are references",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], algorithms: [ES256], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s' } }\nfilters:\n",
            "issuer `dev`: `algorithms` are of `jwks`, which is not there",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s', cache_s: 301 } }\nfilters:\n",
            "`cache_s` is between 1 and 300",
        ),
        (
            "secret: \"file:acme.secret\" }]",
            "secret: \"file:acme.secret\" }, { id: acme-1, secret: 'env:B' }]",
            "key id `acme-1` is used twice",
        ),
        ("acme: {", "acme: { tenant: '',", "p.yaml:12:19: client `acme`: `tenant` is empty"),
        ("routes:", "routes: []\nx:", "unknown field `x`"),
        ("  - name: send", "  name: send", "p.yaml:16:3: "),
    ] {
        assert!(GOOD.contains(from), "the case for {to:?} changes nothing");
        let text = GOOD.replacen(from, to, 1);
        match read(&text) {
            Ok(_) => panic!("accepted with {to:?}"),
            Err(told) => {
                assert!(told.contains(expected), "with {to:?}\nexpected {expected:?}\ntold     {told}")
            }
        }
    }
}

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
fn security_adds_up_and_is_only_dropped_in_so_many_words() {
    for (route, filters) in [
        ("", "shape"),
        ("    filters: { idempotency: {} }", "shape, idempotency"),
        ("    except: [shape]", ""),
        ("    except: [shape]\n    filters: { shape: {} }", "shape"),
    ] {
        let policy = read(&format!("{}{route}\n", GOOD)).unwrap();
        let names: Vec<_> = policy.rules()[0].chain.names().collect();
        assert_eq!(names.join(", "), filters, "{route}");
    }
}

#[test]
fn what_is_worth_a_second_look() {
    const NOBODY: &str = "p.yaml:16:5: route `send` has neither `jwt` nor `signature`: anybody may call it";
    const UNUSED: &str = "p.yaml:12:29: client `acme`: no route has a `signature` or `signing` for its keys";
    const REPLAYS: &str = "p.yaml:16:5: route `send` has `signature` without `nonce`: who copies a signed request can send it again";
    const FEW: &str = "p.yaml:16:5: route `send`: nonces are remembered for 390 s, so `state.memory.max_entries: 1000000` lasts for 2564 signed requests a second and refuses more with 503; 1950000 entries last for 5000";
    let issuer = "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { file: 'file:j' } }\n";
    let state = |entries: u64| format!("state: {{ memory: {{ max_entries: {entries} }} }}\n");
    for (route, below, expected) in [
        ("", String::new(), vec![UNUSED, NOBODY]),
        ("    filters: { jwt: {} }", issuer.into(), vec![UNUSED]),
        ("    filters: { jwt: {}, signature: {} }", issuer.into(), vec![REPLAYS]),
        ("    filters: { signature: {} }", String::new(), vec![REPLAYS]),
        ("    filters: { signature: {}, nonce: {} }", state(1_000_000), vec![FEW]),
        (
            "    filters: { signature: {}, nonce: {} }",
            state(1_949_999),
            vec!["lasts for 4999 signed requests"],
        ),
        ("    filters: { signature: {}, nonce: {} }", state(1_950_000), vec![]),
        ("    filters: { signature: {}, nonce: { window_s: 60 } }", state(750_000), vec![]),
        (
            "    except: [shape]",
            String::new(),
            vec![UNUSED, NOBODY, "p.yaml:20:14: route `send` does without `shape`"],
        ),
        (
            "    except: [shape]\n    filters: { shape: {}, jwt: {} }",
            issuer.into(),
            vec![UNUSED, "p.yaml:20:14: route `send` does without `shape`"],
        ),
    ] {
        let policy = read(&format!("{GOOD}{route}\n{below}")).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.in_file("p.yaml")).collect();
        let same = told.len() == expected.len() && told.iter().zip(&expected).all(|(t, e)| t.contains(e));
        assert!(same, "{route}\nexpected {expected:#?}\ntold     {told:#?}");
    }
}

#[test]
fn a_limit_of_one_name_is_one_limit() {
    let limit = |by: &str, numbers: &str| {
        format!("filters: {{ rate_limit: {{ limits: [{{ name: n, by: {by}, {numbers} }}] }} }}")
    };
    let usual = limit("ip", "requests: 10, per_s: 60");
    let told = |from: &str, to: &str| {
        format!(
            "p.yaml:25:14: route `other`: rate_limit: `n` is {to} here and {from} on route `send`, and both"
        )
    };
    let ten = "10 requests in 60 s, 10 at once, by ip";
    for (first, second, expected) in [
        (&usual, usual.clone(), None),
        (&usual, limit("ip", "requests: 10, per_s: 60, burst: 10"), None),
        (
            &usual,
            limit("ip", "requests: 5, per_s: 60"),
            Some(told(ten, "5 requests in 60 s, 5 at once, by ip")),
        ),
        (
            &usual,
            limit("ip", "requests: 10, per_s: 30"),
            Some(told(ten, "10 requests in 30 s, 10 at once, by ip")),
        ),
        (
            &usual,
            limit("ip", "requests: 10, per_s: 60, burst: 1"),
            Some(told(ten, "10 requests in 60 s, 1 at once, by ip")),
        ),
        (
            &usual,
            limit("user", "requests: 10, per_s: 60"),
            Some(told(ten, "10 requests in 60 s, 10 at once, by user")),
        ),
        (&usual, limit("route", "requests: 10, per_s: 60"), Some(told(ten, "a limit of each route"))),
        (&limit("route", "requests: 10, per_s: 60"), limit("route", "requests: 5, per_s: 60"), None),
        (&usual, "filters: { rate_limit: { limits: [] } }".to_owned(), Some("needs one to".to_owned())),
    ] {
        let other = "  - name: other\n    methods: [GET]\n    path: /v1/other\n    upstream: txn-core\n";
        let read = read(&format!("{GOOD}    {first}\n{other}    {second}\n"));
        match (read, expected) {
            (Ok(_), None) => {}
            (Err(told), Some(expected)) if told.contains(&expected) => {}
            (read, expected) => {
                panic!("{second}\nexpected {expected:?}\ntold     {:?}", read.map(|_| "nothing"))
            }
        }
    }
    // A route that does without the limit of every route may not give its name another meaning either.
    let above = GOOD.replacen("shape: {}", &usual["filters: { ".len()..usual.len() - 2], 1);
    let below = limit("ip", "requests: 5, per_s: 60");
    let first = "    upstream: txn-core\n  - name: other\n    methods: [GET]\n    path: /v1/other\n    upstream: txn-core\n";
    let text = above.replacen("    upstream: txn-core\n", first, 1);
    let told = read(&format!("{text}    except: [rate_limit]\n    {below}\n")).unwrap_err();
    assert!(told.contains("here and 10 requests in 60 s"), "{told}");
}

const ASKS: &str = "key: \"file:edge.key\", client_certificates: { ca: \"file:clients.pem\" } }";

/// [`GOOD`] with a client `bank` of these certificates, filters of its route, and a listener that asks, or does not.
fn with_certificates(certificates: &str, filters: &str, asks: bool) -> String {
    let text =
        GOOD.replace("clients:\n", &format!("clients:\n  bank: {{ certificates: [{certificates}] }}\n"));
    let text = format!("{text}    filters: {filters}\n");
    if asks { text.replace("key: \"file:edge.key\" }", ASKS) } else { text }
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
            "client_cert: a client certificate is required, and no listener asks",
        ),
        (good, "{ jwt: { bound_to: certificate } }", false, "no issuer is left"),
        (
            good,
            "{ client_cert: { clients: [bonk] } }",
            true,
            "there is no client `bonk` that has `certificates`",
        ),
        (
            good,
            "{ client_cert: { clients: [acme] } }",
            true,
            "there is no client `acme` that has `certificates`",
        ),
        (good, "{ client_cert: { mode: off, clients: [bank] } }", true, "`clients` needs `mode: required`"),
        (good, "{ client_cert: { mode: sometimes } }", true, "unknown variant `sometimes`"),
        ("", "{}", true, "client `bank` needs `hmac_keys` or `certificates` or `api_keys`"),
        ("{}", "{}", true, "p.yaml:12:26: client `bank`: a certificate is known by"),
        ("{ dns: '*.bank.test' }", "{}", true, "`*.bank.test` is not a DNS name"),
        ("{ spki_sha256: AAAA }", "{}", true, "in base64, as `certs show` prints it"),
        ("{ dns: a.test }, { dns: a.test }", "{}", true, "would have the same certificate"),
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
    assert!(read(&nobody).unwrap_err().contains("no client of the policy has `certificates`"));
}

#[test]
fn a_listener_that_asks_for_no_certificate_is_told_of() {
    let other = "admin:";
    let second = "  - { name: plain, address: \"127.0.0.1:8444\", tls: { certificate: \"file:c\", key: \"file:k\" } }\nadmin:";
    for (filters, expected) in [
        ("{ client_cert: {} }", Some("refuses everybody who comes by `plain`, where none is asked for")),
        ("{ client_cert: { mode: optional } }", None),
    ] {
        let policy =
            read(&with_certificates("{ dns: a.test }", filters, true).replacen(other, second, 1)).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.message.as_str()).collect();
        match expected {
            Some(expected) => assert!(told.iter().any(|told| told.contains(expected)), "{told:?}"),
            None => assert!(!told.iter().any(|told| told.contains("plain")), "{told:?}"),
        }
    }
}

/// Whoever reads the document, as YAML with places or as the JSON that a module gets, reads the same words.
#[test]
fn words_are_words_in_every_reading() {
    for (written, fine) in
        [("mode: off", true), ("mode: \"off\"", true), ("mode: Off", false), ("mode: false", false)]
    {
        let yaml = with_certificates("{ dns: a.test }", &format!("{{ client_cert: {{ {written} }} }}"), true);
        let json = Policy::compile(&yaml).unwrap();
        assert_eq!(read(&yaml).is_ok(), fine, "{written}");
        assert_eq!(read(&json).is_ok(), fine, "{written}");
    }
    for (written, fine) in [("required: true", true), ("required: yes", false), ("required: on", false)] {
        let yaml = with_certificates("{ dns: a.test }", "{ client_cert: {} }", true)
            .replace("clients.pem\" }", &format!("clients.pem\", {written} }}"));
        let json = Policy::compile(&yaml).unwrap();
        assert_eq!((read(&yaml).is_ok(), read(&json).is_ok()), (fine, fine), "{written}");
    }
}

#[test]
fn keys_whose_times_cannot_be_meant() {
    let key = |rest: &str| GOOD.replace("acme.secret\" }", &format!("acme.secret\", {rest} }}"));
    for (rest, expected) in [
        ("not_before: 2026-01-01T00:00:00Z, not_after: \"2026-01-01T00:00:00Z\"", ""),
        (
            "not_before: 2026-01-02T00:00:00Z, not_after: 2026-01-01T00:00:00Z",
            "`not_after` lies before `not_before`",
        ),
        ("not_after: tomorrow", "not a time; write it as RFC 3339 has it"),
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

/// What shares a route's requests out.
#[test]
fn requests_are_shared_out_as_it_can_be_meant() {
    let two = "[{ upstream: txn-core, weight: 1 }, { upstream: txn-core, weight: 2 }]";
    let tried =
        "[{ upstream: txn-core, weight: 1, variant: a }, { upstream: txn-core, weight: 2, variant: b }]";
    for (settings, expected) in [
        (format!("upstreams: {two}, sticky: user"), ""),
        (format!("upstreams: {tried}, sticky: user, experiment: checkout"), ""),
        ("upstream: txn-core, sticky: user".to_owned(), "`sticky` needs several `upstreams` to choose from"),
        (format!("upstreams: {two}, sticky: route"), "`sticky: route` would send everybody to the same upstream"),
        (format!("upstreams: {two}, sticky: usr"), "unknown variant `usr`"),
        (format!("upstreams: {tried}, sticky: user"), "variant `a` is of no `experiment`: name one"),
        (format!("upstreams: {two}, sticky: user, experiment: x"), "each upstream of an experiment is a `variant`"),
        (format!("upstreams: {tried}, experiment: x"), "experiment `x` needs `sticky`: whose requests see"),
        (format!("upstreams: {tried}, sticky: user, experiment: X"), "experiment `X`: use lower-case letters, digits, '-' and '_', at most 64"),
        (
            format!("upstreams: {}, sticky: user, experiment: x", tried.replace("variant: b", "variant: a")),
            "two variants are named `a`",
        ),
        (
            format!("upstreams: {}, sticky: user, experiment: x", tried.replace("variant: b", "variant: B")),
            "variant `B`: use lower-case letters",
        ),
        (
            "upstream: txn-core, deprecated: { since: '2026-01-01T00:00:00Z', sunset: '2025-01-01T00:00:00Z' }".to_owned(),
            "`sunset` comes before `since`: a route goes after it is deprecated",
        ),
        (
            "upstream: txn-core, deprecated: { since: '2026-01-01T00:00:00Z', link: 'http://torana.example' }".to_owned(),
            "`http://torana.example` is not an `https:` address",
        ),
        ("upstream: txn-core, deprecated: { since: yesterday }".to_owned(), "RFC 3339"),
    ] {
        let begin = GOOD.split("routes:").next().unwrap();
        let policy = format!("{begin}routes:\n  - {{ name: it, methods: [GET], path: /it, {settings} }}\n");
        let told = read(&policy).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
}

/// What is never sent twice.
#[test]
fn only_what_is_safe_is_repeated() {
    for (settings, expected) in [
        ("methods: [GET, HEAD], retries: 3", ""),
        ("methods: [POST], retries: 0", ""),
        ("methods: [GET], retries: 4", "route `it`: `retries` is at most 3"),
        (
            "methods: [GET, POST], retries: 1",
            "route `it`: `retries` would repeat POST, which may change something twice",
        ),
        ("methods: [DELETE], retries: 1", "`retries` would repeat DELETE"),
    ] {
        let begin = GOOD.split("routes:").next().unwrap();
        let policy =
            format!("{begin}routes:\n  - {{ name: it, path: /it, upstream: txn-core, {settings} }}\n");
        let told = read(&policy).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
    let told = read(&GOOD.replace("addresses:", "retry_budget_percent: 101\n    addresses:")).unwrap_err();
    assert!(told.contains("upstream `txn-core`: `retry_budget_percent` is at most 100"), "{told}");
}

/// What cannot be on a WebSocket.
#[test]
fn websockets_are_let_through_as_it_can_be_meant() {
    for (settings, expected) in [
        ("methods: [GET], websocket: {}", ""),
        ("methods: [GET], websocket: { idle_timeout_ms: 1000, most_s: 60 }", ""),
        (
            "methods: [GET], websocket: { most_s: 100000 }",
            "route `it`: of `websocket`, `idle_timeout_ms` is at least 1",
        ),
        ("methods: [GET], websocket: { idle_timeout_ms: 0 }", "`most_s` between 1 and 86400"),
        (
            "methods: [GET, POST], websocket: {}",
            "WebSockets are asked for with GET, and `methods` is another",
        ),
        ("methods: [GET], websocket: {}, mirror: { upstream: txn-core }", "a WebSocket cannot be copied"),
        (
            "methods: [GET], websocket: {}, filters: { signing: { to_upstream: { key: acme-1 } } }",
            "what passes on a WebSocket cannot be signed or verified",
        ),
    ] {
        let begin = GOOD.split("routes:").next().unwrap();
        let policy =
            format!("{begin}routes:\n  - {{ name: it, path: /it, upstream: txn-core, {settings} }}\n");
        let told = read(&policy).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
}

/// What the filter `cors` wants of its settings.
#[test]
fn pages_of_other_origins_are_named() {
    for (settings, expected) in [
        ("{ origins: ['https://pay.example'] }", ""),
        ("{ origins: ['*'] }", ""),
        ("{ origins: [] }", "`origins` names no page that may call"),
        (
            "{ origins: ['https://pay.example/'] }",
            "`https://pay.example/` is no origin: write `https://HOST`",
        ),
        ("{ origins: ['pay.example'] }", "`pay.example` is no origin"),
        ("{ origins: ['*', 'https://pay.example'] }", "`*` is no origin"),
        ("{ origins: ['*'], credentials: true }", "`credentials` go to pages that are named"),
        ("{ origins: ['*'], request_fields: ['a b'] }", "`a b` is not the name of a field"),
        ("{ origins: ['*'], max_age_s: 90000 }", "`max_age_s` is at most 86400"),
    ] {
        let told = read(&format!("{GOOD}    filters: {{ cors: {settings} }}\n")).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
}

/// What the filter `compression` wants of its settings.
#[test]
fn answers_are_compressed_that_can_be() {
    let many = vec!["a/b"; 33].join(", ");
    for (filters, expected) in [
        ("compression: {}", ""),
        ("compression: { least_bytes: 1, types: [text/event-stream, application/vnd.a.v2+json] }", ""),
        ("compression: { least_bytes: 0 }", "compression: `least_bytes` is between 1 and 1048576"),
        ("compression: { least_bytes: 1048577 }", "`least_bytes` is between 1 and 1048576"),
        ("compression: { types: [] }", "`types` are between 1 and 32 media types"),
        (&format!("compression: {{ types: [{many}] }}"), "`types` are between 1 and 32 media types"),
        ("compression: { types: [json] }", "`json` is not a media type: write it as `application/json`"),
        ("compression: { types: ['text/plain; a=b'] }", "in lower case and without parameters"),
        ("compression: { types: [Text/Plain] }", "`Text/Plain` is not a media type"),
        (
            "compression: { types: [application/problem+json] }",
            "is what refusals are, and those stay as they are",
        ),
        // What is signed is signed as it leaves the upstream.
        ("compression: {}, signing: { to_upstream: { key: acme-1 } }", ""),
        (
            "compression: {}, signing: { to_client: { key: acme-1 } }",
            "p.yaml:16:5: route `send`: what is signed or verified is not compressed afterwards",
        ),
        (
            "compression: {}, signing: { to_upstream: { key: acme-1 }, from_upstream: { key: acme-1 } }",
            "write `except: [compression]`, or drop `compression` here",
        ),
    ] {
        let told = read(&format!("{GOOD}    filters: {{ {filters} }}\n")).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{filters}: {told}");
    }
}

/// [`GOOD`] with these lines above its filters, and these filters of its route.
fn with_tenants(above: &str, filters: &str) -> String {
    let text = GOOD.replacen("filters:\n", &format!("{above}filters:\n"), 1);
    if filters.is_empty() { text } else { format!("{text}    filters: {filters}\n") }
}

const TENANTS: &str = "tenants:\n  acme: { plan: gold }\nplans:\n  gold:\n    \
                       rate_limit: [{ name: calls, by: tenant, requests: 10, per_s: 1 }]\n    \
                       quota: [{ name: daily, by: tenant, per: day, most: 100 }]\n";

#[test]
fn tenants_and_plans_that_cannot_be_meant() {
    const REQUIRED: &str = "{ tenant: {} }";
    for (from, to, filters, expected) in [
        ("", "", REQUIRED, ""),
        ("plan: gold", "plan: glod", REQUIRED, "p.yaml:14:17: there is no plan `glod`; did you mean `gold`?"),
        ("plan: gold", "plan: x", REQUIRED, "p.yaml:14:17: there is no plan `x`; known: gold"),
        (
            "plans:",
            "default_plan: gld\nplans:",
            REQUIRED,
            "p.yaml:15:15: there is no plan `gld`; did you mean `gold`?",
        ),
        ("acme: {", "acme: { quota: [],", REQUIRED, "unknown field `quota`"),
        (
            "acme: {",
            "'a b': {",
            REQUIRED,
            "p.yaml:14:10: tenant `a b`: a name is 1 to 128 visible characters",
        ),
        (
            "acme: {",
            "acme: { hosts: ['a.test:443'],",
            REQUIRED,
            "p.yaml:14:19: tenant `acme`: `a.test:443` is not a host; write it without its port",
        ),
        (
            "acme: {",
            "bank: { hosts: [A.test] }\n  acme: { hosts: [a.test],",
            REQUIRED,
            "tenants `acme` and `bank` would have the host `A.test`",
        ),
        (
            "most: 100",
            "most: 0",
            REQUIRED,
            "p.yaml:17:5: plan `gold`: quota: limit `daily`: `most` is between 1 and 1000000000000",
        ),
        ("most: 100", "most: 1000000000001", REQUIRED, "limit `daily`: `most` is between 1"),
        ("per: day", "per: week", REQUIRED, "unknown variant `week`"),
        ("most: 100", "most: 100, mode: off", REQUIRED, "unknown variant `off`"),
        ("most: 100", "most: 100, mode: shadw", REQUIRED, "did you mean `shadow`?"),
        (
            "name: calls",
            "name: Calls",
            REQUIRED,
            "plan `gold`: rate_limit: limit name `Calls`: use lower-case",
        ),
        (
            "requests: 10",
            "requests: 0",
            REQUIRED,
            "plan `gold`: rate_limit: limit `calls`: `requests` must be",
        ),
        (
            "quota: [",
            "quota: [{ name: daily, by: user, per: day, most: 1 }, ",
            REQUIRED,
            "plan `gold`: quota: two limits are named `daily`",
        ),
        (
            "quota: [",
            "concurrency: [{ name: c, by: tenant, most: 0 }]\n    quota: [",
            REQUIRED,
            "plan `gold`: concurrency: limit `c`: `most` is between 1 and 1024",
        ),
        (
            "",
            "",
            "{ tenant: {}, rate_limit: { limits: [{ name: calls, by: ip, requests: 1, per_s: 1 }] } }",
            "route `send`: rate_limit: plan `gold`: limit `calls` has the name of one of the route; use another",
        ),
        (
            "",
            "",
            "{ tenant: {}, rate_limit: { cost: 11 } }",
            "rate_limit: plan `gold`: limit `calls`: `cost` is between 1 and the burst of every limit; here that is 10",
        ),
        (
            "requests: 10, per_s: 1",
            "requests: 1000, per_s: 1",
            "{ tenant: {}, rate_limit: { cost: 101 } }",
            "route `send`: quota: plan `gold`: limit `daily`: a request costs 101, and `most` is 100",
        ),
        ("", "", "{ rate_limit: { cost: 2 } }", "rate_limit: `limits` needs one to 8 entries"),
        ("", "", "{ rate_limit: {} }", "rate_limit: `limits` needs one to 8 entries"),
        ("", "", "{ quota: {} }", "quota: `limits` needs one to 8 entries"),
        ("", "", "{ tenant: {}, rate_limit: { cost: 0 } }", "`cost` is between 1 and the burst"),
        ("", "", "{ tenant: { from: [] } }", "tenant: `from` is empty"),
        ("", "", "{ tenant: { from: [cookie] } }", "unknown variant `cookie`"),
        ("plans:", "utc_offset: Asia/Kolkata\nplans:", REQUIRED, "not an offset from UTC; write `+05:30`"),
        ("plans:", "utc_offset: '+15:00'\nplans:", REQUIRED, "not an offset from UTC"),
        ("plans:", "utc_offset: '-03:00'\nplans:", REQUIRED, ""),
    ] {
        assert!(TENANTS.contains(from), "the case for {to:?} changes nothing");
        let told = read(&with_tenants(&TENANTS.replacen(from, to, 1), filters)).err().unwrap_or_default();
        let expects = told.contains(expected) && told.is_empty() == expected.is_empty();
        assert!(expects, "with {to:?} and {filters}\nexpected {expected:?}\ntold     {told}");
    }
    let told = read(&with_tenants("", REQUIRED)).unwrap_err();
    assert!(
        told.contains("route `send`: tenant: the policy has no `tenants` and no `default_plan`"),
        "{told}"
    );
    // A plan's mistake is told once, however many routes it would hold on.
    let broken = with_tenants(&TENANTS.replacen("most: 100", "most: 0", 1), REQUIRED);
    let second =
        "  - { name: other, methods: [GET], path: /v1/other, upstream: txn-core, filters: { tenant: {} } }\n";
    assert_eq!(read(&format!("{broken}{second}")).unwrap_err().lines().count(), 1);
    let client = GOOD.replacen("acme: {", "acme: { tenant: acm,", 1);
    let client = client.replacen("filters:\n", &format!("{TENANTS}filters:\n"), 1);
    let told = read(&client).unwrap_err();
    assert!(told.contains("client `acme`: there is no tenant `acm`; did you mean `acme`?"), "{told}");
}

#[test]
fn plans_that_limit_nobody_are_told_of() {
    let spare = "  spare: { quota: [{ name: daily, by: tenant, per: day, most: 1 }] }\n";
    for (plans, filters, expected) in [
        ("", "{ tenant: {} }", ""),
        ("", "", "p.yaml:17:5: plan `gold` limits nobody: no route requires `tenant`"),
        (spare, "{ tenant: {} }", "p.yaml:19:10: no tenant has the plan `spare`"),
    ] {
        let policy = read(&with_tenants(&format!("{TENANTS}{plans}"), filters)).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.in_file("p.yaml")).collect();
        let told: Vec<_> = told.iter().filter(|told| told.contains("plan")).collect();
        match expected {
            "" => assert!(told.is_empty(), "{told:?}"),
            expected => assert!(told.len() == 1 && told[0].as_str() == expected, "{told:?}"),
        }
    }
}

#[test]
fn what_a_route_does_without_its_plan_does_not_bring_back() {
    for (everywhere, route, filters) in [
        ("shape: {}, tenant: {}", "", "shape, tenant, rate_limit, quota"),
        (
            "shape: {}, tenant: {}, quota: { limits: [{ name: q, by: ip, per: day, most: 9 }] }",
            "except: [quota]",
            "shape, tenant, rate_limit",
        ),
        ("shape: {}, tenant: {}", "except: [tenant]", "shape"),
        ("shape: {}", "", "shape"),
    ] {
        let text = with_tenants(TENANTS, "").replacen("shape: {}", &everywhere.replace("}, ", "}\n  "), 1);
        let policy = read(&format!("{text}    {route}\n")).unwrap();
        let names: Vec<_> = policy.rules()[0].chain.names().collect();
        assert_eq!(names.join(", "), filters, "{everywhere} {route}");
    }
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
            "there is no client `bonk` that has `api_keys`",
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
    let nobody = format!("{GOOD}    filters: {{ api_key: {{}} }}\n");
    assert!(read(&nobody).unwrap_err().contains("no client of the policy has `api_keys`"));
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

/// What the filter `jwt` wants of the claims that it asks for.
#[test]
fn claims_that_cannot_be_meant() {
    let issuer = "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { file: 'file:j' } }\n";
    let accepted = |everywhere: &str, route: &str| {
        let text = GOOD.replace("  shape: {}", &format!("  jwt: {everywhere}"));
        read(&format!("{text}    filters: {{ jwt: {route} }}\n{issuer}"))
    };
    let many: Vec<String> = (0..17).map(|number| format!("c{number}: x")).collect();
    let many = format!("{{ claims: {{ {} }} }}", many.join(", "));
    for (everywhere, route, expected) in [
        ("{}", "{ claims: { kyc: full, level: 2, verified: true, amr: [otp, hwk] } }", ""),
        ("{}", "{ claims_to_headers: { x-torana-claim-kyc: kyc } }", ""),
        ("{ claims: { kyc: [full, min] } }", "{ claims: { kyc: full } }", ""),
        (
            "{ claims: { kyc: min } }",
            "{ claims: { kyc: full } }",
            "`claims`: no value of `kyc` is accepted, so nobody could pass",
        ),
        ("{}", "{ claims: { kyc: [] } }", "no value of `kyc` is accepted"),
        ("{}", "{ claims_to_headers: { x-kyc: kyc } }", "`x-kyc` is not a field of the edge's own"),
        ("{}", "{ claims_to_headers: { x-torana-tenant: kyc } }", "write `x-torana-claim-` and lower-case"),
        ("{}", "{ claims_to_headers: { X-Torana-Claim-Kyc: kyc } }", "is not a field of the edge's own"),
        ("{}", "{ claims_to_headers: { x-torana-claim-: kyc } }", "is not a field of the edge's own"),
        ("{}", "{ claim: { kyc: full } }", "did you mean `claims`?"),
        ("{}", &many, "`claims` and `claims_to_headers` have at most 16 entries"),
    ] {
        match accepted(everywhere, route) {
            Ok(_) => assert_eq!(expected, "", "accepted: {everywhere} {route}"),
            Err(told) => {
                assert!(!expected.is_empty() && told.contains(expected), "{everywhere} {route}: {told}");
            }
        }
    }
}

/// A token says nothing of whom to ask about it.
#[test]
fn of_opaque_tokens_one_issuer_is_asked() {
    let introspection =
        "introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s' }";
    let issuers = format!(
        "issuers:\n  a: {{ issuer: a, audiences: [x], {introspection} }}\n  b: {{ issuer: b, audiences: [x], {introspection} }}\n"
    );
    let told = read(&format!("{GOOD}    filters: {{ jwt: {{}} }}\n{issuers}")).unwrap_err();
    let expected = "`a` and `b` both have `introspection`, and nothing in a token tells which one to ask; name `issuers`";
    assert!(told.contains(expected), "{told}");
    let named = format!("{GOOD}    filters: {{ jwt: {{ issuers: [a] }} }}\n{issuers}");
    assert!(read(&named).is_ok());
    let told = read(&named.replacen("client_id: e", "client_id: 'a\u{e9}'", 1)).unwrap_err();
    assert!(told.contains("introspection: `client_id` is visible ASCII"), "{told}");
}

/// How a route's end is told.
#[test]
fn a_route_that_will_go_says_so() {
    let text = format!(
        "{GOOD}    deprecated: {{ since: '2026-01-01T00:00:00Z', link: 'https://torana.example/v2' }}\n"
    );
    let told = read(&text).unwrap().rules()[0].deprecation.clone();
    let link = "<https://torana.example/v2>; rel=\"deprecation\"; type=\"text/html\"";
    assert_eq!(told, [("deprecation", "@1767225600".to_owned()), ("link", link.to_owned())]);
}

/// What counts on feature flags.
#[test]
fn flags_that_cannot_be_meant() {
    let flags = "flags: { file: \"file:flags.json\" }\n";
    let two = "    upstreams: [{ upstream: txn-core, variant: a }, { upstream: txn-core, variant: b }]\n";
    let with = |above: &str, route: &str| {
        format!("{GOOD}{route}").replace("filters:\n  shape", &format!("{above}filters:\n  shape"))
    };
    let by_flag = |route: &str| with(flags, route).replace("    upstream: txn-core\n", "");
    let feature = |settings: &str| format!("    filters: {{ feature: {settings} }}\n");
    let limit = |when: &str| {
        format!(
            "    filters: {{ rate_limit: {{ limits: [{{ name: l, by: ip, requests: 1, per_s: 1, when: {when} }}] }} }}\n"
        )
    };
    let file = |settings: &str| with(&format!("flags: {settings}\n"), "");
    for (text, expected) in [
        (with(flags, &feature("{ when: [{ flag: f, is: [a] }] }")), ""),
        (with(flags, &limit("{ flag: f, is: [a], default: b }")), ""),
        (by_flag(&format!("{two}    flag: f\n")), ""),
        (file("{ file: \"file:f.yaml\", fields: { app: x-app-version } }"), ""),
        (file("{ file: \"env:FLAGS\" }"), "flags are in a file, so that they can change: write `file:PATH`"),
        (
            file("{ file: \"file:f\", fields: { user: x-user } }"),
            "`user` is a name of the edge's own, or none",
        ),
        (
            file("{ file: \"file:f\", fields: { app: X-App } }"),
            "`X-App` is not the name of a field, in lower-case",
        ),
        (file("{ file: \"file:f\", fields: { app: cookie } }"), "`cookie` is not for flags to see"),
        (
            with("", &feature("{ when: [{ flag: f, is: [a] }] }")),
            "flag `f`: there are no flags: name their file in `flags`",
        ),
        (with(flags, &feature("{ when: [] }")), "`when` needs one flag at least"),
        (
            with(flags, &feature("{ when: [{ flag: f, is: [] }] }")),
            "flag `f`: `is` needs one variant at least",
        ),
        (with(flags, &limit("{ flag: f, is: [] }")), "limit `l`: flag `f`: `is` needs one variant at least"),
        (with(flags, &limit("{ flag: 'a b', is: [a] }")), "`a b` cannot be the name of a flag or a variant"),
        (with(flags, &limit("{ flag: f, is: [a], defualt: b }")), "did you mean `default`?"),
        (
            by_flag(&format!("{two}    flag: f\n    sticky: user\n")),
            "a `flag` decides alone: drop `sticky` and `experiment`",
        ),
        (by_flag(&format!("{two}    flag: 'a b'\n")), "`flag` cannot be the name of one"),
        (with(flags, "    flag: f\n"), "`flag` needs several `upstreams` to choose from"),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: a", "variant: a, weight: 2"))),
            "a `flag` decides alone: drop `weight`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace(", variant: a", ""))),
            "each upstream of a `flag` has its `variant`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: b", "variant: a"))),
            "two variants are named `a`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: b", "variant: 'b c'"))),
            "`b c` cannot be the name of a variant",
        ),
    ] {
        let told = read(&text).err().unwrap_or_default();
        assert!(
            told.contains(expected) && told.is_empty() == expected.is_empty(),
            "{expected}: {told}\n{text}"
        );
    }
}
