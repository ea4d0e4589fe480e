//! `gateway envoy`: what it makes of policies, and that the real Envoy takes it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::running::{SECRET, TLS, pki};

/// Everything that a policy can say of routes and upstreams.
const EVERYTHING: &str = r#"
upstreams:
  u:
    addresses: ["127.0.0.1:11", "127.0.0.1:12"]
    tls: TLS
    connect_timeout_ms: 700
    idle_timeout_ms: 9000
    timeout_ms: 2345
    max_in_flight: 77
    retry_budget_percent: 35
    health: { path: /health, interval_ms: 4000, timeout_ms: 900, unhealthy_after: 4, healthy_after: 3 }
    outlier: { failures: 6, eject_ms: 8000 }
  v: { addresses: ["127.0.0.1:13"], tls: TLS, max_in_flight: 88, retry_budget_percent: 0, outlier: { failures: 0 } }
  w: { addresses: ["127.0.0.1:14", "localhost:15"], tls: off, resolve_interval_ms: 2500, health: { path: /health } }
  x: { addresses: ["127.0.0.1:16"], tls: { server_name: txn-core.torana.internal, ca: "file:internal-ca.pem" }, protocol: h2, health: { path: /health } }
  y: { addresses: ["127.0.0.1:17"], tls: off, protocol: h2c }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "env:ACME_SECRET" }, { id: acme-2, secret: "file:acme-2.key" }] }
state: { service: { SERVICE } }
routes:
  - { name: shared, methods: [GET], path: /shared, upstreams: [{ upstream: u, weight: 95 }, { upstream: v, weight: 5 }], timeout_ms: 1234 }
  - { name: copied, methods: [GET], path: /copied, version: "2", upstream: u, mirror: { upstream: v, percent: 30 } }
  - { name: again, methods: [GET], path: /again, upstreams: [{ upstream: u }, { upstream: v }], retries: 3 }
  - { name: plain, methods: [GET], path: /plain, upstream: w }
  - { name: one-way, methods: [GET], path: /one-way, upstream: x }
  - { name: grpc, methods: [POST], path: /grpc, upstream: y }
"#;

fn policy(service: &str) -> String {
    let listeners = r#"
listeners:
  - name: phones
    address: "127.0.0.1:21"
    tls: { certificate: "file:edge.pem", key: "file:edge.key", client_certificates: { ca: "file:partner-ca.pem", required: true } }
    max_connections: 321
    handshake_timeout_ms: 2500
    request_timeout_ms: 7500
    idle_timeout_ms: 45000
    max_requests_per_connection: 4321
admin: { address: "127.0.0.1:22" }
"#;
    format!("{listeners}{}", EVERYTHING.replace("TLS", TLS).replace("SERVICE", service))
}

fn gateway(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
        .current_dir(folder)
        .env("ACME_SECRET", SECRET)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn folder(policy: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    certs::file::write_secret(&folder.path().join("acme-2.key"), "another secret, also of 32 bytes").unwrap();
    std::fs::write(folder.path().join("edge.yaml"), policy).unwrap();
    folder
}

fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("there is no {pointer}"))
}

