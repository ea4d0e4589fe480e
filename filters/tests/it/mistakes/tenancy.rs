//! Of `tenants` and `plans`.

use super::{GOOD, read};

/// [`GOOD`] with these lines above its filters, and these filters of its route.
fn with_tenants(above: &str, filters: &str) -> String {
    let issuer = "issuers: { dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { file: 'file:j' } } }";
    let text = format!("{issuer}{}", GOOD.replacen("filters:\n", &format!("{above}filters:\n"), 1));
    if filters.is_empty() { text } else { format!("{text}    filters: {filters}\n") }
}

const TENANTS: &str = "tenants:\n  acme: { plan: gold }\nplans:\n  gold:\n    \
                       rate_limit: [{ name: calls, by: tenant, requests: 10, per_s: 1 }]\n    \
                       quota: [{ name: daily, by: tenant, per: day, most: 100 }]\n";

#[test]
fn tenants_and_plans_that_cannot_be_meant() {
    const REQUIRED: &str = "{ jwt: {}, tenant: {} }";
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
        ("per: day", "per: week", REQUIRED, "`per`: `week` is none of day, month"),
        ("most: 100", "most: 100, mode: off", REQUIRED, "`mode`: `off` is none of enforce, shadow"),
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
            "{ jwt: {}, tenant: {}, rate_limit: { limits: [{ name: calls, by: ip, requests: 1, per_s: 1 }] } }",
            "route `send`: rate_limit: plan `gold`: limit `calls` has the name of one of the route; use another",
        ),
        (
            "",
            "",
            "{ jwt: {}, tenant: {}, rate_limit: { cost: 11 } }",
            "rate_limit: plan `gold`: limit `calls`: `cost` is between 1 and the burst of every limit; here that is 10",
        ),
        (
            "requests: 10, per_s: 1",
            "requests: 1000, per_s: 1",
            "{ jwt: {}, tenant: {}, rate_limit: { cost: 101 } }",
            "route `send`: quota: plan `gold`: limit `daily`: a request costs 101, and `most` is 100",
        ),
        ("", "", "{ rate_limit: { cost: 2 } }", "rate_limit: `limits` needs one to 8 entries"),
        ("", "", "{ rate_limit: {} }", "rate_limit: `limits` needs one to 8 entries"),
        ("", "", "{ quota: {} }", "quota: `limits` needs one to 8 entries"),
        ("", "", "{ jwt: {}, tenant: {}, rate_limit: { cost: 0 } }", "`cost` is between 1 and the burst"),
        (
            "",
            "",
            "{ tenant: { from: [] } }",
            "tenant: `from` is empty, or has nothing in common with that of every route",
        ),
        ("", "", "{ tenant: { from: [cookie] } }", "`cookie` is none of token, client, host"),
        (
            "plans:",
            "utc_offset: Asia/Kolkata\nplans:",
            REQUIRED,
            "not an offset from UTC; write `+05:30`, `-03:00` or `+00:00`, at most 14 hours",
        ),
        ("plans:", "utc_offset: '+15:00'\nplans:", REQUIRED, "not an offset from UTC"),
        ("plans:", "utc_offset: '-03:00'\nplans:", REQUIRED, ""),
    ] {
        assert!(TENANTS.contains(from), "the case for {to:?} changes nothing");
        let told = read(&with_tenants(&TENANTS.replacen(from, to, 1), filters)).err().unwrap_or_default();
        let expects = told.contains(expected) && told.is_empty() == expected.is_empty();
        assert!(expects, "with {to:?} and {filters}\nexpected {expected:?}\ntold     {told}");
    }
    let eight: Vec<String> =
        (0..8).map(|number| format!("{{ name: r{number}, by: ip, requests: 1, per_s: 1 }}")).collect();
    let filters = format!("{{ jwt: {{}}, tenant: {{}}, rate_limit: {{ limits: [{}] }} }}", eight.join(", "));
    let told = read(&with_tenants(TENANTS, &filters)).unwrap_err();
    assert!(told.contains("plan `gold`: with those of the route there are more than 8 limits"), "{told}");
    let told = read(&with_tenants("", REQUIRED)).unwrap_err();
    assert!(
        told.contains(
            "route `send`: tenant: the policy has no `tenants` and no `default_plan`, so nobody could pass"
        ),
        "{told}"
    );
    // A plan's mistake is told once, however many routes it would hold on.
    let broken = with_tenants(&TENANTS.replacen("most: 100", "most: 0", 1), REQUIRED);
    let second = "  - { name: other, methods: [GET], path: /v1/other, upstream: txn-core, filters: { jwt: {}, tenant: {} } }\n";
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
        ("", "{ jwt: {}, tenant: {} }", ""),
        ("", "", "p.yaml:17:5: plan `gold` limits nobody: no route requires `tenant`"),
        (spare, "{ jwt: {}, tenant: {} }", "p.yaml:19:10: no tenant has the plan `spare`"),
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
        ("shape: {}, jwt: {}, tenant: {}", "", "shape, jwt, tenant, rate_limit, quota"),
        (
            "shape: {}, jwt: {}, tenant: {}, quota: { limits: [{ name: q, by: ip, per: day, most: 9 }] }",
            "except: [quota]",
            "shape, jwt, tenant, rate_limit",
        ),
        ("shape: {}, jwt: {}, tenant: {}", "except: [tenant]", "shape, jwt"),
        ("shape: {}", "", "shape"),
    ] {
        let text = with_tenants(TENANTS, "").replacen("shape: {}", &everywhere.replace("}, ", "}\n  "), 1);
        let policy = read(&format!("{text}    {route}\n")).unwrap();
        let names: Vec<_> = policy.rules()[0].chain.names().collect();
        assert_eq!(names.join(", "), filters, "{everywhere} {route}");
    }
}
