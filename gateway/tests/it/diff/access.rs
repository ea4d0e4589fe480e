//! Whom a change concerns that is not of a route itself, and lists of networks.

use super::{OLD, between};

const PLANS: &str = r#"default_plan: small
plans:
  small: { quota: [{ name: d, by: tenant, per: day, most: 5 }] }
  big: { quota: [{ name: d, by: tenant, per: day, most: 50 }] }
  spare: { quota: [{ name: d, by: tenant, per: day, most: 500 }] }
tenants: { acme: { plan: big }, beta: { plan: big }, corner: {} }
"#;

/// Requests of the last one never go to `next`.
const WAYS: &str = r"
  - { name: next, methods: [GET], path: /v2/status, upstreams: [{ upstream: next, weight: 1 }, { upstream: core }] }
  - { name: copied, methods: [POST], path: /v1/copied, upstream: core, mirror: { upstream: next } }
  - { name: never, methods: [GET], path: /v1/never, upstreams: [{ upstream: next, weight: 0 }, { upstream: core }] }
";

const LONE: &str = r#"
  lone:
    addresses: ["127.0.0.1:9009"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
issuers:
"#;

/// An upstream that is not verified any more, or that receives tokens.
#[test]
fn less_protection_towards_an_upstream_is_looser() {
    let folder = tempfile::tempdir().unwrap();
    let tls = "tls: { server_name: core.test, ca: \"file:ca.pem\", certificate: \"file:gw.pem\", key: \"file:gw.key\" }";
    for (to, path) in [
        ("tls: off".to_owned(), "upstreams.core.tls"),
        (format!("{tls}\n    forward_authorization: true"), "upstreams.core.forward_authorization"),
    ] {
        let new = OLD.replacen(tls, &to, 1);
        for (old, new, mark) in [(OLD, new.as_str(), "  ! "), (new.as_str(), OLD, "  - ")] {
            let (_, told, complained) = between(folder.path(), old, new, &[]);
            let line = told.lines().find(|line| line.contains(path));
            assert!(line.is_some_and(|line| line.starts_with(mark)), "{path}: {told}{complained}");
        }
    }
}

/// Tenants with a plan of their own, with the default's, and those that only a client names; routes by all the ways to an
/// upstream.
#[test]
fn whoever_has_what_changes_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let old = OLD
        .replace("filters:\n  shape", &format!("{PLANS}filters:\n  tenant: {{}}\n  shape"))
        .replace("acme: { hmac", "zeta: { tenant: zeta, hmac")
        .replace("  - { name: next, methods: [GET], path: /v2/status, upstream: next }\n", WAYS)
        .replace("issuers:\n", LONE);
    for (from, to, expected) in [
        ("most: 50 }", "most: 60 }", "  ! tenants acme, beta: plans.big.quota.d.most: 50 -> 60"),
        (
            "most: 5 }",
            "most: 4 }",
            "  - tenants corner, zeta and tenants that the policy does not name: plans.small.quota.d.most: 5 -> 4",
        ),
        ("most: 500 }", "most: 400 }", "  - no tenant: plans.spare.quota.d.most: 500 -> 400"),
        // Who has it from now on.
        ("beta: { plan: big }", "beta: {}", "  ~ tenants.beta.plan: is gone; it was big"),
        (
            "default_plan: small",
            "default_plan: big",
            "  ~ tenants corner, zeta and tenants that the policy does not name: default_plan: small -> big",
        ),
        (
            "[\"127.0.0.1:9002\"]",
            "[\"127.0.0.1:9003\"]",
            "  ~ route next and copies of route copied: upstreams.next.addresses: + 127.0.0.1:9003, - 127.0.0.1:9002",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[\"127.0.0.1:9003\"]",
            "  ~ every route: upstreams.core.addresses: + 127.0.0.1:9003, - 127.0.0.1:9001",
        ),
        (
            "[\"127.0.0.1:9009\"]",
            "[\"127.0.0.1:9003\"]",
            "  ~ no route: upstreams.lone.addresses: + 127.0.0.1:9003, - 127.0.0.1:9009",
        ),
    ] {
        assert!(old.contains(from), "the case for {to:?} changes nothing");
        let (_, told, complained) = between(folder.path(), &old, &old.replacen(from, to, 1), &[]);
        assert!(
            told.lines().any(|line| line == expected),
            "{to}: expected {expected}\ntold {told}{complained}"
        );
    }
    // What is gone concerns who had it.
    let flagged = "flags: { file: \"file:flags.json\" }\nadmin:";
    let shares = "flag: f, upstreams: [{ upstream: core, variant: a }, { upstream: next, variant: b }] }";
    let by_flag = OLD.replacen("admin:", flagged, 1).replacen(
        "path: /v2/status, upstream: next }",
        &format!("path: /v2/status, {shares}"),
        1,
    );
    let without = by_flag.replacen("upstream: next, variant: b", "upstream: core, variant: b", 1);
    let next =
        by_flag.lines().skip_while(|line| *line != "  next:").take(3).collect::<Vec<_>>().join("\n") + "\n";
    let (_, told, complained) = between(folder.path(), &by_flag, &without.replacen(&next, "", 1), &[]);
    assert!(
        told.lines().any(|line| line.starts_with("  ~ route next: upstreams.next: is gone")),
        "{told}{complained}"
    );
}

/// Which addresses are in a list counts, not how it is written.
#[test]
fn networks_are_compared_as_what_is_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let with = |proxies: &str, deny: &str, allow: &str, own: &str| {
        OLD.replacen("admin:", &format!("trusted_proxies: {proxies}\nadmin:"), 1)
            .replacen(
                "  shape: {}\n",
                &format!("  shape: {{}}\n  ip_access: {{ allow: {allow}, deny: {deny} }}\n"),
                1,
            )
            .replacen(
                "{ jwt: { scopes: [pay] }",
                &format!("{{ ip_access: {{ allow: {own} }}, jwt: {{ scopes: [pay] }}"),
                1,
            )
    };
    let old = with("[10.0.0.0/8]", "[192.0.2.0/24]", "[10.0.0.0/8, \"2001:db8::/32\"]", "[10.1.0.0/16]");
    for (new, expected) in [
        (
            with(
                "[10.0.0.0/9, 10.128.0.0/9]",
                "[192.0.2.0/24, 192.0.2.128/25]",
                "[\"2001:db8::/32\", 10.0.0.0/8]",
                "[10.1.0.0/16, 172.16.0.0/12]",
            ),
            &[][..],
        ),
        (
            with("[10.0.0.0/9]", "[192.0.2.0/25]", "[10.0.0.0/8, \"2001:db8::/31\"]", "[10.1.0.0/16]"),
            &[
                "  - trusted_proxies: - 10.0.0.0/8 (left: 10.0.0.0/9)",
                "  ! every route: ip_access.deny: - 192.0.2.0/24 (left: 192.0.2.0/25)",
                "  ! routes status, next: ip_access.allow: + 2001:db8::/31 (before: 2001:db8::/32)",
            ],
        ),
        (
            with(
                "[10.0.0.0/7]",
                "[192.0.2.0/24, 10.0.0.0/24]",
                "[10.0.0.0/8, \"2001:db8::/32\"]",
                "[172.16.0.0/12]",
            ),
            &[
                "  ! trusted_proxies: + 10.0.0.0/7 (before: 10.0.0.0/8)",
                "  - every route: ip_access.deny: + 10.0.0.0/24",
                "  - route send: ip_access.allow: - 10.1.0.0/16, no address is left  [new.yaml:28]",
            ],
        ),
    ] {
        let (status, told, complained) = between(folder.path(), &old, &new, &[]);
        assert_eq!((status, complained.as_str()), (i32::from(!expected.is_empty()), ""), "{told}");
        let changes: Vec<&str> = told.lines().filter(|line| line.starts_with("  ")).collect();
        for line in expected {
            assert!(changes.contains(line), "expected {line}\ntold {told}");
        }
        assert_eq!(changes.len(), expected.len(), "{told}");
    }
}
