//! What a policy's writer is told of numbers out of bounds, names that are there twice and things that are missing.

use filters::policy::{Policy, Reference};

const GOOD: &str = r#"
listeners:
  - { name: edge, address: "127.0.0.1:8443", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }
admin: { address: "127.0.0.1:9100" }
upstreams:
  core:
    addresses: ["127.0.0.1:9001"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
issuers:
  main: { issuer: "https://main", audiences: [a], algorithms: [ES256], jwks: { file: "file:j" } }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "file:acme.secret" }] }
routes:
  - name: send
    methods: [POST]
    path: /v1/send
    upstream: core
"#;

/// Reads a policy whose file of keys, if it names one, has this in it.
fn read(text: &str, keys: &str) -> Result<Policy, String> {
    let secret = |reference: &Reference| match reference.to_string().ends_with(".json") {
        true => Ok(keys.as_bytes().to_vec().into()),
        false => Ok(vec![7; 32].into()),
    };
    Policy::read(text, &secret).map_err(|mistakes| {
        mistakes.iter().map(|mistake| mistake.in_file("p.yaml")).collect::<Vec<_>>().join("\n")
    })
}

fn check(text: &str, keys: &str, expected: &str) {
    match read(text, keys) {
        Ok(_) => panic!("accepted, and not told {expected:?}:\n{text}"),
        Err(told) => assert!(told.contains(expected), "expected {expected:?}\ntold     {told}"),
    }
}

