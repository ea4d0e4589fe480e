//! What operators of Envoy learn of tenants: what they have used, and what limits in shadow would have refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::time::Duration;

use parity::case::Named;
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
  - { name: r, methods: [GET], path: /told, upstream: u, filters: { tenant: {}, rate_limit: { cost: 2 } } }
requests:
  - { target: /told, verdict: pass }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_and_shadows_are_told() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let programs = Programs::find(profile.join("gateway"), profile.parent().unwrap(), &Kind::ALL).unwrap();
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
    let usage: Value =
        serde_json::from_str(&get(format!("http://{}/usage", plane.state_address())).await).unwrap();
    let used = json!({ "requests": 2, "cost": 4, "refused": 1 });
    assert_eq!(usage["tenants"], json!({ "acme": { "plan": "gold", "month": used, "day": used } }));

    let stats = get(format!("http://{}/stats?filter=torana_would_refuse", plane.admin())).await;
    assert!(stats.contains("torana_would_refuse.rate_limit.new: 2\n"), "{stats}");

    // Envoy writes its log now and then.
    let mut told = Vec::new();
    for _ in 0..600 {
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["target"] == "access" && !line["status"].is_null());
        told = lines.map(|line| line["would_refuse"].as_str().unwrap_or_default().to_owned()).collect();
        told.retain(|would_refuse: &String| !would_refuse.is_empty());
        if told.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(told, ["rate_limit/new", "rate_limit/new"]);
}
