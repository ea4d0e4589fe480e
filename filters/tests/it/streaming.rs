//! Routes that forward bodies as they arrive, and requests without a total time.

use filters::policy::Policy;

const HEAD: &str = r#"
listeners:
  - { name: edge, address: "127.0.0.1:8443", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }
admin: { address: "127.0.0.1:9100" }
upstreams: { core: { addresses: ["127.0.0.1:9001"], tls: off } }
issuers:
  main: { issuer: "https://main", audiences: [a], algorithms: [ES256], jwks: { file: "file:j" } }
clients: { acme: { hmac_keys: [{ id: acme-1, secret: "file:acme.secret" }] } }
routes:
"#;

fn read(route: &str) -> Result<Policy, Vec<String>> {
    let text = format!("{HEAD}  - {{ name: up, methods: [POST], path: /up, upstream: core, {route} }}\n");
    let read = Policy::read(&text, &|_| Ok(vec![7; 32].into()));
    read.map_err(|mistakes| mistakes.into_iter().map(|mistake| mistake.message).collect())
}

const SHAPE: &str = "shape: { max_body_bytes: 1000000, content_types: [application/octet-stream] }";

#[test]
fn a_body_is_forwarded_as_it_arrives_where_nothing_needs_all_of_it() {
    let needs = |what: &str, instead: &str| {
        vec![format!(
            "route `up`: `max_body_bytes` above 65536 forwards bodies as they arrive, and {what} needs the whole body; \
             {instead}, or write at most 65536"
        )]
    };
    let json = needs("the JSON check of `shape`", "name `content_types` that are not JSON");
    for (route, streams, expected) in [
        ("filters: { shape: { max_body_bytes: 65536 } }".to_owned(), None, vec![]),
        ("filters: { headers: {} }".to_owned(), None, vec![]),
        (format!("filters: {{ {SHAPE} }}"), Some(1_000_000), vec![]),
        (format!("filters: {{ {SHAPE}, jwt: {{}}, idempotency: {{}} }}"), Some(1_000_000), vec![]),
        ("filters: { shape: { max_body_bytes: 65537 } }".to_owned(), None, json.clone()),
        ("filters: { shape: { max_body_bytes: 65537, content_types: [] } }".to_owned(), None, json.clone()),
        (
            "filters: { shape: { max_body_bytes: 65537, content_types: [image/png, application/a+json] } }"
                .to_owned(),
            None,
            json,
        ),
        (
            format!("filters: {{ {SHAPE}, signature: {{ signer: client }} }}"),
            None,
            needs("`signature` (its Content-Digest)", "write `except: [signature]`, or drop it"),
        ),
        (
            format!("filters: {{ {SHAPE}, signing: {{ to_upstream: {{ key: acme-1 }} }} }}"),
            None,
            needs("`signing`", "write `except: [signing]`, or drop it"),
        ),
        (
            format!("mirror: {{ upstream: core }}, filters: {{ {SHAPE} }}"),
            None,
            needs("`mirror`", "drop `mirror`"),
        ),
    ] {
        match read(&route) {
            Ok(policy) => {
                assert_eq!(policy.rules()[0].streams, streams, "{route}");
                assert_eq!(expected, Vec::<String>::new(), "{route}");
            }
            Err(told) => assert_eq!(told, expected, "{route}"),
        }
    }
}

#[test]
fn a_request_without_a_total_time_ends_by_silence() {
    let needs = |what: &str| {
        vec![format!(
            "route `up`: `timeout_ms: 0` has no limit, and {what} needs one; write how long a request may last"
        )]
    };
    for (route, expected) in [
        ("timeout_ms: 0, idle_timeout_ms: 1", vec![]),
        ("timeout_ms: 3600000, idle_timeout_ms: 3600000", vec![]),
        ("timeout_ms: 0", vec!["route `up`: `timeout_ms` is between 1 and 3600000, and not 0".to_owned()]),
        (
            "timeout_ms: 3600001, idle_timeout_ms: 5",
            vec!["route `up`: `timeout_ms` is between 0 and 3600000, and not 3600001".to_owned()],
        ),
        (
            "idle_timeout_ms: 0",
            vec!["route `up`: `idle_timeout_ms` is between 1 and 3600000, and not 0".to_owned()],
        ),
        (
            "timeout_ms: 0, idle_timeout_ms: 5, filters: { concurrency: { limits: [{ name: a, by: ip, most: 1 }] } }",
            needs("`concurrency`, whose places end with `lease_s`,"),
        ),
        (
            "timeout_ms: 0, idle_timeout_ms: 5, filters: { signing: { to_client: { key: acme-1 } } }",
            needs("`signing` of responses"),
        ),
        ("timeout_ms: 0, idle_timeout_ms: 5, mirror: { upstream: core }", needs("`mirror`")),
    ] {
        assert_eq!(read(route).err().unwrap_or_default(), expected, "{route}");
    }
}

#[test]
fn in_envoy_no_such_route_has_limits_of_plans() {
    let plans = "tenants: { t: {} }\ndefault_plan: p\nplans: { p: { quota: [{ name: d, by: tenant, per: day, most: 5 }] } }\n";
    let text = format!(
        "{}{plans}routes:\n  - {{ name: up, methods: [POST], path: /up, upstream: core, filters: {{ {SHAPE}, jwt: {{}}, tenant: \
         {{ from: [token] }} }} }}\n",
        HEAD.replace("routes:\n", "")
    );
    let told = Policy::read(&text, &|_| Ok(vec![7; 32].into())).unwrap().beyond_envoy();
    assert_eq!(
        told.into_iter().map(|mistake| mistake.message).collect::<Vec<_>>(),
        [
            "route `up`: in Envoy no route with `max_body_bytes` above 65536 can ask shared state, and `tenant` does; write \
             `except: [tenant]`, or serve the route by the gateway"
        ]
    );
}

#[test]
fn in_envoy_no_such_route_asks_shared_state() {
    for (filter, expected) in [
        ("", None),
        ("rate_limit: { limits: [{ name: a, by: ip, requests: 1, per_s: 1, counted: here }] }", None),
        (
            "rate_limit: { limits: [{ name: a, by: ip, requests: 1, per_s: 1 }] }",
            Some(("rate_limit", "write `counted: here`")),
        ),
        (
            "quota: { limits: [{ name: a, by: ip, per: day, most: 1 }] }",
            Some(("quota", "write `except: [quota]`")),
        ),
        (
            "concurrency: { limits: [{ name: a, by: ip, most: 1 }] }",
            Some(("concurrency", "write `except: [concurrency]`")),
        ),
    ] {
        let told: Vec<String> = read(&format!("filters: {{ {SHAPE}, {filter} }}"))
            .unwrap()
            .beyond_envoy()
            .into_iter()
            .map(|mistake| mistake.message)
            .collect();
        let expected = expected.map(|(filter, instead)| {
            format!(
                "route `up`: in Envoy no route with `max_body_bytes` above 65536 can ask shared state, and `{filter}` \
                 does; {instead}, or serve the route by the gateway"
            )
        });
        assert_eq!(told, Vec::from_iter(expected), "{filter}");
    }
}