#[test]
fn settings_of_filters() {
    assert!(read(GOOD, "").is_ok());
    let many: Vec<String> = (0..28).map(|number| format!("h{number}")).collect();
    let many = format!("signature: {{ components: [{}] }}", many.join(", "));
    let limit = "{ name: a, by: ip, requests: 1, per_s: 1 }";
    let place = "{ name: a, by: ip, most: 1 }";
    let two = |filter: &str, entry: &str| format!("{filter}: {{ limits: [{entry}, {entry}] }}");
    for (filter, expected) in [
        (
            "concurrency: { limits: [] }",
            "p.yaml:18:14: route `send`: concurrency: `limits` needs one to 8 entries",
        ),
        (&two("concurrency", place), "concurrency: two limits are named `a`"),
        (
            "concurrency: { limits: [{ name: a, by: ip, most: 0 }] }",
            "limit `a`: `most` is between 1 and 1024",
        ),
        (
            "concurrency: { limits: [{ name: a, by: ip, most: 1, lease_s: 0 }] }",
            "`lease_s` is between 1 and 3600",
        ),
        ("headers: { referrer_policy: \"a\\nb\" }", "a field's value must be visible ASCII on one line"),
        ("idempotency: { max_length: 7 }", "idempotency: `max_length` is between 8 and 255"),
        ("jwt: { max_length: 255 }", "jwt: `max_length` is between 256 and 16384"),
        ("jwt: { cache_entries: 1000001 }", "jwt: `cache_entries` is at most 1000000"),
        ("jwt: { scopes: [a b] }", "jwt: a scope is visible ASCII without spaces, quotes and backslashes"),
        ("jwt: { issuers: [nobody] }", "jwt: there is no issuer `nobody`"),
        ("jwt: { issuers: [] }", "jwt: no issuer is left whose tokens could pass"),
        ("nonce: { window_s: 0 }", "nonce: `window_s` is between 1 and 3600, `max_skew_s` at most 300"),
        (
            "nonce: { min_length: 0 }",
            "nonce: `min_length` is at least 1, `max_length` no less and at most 256",
        ),
        ("rate_limit: { limits: [] }", "rate_limit: `limits` needs one to 8 entries"),
        (&two("rate_limit", limit), "rate_limit: two limits are named `a`"),
        (
            "rate_limit: { limits: [{ name: a, by: ip, requests: 1, per_s: 1 }], cost: 2 }",
            "limit `a`: `cost` is between 1 and the burst of every limit; here that is 1",
        ),
        ("rate_limit: { cost: 0 }", "rate_limit: `cost` is at least 1"),
        ("shape: { max_body_bytes: 1073741825 }", "shape: `max_body_bytes` is at most 1073741824"),
        (
            "rate_limit: { limits: [{ name: a, by: ip, requests: 1, per_s: 0 }] }",
            "limit `a`: `per_s` must be at least 1 and at most 31 days, and no shorter than a microsecond a request",
        ),
        (
            "rate_limit: { limits: [{ name: a, by: ip, requests: 1, per_s: 1, burst: 0 }] }",
            "limit `a`: `burst` must be between 1 and 1000000, and be there again within ten years",
        ),
        ("signature: { components: [\"@made-up\"] }", "not a derived component of RFC 9421"),
        ("signature: { components: [Content-Digest] }", "not a component identifier"),
        ("signature: { components: ['\"date\";tr'] }", "trailers are not supported"),
        (
            "signature: { components: ['\"date\";x'] }",
            "parameters that are unknown, missing or do not go together",
        ),
        // What no request could have would refuse them all.
        (
            "signature: { components: ['\"x-app\";sf'] }",
            "component \"x-app\";sf: the type of this structured field is not known",
        ),
        (
            "signature: { components: ['\"ratelimit\";key=\"a\"'] }",
            "component \"ratelimit\";key=\"a\": not a structured field of the right type",
        ),
        ("signature: { components: ['\"date\";req'] }", "there is no request that this message answers"),
        ("signature: { components: [\"@status\"] }", "component \"@status\": not in the message"),
        ("signature: { components: [date, date] }", "signature: component `date` is named twice"),
        (&many, "signature: `components` adds at most 27 to those always covered"),
        ("signature: { max_age_s: 0 }", "`max_age_s` is between 1 and 3600, `max_skew_s` at most 300"),
        ("signing: { to_upstream: {} }", "signing: whose key it is says exactly one of `key` and `client`"),
        ("signing: { to_upstream: { key: acme-1, client: acme } }", "says exactly one of `key` and `client`"),
        (
            "signing: { to_upstream: { key: acme-1 }, from_upstream: { key: \"\" } }",
            "`from_upstream` names no key, or another one than that of every route",
        ),
    ] {
        check(&format!("{GOOD}    filters: {{ {filter} }}\n"), "", expected);
    }
    let second = "  twin: { issuer: \"https://main\", audiences: [a], algorithms: [ES256], jwks: { file: \"file:j\" } }\nclients:";
    let text = GOOD.replacen("clients:", second, 1) + "    filters: { jwt: {} }\n";
    check(&text, "", "issuer `twin` has the `iss` of another");
    let other =
        "clients:\n  other: { hmac_keys: [{ id: o, secret: \"env:O\" }], certificates: [{ dns: o.test }] }\n";
    let two = GOOD.replacen("clients:\n", other, 1).replacen(
        "acme: {",
        "acme: { certificates: [{ dns: a.test }],",
        1,
    );
    for filter in ["signature: {", "client_cert: { mode: optional,"] {
        let text =
            two.replacen("routes:", &format!("filters: {{ {filter} clients: [acme] }} }}\nroutes:"), 1);
        let text = format!("{text}    filters: {{ {filter} clients: [other] }} }}\n");
        check(&text, "", "`clients` here and those of every route have none in common");
    }
}

