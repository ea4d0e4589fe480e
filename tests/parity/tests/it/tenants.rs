//! What operators of Envoy learn of tenants: what they have used, and what limits in shadow would have refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use certs::client::ClientLimits;
use parity::case::{Named, Step};
use parity::mint::{AUTHORITY, Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The third request is refused.
const CASE: &str = r#"
name: told
tenants: { acme: { plan: gold, hosts: [edge.test] } }
plans:
  gold:
    rate_limit: [{ name: new, by: tenant, requests: 1, per_s: 36000, burst: 2, mode: shadow }]
    quota: [{ name: monthly, by: tenant, per: month, most: 5 }]
routes:
  - { name: r, methods: [GET], path: /told, upstream: u, filters: { tenant: { from: [host] }, rate_limit: { cost: 2 } } }
requests:
  - { target: /told, verdict: pass }
"#;

fn programs() -> Programs {
    Programs::beside_test().unwrap()
}

/// What `/usage` says of every tenant.
async fn usage(at: SocketAddr) -> Value {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let told = http.get(format!("http://{at}/usage")).send().await.unwrap().text().await.unwrap();
    serde_json::from_str::<Value>(&told).unwrap()["tenants"].clone()
}

/// A Redis, and the file with its address, in a data plane's folder.
async fn shared_redis(folder: &Path) -> (engines::Redis, PathBuf) {
    let redis = engines::Redis::start(&folder.join("redis")).await.unwrap();
    let url = folder.join("redis.url");
    certs::file::write_secret(&url, &redis.url()).unwrap();
    (redis, url)
}

/// A gateway and an Envoy on one Redis are one edge to a tenant, as two gateways are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_data_planes_share_what_a_tenant_has() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let folders = Kind::ALL.map(|kind| world.case_folder(kind.name()).unwrap());
    let (_redis, url) = shared_redis(&folders[0]).await;
    let mut named = Named::parse(CASE).unwrap();
    named.case.redis = Some(url);
    let [gateway, envoy] = &folders;
    let gateway = Plane::start(&world, &programs(), Kind::Gateway, &named, gateway).await.unwrap();
    let envoy = Plane::start(&world, &programs(), Kind::Envoy, &named, envoy).await.unwrap();
    let times = Times::new(world.epoch_ms, 0).unwrap();
    let sent = Sent::new(&named.case.requests[0], &world.keys, times).unwrap();
    let turns = [&gateway, &envoy, &gateway, &envoy, &envoy];
    for (plane, expected) in turns.into_iter().zip(["pass", "pass", "429", "429", "429"]) {
        plane.at(world.epoch_ms).unwrap();
        let verdict = plane.decide(&sent, None).await.unwrap().verdict;
        assert!(verdict.starts_with(expected), "{verdict}, not {expected}");
    }
    let used = json!({ "requests": 2, "cost": 4, "refused": 3 });
    let expected = json!({ "acme": { "plan": "gold", "month": used, "day": used } });
    assert_eq!(usage(gateway.admin()).await, expected);
    assert_eq!(usage(envoy.state_address()).await, expected);
}

const PLACES: usize = 3;

/// Requests that their upstream keeps: whoever finds no place is refused.
struct Staying<'w> {
    world: &'w World,
    at: SocketAddr,
    asked: JoinSet<()>,
    /// Statuses of those that were answered.
    answers: Arc<Mutex<Vec<u16>>>,
}

impl<'w> Staying<'w> {
    fn at(world: &'w World, plane: &Plane<'_>) -> Self {
        Self { world, at: plane.address(), asked: JoinSet::new(), answers: Arc::default() }
    }

    fn kept(&self) -> usize {
        self.world.upstreams[0].kept()
    }

