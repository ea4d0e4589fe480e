//! What operators of Envoy learn of tenants: what they have used, and what limits in shadow would have refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};

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

/// A gateway and an Envoy on one Redis are one edge to a tenant, as two gateways are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_data_planes_share_what_a_tenant_has() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let folders = Kind::ALL.map(|kind| world.case_folder(kind.name()).unwrap());
    let redis = engines::Redis::start(&folders[0].join("redis")).await.unwrap();
    let mut named = Named::parse(CASE).unwrap();
    let url = folders[0].join("redis.url");
    certs::file::write_secret(&url, &redis.url()).unwrap();
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

/// A limit of ten, and requests that are signed once each.
const OUTAGE: &str = r#"
name: outage
tenants: { acme: { plan: gold, hosts: [edge.test] } }
plans: { gold: { rate_limit: [{ name: calls, by: tenant, requests: 10, per_s: 36000 }] } }
routes:
  - { name: plan, methods: [GET], path: /plan, upstream: u, filters: { tenant: { from: [host] } } }
  - { name: signed, methods: [GET], path: /signed, upstream: u, filters: { signature: { signer: client }, nonce: {} } }
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
    let mut redis = engines::Redis::start(&folder.join("redis")).await.unwrap();
    let url = folder.join("redis.url");
    certs::file::write_secret(&url, &redis.url()).unwrap();
    let mut named = Named::parse(OUTAGE).unwrap();
    named.case.state_timeout_ms = Some(2_000);
    named.case.redis = Some(url);
    let plane = Plane::start(&world, &programs(), Kind::Envoy, &named, &folder).await.unwrap();
    // What Redis remembers, it remembers by a clock that runs.
    let send = async |step: Value| {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap();
        plane.at(now_ms).unwrap();
        let step: Step = serde_json::from_value(step).unwrap();
        let sent = Sent::new(&step, &world.keys, Times::new(now_ms, 0).unwrap()).unwrap();
        plane.decide(&sent, None).await.unwrap().verdict
    };
    let signed = async |nonce: &str| {
        let sign = json!({
            "key": "partner", "created": 0, "nonce": format!("0123456789abcdef-{nonce}"), "digest": false,
            "components": ["@method", "@path", "@query"],
        });
        send(json!({ "target": "/signed", "sign": sign, "verdict": "" })).await
    };
    let until_passed = async |what: &str| {
        for turn in 0..600 {
            if signed(&format!("{what}-{turn}")).await == "pass" {
                return format!("{what}-{turn}");
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{what}: signed requests do not pass");
    };
    let taken = until_passed("before").await;
    assert_eq!(signed(&taken).await, "401 nonce_replayed");

    let over = AtomicBool::new(false);
    let load = async {
        let mut passed = 0;
        while !over.load(Ordering::Relaxed) {
            match send(json!({ "target": "/plan", "verdict": "" })).await.as_str() {
                "pass" => passed += 1,
                verdict => assert_eq!(verdict, "429 rate_limited"),
            }
        }
        passed
    };
    let outage = async {
        redis.stop().await.unwrap();
        for turn in 0..20 {
            assert_eq!(signed(&format!("away-{turn}")).await, AWAY);
            assert_eq!(signed(&taken).await, AWAY, "what was taken is not taken again");
        }
        redis.resume().await.unwrap();
        until_passed("after").await;
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
