//! A feature flag that changes while data planes run changes what the gateway and Envoy's workers decide; a file that
//! cannot be meant changes nothing for either.

use std::time::{Duration, Instant};

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};

const CASE: &str = r#"
name: t
flags:
  open: { state: ENABLED, variants: { "on": true, "off": false }, defaultVariant: "off" }
routes:
  - name: r
    methods: [GET]
    path: /a
    upstream: u
    filters: { feature: { when: [{ flag: open, is: ["on"] }] } }
requests: []
"#;
const LONGEST: Duration = Duration::from_secs(30);

#[tokio::test]
async fn flags_reach_every_data_plane() {
    let programs = Programs::beside_test().unwrap();
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    let mut planes = Vec::new();
    for kind in Kind::ALL {
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        planes.push((kind.name(), plane));
    }
    let file = named.case.flags_file(world.folder()).unwrap();
    let put = |text: &str| {
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    let with = |state: &str, default: &str| {
        let mut all: Value = serde_json::from_str(&named.case.flags_text().unwrap()).unwrap();
        all["flags"]["open"]["state"] = json!(state);
        all["flags"]["open"]["defaultVariant"] = json!(default);
        all.to_string()
    };
    let step: Step = serde_json::from_value(json!({ "target": "/a", "verdict": "" })).unwrap();
    let sent = Sent::new(&step, &world.keys, Times::new(world.epoch_ms, 0).unwrap()).unwrap();
    for (text, expected) in [
        (None, "404 route_not_found"),
        (Some(with("ENABLED", "on")), "pass"),
        (Some("{}".to_owned()), "pass"),
        (Some(with("DISABLED", "on")), "404 route_not_found"),
        (Some(with("ENABLED", "on")), "pass"),
    ] {
        if let Some(text) = &text {
            put(text);
        }
        for (name, plane) in &planes {
            let began = Instant::now();
            loop {
                let status = plane.decide(&sent, None).await.unwrap().verdict;
                if status == expected {
                    break;
                }
                assert!(began.elapsed() < LONGEST, "{name}: {status}, not {expected}: {text:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            println!("{name}: {expected} after {} ms", began.elapsed().as_millis());
        }
    }
}