    /// Sends twice as many as there are places, all at once, of whom so many are kept and the rest is refused.
    async fn fill(&mut self, places: usize) {
        const SENT: usize = 2 * PLACES;
        let expected = self.kept() + places;
        self.answers.lock().unwrap().clear();
        let limits = ClientLimits { timeout: Duration::from_secs(600), ..ClientLimits::default() };
        let http = certs::client::https_to((*self.world.client).clone(), limits, AUTHORITY, self.at).unwrap();
        let url = format!("https://{AUTHORITY}:{}/held", self.at.port());
        for _ in 0..SENT {
            let request = http.get(&url).header("host", AUTHORITY).header("x-stay", "1");
            let answers = Arc::clone(&self.answers);
            self.asked.spawn(async move {
                if let Ok(answer) = request.send().await {
                    answers.lock().unwrap().push(answer.status().as_u16());
                }
            });
        }
        for _ in 0..600 {
            let (kept, answered) = (self.kept(), self.answers.lock().unwrap().clone());
            assert!(kept <= expected, "{kept} are in flight, not {expected}");
            assert!(answered.iter().all(|status| *status == 429), "{answered:?}");
            if kept == expected && answered.len() == SENT - places {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} are in flight, not {expected}", self.kept());
    }
}

/// Three payments at once.
const HELD: &str = r#"
name: held
tenants: { acme: { plan: gold, hosts: [edge.test] } }
plans: { gold: { concurrency: [{ name: in-flight, by: tenant, most: 3, lease_s: 8 }] } }
routes: [{ name: r, methods: [GET], path: /held, upstream: u, timeout_ms: 600000, filters: { tenant: { from: [host] } } }]
requests: [{ target: /held, verdict: pass }]
"#;

/// An Envoy and its state service, killed with payments held: nobody gives their places back but their leases, all of
/// them and none before it ends, and then they are whoever's on that Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_a_dead_envoy_are_taken_until_their_leases_end() {
    const BUSY: &str = "429 concurrency_limited";
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let folders = ["dead", "envoy", "gateway"].map(|name| world.case_folder(name).unwrap());
    let (redis, url) = shared_redis(&folders[0]).await;
    let mut named = Named::parse(HELD).unwrap();
    named.case.redis = Some(url);
    let start = async |kind: Kind, folder: &Path| {
        Plane::start(&world, &programs(), kind, &named, folder).await.unwrap()
    };
    let dead = start(Kind::Envoy, &folders[0]).await;
    let heirs = [start(Kind::Envoy, &folders[1]).await, start(Kind::Gateway, &folders[2]).await];
    let times = Times::new(world.epoch_ms, 0).unwrap();
    let sent = Sent::new(&named.case.requests[0], &world.keys, times).unwrap();
    let verdict = async |plane: &Plane<'_>| plane.decide(&sent, None).await.unwrap().verdict;

