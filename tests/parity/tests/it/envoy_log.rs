//! What operators of each data plane can read of requests: experiments and feature flags in metrics and access logs,
//! changes of flags in the audit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};

const CASE: &str = r#"
name: t
trusted_proxies: ["127.0.0.0/8"]
flags:
  wallet: { state: ENABLED, variants: { "on": true, "off": false }, defaultVariant: "on" }
routes:
  - name: tried
    methods: [GET]
    path: /tried
    upstreams: [{ upstream: u, weight: 1, variant: control }, { upstream: v, weight: 1, variant: one-tap }]
    sticky: user
    experiment: checkout
    filters: { ip_access: {}, jwt: {} }
  - name: wallet
    methods: [GET]
    path: /wallet
    upstream: u
    filters: { feature: { when: [{ flag: wallet, is: ["on"] }] } }
requests: []
"#;
const LONGEST: Duration = Duration::from_secs(30);
const USERS: usize = 12;

/// The lines of its logs that are JSON.
fn logged(plane: &Plane<'_>) -> Vec<Value> {
    let text = std::fs::read_to_string(plane.log()).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What an operator finds where the data plane tells its metrics.
async fn metrics(kind: Kind, plane: &Plane<'_>) -> String {
    let path = match kind {
        Kind::Gateway => "metrics",
        Kind::Envoy => "stats?filter=torana_",
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    http.get(format!("http://{}/{path}", plane.admin())).send().await.unwrap().text().await.unwrap()
}

/// The value of the one metric of which all of that is said, 0 as long as there is none.
fn value(metrics: &str, said: &[&str]) -> u64 {
    let of_it = |line: &&str| said.iter().all(|said| line.contains(said));
    let found: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#')).filter(of_it).collect();
    match found.as_slice() {
        [] => 0,
        [only] => only.rsplit(' ').next().unwrap().parse().unwrap(),
        several => panic!("{said:?}: {several:?}"),
    }
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < LONGEST, "{what}: it did not come to pass");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_data_plane_tells_the_same() {
    let programs = Programs::beside_test().unwrap();
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    let mut alike: Vec<[u64; 2]> = Vec::new();
    for kind in Kind::ALL {
        let name = kind.name();
        let folder = world.case_folder(name).unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let send = async |step: Value| {
            let step: Step = serde_json::from_value(step).unwrap();
            let sent = Sent::new(&step, &world.keys, Times::new(world.epoch_ms, 0).unwrap()).unwrap();
            plane.decide(&sent, None).await.unwrap().verdict
        };
        for user in 0..USERS {
            let token = json!({ "claims": { "sub": format!("user-{user}") } });
            assert_eq!(send(json!({ "target": "/tried", "token": token, "verdict": "" })).await, "pass");
        }
        let forged = json!({ "x-torana-experiment": "checkout=mine", "x-forwarded-for": "203.0.113.7" });
        let refused = json!({ "target": "/tried", "headers": forged, "verdict": "" });
        assert_eq!(send(refused).await, "401 token_missing");
        assert_eq!(send(json!({ "target": "/wallet", "verdict": "" })).await, "pass");

        // Both count and log a request after its answer.
        let in_log = |route: &str| -> Vec<Value> {
            logged(&plane).into_iter().filter(|line| line["route"] == route).collect()
        };
        let passed = || in_log("tried").into_iter().filter(|line| line["status"] == 200);
        let of_tried = |line: &Value| {
            line["route"] == "tried" || line["refused"].as_str().is_some_and(|told| told.ends_with("/tried"))
        };
        let refused = || logged(&plane).into_iter().find(|line| line["status"] == 401 && of_tried(line));
        until(name, async || {
            passed().count() == USERS && !in_log("wallet").is_empty() && refused().is_some()
        })
        .await;
        let refused = refused().unwrap();
        assert_eq!(refused["experiment"], Value::Null, "{name}: what a client writes is no variant");
        assert_eq!(refused["client_ip"], "203.0.113.7", "{name}: as the trusted proxy says");
        let seen: Vec<Value> = passed().collect();
        assert!(seen.iter().all(|line| line["client_ip"] == "127.0.0.1"), "{name}: {seen:#?}");
        assert_eq!(seen.len(), USERS, "{name}");
        let of = |variant: &str| -> u64 {
            let variant = json!(format!("checkout={variant}"));
            seen.iter().filter(|line| line["experiment"] == variant).count() as u64
        };
        let by_variant = [of("control"), of("one-tap")];
        assert_eq!(by_variant.iter().sum::<u64>(), USERS as u64, "{name}: {seen:#?}");
        assert_eq!(in_log("wallet")[0]["feature_flags"], "wallet=on", "{name}");

        let told = metrics(kind, &plane).await;
        let counted = match kind {
            Kind::Gateway => ["control", "one-tap"].map(|variant| {
                let variant = format!("variant=\"{variant}\"");
                value(&told, &["gateway_experiment_requests_total", "\"checkout\"", "\"200\"", &variant])
            }),
            Kind::Envoy => ["control", "one-tap"]
                .map(|variant| value(&told, &[&format!("torana_experiment.checkout.{variant}.200:")])),
        };
        assert_eq!(counted, by_variant, "{name}: {told}");
        let flag = match kind {
            Kind::Gateway => value(&told, &["gateway_flag_evaluations_total", "\"wallet\"", "\"on\""]),
            Kind::Envoy => value(&told, &["torana_flag.wallet.on:"]),
        };
        assert_eq!(flag, 1, "{name}: {told}");
        alike.push(by_variant);

        // Who changes a flag finds that in the audit, whichever data plane decides by it.
        let audited = |message: &str| {
            logged(&plane).into_iter().find(|line| line["target"] == "audit" && line["message"] == message)
        };
        assert!(audited("flags in use").is_some() && audited("flag changed").is_none(), "{name}");
        let mut flags: Value = serde_json::from_str(&named.case.flags_text().unwrap()).unwrap();
        flags["flags"]["wallet"]["defaultVariant"] = json!("off");
        let file = named.case.flags_file(world.folder()).unwrap();
        std::fs::write(file.with_extension("new"), flags.to_string()).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
        until(name, async || audited("flag changed").is_some()).await;
        let changed = audited("flag changed").unwrap();
        let told = ["flag", "default_before", "default", "changed"].map(|field| changed[field].clone());
        assert_eq!(json!(told), json!(["wallet", "on", "off", "defaultVariant"]), "{name}: {changed}");

        // And so is who revokes something.
        let wanted = serde_json::from_value(json!({ "user": "user-1", "tenant": "acme" })).unwrap();
        plane.revoke(&wanted).await.unwrap();
        until(name, async || audited("revocation asked for").is_some()).await;
        let asked = audited("revocation asked for").unwrap();
        assert!(asked["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {asked}");
        let told = ["kind", "id", "tenant", "status"].map(|field| asked[field].clone());
        assert_eq!(json!(told), json!(["user", "user-1", "acme", 200]), "{name}: {asked}");
    }
    assert!(alike.iter().flatten().all(|seen| *seen > 0), "each variant was seen by some: {alike:?}");
    assert_eq!(alike.iter().collect::<BTreeSet<_>>().len(), 1, "the same users see the same: {alike:?}");
}
