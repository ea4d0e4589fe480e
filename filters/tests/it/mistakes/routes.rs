//! Of `routes`: what is required there, and where requests go.

use super::{GOOD, read};

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
    const NOBODY: &str = "p.yaml:16:5: route `send` has no `jwt`, `signature`, `api_key` or required `client_cert`: anybody may call it";
    const UNUSED: &str = "p.yaml:12:29: client `acme`: no route has a `signature` or `signing` for its keys";
    const REPLAYS: &str = "p.yaml:16:5: route `send` has `signature` without `nonce`: who copies a signed request can send it again";
    const FEW: &str = "p.yaml:16:5: route `send`: nonces are remembered for 370 s, so `state.memory.max_entries: 1000000` lasts for 2702 signed requests a second and refuses more with 503; 1850000 entries last for 5000";
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
            state(1_849_999),
            vec!["lasts for 4999 signed requests"],
        ),
        ("    filters: { signature: {}, nonce: {} }", state(1_850_000), vec![]),
        ("    filters: { signature: {}, nonce: { window_s: 60 } }", state(650_000), vec![]),
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
        let policy = read(&format!("{GOOD}{route}\n    timeout_ms: 5000\n{below}")).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.in_file("p.yaml")).collect();
        let same = told.len() == expected.len() && told.iter().zip(&expected).all(|(t, e)| t.contains(e));
        assert!(same, "{route}\nexpected {expected:#?}\ntold     {told:#?}");
    }
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
        ("upstream: txn-core, sticky: user".to_owned(), "route `it`: `sticky` needs several `upstreams` to choose from"),
        (format!("upstreams: {two}, sticky: route"), "`sticky: route` would send everybody to the same upstream"),
        (format!("upstreams: {two}, sticky: usr"), "`sticky`: `usr` is none of route, ip, tenant, client, user, device, key; did you mean `user`?"),
        (format!("upstreams: {tried}, sticky: user"), "route `it`: variant `a` is of no `experiment`: name one"),
        (format!("upstreams: {two}, sticky: user, experiment: x"), "route `it`: each upstream of an experiment is a `variant`"),
        (format!("upstreams: {tried}, experiment: x"), "experiment `x` needs `sticky`: whose requests see the same variant"),
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
            "route `it`: `websocket.most_s` is between 1 and 86400, and not 100000",
        ),
        (
            "methods: [GET], websocket: { idle_timeout_ms: 0 }",
            "`websocket.idle_timeout_ms` is between 1 and 3600000",
        ),
        (
            "methods: [GET, POST], websocket: {}",
            "route `it`: WebSockets are asked for with GET, and `methods` is another: write `methods: [GET]`",
        ),
        (
            "methods: [GET], websocket: {}, mirror: { upstream: txn-core }",
            "route `it`: a WebSocket cannot be copied: drop `mirror` or `websocket`",
        ),
        (
            "methods: [GET], websocket: {}, filters: { signing: { to_upstream: { key: acme-1 } } }",
            "route `it`: what passes on a WebSocket cannot be signed or verified: drop `signing` or `websocket`",
        ),
    ] {
        let begin = GOOD.split("routes:").next().unwrap();
        let policy =
            format!("{begin}routes:\n  - {{ name: it, path: /it, upstream: txn-core, {settings} }}\n");
        let told = read(&policy).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{settings}: {told}");
    }
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