    let mut held = Staying::at(&world, &dead);
    held.fill(PLACES).await;
    let ends = redis.leases().await.unwrap().0;
    assert_eq!(ends.len(), PLACES);
    drop(dead);
    let mut refused = 0;
    for (turn, heir) in heirs.iter().cycle().enumerate() {
        assert!(turn < 600, "no place comes free");
        let told = verdict(heir).await;
        // After the answer: whoever passed now, passed before.
        let (taken, now_us) = redis.leases().await.unwrap();
        assert!(told == BUSY || now_us >= ends[0], "{told} before the first lease ended");
        assert!(now_us >= ends[0] || taken == ends, "{ends:?} became {taken:?} at {now_us}");
        if told == "pass" {
            break;
        }
        assert_eq!(told, BUSY);
        refused += 1;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(refused > 0, "nobody was refused while the leases lasted");
    for turn in 0.. {
        if redis.leases().await.unwrap().0.is_empty() {
            break;
        }
        assert!(turn < 600, "places stay taken");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let mut held = Staying::at(&world, &heirs[0]);
    held.fill(PLACES).await;
    for heir in &heirs {
        assert_eq!(verdict(heir).await, BUSY);
    }
}

/// A limit of ten, three places, and requests that are signed once each.
const OUTAGE: &str = r#"
name: outage
tenants: { acme: { plan: gold, hosts: [edge.test] } }
plans: { gold: { rate_limit: [{ name: calls, by: tenant, requests: 10, per_s: 36000 }] } }
routes:
  - { name: plan, methods: [GET], path: /plan, upstream: u, filters: { tenant: { from: [host] } } }
  - name: held
    methods: [GET]
    path: /held
    upstream: u
    timeout_ms: 600000
    filters: { concurrency: { limits: [{ name: in-flight, by: route, most: 3, lease_s: 600 }] } }
  - name: signed
    methods: [GET]
    path: /signed
    upstream: u
    filters: { signature: { signer: client }, nonce: { max_skew_s: 0 } }
requests: []
"#;

/// The Redis of an Envoy's state service stopped and started while requests come: limits stay bounded, nonces closed, and
/// all is well again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_of_a_state_service_goes_and_comes_under_load() {
    const MOST: usize = 10;
    const AWAY: &str = "503 state_unavailable";
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let folder = world.case_folder("outage").unwrap();
    let (mut redis, url) = shared_redis(&folder).await;
    let mut named = Named::parse(OUTAGE).unwrap();
    named.case.state_timeout_ms = Some(2_000);
    named.case.redis = Some(url);
    let plane = Plane::start(&world, &programs(), Kind::Envoy, &named, &folder).await.unwrap();
    // What Redis remembers, it remembers by a clock that runs.
    let now_ms = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap()
    };
    let made = |step: Value| {
        let step: Step = serde_json::from_value(step).unwrap();
        Sent::new(&step, &world.keys, Times::new(now_ms(), 0).unwrap()).unwrap()
    };
    let send = async |sent: &Sent| {
        plane.at(now_ms()).unwrap();
        plane.decide(sent, None).await.unwrap().verdict
    };
    let signed = |nonce: &str| {
        let sign = json!({
            "key": "partner", "created": 0, "nonce": format!("0123456789abcdef-{nonce}"), "digest": false,
            "components": ["@method", "@path", "@query"],
        });
        made(json!({ "target": "/signed", "sign": sign, "verdict": "" }))
    };
    let until_passed = async |what: &str| {
        for turn in 0..600 {
            let sent = signed(&format!("{what}-{turn}"));
            if send(&sent).await == "pass" {
                return sent;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{what}: signed requests do not pass");
    };
    // The bytes that were taken, and are sent again.
    let taken = until_passed("before").await;
    assert_eq!(send(&taken).await, "401 nonce_replayed");

    let over = AtomicBool::new(false);
    let load = async {
        let mut passed = 0;
        while !over.load(Ordering::Relaxed) {
            match send(&made(json!({ "target": "/plan", "verdict": "" }))).await.as_str() {
                "pass" => passed += 1,
                verdict => assert_eq!(verdict, "429 rate_limited"),
            }
        }
        passed
    };
    let outage = async {
        let mut held = Staying::at(&world, &plane);
        held.fill(PLACES).await;
        held.fill(0).await;
        redis.stop().await.unwrap();
        for turn in 0..20 {
            assert_eq!(send(&signed(&format!("away-{turn}"))).await, AWAY);
            assert_eq!(send(&taken).await, AWAY, "what was taken is not taken again");
        }
        // All places once more, in the state service.
        held.fill(PLACES).await;
        held.fill(0).await;
        redis.resume().await.unwrap();
        until_passed("after").await;
        // Redis has forgotten it, and knows since when it remembers.
        for _ in 0..5 {
            assert_eq!(send(&taken).await, "401 created_before_start");
        }
        // It has forgotten the places too.
        held.fill(PLACES).await;
        held.fill(0).await;
        over.store(true, Ordering::Relaxed);
    };
    let (passed, ()) = tokio::join!(load, outage);
    // Once in Redis, once here while it was away, once in a Redis that had forgotten.
    assert!((1..=3 * MOST).contains(&passed), "{passed} passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_and_shadows_are_told() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let programs = programs();
    let named = Named::parse(CASE).unwrap();
    let folder = world.case_folder("told").unwrap();
    let plane = Plane::start(&world, &programs, Kind::Envoy, &named, &folder).await.unwrap();
    plane.at(world.epoch_ms).unwrap();
    let times = Times::new(world.epoch_ms, 0).unwrap();
    let sent = Sent::new(&named.case.requests[0], &world.keys, times).unwrap();
    for expected in ["pass", "pass", "429 quota_exceeded"] {
        assert_eq!(plane.decide(&sent, None).await.unwrap().verdict, expected);
    }

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |url: String| http.get(url).send().await.unwrap().text().await.unwrap();
    let used = json!({ "requests": 2, "cost": 4, "refused": 1 });
    let told = usage(plane.state_address()).await;
    assert_eq!(told, json!({ "acme": { "plan": "gold", "month": used, "day": used } }));

    let stats = get(format!("http://{}/stats?filter=torana_would_refuse", plane.admin())).await;
    assert!(stats.contains("torana_would_refuse.rate_limit.new: 2\n"), "{stats}");

    // Envoy writes its log now and then.
    let (mut told, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..600 {
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["target"] == "access" && !line["status"].is_null());
        let lines: Vec<Value> = lines.collect();
        let field = |name: &str| {
            let said = lines.iter().filter_map(|line| line[name].as_str());
            said.map(str::to_owned).collect::<Vec<_>>()
        };
        (told, limits) = (field("would_refuse"), field("limit"));
        if told.len() == 2 && !limits.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(told, ["rate_limit/new", "rate_limit/new"]);
    assert_eq!(limits, ["plan:gold/monthly"]);
}
