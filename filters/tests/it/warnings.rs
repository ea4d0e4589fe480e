//! What `check` warns of besides what a route requires: paths that fit two routes, what nothing uses, and upstreams that
//! nobody watches.

use filters::policy::Policy;

const HEAD: &str = r#"
listeners:
  - { name: edge, address: "127.0.0.1:8443", tls: { certificate: "file:edge.pem", key: "file:edge.key", client_certificates: { ca: "file:c.pem" } } }
admin: { address: 127.0.0.1:9100 }
"#;

const TLS: &str =
    r#"tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }"#;

/// A policy of these routes, each a name and what is said of it, and the warnings of it. All require a token.
fn told(routes: &[(&str, &str)], more: &str) -> Vec<String> {
    let everywhere = match more.starts_with("filters:") {
        true => "",
        false => "filters: { jwt: { issuers: [main] } }\n",
    };
    let mut text = format!("{HEAD}{everywhere}{more}");
    if !more.contains("upstreams:") {
        text.push_str(&format!("upstreams:\n  core: {{ addresses: [\"127.0.0.1:9001\"], {TLS} }}\n"));
    }
    text.push_str("issuers:\n  main: { issuer: \"https://main\", audiences: [a], algorithms: [ES256], jwks: { file: \"file:j\" } }\n");
    if more.contains("other-issuer") {
        text.push_str("  other: { issuer: \"https://other\", audiences: [a], algorithms: [ES256], jwks: { file: \"file:j\" } }\n");
    }
    text.push_str("routes:\n");
    for (name, route) in routes {
        let upstream = if route.contains(", upstream") { "" } else { ", upstream: core" };
        let stated = [route, more].iter().any(|text| text.contains(", timeout_ms"));
        let timeout = if stated { "" } else { ", timeout_ms: 5000" };
        text.push_str(&format!("  - {{ name: {name}, {route}{upstream}{timeout} }}\n"));
    }
    let policy = Policy::read(&text, &|_| Ok(vec![7; 32].into()));
    let policy = policy.unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"));
    let first = text.lines().position(|line| line == "routes:").unwrap() as u64 + 2;
    // A route is told by its number, for the lines before them vary.
    let place =
        |line: u64| if line >= first { format!("route {}: ", line - first + 1) } else { String::new() };
    policy.warnings().iter().map(|warning| format!("{}{}", place(warning.line), warning.message)).collect()
}

#[test]
fn paths_that_fit_two_routes() {
    type Case<'c> = (&'c [(&'c str, &'c str)], &'c [&'c str]);
    let cases: &[Case<'_>] = &[
        // One more specific than the other, of one method.
        (
            &[("any", "methods: [GET], path: \"/v1/{id}\""), ("status", "methods: [GET], path: /v1/status")],
            &[
                "route 1: route `any`: GET /v1/status fits `/v1/{id}` too, and goes to route `status`: `/v1/status` is more specific",
            ],
        ),
        (
            &[
                ("rest", "methods: [GET, PUT], path: \"/v1/{*rest}\""),
                ("one", "methods: [GET, PUT], path: /v1/one"),
            ],
            &[
                "route 1: route `rest`: GET and PUT /v1/one fits `/v1/{*rest}` too, and goes to route `one`: `/v1/one` is more specific",
            ],
        ),
        // The path decides before the method does, so this method is nobody's there.
        (
            &[("any", "methods: [GET, PUT], path: \"/v1/{id}\""), ("me", "methods: [GET], path: /v1/me")],
            &[
                "route 1: route `any`: GET /v1/me fits `/v1/{id}` too, and goes to route `me`: `/v1/me` is more specific",
                "route 1: route `any`: PUT /v1/me fits `/v1/{id}` too, and is refused: `/v1/me` is more specific, and `me` does not serve that",
            ],
        ),
        // Nor is a version.
        (
            &[
                ("any", "methods: [GET], path: \"/users/{id}\""),
                ("me-1", "methods: [GET], path: /users/me, version: \"1\""),
                ("me-2", "methods: [GET], path: /users/me, version: \"2\""),
            ],
            &[
                "route 1: route `any`: GET /users/me fits `/users/{id}` too, and is refused: `/users/me` is more specific, and `me-1` or `me-2` does not serve that",
            ],
        ),
        // A third one is more specific than both.
        (
            &[
                ("a", "methods: [GET], path: \"/{x}/b\""),
                ("b", "methods: [GET], path: \"/a/{y}\""),
                ("both", "methods: [GET], path: /a/b"),
            ],
            &[
                "route 1: route `a`: GET /a/b fits `/{x}/b` too, and goes to route `both`: `/a/b` is more specific",
                "route 2: route `b`: GET /a/b fits `/a/{y}` too, and goes to route `both`: `/a/b` is more specific",
            ],
        ),
        // Nothing in common.
        (
            &[
                ("one", "methods: [GET], path: /v1/status"),
                ("two", "methods: [POST], path: /v1/status"),
                ("three", "methods: [GET], path: \"/v1/{id}/receipt\""),
                ("four", "methods: [GET], path: \"/v2/{id}\""),
            ],
            &[],
        ),
    ];
    for (routes, expected) in cases {
        assert_eq!(told(routes, ""), *expected, "{routes:?}");
    }
}

