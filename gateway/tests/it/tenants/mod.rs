//! Tenants over the wire: edges on one Redis hold their plans together, also when one of them dies or Redis does; what
//! they have used is told; and what a limit in shadow would have refused.

mod outage;

use std::path::Path;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use certs::client::ClientLimits;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::running::{Gateway, Recorder, SECRET, TLS, pki, serve, until};

/// An upstream in a folder with a PKI: its port.
async fn upstream(folder: &Path, app: Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = certs::Identity::load(&folder.join("txn-core.pem"), &folder.join("txn-core.key")).unwrap();
    let clients = certs::ClientAuth::Required(certs::Trust::load(&folder.join("internal-ca.pem")).unwrap());
    let tls = certs::server_config(&identity, clients, certs::Versions::Tls13Only, &[b"http/1.1"]).unwrap();
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    port
}

/// One that never answers, and counts who waits.
async fn silent(folder: &Path) -> (u16, Arc<AtomicUsize>) {
    let waiting = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&waiting);
    let app = Router::new().fallback(async move |_: Request| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<()>().await;
    });
    (upstream(folder, app).await, waiting)
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

/// The status and the code of requests of a tenant, so many at each edge, all at once.
async fn at_once(
    edges: &[Arc<Gateway>],
    tenant: &str,
    path: &'static str,
    times: usize,
) -> Vec<(u16, String)> {
    let mut asked = JoinSet::new();
    for edge in edges.iter().flat_map(|edge| std::iter::repeat_n(edge, times)) {
        let (edge, host) = (Arc::clone(edge), format!("{tenant}.test"));
        asked.spawn(async move { edge.get(path, &[("host", &host)]).await });
    }
    asked.join_all().await
}

fn passed(answers: &[(u16, String)], otherwise: &str) -> usize {
    let odd = answers.iter().find(|(status, code)| *status != 200 && code != otherwise);
    assert_eq!(odd, None);
    answers.iter().filter(|(status, _)| *status == 200).count()
}

/// Two edges on one Redis, and what they share.
struct Fleet {
    edges: Vec<Arc<Gateway>>,
    policy: String,
    folders: [TempDir; 2],
    redis: engines::Redis,
    /// Requests that came to the upstream of `/silent`, which never answers.
    waiting: Arc<AtomicUsize>,
    _redis_folder: TempDir,
}