#[test]
fn the_rest_of_the_document() {
    let route = "  - { name: other, methods: [GET], path: /v1/other, upstream: core";
    let counted = |requests: u32| {
        format!(
            "filters: {{ rate_limit: {{ limits: [{{ name: n, by: ip, requests: {requests}, per_s: 1 }}] }} }}"
        )
    };
    let two_meanings = format!("    {}\n{route}, {} }}\n", counted(1), counted(2));
    for (from, to, expected) in [
        ("listeners:\n  - { name: edge", "listeners: []\nx:\n  - { name: edge", "unknown field `x`"),
        (
            "\"file:edge.key\" } }\n",
            "\"file:edge.key\" } }\n  - { name: edge, address: \"127.0.0.1:8444\", tls: { certificate: \"file:a\", key: \"file:b\" } }\n",
            "p.yaml:4:5: two listeners are named `edge`",
        ),
        ("\"file:edge.pem\"", "\"file:\"", "p.yaml:3:66: the reference names nothing after `file:`"),
        ("\"file:edge.pem\"", "\"env:\"", "the reference names nothing after `env:`"),
        (
            "server_name: core.test",
            "server_name: ' '",
            "`server_name` is empty: the upstream's certificate could not be verified",
        ),
        (
            "    tls:",
            "    health: { path: health }\n    tls:",
            "upstream `core`: the `path` of `health` begins with /",
        ),
        (
            "    tls:",
            "    timeout_ms: 3600001\n    tls:",
            "upstream `core`: `timeout_ms` is between 1 and 3600000, and not 3600001",
        ),
        (
            "audiences: [a]",
            "audiences: []",
            "issuer `main` needs `audiences`: a token for anybody is a token for an attacker",
        ),
        ("algorithms: [ES256]", "algorithms: []", "p.yaml:10:9: issuer `main` needs `algorithms`"),
        (
            "jwks: { file: \"file:j\" }",
            "jwks: { file: \"env:J\" }",
            "issuer `main`: `jwks.file` must be a `file:`",
        ),
        (
            "jwks: { file: \"file:j\" }",
            "jwks: { url: \"https://main\", crl: \"file:c\" }",
            "issuer `main`: `jwks.crl` is of the CAs in `jwks.ca`, which is not there",
        ),
        (
            "acme: {",
            "acme: { tenant: '',",
            "client `acme`: `tenant` is empty: no token could be of that tenant",
        ),
        (
            "acme: { hmac_keys: [{ id: acme-1, secret: \"file:acme.secret\" }] }",
            "acme: { tenant: bank }",
            "p.yaml: client `acme` needs `hmac_keys` or `certificates` or `api_keys`: it could never be known",
        ),
        (
            "    upstream: core\n",
            "    upstream: core\n    version: v2\n",
            "p.yaml:18:14: `v2` is not a version: use digits and dots, at most 16",
        ),
        (
            "    upstream: core\n",
            "    upstream: core\n    version: \"2\"\n",
            "p.yaml:18:14: route `send` has version `2`, and its path asks for version `1`: nobody could ask for both",
        ),
        (
            "    upstream: core\n",
            "    upstream: core\n  - { name: send, methods: [GET], path: /v1/other, upstream: core }\n",
            "p.yaml:18:5: two routes are named `send`",
        ),
        ("    upstream: core\n", "", "route `send` needs exactly one of `upstream` and `upstreams`"),
        ("upstream: core\n", "upstreams: [{ upstream: core, weight: 10001 }]\n", "`weight` is at most 10000"),
        (
            "upstream: core\n",
            "upstreams: [{ upstream: core, weight: 0 }]\n",
            "route `send`: every weight is 0",
        ),
        (
            "upstream: core\n",
            "upstream: core\n    mirror: { upstream: core, percent: 0 }\n",
            "`percent` is between 1 and 100",
        ),
        (
            "    upstream: core\n",
            &format!("    upstream: core\n{two_meanings}"),
            "on route `send`, and both would count together; use another name or the same settings",
        ),
    ] {
        assert!(GOOD.contains(from), "the case for {to:?} changes nothing");
        check(&GOOD.replacen(from, to, 1), "", expected);
    }
    let without = |part: &str, to: &str| {
        let (before, _) = GOOD.split_once(part).unwrap();
        format!("{before}{to}")
    };
    check(&without("routes:", "routes: []\n"), "", "p.yaml: `routes` is empty: nothing could be called");
    let (_, after) = GOOD.split_once("admin:").unwrap();
    check(&format!("listeners: []\nadmin:{after}"), "", "p.yaml: `listeners` is empty: nobody could connect");
}

/// What a client's certificate may be known by.
#[test]
fn names_in_certificates() {
    for (names, expected) in [
        ("{}", "client `acme`: a certificate is known by `dns`, `uri`, `email` or `spki_sha256`: name one"),
        ("{ dns: \"*.bank.test\" }", "`*.bank.test` is not a DNS name that a certificate could carry"),
        ("{ uri: bank.test }", "`bank.test` is not a URI that a certificate could carry"),
        ("{ email: bank.test }", "`bank.test` is not an address that a certificate could carry"),
        (
            "{ spki_sha256: AAAA }",
            "`spki_sha256` is the SHA-256 of the public key in base64, as `certs show` prints it",
        ),
    ] {
        let text = GOOD.replacen("acme: {", &format!("acme: {{ certificates: [{names}],"), 1);
        check(&text, "", expected);
    }
}