#[test]
fn what_nothing_uses_and_nobody_watches() {
    let one = &[("one", "methods: [GET], path: /v1/one")][..];
    let core = format!("upstreams:\n  core: {{ addresses: [\"127.0.0.1:9001\"], {TLS} }}\n");
    let two = format!("{core}  next: {{ addresses: [\"127.0.0.1:9002\"], {TLS} }}\n");
    let keys = "clients:\n  acme: { hmac_keys: [{ id: k, secret: \"env:K\" }] }\n";
    let certificates = "clients:\n  acme: { certificates: [{ dns: a.test }] }\n";
    let with = |filters: &'static str| [("one", filters)];
    let (mirrored, shared, signing, device, shown, off) = (
        with("methods: [GET], path: /v1/one, upstream: core, mirror: { upstream: next }"),
        with(
            "methods: [GET], path: /v1/one, upstreams: [{ upstream: core, weight: 1 }, { upstream: next, weight: 0 }]",
        ),
        with("methods: [GET], path: /v1/one, filters: { signing: { to_upstream: { key: k } } }"),
        with("methods: [GET], path: /v1/one, filters: { signature: { signer: device }, nonce: {} }"),
        with("methods: [GET], path: /v1/one, filters: { client_cert: {} }"),
        with("methods: [GET], path: /v1/one, filters: { client_cert: { mode: off } }"),
    );
    let no_signature = "client `acme`: no route has a `signature` or `signing` for its keys";
    let no_client_cert = "client `acme`: no route has a `client_cert` for its certificates";
    let several = |health: &str| {
        format!(
            "upstreams:\n  core: {{ addresses: [\"127.0.0.1:9001\", \"127.0.0.1:9002\"], {health}{TLS} }}\n"
        )
    };
    let slow = format!(
        "upstreams:\n  core: {{ addresses: [\"127.0.0.1:9001\"], connect_timeout_ms: 900, {TLS} }}\n"
    );
    let quick = with("methods: [GET], path: /v1/one, timeout_ms: 900");
    let less_quick = with("methods: [GET], path: /v1/one, timeout_ms: 901");
    for (routes, more, expected) in [
        (one, "", &[][..]),
        (one, two.as_str(), &["upstream `next`: no route names it"]),
        (&mirrored, &two, &[]),
        (&shared, &two, &[]),
        (
            one,
            "# other-issuer\n",
            &["issuer `other`: its tokens pass nowhere: no route has a `jwt` that takes them"],
        ),
        (one, keys, &[no_signature]),
        (&device, keys, &[no_signature]),
        (&signing, keys, &[]),
        (one, certificates, &[no_client_cert]),
        (&off, certificates, &[no_client_cert]),
        (&shown, certificates, &[]),
        (
            one,
            &several(""),
            &[
                "upstream `core` has 2 addresses and no `health`: one that is down is only found by requests that fail",
            ],
        ),
        (one, &several("health: { path: /health }, "), &[]),
        (
            &quick,
            &slow,
            &[
                "route 1: route `one`: its `timeout_ms: 900` ends before upstream `core` has had its `connect_timeout_ms: 900`",
            ],
        ),
        (&less_quick, &slow, &[]),
        (
            one,
            &slow.replace("connect_timeout_ms: 900", "connect_timeout_ms: 900, timeout_ms: 900"),
            &["upstream `core`: its `timeout_ms: 900` ends before it has had its `connect_timeout_ms: 900`"],
        ),
        (one, &slow.replace("connect_timeout_ms: 900", "connect_timeout_ms: 900, timeout_ms: 901"), &[]),
    ] {
        assert_eq!(told(routes, more), expected, "{routes:?} {more}");
    }
}

#[test]
fn preflights_of_versions_that_do_not_agree() {
    let v = |version: &str, cors: &str| {
        format!("methods: [GET], path: /v, version: \"{version}\", filters: {{ {cors} }}")
    };
    let (a, b) = ("cors: { origins: [\"https://a.example\"] }", "cors: { origins: [\"https://b.example\"] }");
    for (first, second, expected) in [
        (v("1", a), v("2", a), None),
        (v("1", ""), v("2", ""), None),
        (
            v("1", ""),
            v("2", a),
            Some(
                "route 2: route `two`: a browser's preflight names no version, and route `one` serves GET /v too, without \
                 `cors`: preflights are refused",
            ),
        ),
        (
            v("1", a),
            v("2", b),
            Some(
                "route 1: route `one`: a browser's preflight names no version, and no page is let in by every version of \
                 GET /v: preflights are refused",
            ),
        ),
    ] {
        let told = told(&[("one", &first), ("two", &second)], "");
        assert_eq!(told, expected.into_iter().collect::<Vec<_>>(), "{first} {second}");
    }
}

