//! Of what filters want of their settings.

use super::{GOOD, read};

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
            "signing: `from_upstream` needs `to_upstream`: an answer is told by its request's nonce",
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
fn a_limit_of_one_name_is_one_limit() {
    let limit = |by: &str, numbers: &str| {
        format!("filters: {{ rate_limit: {{ limits: [{{ name: n, by: {by}, {numbers} }}] }} }}")
    };
    let usual = limit("ip", "requests: 10, per_s: 60");
    let told = |from: &str, to: &str| {
        format!(
            "p.yaml:25:14: route `other`: rate_limit: `n` is {to} here and {from} on route `send`, and both would count together; use another name or the same settings"
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
        (
            &usual,
            limit("ip", "requests: 10, per_s: 60, counted: here"),
            Some(told(ten, "10 requests in 60 s, 10 at once, by ip, counted here")),
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
    // Of places and quotas too.
    for (filter, first, second, expected) in [
        (
            "concurrency",
            "by: ip, most: 2",
            "by: ip, most: 2, lease_s: 9",
            "`n` is 2 at once for 9 s at most, by ip here and 2 at once for 60 s at most, by ip on route `send`",
        ),
        (
            "quota",
            "by: route, per: day, most: 5",
            "by: ip, per: day, most: 5",
            "`n` is 5 a day, by ip here and a quota of each route on route `send`",
        ),
    ] {
        let limit =
            |numbers: &str| format!("filters: {{ {filter}: {{ limits: [{{ name: n, {numbers} }}] }} }}");
        let other = "  - name: other\n    methods: [GET]\n    path: /v1/other\n    upstream: txn-core\n";
        let told = read(&format!("{GOOD}    {}\n{other}    {}\n", limit(first), limit(second))).unwrap_err();
        assert!(told.contains(expected), "{filter}: {told}");
    }
    // A route that does without the limit of every route may not give its name another meaning either.
    let above = GOOD.replacen("shape: {}", &usual["filters: { ".len()..usual.len() - 2], 1);
    let below = limit("ip", "requests: 5, per_s: 60");
    let first = "    upstream: txn-core\n  - name: other\n    methods: [GET]\n    path: /v1/other\n    upstream: txn-core\n";
    let text = above.replacen("    upstream: txn-core\n", first, 1);
    let told = read(&format!("{text}    except: [rate_limit]\n    {below}\n")).unwrap_err();
    assert!(told.contains("here and 10 requests in 60 s"), "{told}");
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
            "cors: `https://pay.example/` is no origin: write `https://HOST` or `https://HOST:PORT` without a path, or `*` alone",
        ),
        ("{ origins: ['pay.example'] }", "`pay.example` is no origin"),
        ("{ origins: ['*', 'https://pay.example'] }", "`*` is no origin"),
        (
            "{ origins: ['*'], credentials: true }",
            "cors: `credentials` go to pages that are named: `*` is every page there is",
        ),
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
        (
            "compression: { types: [json] }",
            "compression: `json` is not a media type: write it as `application/json`, in lower case and without parameters",
        ),
        ("compression: { types: ['text/plain; a=b'] }", "in lower case and without parameters"),
        ("compression: { types: [Text/Plain] }", "`Text/Plain` is not a media type"),
        (
            "compression: { types: [application/problem+json] }",
            "`application/problem+json` is what refusals are, and those stay as they are",
        ),
        // What is signed is signed as it leaves the upstream.
        ("compression: {}, signing: { to_upstream: { key: acme-1 } }", ""),
        (
            "compression: {}, signing: { to_client: { key: acme-1 } }",
            "p.yaml:16:5: route `send`: what is signed or verified is not compressed afterwards: write `except: [compression]`, or drop `compression` here",
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
        (
            "{}",
            "{ claims_to_headers: { x-kyc: kyc } }",
            "`claims_to_headers`: `x-kyc` is not a field of the edge's own: write `x-torana-claim-` and lower-case letters, digits or '-'",
        ),
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