#[test]
fn where_nonces_and_limits_are_kept() {
    let tls = |place: &str, clients: &str, name: &str| {
        let files = r#"ca: "file:ca", certificate: "file:c", key: "file:k""#;
        let client = format!("client: {{ server_name: \"{name}\", {files} }}");
        let served = "certificate: \"file:c\", key: \"file:k\", client_ca: \"file:ca\"";
        format!("service: {{ {place}, tls: {{ {served}, allowed_clients: [{clients}], {client} }} }}")
    };
    let address = "address: \"10.0.0.1:1\"";
    let (nobody, any) = (tls(address, "", "s.test"), tls(address, "\"*.test\"", "s.test"));
    let (nameless, socket) = (tls(address, "envoy.test", ""), tls("socket: /run/s", "envoy.test", "s.test"));
    for (state, expected) in [
        (
            "redis: { url: \"env:R\", timeout_ms: 0 }",
            "p.yaml:18:17: `redis`: `timeout_ms` is between 1 and 60000, and not 0",
        ),
        (
            "redis: { url: \"env:R\", connect_timeout_ms: 60001 }",
            "`connect_timeout_ms` is between 1 and 60000",
        ),
        ("memory: { max_entries: 0 }", "p.yaml: `state`: `memory.max_entries` is between 1 and 1000000000"),
        ("redis: { url: \"env:R\", prefix: \"a b\" }", "`prefix` is at most 64 visible characters"),
        (
            "redis: { url: \"env:R\", cluster: true, prefix: \"}\" }",
            "with `cluster: true`, `prefix` has at least one character and does not begin with `}`",
        ),
        (
            "redis: { url: \"env:R\", cluster: true, sentinel: { master: m } }",
            "write either `sentinel` or `cluster: true`",
        ),
        (
            "redis: { url: \"env:R\", sentinel: { master: \"\" } }",
            "`sentinel.master` is empty: write the name in the Sentinels' line `sentinel monitor NAME`",
        ),
        (
            "redis: { url: \"env:R\", sentinel: { master: m, user: u } }",
            "`sentinel.user` needs `sentinel.password`",
        ),
        ("service: {}", "the state service needs exactly one of `address` and `socket`"),
        (socket.as_str(), "the state service's `socket` has no `tls`"),
        (
            "service: { address: \"10.0.0.1:1\" }",
            "the state service needs `tls` off the host: it hands out nonces, limits and keys",
        ),
        (
            "service: { socket: /run/s, timeout_ms: 0 }",
            "the state service: `timeout_ms` is between 1 and 60000",
        ),
        (&nobody, "`allowed_clients` are whole DNS names, one at least: of the certificate in `client`, say"),
        (&any, "`allowed_clients` are whole DNS names, one at least"),
        (&nameless, "`server_name` is empty"),
    ] {
        check(&format!("{GOOD}state: {{ {state} }}\n"), "", expected);
    }
}

#[test]
fn files_of_keys() {
    let filed = GOOD.replace(
        "hmac_keys: [{ id: acme-1, secret: \"file:acme.secret\" }]",
        "hmac_key_file: \"file:keys.json\"",
    );
    let key = |number: u32| format!("{{\"id\": \"k{number}\", \"secret\": \"{}\"}}", "QUJD".repeat(11));
    let keys = |many: u32| format!("{{\"keys\": [{}]}}", (0..many).map(key).collect::<Vec<_>>().join(","));
    assert!(read(&filed, &keys(64)).is_ok());
    for (keys, expected) in [
        ("[", "file:keys.json: it is no file of keys: look at line 1, column 1"),
        (&keys(65), "file:keys.json: it has more than 64 keys"),
        (&keys(1).replace("QUJD", "!!!!"), "file:keys.json: the secret of key `k0` is not padded base64"),
        (&keys(1).replace(&"QUJD".repeat(11), "QUJD"), "key `k0`: "),
        (&format!("{{\"keys\": [{},{}]}}", key(1), key(1)), "key id `k1` is used twice"),
    ] {
        check(&filed, keys, expected);
    }
}

