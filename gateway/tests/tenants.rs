//! Tenants over the wire: edges on one Redis hold their plans together, also when one of them dies or Redis does; what
//! they have used is told; and what a limit in shadow would have refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod running;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use certs::client::ClientLimits;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::running::{Gateway, Recorder, SECRET, TLS, pki, serve, until};

/// An upstream that never answers, and counts who waits.
async fn silent(folder: &Path) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = certs::Identity::load(&folder.join("txn-core.pem"), &folder.join("txn-core.key")).unwrap();
    let clients = certs::ClientAuth::Required(certs::Trust::load(&folder.join("internal-ca.pem")).unwrap());
    let tls = certs::server_config(&identity, clients, certs::Versions::Tls13Only, &[b"http/1.1"]).unwrap();
    let waiting = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&waiting);
    let app = Router::new().fallback(async move |_: Request| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<()>().await;
    });
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    (port, waiting)
}

/// A folder with the same keys, for another edge of the same fleet.
fn another(folder: &Path) -> tempfile::TempDir {
    let other = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), other.path().join(entry.file_name())).unwrap();
    }
    other
}

/// A gateway of whom requests to any host are asked: HTTP/2 knows no other than that of the URL.
async fn serve_hosts(folder: &Path, policy: &str) -> Gateway {
    let mut gateway = serve(folder, policy).await;
    let trust = certs::Trust::load(&folder.join("edge-ca.pem")).unwrap();
    let mut tls = certs::client_config(&trust, None, certs::Versions::Tls12And13).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let limits = ClientLimits { timeout: Duration::from_secs(60), ..ClientLimits::default() };
    gateway.http = certs::client::https(tls, limits).unwrap();
    gateway
}

/// Tenants are told by the host that requests go to.
const TENANTS: &str = r#"
tenants:
  calls: { plan: limited, hosts: [calls.test] }
  volume: { plan: metered, hosts: [volume.test] }
  flight: { plan: narrow, hosts: [flight.test] }
  idle: {}
plans:
  limited: { rate_limit: [{ name: calls, by: tenant, requests: 10, per_s: 36000 }] }
  metered: { quota: [{ name: monthly, by: tenant, per: month, most: 25 }] }
  narrow: { concurrency: [{ name: in-flight, by: tenant, most: 3, lease_s: 8 }] }
"#;

/// The status and the code of requests of a tenant, as many at a time as there are edges.
async fn send(edges: &[&Gateway], tenant: &str, path: &str, times: usize) -> Vec<(u16, String)> {
    let host = format!("{tenant}.test");
    let mut all = Vec::new();
    for _ in 0..times {
        for edge in edges {
            all.push(edge.get(path, &[("host", &host)]).await);
        }
    }
    all
}

