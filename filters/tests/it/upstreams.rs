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