/// Whoever may sign as any client may sign as the one that the edge itself signs as.
#[test]
fn the_keys_of_the_edge_are_nobody_elses() {
    let filters = "    filters: { signature: {}, nonce: { window_s: 60 }, signing: { to_upstream: { key: acme-1 } } }\n";
    let told = |text: &str| {
        let policy = read(text, "").unwrap_or_else(|told| panic!("{told}"));
        policy.warnings().iter().map(|warning| warning.message.clone()).collect::<Vec<_>>().join("\n")
    };
    let any = "route `send`: `signature` takes the key of every client, those included that `signing` signs with, and whoever verifies with such a key can sign with it; name `clients`";
    assert!(told(&format!("{GOOD}{filters}")).contains(any));
    let named = filters.replace("signature: {}", "signature: { clients: [acme] }");
    assert!(!told(&format!("{GOOD}{named}")).contains("every client"));
}

/// What is said in numbers, of everything but filters.
#[test]
fn nothing_waits_for_ever_and_somebody_passes() {
    let hour = 3_600_001;
    let introspection =
        "introspection: { url: \"https://i\", ca: \"file:c\", client_id: e, client_secret: \"file:s\",";
    for (place, field, least, too_much, about) in [
        ("name: edge,", "max_connections", 1, 1_000_001, "p.yaml:3:5: listener `edge`: `max_connections`"),
        ("name: edge,", "handshake_timeout_ms", 1, 60_001, "`handshake_timeout_ms`"),
        ("name: edge,", "request_timeout_ms", 1, hour, "`request_timeout_ms`"),
        ("name: edge,", "idle_timeout_ms", 1, hour, "listener `edge`: `idle_timeout_ms`"),
        ("name: edge,", "max_requests_per_connection", 1, 1_000_000_001, "`max_requests_per_connection`"),
        ("core: {", "connect_timeout_ms", 1, 60_001, "p.yaml:7:9: upstream `core`: `connect_timeout_ms`"),
        ("core: {", "idle_timeout_ms", 1, hour, "upstream `core`: `idle_timeout_ms`"),
        ("core: {", "max_in_flight", 1, 1_000_001, "`max_in_flight`"),
        ("health: { path: /h,", "interval_ms", 1, hour, "upstream `core`: `health.interval_ms`"),
        ("health: { path: /h,", "timeout_ms", 1, 60_001, "`health.timeout_ms`"),
        ("health: { path: /h,", "unhealthy_after", 1, 1_000_001, "`health.unhealthy_after`"),
        ("health: { path: /h,", "healthy_after", 1, 1_000_001, "`health.healthy_after`"),
        ("outlier: {", "eject_ms", 1, hour, "`outlier.eject_ms`"),
        ("main: {", "leeway_s", 0, 301, "p.yaml:9:9: issuer `main`: `leeway_s`"),
        ("jwks: {", "refresh_s", 1, 86_401, "`jwks.refresh_s`"),
        ("jwks: {", "stale_s", 0, 2_592_001, "`jwks.stale_s`"),
        ("jwks: {", "unknown_kid_refresh_s", 1, 3_601, "`jwks.unknown_kid_refresh_s`"),
        ("jwks: {", "timeout_ms", 1, 60_001, "`jwks.timeout_ms`"),
        (introspection, "timeout_ms", 1, 60_001, "issuer `main`: introspection: `timeout_ms`"),
        (introspection, "cache_s", 1, 301, "introspection: `cache_s`"),
        (introspection, "negative_cache_s", 1, 61, "introspection: `negative_cache_s`"),
        (introspection, "cache_entries", 1, 1_000_001, "introspection: `cache_entries`"),
        (introspection, "max_in_flight", 1, 1_000_001, "introspection: `max_in_flight`"),
        ("name: get,", "timeout_ms", 1, hour, "p.yaml:16:5: route `get`: `timeout_ms`"),
        ("websocket: {", "idle_timeout_ms", 1, hour, "route `get`: `websocket.idle_timeout_ms`"),
        ("websocket: {", "most_s", 1, 86_401, "route `get`: `websocket.most_s`"),
    ] {
        for number in [0, least, too_much - 1, too_much, u64::MAX] {
            let with = |text: String| text.replacen(place, &format!("{place} {field}: {number},"), 1);
            let text = with(NUMBERS.replace("INTROSPECTION", &format!("{introspection} }}")));
            assert!(
                text.contains(&format!("{field}: {number}")),
                "the case for {place} {field} changes nothing"
            );
            // What does not fit 32 bits is not read.
            let fine = (least..too_much).contains(&number);
            match read(&text, "") {
                Ok(_) => assert!(fine, "{about}: {number} is accepted"),
                Err(told) if fine => panic!("{about}: {number} is refused: {told}"),
                Err(told) => {
                    let expected =
                        format!("{about} is between {least} and {}, and not {number}", too_much - 1);
                    let unread = number == u64::MAX && told.contains("from 0 to 4294967295 belongs here");
                    assert!(told.contains(&expected) || unread, "expected {expected}\ntold     {told}");
                }
            }
        }
    }
    // Where no failure counts, for how long says nothing.
    let never = GOOD.replacen("    tls:", "    outlier: { failures: 0, eject_ms: 0 }\n    tls:", 1);
    assert!(read(&never, "").is_ok());
}