fn passed(answers: &[(u16, String)], otherwise: &str) -> usize {
    let odd = answers.iter().find(|(status, code)| *status != 200 && code != otherwise);
    assert_eq!(odd, None);
    answers.iter().filter(|(status, _)| *status == 200).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_on_one_redis_are_one_edge_to_a_tenant() {
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    certs::file::write_secret(&folder.path().join("redis.url"), &redis.url()).unwrap();
    let quick = Recorder::start(folder.path(), "quick").await;
    let (silent, waiting) = silent(folder.path()).await;
    let policy = format!(
        r#"{TENANTS}
state: {{ redis: {{ url: "file:redis.url", timeout_ms: 5000 }} }}
upstreams:
  quick: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  silent: {{ addresses: ["127.0.0.1:{silent}"], tls: {TLS} }}
filters: {{ tenant: {{ from: [host] }} }}
routes:
  - {{ name: quick, methods: [GET], path: /quick, upstream: quick, filters: {{ rate_limit: {{ cost: 2 }} }} }}
  - {{ name: silent, methods: [GET], path: /silent, upstream: silent, timeout_ms: 60000 }}
"#,
        quick.port
    );
    let other = another(folder.path());
    let first = serve_hosts(folder.path(), &policy).await;
    let second = serve_hosts(other.path(), &policy).await;
    for edge in [&first, &second] {
        until("the shared state is known", async || edge.metric("gateway_redis_up").await > 0.0).await;
    }
    let both = [&first, &second];

    assert_eq!(passed(&send(&both, "calls", "/quick", 10).await, "rate_limited"), 5);
    assert_eq!(passed(&send(&both, "volume", "/quick", 10).await, "quota_exceeded"), 12);
    // Places are given back as requests end: any number of them, one after another.
    assert_eq!(passed(&send(&both, "flight", "/quick", 10).await, "concurrency_limited"), 20);
    assert_eq!(passed(&send(&both, "nobody", "/quick", 1).await, "tenant_missing"), 0);

    let of_all = |requests: u64, refused: u64| json!({ "requests": requests, "cost": 2 * requests, "refused": refused });
    for edge in both {
        let (status, told) = edge.usage("").await;
        assert_eq!((status, &told["of"]), (200, &json!("every edge on the shared state")), "{told}");
        for (tenant, plan, used) in [
            ("calls", json!("limited"), of_all(5, 15)),
            ("volume", json!("metered"), of_all(12, 8)),
            ("flight", json!("narrow"), of_all(20, 0)),
            ("idle", Value::Null, of_all(0, 0)),
        ] {
            let told = &told["tenants"][tenant];
            assert_eq!(told, &json!({ "plan": plan, "month": used, "day": used }), "{tenant}");
        }
        let month = told["month"].as_str().unwrap();
        assert_eq!(edge.usage(&format!("?month={month}")).await.1, told);
        let (status, before) = edge.usage("?month=2020-01").await;
        assert_eq!(
            (status, &before["day"], &before["tenants"]["calls"]["month"]),
            (200, &Value::Null, &of_all(0, 0))
        );
        for nonsense in ["?month=2020-13", "?month=", "?tenant=calls"] {
            assert_eq!(edge.usage(nonsense).await.0, 400, "{nonsense}");
        }
    }

    // Two held by the first, one by the second: there is no place for a fourth on either.
    let mut held = JoinSet::new();
    for (number, edge) in [&first, &first, &second].into_iter().enumerate() {
        let (http, url) = (edge.http.clone(), edge.url.clone());
        held.spawn(async move {
            let _ = http.get(format!("{url}/silent")).header("host", "flight.test").send().await;
        });
        until("it is held", async || waiting.load(Ordering::Relaxed) > number).await;
    }
    assert_eq!(passed(&send(&both, "flight", "/quick", 1).await, "concurrency_limited"), 0);
    // Nobody gives back what the dead one held; its leases do.
    drop(first);
    until("the dead edge's places are free", async || {
        send(&[&second], "flight", "/quick", 1).await[0].0 == 200
    })
    .await;
    // What is spent stays spent, whoever comes back.
    let again = serve_hosts(folder.path(), &policy).await;
    until("the shared state is known", async || again.metric("gateway_redis_up").await > 0.0).await;
    assert_eq!(passed(&send(&[&again], "volume", "/quick", 3).await, "quota_exceeded"), 0);
    held.abort_all();
}

/// Redis stopped and started while requests come: none is answered oddly, limits stay bounded, nonces closed, and all is
/// well again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_goes_and_comes_under_load() {
    const MOST: usize = 10;
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let mut redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    certs::file::write_secret(&folder.path().join("redis.url"), &redis.url()).unwrap();
    let upstream = Recorder::start(folder.path(), "u").await.port;
    let policy = format!(
        r#"{TENANTS}
state: {{ redis: {{ url: "file:redis.url", timeout_ms: 1000 }} }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:{upstream}"], tls: {TLS} }} }}
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
routes:
  - {{ name: plan, methods: [GET], path: /plan, upstream: u, filters: {{ tenant: {{ from: [host] }} }} }}
  - {{ name: signed, methods: [POST], path: /signed, upstream: u, filters: {{ signature: {{ signer: client }}, nonce: {{}} }} }}
"#
    );
    let gateway = Arc::new(serve_hosts(folder.path(), &policy).await);
    let nonces = Arc::new(AtomicUsize::new(0));
    let signed = async || {
        let nonce = format!("nonce-0123456789-{}", nonces.fetch_add(1, Ordering::Relaxed));
        let (status, code) = gateway.send_signed("/signed", ("acme-1", SECRET), &nonce).await;
        (status, code, nonce)
    };
    until("signed requests pass", async || signed().await.0 == 200).await;

    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for tenant in ["calls", "volume", "calls", "volume"] {
        let (gateway, over) = (Arc::clone(&gateway), Arc::clone(&over));
        clients.spawn(async move {
            let mut answers = Vec::new();
            while !over.load(Ordering::Relaxed) {
                answers.extend(send(&[&gateway], tenant, "/plan", 1).await);
            }
            (tenant, answers)
        });
    }
    let (_, _, before) = signed().await;
    redis.stop().await.unwrap();
    for _ in 0..20 {
        let (status, code, _) = signed().await;
        assert_eq!((status, code.as_str()), (503, "state_unavailable"));
        let again = gateway.send_signed("/signed", ("acme-1", SECRET), &before).await;
        assert_eq!(again, (503, "state_unavailable".to_owned()));
    }
    assert_eq!(gateway.usage("").await.0, 503);
    until("what is in no bill is told", async || gateway.metric("gateway_uncounted_total").await > 0.0).await;
    redis.resume().await.unwrap();
    until("signed requests pass again", async || signed().await.0 == 200).await;
    until("usage is told again", async || gateway.usage("").await.0 == 200).await;
    over.store(true, Ordering::Relaxed);
    let mut by_tenant = std::collections::BTreeMap::new();
    for (tenant, answers) in clients.join_all().await {
        by_tenant.entry(tenant).or_insert_with(Vec::new).extend(answers);
    }
    // Once in Redis, once here while it was away, once in a Redis that had forgotten.
    let calls = passed(&by_tenant["calls"], "rate_limited");
    assert!((1..=3 * MOST).contains(&calls), "{calls} of {}", by_tenant["calls"].len());
    let volume = passed(&by_tenant["volume"], "quota_exceeded");
    assert!((1..=3 * 25).contains(&volume), "{volume} of {}", by_tenant["volume"].len());
}

#[tokio::test]
async fn what_is_in_shadow_is_told_to_operators_alone() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await.port;
    let policy = format!(
        r#"
tenants: {{ acme: {{ plan: gold, hosts: [localhost] }} }}
plans: {{ gold: {{ quota: [{{ name: monthly, by: tenant, per: month, most: 2, mode: shadow }}] }} }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:{upstream}"], tls: {TLS} }} }}
routes:
  - name: r
    methods: [GET]
    path: /r
    upstream: u
    filters: {{ tenant: {{ from: [host] }}, rate_limit: {{ limits: [{{ name: ip, by: ip, requests: 1, per_s: 36000, mode: shadow }}] }} }}
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    for _ in 0..5 {
        let answer = gateway.http.get(format!("{}/r", gateway.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("ratelimit"), "a limit that does not hold is advertised");
    }
    for (line, expected) in [
        (r#"gateway_would_refuse_total{filter="quota",limit="monthly"}"#, 3.0),
        (r#"gateway_would_refuse_total{filter="rate_limit",limit="ip"}"#, 4.0),
    ] {
        assert_eq!(gateway.metric(line).await, expected, "{line}");
    }
    let (_, told) = gateway.usage("").await;
    assert_eq!(told["tenants"]["acme"]["month"], json!({ "requests": 5, "cost": 5, "refused": 0 }));
    assert_eq!(told["of"], "this process since it began");
    let mut told = Vec::new();
    until("the log is written", async || {
        let log = std::fs::read_to_string(folder.path().join("gateway.log")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let field = |line: &Value, name: &str| {
            let value = line.get(name).or_else(|| line.get("fields")?.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let of_route = lines.filter(|line| field(line, "route") == "r");
        told = of_route
            .map(|line| [field(&line, "tenant"), field(&line, "plan"), field(&line, "would_refuse")])
            .collect();
        told.len() == 5
    })
    .await;
    let both = "rate_limit/ip quota/monthly";
    for (line, would_refuse) in told.iter().zip(["", "rate_limit/ip", both, both, both]) {
        assert_eq!(line, &["acme", "gold", would_refuse]);
    }
}
