//! How an upstream is reached: addresses, plain HTTP, one-way TLS and mutual TLS.

use filters::policy::{Address, Policy};

/// A policy whose upstream has these settings, from column 11 of line 6.
fn policy(upstream: &str) -> String {
    format!(
        r#"
listeners:
  - {{ name: edge, address: "127.0.0.1:8443", tls: {{ certificate: "file:edge.pem", key: "file:edge.key" }} }}
admin: {{ address: "127.0.0.1:9100" }}
upstreams:
  core: {{ {upstream} }}
filters: {{ jwt: {{ issuers: [main] }} }}
issuers:
  main: {{ issuer: "https://main", audiences: [a], algorithms: [ES256], jwks: {{ file: "file:j" }} }}
routes:
  - {{ name: get, methods: [GET], path: /v1/get, upstream: core, timeout_ms: 5000 }}
"#
    )
}

fn read(upstream: &str) -> Result<Policy, Vec<String>> {
    let read = Policy::read(&policy(upstream), &|_| Ok(vec![7; 32].into()));
    read.map_err(|mistakes| mistakes.iter().map(|mistake| mistake.in_file("p.yaml")).collect())
}

#[test]
fn an_upstream_is_plain_http_or_has_tls_of_one_side_or_of_both() {
    for (tls, expected) in [
        ("off", None),
        ("\"off\"", None),
        ("{ server_name: core.test }", Some((false, false))),
        ("{ server_name: core.test, ca: \"file:ca.pem\" }", Some((true, false))),
        ("{ server_name: core.test, certificate: \"file:g.pem\", key: \"file:g.key\" }", Some((false, true))),
        (
            "{ server_name: core.test, ca: \"file:ca.pem\", certificate: \"file:g.pem\", key: \"file:g.key\" }",
            Some((true, true)),
        ),
    ] {
        let text = format!("addresses: [\"127.0.0.1:1\"], tls: {tls}");
        let policy = read(&text).unwrap_or_else(|mistakes| panic!("{tls}: {mistakes:?}"));
        let read = policy.upstream("core").unwrap().tls.tls();
        assert_eq!(read.map(|tls| (tls.ca.is_some(), tls.key.is_some())), expected, "{tls}");
        // What Envoy's module reads means the same.
        let again = Policy::read(&policy.compiled().unwrap(), &|_| Ok(vec![7; 32].into())).unwrap();
        assert_eq!(again.upstream("core").unwrap().tls, policy.upstream("core").unwrap().tls);
    }
}

#[test]
fn other_protection_is_refused() {
    for (tls, expected) in [
        ("on", "p.yaml:6:39: `tls`: `off`, or `{ server_name: NAME }` belongs here"),
        ("false", "p.yaml:6:39: `tls`: `off`, or `{ server_name: NAME }` belongs here"),
        ("{ }", "p.yaml:6:39: `upstreams.core.tls` needs `server_name`"),
        ("{ server_nam: a }", "p.yaml:6:46: unknown field `server_nam`; did you mean `server_name`?"),
        (
            "{ server_name: \"\" }",
            "p.yaml:6:59: `server_name` is empty: the upstream's certificate could not be verified",
        ),
        (
            "{ server_name: core.test, certificate: \"file:g.pem\" }",
            "p.yaml:6:83: upstream `core`: `certificate` needs its `key`; without both the edge shows none",
        ),
        (
            "{ server_name: core.test, key: \"file:g.key\" }",
            "p.yaml:6:75: upstream `core`: `key` needs its `certificate`; without both the edge shows none",
        ),
        (
            "{ server_name: core.test, crl: \"file:ca.crl\" }",
            "p.yaml:6:75: upstream `core`: `crl` needs the `ca` whose list it is",
        ),
    ] {
        let text = format!("addresses: [\"127.0.0.1:1\"], tls: {tls}");
        assert_eq!(read(&text).expect_err(tls), [expected], "{tls}");
    }
}

#[test]
fn plain_http_off_this_host_is_worth_a_warning() {
    let text = |address: &str| {
        format!("addresses: [\"127.0.0.1:1\", \"{address}\"], health: {{ path: /h }}, tls: off")
    };
    for address in ["[::1]:80", "localhost:80"] {
        assert_eq!(read(&text(address)).unwrap().warnings().len(), 0, "{address}");
    }
    for address in ["10.1.2.3:80", "core.internal:80"] {
        let policy = read(&text(address)).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.in_file("p.yaml")).collect();
        let expected = format!(
            "p.yaml:6:9: upstream `core`: `tls: off` sends requests to `{address}` unencrypted, and anyone on the way \
             can read and change them"
        );
        assert_eq!(told, [expected]);
    }
}