const NUMBERS: &str = r#"
listeners:
  - { name: edge, address: "127.0.0.1:8443", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }
admin: { address: "127.0.0.1:9100" }
upstreams:
  # Below.
  core: { addresses: ["127.0.0.1:9001"], health: { path: /h, }, outlier: { }, tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" } }
issuers:
  main: { issuer: "https://main", audiences: [a], algorithms: [ES256], jwks: { file: "file:j" }, INTROSPECTION }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "file:acme.secret" }] }
filters:
  shape: {}
routes:
  # Below.
  - { name: get, methods: [GET], path: /v1/get, upstream: core, websocket: { } }
"#;

/// Names go as they are into Envoy's configuration, logs and what is printed here.
#[test]
fn names_are_plain() {
    let route = "  - { name: NAME, methods: [GET], path: /v1/other, upstream: core }\n";
    let upstream = "  NAME: { addresses: [\"127.0.0.1:1\"], tls: { server_name: a, ca: \"file:a\", certificate: \"file:a\", key: \"file:a\" } }\n";
    let issuer = "  NAME: { issuer: \"https://i\", audiences: [a], algorithms: [ES256], jwks: { file: \"file:i\" } }\n";
    let listener =
        "  - { name: NAME, address: \"127.0.0.1:1\", tls: { certificate: \"file:a\", key: \"file:a\" } }\n";
    for (what, section, entry, place) in [
        ("route", "routes:\n", route, "p.yaml:14:"),
        ("upstream", "upstreams:\n", upstream, "p.yaml:6:"),
        ("issuer", "issuers:\n", issuer, "p.yaml:10:"),
        ("listener", "listeners:\n", listener, "p.yaml:3:"),
        ("client", "clients:\n", "  NAME: { hmac_keys: [{ id: b, secret: \"file:b\" }] }\n", "p.yaml:12:"),
        ("client", "clients:\n", "  NAME: { certificates: [{ dns: b.test }] }\n", "p.yaml:12:"),
        ("plan", "routes:\n", "plans:\n  NAME: { }\nroutes:\n", "p.yaml:14:"),
    ] {
        let longest = "a".repeat(128);
        for (name, fine) in [
            ("b-2", true),
            (longest.as_str(), true),
            ("", false),
            ("a\\nb", false),
            ("a b", false),
            ("\u{e4}", false),
        ] {
            let entry = entry.replace("NAME", &format!("\"{name}\""));
            let added = match entry.contains(section) {
                true => entry,
                false => format!("{section}{entry}"),
            };
            let told = read(&GOOD.replacen(section, &added, 1), "").err().unwrap_or_default();
            let expected = format!(
                "{what} `{name}`: a name is 1 to 128 visible characters, and none of \" ' , ; = \\ ` {{ }}"
            );
            assert_eq!(told.is_empty(), fine, "{what} {name:?}: {told}");
            assert!(fine || told.lines().any(|line| line.contains(&expected)), "{what} {name:?}: {told}");
            assert!(fine || name.starts_with('\u{e4}') || told.contains(place), "{told}");
        }
    }
}