#[test]
fn every_bound_of_the_policy_arrives() {
    let folder = folder(&policy("address: \"127.0.0.1:23\", timeout_ms: 150"));
    let made = gateway(folder.path(), &["envoy", "edge.yaml"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let whole: Value = serde_json::from_slice(&made.stdout).unwrap();
    let listener = at(&whole, "/static_resources/listeners/0");
    let chain = at(listener, "/filter_chains/0");
    let manager = at(chain, "/filters/1/typed_config");
    let routes = at(manager, "/route_config/virtual_hosts/0/routes");
    let module = at(manager, "/http_filters/0/typed_config/config");
    for (value, pointer, expected) in [
        (listener, "/address/socket_address/port_value", json!(21)),
        (chain, "/transport_socket_connect_timeout", json!("2.500s")),
        (chain, "/transport_socket/typed_config/require_client_certificate", json!(true)),
        (chain, "/filters/0/typed_config/max_connections", json!(321)),
        (manager, "/request_headers_timeout", json!("7.500s")),
        (manager, "/common_http_protocol_options/idle_timeout", json!("45.000s")),
        (manager, "/common_http_protocol_options/max_requests_per_connection", json!(4321)),
        (manager, "/use_remote_address", json!(true)),
        (manager, "/normalize_path", json!(false)),
        (module, "/failure_policy", json!("FAIL_RELOAD")),
        (module, "/vm_config/environment_variables/host_env_keys", json!(["ACME_SECRET"])),
        // The module has chosen by weight.
        (routes, "/0/match/headers/1/string_match/exact", json!("0")),
        (routes, "/1/match/headers/1/string_match/exact", json!("1")),
        (routes, "/0/route/cluster", at(&whole, "/static_resources/clusters/0/name").clone()),
        (routes, "/1/route/cluster", at(&whole, "/static_resources/clusters/1/name").clone()),
        (&whole, "/static_resources/clusters/0/alt_stat_name", json!("u")),
        (routes, "/0/route/timeout", json!("1.234s")),
        (routes, "/0/route/retry_policy/retry_on", json!("connect-failure")),
        (
            routes,
            "/2/route/request_mirror_policies/0/cluster",
            at(&whole, "/static_resources/clusters/2/name").clone(),
        ),
        // Room of their own, so that copies take none from requests.
        (&whole, "/static_resources/clusters/1/circuit_breakers/thresholds/0/max_requests", json!(88)),
        (&whole, "/static_resources/clusters/2/circuit_breakers/thresholds/0/max_requests", json!(256)),
        (&whole, "/static_resources/clusters/2/alt_stat_name", json!("v~copies")),
        (
            &whole,
            "/static_resources/clusters/2/load_assignment/endpoints",
            at(&whole, "/static_resources/clusters/1/load_assignment/endpoints").clone(),
        ),
        (routes, "/2/route/request_mirror_policies/0/runtime_fraction/default_value/numerator", json!(30)),
        (routes, "/2/match/headers/0/string_match/exact", json!("copied")),
        (&whole, "/static_resources/clusters/0/connect_timeout", json!("0.700s")),
        (&whole, "/static_resources/clusters/0/circuit_breakers/thresholds/0/max_requests", json!(77)),
        (
            &whole,
            "/static_resources/clusters/0/circuit_breakers/thresholds/0/retry_budget",
            json!({ "budget_percent": { "value": 35 }, "min_retry_concurrency": 3 }),
        ),
        // No budget, so no repeats: what is left are connections that could not be made.
        (&whole, "/static_resources/clusters/1/circuit_breakers/thresholds/0/max_retries", json!(88)),
        (routes, "/3/route/retry_policy", json!({ "retry_on": "connect-failure,reset", "num_retries": 3 })),
        // The route's own word counts first, then each upstream's, then what holds everywhere.
        (routes, "/2/route/timeout", json!("2.345s")),
        (routes, "/3/route/timeout", json!("2.345s")),
        (routes, "/4/route/timeout", json!("5.000s")),
        (routes, "/4/route/retry_policy", json!({ "retry_on": "connect-failure", "num_retries": 2 })),
        (&whole, "/static_resources/clusters/0/health_checks/0/unhealthy_threshold", json!(4)),
        (&whole, "/static_resources/clusters/0/outlier_detection/consecutive_5xx", json!(6)),
        (&whole, "/static_resources/clusters/0/outlier_detection/max_ejection_time", json!("8.000s")),
        (&whole, "/static_resources/clusters/0/common_lb_config/healthy_panic_threshold/value", json!(0)),
        (
            &whole,
            "/static_resources/clusters/0/transport_socket/typed_config/sni",
            json!("txn-core.torana.internal"),
        ),
        (&whole, "/static_resources/clusters/2/type", json!("STATIC")),
        // Names are resolved again, all records are used, and a lookup that fails is repeated soon.
        (&whole, "/static_resources/clusters/3/cluster_type/name", json!("envoy.cluster.dns")),
        (&whole, "/static_resources/clusters/3/cluster_type/typed_config/dns_lookup_family", json!("ALL")),
        (&whole, "/static_resources/clusters/3/cluster_type/typed_config/dns_refresh_rate", json!("2.500s")),
        (
            &whole,
            "/static_resources/clusters/3/cluster_type/typed_config/dns_failure_refresh_rate",
            json!({ "base_interval": "1.000s", "max_interval": "2.500s" }),
        ),
        (
            &whole,
            "/static_resources/clusters/3/load_assignment/endpoints/0/lb_endpoints/1/endpoint/address/socket_address",
            json!({ "address": "localhost", "port_value": 15 }),
        ),
        (
            &whole,
            "/static_resources/clusters/3/health_checks/0/http_health_check/host",
            json!("127.0.0.1:14"),
        ),
        (
            &whole,
            "/static_resources/clusters/4/transport_socket/typed_config/common_tls_context/tls_certificates",
            json!([]),
        ),
        (
            &whole,
            "/static_resources/clusters/4/transport_socket/typed_config/common_tls_context/validation_context\
             /trusted_ca/filename",
            json!(folder.path().join("internal-ca.pem")),
        ),
        (
            &whole,
            "/static_resources/clusters/3/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config",
            json!({ "http_protocol_options": {} }),
        ),
        (
            &whole,
            "/static_resources/clusters/4/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config",
            json!({ "http2_protocol_options": { "max_concurrent_streams": 100 } }),
        ),
        (
            &whole,
            "/static_resources/clusters/5/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config",
            json!({ "http2_protocol_options": { "max_concurrent_streams": 100 } }),
        ),
        (
            &whole,
            "/static_resources/clusters/4/transport_socket/typed_config/common_tls_context/alpn_protocols",
            json!(["h2"]),
        ),
        (
            &whole,
            "/static_resources/clusters/4/health_checks/0/http_health_check/codec_client_type",
            json!("HTTP2"),
        ),
        (&whole, "/static_resources/clusters/6/name", json!("torana_state")),
        (&whole, "/static_resources/clusters/6/connect_timeout", json!("0.150s")),
        (&whole, "/admin/address/socket_address/port_value", json!(22)),
    ] {
        assert_eq!(at(value, pointer), &expected, "{pointer}");
    }
    assert!(
        whole.pointer("/static_resources/clusters/1/outlier_detection").is_none(),
        "`failures: 0` is never"
    );
    assert!(
        whole.pointer("/static_resources/clusters/3/transport_socket").is_none(),
        "`tls: off` is plain HTTP"
    );
    // Secrets of the environment stay there; those of files are in it, and it says so.
    let all = text(&made.stdout);
    assert!(!all.contains(SECRET) && all.contains("acme-1"), "a secret of the environment is in it");
    assert!(text(&made.stderr).contains("holds secrets"), "{}", text(&made.stderr));
}

#[test]
fn the_real_envoy_takes_it() {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
    let (envoy, module) = (target.join("envoy/envoy"), target.join("wasm/torana.wasm"));
    assert!(envoy.exists(), "{} is missing; tests/run install brings it", envoy.display());
    assert!(module.exists(), "{} is missing; filters/wasm/build makes it", module.display());
    let module = module.canonicalize().unwrap();
    let mutual = format!(
        "address: \"127.0.0.1:23\", tls: {{ certificate: \"file:txn-core.pem\", key: \"file:txn-core.key\", \
         client_ca: \"file:internal-ca.pem\", \
         allowed_clients: [gateway.torana.internal], client: {TLS} }}"
    );
    for service in ["address: \"127.0.0.1:23\"", "socket: state.sock", &mutual] {
        let folder = folder(&policy(service));
        let arguments = ["envoy", "edge.yaml", "--module", module.to_str().unwrap(), "--out", "out"];
        let made = gateway(folder.path(), &arguments);
        assert!(made.status.success(), "{}", text(&made.stderr));
        for name in ["envoy.json", "listeners.json", "clusters.json"] {
            let file = folder.path().join("out").join(name);
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let whole = gateway(folder.path(), &arguments[..4]);
        std::fs::write(folder.path().join("whole.json"), &whole.stdout).unwrap();
        for configuration in ["whole.json", "out/envoy.json"] {
            let judged = Command::new(&envoy)
                .args(["--mode", "validate", "--log-level", "error", "-c", configuration])
                .current_dir(folder.path())
                .env("ACME_SECRET", SECRET)
                .output()
                .unwrap();
            assert!(judged.status.success(), "{configuration}: {}", text(&judged.stderr));
        }
    }
}

#[test]
fn what_cannot_be_made_is_told() {
    let folder = folder(
        &policy("address: \"127.0.0.1:23\"").replace("state: { service: { address: \"127.0.0.1:23\" } }", ""),
    );
    let made = gateway(folder.path(), &["envoy", "edge.yaml"]);
    assert!(!made.status.success() && made.stdout.is_empty());
    assert!(
        text(&made.stderr).contains("state: { service: { address: \"127.0.0.1:7070\" } }"),
        "{}",
        text(&made.stderr)
    );
    std::fs::write(folder.path().join("edge.yaml"), "listners: []").unwrap();
    let made = gateway(folder.path(), &["envoy", "edge.yaml"]);
    assert!(text(&made.stderr).contains("edge.yaml:1:1: unknown field `listners`"), "{}", text(&made.stderr));
    assert!(!gateway(folder.path(), &["envoy", "nothing.yaml"]).status.success());
}

/// Envoy can start before the state service does: its copy is there. What the gateway would refuse is not copied.
#[test]
fn the_first_copy_is_of_what_was_accepted() {
    let folder = folder(&policy("address: \"127.0.0.1:23\""));
    let at = |name: &str| folder.path().join(name);
    let make = || gateway(folder.path(), &["envoy", "edge.yaml", "--out", "out"]);
    let copied = || {
        let mut copied = std::collections::BTreeMap::new();
        for entry in std::fs::read_dir(at("out/served/now")).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let (set, mark) = name.split_once('~').unwrap();
            let ending = mark.split_once('.').unwrap().1;
            copied.insert(format!("{set}.{ending}"), std::fs::read(&path).unwrap());
        }
        copied
    };
    assert!(make().status.success());
    let before = copied();
    let names: Vec<&str> = before.keys().map(String::as_str).collect();
    let (own, peers) = (["key", "pem"], ["pem"]);
    let expected = [
        ("listener-phones", own.as_slice()),
        ("listener-phones-clients", &peers),
        ("upstream-u", &own),
        ("upstream-u-ca", &peers),
        ("upstream-v", &own),
        ("upstream-v-ca", &peers),
        ("upstream-x-ca", &peers),
    ];
    let mut expected: Vec<String> = expected
        .iter()
        .flat_map(|(set, endings)| endings.iter().map(move |ending| format!("{set}.{ending}")))
        .collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (copy, file) in [
        ("listener-phones.pem", "edge.pem"),
        ("upstream-u.pem", "gateway.pem"),
        ("listener-phones-clients.pem", "partner-ca.pem"),
    ] {
        let facts = |pem: &[u8]| certs::inspect_pem(pem).unwrap();
        assert_eq!(facts(&before[copy]), facts(&std::fs::read(at(file)).unwrap()), "{copy}");
    }
    let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("out/served"), mode("out/served/now"), mode("out/gateway")), (0o700, 0o700, 0o700));

    let good = std::fs::read(at("edge.key")).unwrap();
    std::fs::write(at("edge.key"), std::fs::read(at("gateway.key")).unwrap()).unwrap();
    let refused = make();
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("does not belong to"), "{}", text(&refused.stderr));
    assert_eq!(copied(), before, "nothing was copied");
    std::fs::write(at("edge.key"), good).unwrap();
    assert!(make().status.success());
}