impl Fleet {
    async fn start() -> Self {
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
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
filters: {{ tenant: {{ from: [host] }} }}
routes:
  - {{ name: quick, methods: [GET], path: /quick, upstream: quick, filters: {{ rate_limit: {{ cost: 2 }} }} }}
  - {{ name: silent, methods: [GET], path: /silent, upstream: silent, timeout_ms: 60000 }}
  - name: signed
    methods: [POST]
    path: /signed
    upstream: quick
    except: [tenant]
    filters: {{ signature: {{ signer: client }}, nonce: {{ max_skew_s: 0 }} }}
"#,
            quick.port
        );
        let other = another(folder.path());
        let mut edges = Vec::new();
        for folder in [&folder, &other] {
            edges.push(Arc::new(serve_hosts(folder.path(), &policy).await));
        }
        for edge in &edges {
            until("the shared state is known", async || edge.metric("gateway_redis_up").await > 0.0).await;
        }
        let folders = [folder, other];
        Self { edges, policy, folders, redis, waiting, _redis_folder: redis_folder }
    }

    /// Kills the first edge; the second is the first then.
    fn kill_first(&mut self) {
        drop(Arc::into_inner(self.edges.remove(0)).unwrap());
    }

    /// Requests of the tenant `flight` that are never answered, one after the other, at edges by their position.
    async fn hold(&self, edges: &[usize], held: &mut JoinSet<()>) {
        for edge in edges.iter().map(|position| &self.edges[*position]) {
            let before = self.waiting.load(Ordering::Relaxed);
            let (http, url) = (edge.http.clone(), edge.url.clone());
            held.spawn(async move {
                let _ = http.get(format!("{url}/silent")).header("host", "flight.test").send().await;
            });
            until("it is held", async || self.waiting.load(Ordering::Relaxed) > before).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_on_one_redis_are_one_edge_to_a_tenant() {
    let mut fleet = Fleet::start().await;
    let both = &fleet.edges;

    assert_eq!(passed(&at_once(both, "calls", "/quick", 20).await, "rate_limited"), 5);
    assert_eq!(passed(&at_once(both, "volume", "/quick", 20).await, "quota_exceeded"), 12);
    // Places are given back as requests end: any number of them, one after another.
    for edge in both.iter().cycle().take(20) {
        assert_eq!(passed(&at_once(from_ref(edge), "flight", "/quick", 1).await, ""), 1);
    }
    assert_eq!(passed(&at_once(both, "nobody", "/quick", 1).await, "tenant_missing"), 0);

    let of_all = |requests: u64, refused: u64| json!({ "requests": requests, "cost": 2 * requests, "refused": refused });
    for edge in both {
        let (status, told) = edge.usage("").await;
        assert_eq!((status, &told["of"]), (200, &json!("every edge on the shared state")), "{told}");
        for (tenant, plan, used) in [
            ("calls", json!("limited"), of_all(5, 35)),
            ("volume", json!("metered"), of_all(12, 28)),
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

    // What is spent stays spent, whoever comes back.
    fleet.kill_first();
    let again = Arc::new(serve_hosts(fleet.folders[0].path(), &fleet.policy).await);
    until("the shared state is known", async || again.metric("gateway_redis_up").await > 0.0).await;
    assert_eq!(passed(&at_once(&[again], "volume", "/quick", 3).await, "quota_exceeded"), 0);
}

/// Of many who send one signed request at once to edges on one Redis, one passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_is_taken_once_by_all_edges_together() {
    const TIMES: usize = 40;
    let fleet = Fleet::start().await;
    for turn in 0..5 {
        // What was signed before Redis began to remember is refused.
        let trial = AtomicUsize::new(0);
        until("signed requests are taken", async || {
            let nonce = format!("trial-{turn}-{:016}", trial.fetch_add(1, Ordering::Relaxed));
            fleet.edges[0].send_signed("/signed", ("acme-1", SECRET), &nonce).await.0 == 200
        })
        .await;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut sent = JoinSet::new();
        for edge in fleet.edges.iter().cycle().take(TIMES) {
            let (edge, nonce) = (Arc::clone(edge), format!("one-for-all-{turn:08}"));
            sent.spawn(
                async move { edge.send_signed_at("/signed", ("acme-1", SECRET), &nonce, now_s).await },
            );
        }
        let answers = sent.join_all().await;
        let replayed = (401, "nonce_replayed".to_owned());
        assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| **answer == replayed).count(), TIMES - 1, "{answers:?}");
    }
}

/// Nobody gives back what a dead edge holds; its leases do, all of them, and none before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_a_dead_edge_are_taken_until_their_leases_end() {
    let mut fleet = Fleet::start().await;
    let mut held = JoinSet::new();
    // Two held by the first, one by the second: there is no place for a fourth on either.
    fleet.hold(&[0, 0, 1], &mut held).await;
    assert_eq!(passed(&at_once(&fleet.edges, "flight", "/quick", 1).await, "concurrency_limited"), 0);
    let ends = fleet.redis.leases().await.unwrap().0;
    assert_eq!(ends.len(), 3);

    fleet.kill_first();
    let mut refused = 0;
    until("a place comes free", async || {
        let answers = at_once(&fleet.edges, "flight", "/quick", 1).await;
        let has_passed = passed(&answers, "concurrency_limited") == 1;
        // After the answer: whoever passed now, passed before.
        let (taken, now_us) = fleet.redis.leases().await.unwrap();
        assert!(!has_passed || now_us >= ends[0], "passed before the first lease ended");
        assert!(now_us >= ends[0] || taken == ends, "{ends:?} became {taken:?} at {now_us}");
        refused += usize::from(!has_passed);
        has_passed
    })
    .await;
    assert!(refused > 0, "nobody was refused while the leases lasted");
    until("all places are free", async || fleet.redis.leases().await.unwrap().0.is_empty()).await;
    fleet.hold(&[0; 3], &mut held).await;
    assert_eq!(passed(&at_once(&fleet.edges, "flight", "/quick", 1).await, "concurrency_limited"), 0);
    held.abort_all();
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