/// A place that is free again while its request lasts lets in one too many.
#[test]
fn leases_that_routes_outlive() {
    let own = |lease: &str, route: &str| {
        format!(
            "methods: [GET], path: /v1/one, {route}, filters: {{ concurrency: {{ limits: [{{ name: at-once, by: user, \
             most: 2{lease} }}] }} }}"
        )
    };
    let plan = "plans:\n  gold: { concurrency: [{ name: in-flight, by: tenant, most: 9, lease_s: 30 }] }\n\
                default_plan: gold\n";
    let required = "methods: [GET], path: /v1/one, websocket: { most_s: 31 }, filters: { tenant: {} }";
    let excepting = format!("{required}, except: [concurrency]");
    let elsewhere = "methods: [GET], path: /v1/two, filters: { tenant: {} }";
    let everywhere = "concurrency: { limits: [{ name: all, by: user, most: 5, lease_s: 4 }] }";
    let upstreams = |core: &str, next: &str| {
        let each = [("core", core), ("next", next)]
            .map(|(name, more)| format!("  {name}: {{ addresses: [\"127.0.0.1:9001\"]{more}, {TLS} }}\n"));
        format!("upstreams:\n{}", each.concat())
    };
    let shared = |what: &str| format!("filters: {{ jwt: {{ issuers: [main] }}, {everywhere} }}\n{what}");
    for (routes, more, expected) in [
        (vec![own(", lease_s: 900", "websocket: { most_s: 900 }")], String::new(), vec![]),
        (vec![own(", lease_s: 15", "timeout_ms: 5000, retries: 2")], String::new(), vec![]),
        (
            vec![own("", "websocket: { most_s: 900 }")],
            String::new(),
            vec![
                "route 1: limit `at-once`: a WebSocket of route `r1` may last `most_s: 900`, its place is free again after \
                 `lease_s: 60`, and more than 2 are let in; write `lease_s: 900`",
            ],
        ),
        (
            vec![own(", lease_s: 3600", "websocket: { most_s: 3601 }")],
            String::new(),
            vec![
                "route 1: limit `at-once`: a WebSocket of route `r1` may last `most_s: 3601`, its place is free again after \
                 `lease_s: 3600`, and more than 2 are let in; write `lease_s: 3600`, which is the most, and let the route \
                 last no longer",
            ],
        ),
        (
            vec![own(", lease_s: 5", "timeout_ms: 5001")],
            String::new(),
            vec![
                "route 1: limit `at-once`: a request of route `r1` may last `timeout_ms: 5001`, its place is free again \
                 after `lease_s: 5`, and more than 2 are let in; write `lease_s: 6`",
            ],
        ),
        (
            vec![own(", lease_s: 14", "timeout_ms: 5000, retries: 2, websocket: { most_s: 10 }")],
            String::new(),
            vec![
                "route 1: limit `at-once`: a request of route `r1` may last `timeout_ms: 5000`, 3 times with `retries`, its \
                 place is free again after `lease_s: 14`, and more than 2 are let in; write `lease_s: 15`",
            ],
        ),
        (
            vec![own(", lease_s: 6", "upstreams: [{ upstream: core }, { upstream: next }], retries: 1")],
            upstreams(", timeout_ms: 3001", ", timeout_ms: 3000"),
            vec![
                "route 1: limit `at-once`: a request of route `r1` may last `timeout_ms: 3001` of upstream `core`, 2 times with \
                 `retries`, its place is free again after `lease_s: 6`, and more than 2 are let in; write `lease_s: 7`",
            ],
        ),
        // Of a plan, on every route that requires `tenant`.
        (
            vec![required.to_owned(), elsewhere.to_owned()],
            plan.to_owned(),
            vec![
                "plan `gold`: limit `in-flight`: a WebSocket of route `r1` may last `most_s: 31`, its place is free again \
                 after `lease_s: 30`, and more than 9 are let in; write `lease_s: 31`",
            ],
        ),
        (vec![required.replace("tenant: {}", ""), elsewhere.to_owned()], plan.to_owned(), vec![]),
        // Of every route, but for one that does without.
        (
            vec!["methods: [GET], path: /v1/two".to_owned(), excepting],
            shared(plan),
            vec![
                "limit `all`: a request of route `r1` may last `timeout_ms: 5000`, its place is free again after \
                 `lease_s: 4`, and more than 5 are let in; write `lease_s: 5`",
                "route 2: route `r2` does without `concurrency`",
            ],
        ),
    ] {
        let names = ["r1", "r2"];
        let routes: Vec<_> = names.into_iter().zip(routes.iter().map(String::as_str)).collect();
        assert_eq!(told(&routes, &more), expected, "{routes:?} {more}");
    }
}
