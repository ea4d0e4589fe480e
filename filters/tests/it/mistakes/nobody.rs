//! Of filters that ask for what no other filter of the route finds out.

use super::{GOOD, read};

const ISSUERS: &str = "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { file: 'file:j' } }\n";

#[test]
fn nobody_could_pass() {
    let limit = |filter: &str, by: &str, more: &str| {
        let amount = match filter {
            "rate_limit" => "requests: 5, per_s: 1",
            "quota" => "most: 5, per: day",
            _ => "most: 5",
        };
        format!("{filter}: {{ limits: [{{ name: few, by: {by}, {amount}{more} }}] }}")
    };
    let tenants = "tenants: { acme: {} }\n";
    let hosts = "tenants: { acme: { hosts: [acme.test] } }\n";
    let plan = "tenants: { acme: { plan: gold } }\nplans: { gold: { rate_limit: [{ name: few, by: user, requests: 5, per_s: 1 }] } }\n";
    let of_bank = GOOD.replacen("acme: {", "acme: { tenant: acme,", 1);
    let good = GOOD.to_owned();
    for (text, filters, more, expected) in [
        (
            &good,
            "nonce: {}".to_owned(),
            "",
            "p.yaml:20:14: route `send`: nonce: a nonce is taken of a signature, and the route has no `signature`, so nobody could pass",
        ),
        (&good, "nonce: {}, signature: {}".to_owned(), "", ""),
        (
            &good,
            "signature: { signer: device }".to_owned(),
            "",
            "route `send`: signature: `signer: device` takes the key from the token, and the route has no `jwt`, so nobody could pass",
        ),
        (
            &good,
            limit("rate_limit", "user", ""),
            "",
            "route `send`: rate_limit: limit `few` is `by: user`, which the route cannot tell without `jwt`, so nobody could pass",
        ),
        (
            &good,
            limit("quota", "device", ""),
            "",
            "quota: limit `few` is `by: device`, which the route cannot tell without `jwt`",
        ),
        (
            &good,
            limit("concurrency", "key", ""),
            "",
            "concurrency: limit `few` is `by: key`, which the route cannot tell without `signature`",
        ),
        (
            &good,
            limit("rate_limit", "client", ""),
            "",
            "is `by: client`, which the route cannot tell without `signature`, `client_cert` or `api_key`",
        ),
        (
            &good,
            limit("rate_limit", "tenant", ""),
            "",
            "is `by: tenant`, which the route cannot tell without `jwt`, `signature`, `client_cert` or `api_key`",
        ),
        (&good, limit("rate_limit", "user", ", mode: shadow"), "", ""),
        (&good, limit("rate_limit", "ip", ""), "", ""),
        (&good, limit("rate_limit", "route", ""), "", ""),
        (&good, format!("jwt: {{}}, {}", limit("rate_limit", "user", "")), "", ""),
        (&good, format!("signature: {{}}, {}", limit("quota", "key", "")), "", ""),
        (&good, format!("signature: {{}}, {}", limit("concurrency", "client", "")), "", ""),
        (
            &good,
            "tenant: {}".to_owned(),
            tenants,
            "route `send`: tenant: nothing that is in `from` could tell a tenant here, so nobody could pass",
        ),
        (
            &good,
            "tenant: {}, signature: {}".to_owned(),
            tenants,
            "nothing that is in `from` could tell a tenant here",
        ),
        (&of_bank, "tenant: {}, signature: {}".to_owned(), tenants, ""),
        (&good, "tenant: {}, jwt: {}".to_owned(), tenants, ""),
        (
            &good,
            "tenant: { from: [host] }".to_owned(),
            tenants,
            "nothing that is in `from` could tell a tenant here",
        ),
        (&good, "tenant: { from: [host] }".to_owned(), hosts, ""),
        (&of_bank, "tenant: {}, signature: {}".to_owned(), plan, ""),
    ] {
        let told =
            read(&format!("{text}    filters: {{ {filters} }}\n{ISSUERS}{more}")).err().unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{filters}: {told}");
    }
}

#[test]
fn what_is_of_no_use_is_told() {
    let two = "upstreams: [{ upstream: txn-core }, { upstream: txn-core }]";
    let shadow =
        "filters: { rate_limit: { limits: [{ name: few, by: user, requests: 5, per_s: 1, mode: shadow }] } }";
    let told_sticky = "route `send`: `sticky: user` does nothing without `jwt`, and requests go by chance";
    let told_shadow = "route `send`: rate_limit: limit `few` is `by: user`, which the route cannot tell without `jwt`, so it would refuse everybody";
    for (route, expected) in [
        (format!("{two}\n    sticky: user\n"), Some(told_sticky)),
        (format!("{two}\n    sticky: user\n    filters: {{ jwt: {{}} }}\n"), None),
        (format!("{two}\n    sticky: ip\n"), None),
        (format!("upstream: txn-core\n    {shadow}\n"), Some(told_shadow)),
        (format!("upstream: txn-core\n    {}\n", shadow.replace("{ rate", "{ jwt: {}, rate")), None),
    ] {
        let text = format!("{}{ISSUERS}", GOOD.replacen("upstream: txn-core\n", &route, 1));
        let policy = read(&text).unwrap_or_else(|told| panic!("{route}: {told}"));
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.message.as_str()).collect();
        let about = |told: &&&str| told.contains("`sticky") || told.contains("limit `few`");
        assert_eq!(told.iter().find(about).copied(), expected, "{route}: {told:?}");
    }
}

/// One line for all of them.
#[test]
fn routes_without_timeouts_are_told_of_once() {
    let more = |count: usize| {
        let route = |number| {
            format!("  - {{ name: r{number}, methods: [GET], path: /r{number}, upstream: txn-core }}\n")
        };
        (0..count).map(route).collect::<String>()
    };
    for (text, expected) in [
        (format!("{GOOD}    timeout_ms: 5000\n"), None),
        (
            GOOD.to_owned(),
            Some(
                "p.yaml:16:5: no `timeout_ms`: `send`: an upstream may take 5000 ms there; write how long it may",
            ),
        ),
        (
            format!("{GOOD}    timeout_ms: 1\n{}", more(2)),
            Some("p.yaml:21:5: no `timeout_ms`: `r0`, `r1`: an upstream"),
        ),
        (
            format!("{GOOD}{}", more(4)),
            Some("no `timeout_ms`: `send`, `r0`, `r1`, `r2`, `r3`: an upstream may take 5000 ms there"),
        ),
        // The upstream says it for all of them.
        (
            format!(
                "{}{}",
                GOOD.replacen("  txn-core:\n", "  txn-core:\n    timeout_ms: 5001\n", 1),
                more(2)
            ),
            None,
        ),
    ] {
        let policy = read(&text).unwrap();
        let told = policy.warnings().iter().map(|warning| warning.in_file("p.yaml"));
        let told: Vec<_> = told.filter(|told| told.contains("no `timeout_ms`")).collect();
        assert_eq!(told.len(), usize::from(expected.is_some()), "{told:?}");
        assert!(told.iter().zip(expected).all(|(told, expected)| told.contains(expected)), "{told:?}");
    }
}