#[test]
fn addresses_are_ip_addresses_or_names() {
    let policy =
        read("addresses: [\"[::1]:9001\", core.internal:9001], tls: off, health: { path: /h }").unwrap();
    let expected = [Address::Ip("[::1]:9001".parse().unwrap()), Address::Name("core.internal".into(), 9001)];
    assert_eq!(policy.upstream("core").unwrap().addresses, expected);
    let refused = read("addresses: [\"http://core.internal:9001/\"], tls: off").expect_err("a URL");
    let expected = "p.yaml:6:23: `http://core.internal:9001/` is not an upstream's address: it is a URL; write \
        \"core.internal:9001\" and `tls: off`";
    assert_eq!(refused, [expected]);
}

#[test]
fn http_2_goes_with_tls_or_without_as_its_name_says() {
    for (settings, expected) in [
        ("tls: off, protocol: http1", None),
        ("tls: off, protocol: h2c", None),
        ("tls: { server_name: core.test }, protocol: h2", None),
        (
            "tls: off, protocol: h2",
            Some("p.yaml:6:59: upstream `core`: `protocol: h2` needs TLS; without it write `protocol: h2c`"),
        ),
        (
            "tls: { server_name: core.test }, protocol: h2c",
            Some(
                "p.yaml:6:82: upstream `core`: `protocol: h2c` is without TLS; with it write `protocol: h2`",
            ),
        ),
        ("tls: off, protocol: h3", Some("p.yaml:6:59: `protocol`: `h3` is none of http1, h2, h2c")),
    ] {
        let read = read(&format!("addresses: [\"127.0.0.1:1\"], {settings}"));
        let told = read.err().unwrap_or_default();
        assert_eq!(told, expected.into_iter().collect::<Vec<_>>(), "{settings}");
    }
}

#[test]
fn what_the_edge_asks_for_by_itself_is_of_http_1() {
    let good = policy("addresses: [\"127.0.0.1:1\"], tls: off, protocol: h2c");
    let clients = "clients: { edge: { hmac_keys: [{ id: edge-1, secret: \"file:k\" }] } }\nroutes:";
    let good = good.replace("routes:", clients);
    for (more, what) in [
        ("websocket: {}", "`websocket`"),
        ("filters: { signing: { to_client: { client: edge } } }", "`signing` of responses"),
    ] {
        let text = good.replace("timeout_ms: 5000", &format!("timeout_ms: 5000, {more}"));
        let told = Policy::read(&text, &|_| Ok(vec![7; 32].into())).expect_err(more);
        let told: Vec<_> = told.iter().map(|mistake| mistake.in_file("p.yaml")).collect();
        let expected = format!(
            "p.yaml:12:5: route `get`: {what} needs HTTP/1.1, and upstream `core` has another `protocol`; give it \
             `protocol: http1`, or an upstream of its own to this route"
        );
        assert_eq!(told, [expected]);
        let over_http1 = text.replace("protocol: h2c", "protocol: http1");
        assert!(Policy::read(&over_http1, &|_| Ok(vec![7; 32].into())).is_ok(), "{more}");
    }
}

#[test]
fn authorization_goes_on_only_where_it_is_verified_and_unread() {
    let read = |text: &str| {
        let read = Policy::read(text, &|_| Ok(vec![7; 32].into())).err().unwrap_or_default();
        read.iter().map(|mistake| mistake.in_file("p.yaml")).collect::<Vec<_>>()
    };
    let good = policy("forward_authorization: true, addresses: [\"127.0.0.1:1\"], tls: off");
    let mirror = "upstream: core, mirror: { upstream: other, percent: 1 }";
    let with_mirror = good
        .replace("upstream: core", mirror)
        .replace("filters:", "  other: { addresses: [\"127.0.0.1:2\"], tls: off }\nfilters:");
    let to_both = with_mirror.replace("other: {", "other: { forward_authorization: true,");
    for (text, expected) in [
        (&good, None),
        (
            &good.replace("127.0.0.1:1", "10.0.0.1:1").replace("tls: off", "tls: { server_name: core.test }"),
            None,
        ),
        (
            &good.replace("127.0.0.1:1", "10.0.0.1:1"),
            Some(
                "p.yaml:6:34: upstream `core`: `forward_authorization` would send tokens unencrypted; give it TLS, or an \
                 address on this host",
            ),
        ),
        (
            &good.replace("jwt: { issuers: [main] }", "headers: {}"),
            Some(
                "p.yaml:11:5: route `get`: upstream `core` has `forward_authorization`, and without `jwt` nothing verifies \
                 what it receives; add `jwt`, or give the route an upstream without it",
            ),
        ),
        (
            &with_mirror,
            Some(
                "p.yaml:12:73: route `get`: `mirror` would copy the `Authorization` of upstream `core` to `other`, which \
                 has no `forward_authorization`",
            ),
        ),
        (&to_both, None),
    ] {
        assert_eq!(read(text), expected.into_iter().collect::<Vec<_>>(), "{text}");
    }
}
