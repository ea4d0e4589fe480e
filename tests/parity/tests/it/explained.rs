//! `gateway explain --log`, of the log that each data plane wrote: it tells the filter, the code and the limit that
//! decided, and the line of the policy.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::wire::{bytes, exchange};
use parity::world::World;
use serde_json::json;

const CASE: &str = r#"
name: t
tenants: { acme: { plan: gold } }
plans: { gold: { rate_limit: [{ name: calls, by: user, requests: 1, per_s: 36000 }] } }
everywhere: { jwt: {} }
routes:
  - name: r
    methods: [GET]
    path: /told
    upstream: u
    filters: { tenant: {}, rate_limit: { limits: [{ name: few, by: ip, requests: 2, per_s: 36000 }] } }
requests: []
"#;

/// What it tells of a request, once the log has it, and whether that passed.
async fn explain(programs: &Programs, folder: &Path, request_id: &str) -> (bool, Vec<String>) {
    let mut complaint = String::new();
    for _ in 0..600 {
        let told = Command::new(&programs.gateway)
            .args(["explain", "policy.yaml", "--log", "log", "--request-id", request_id])
            .current_dir(folder)
            .output()
            .unwrap();
        complaint = String::from_utf8(told.stderr).unwrap();
        if complaint.is_empty() {
            let lines = String::from_utf8(told.stdout).unwrap().lines().map(str::to_owned).collect();
            return (told.status.success(), lines);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{complaint}");
}

#[tokio::test]
async fn a_data_planes_own_log_tells_what_decided() {
    let programs = Programs::beside_test().unwrap();
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    for kind in Kind::ALL {
        let name = kind.name();
        let folder = world.case_folder(name).unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let policy = std::fs::read_to_string(folder.join("policy.yaml")).unwrap();
        let line = |written: &str| {
            let mut lines = policy.lines().zip(1..).filter(|(line, _)| line.contains(written));
            let (Some((_, number)), None) = (lines.next(), lines.next()) else {
                panic!("{written}: {policy}")
            };
            number
        };
        let everywhere = policy.lines().position(|line| line.starts_with("  \"filters\": {")).unwrap() + 2;
        assert_eq!(policy.lines().nth(everywhere - 1), Some("    \"jwt\": {}"));
        let jwt = format!("  jwt          REFUSED    [policy.yaml:{everywhere}]");
        let few = format!("  rate_limit   REFUSED    [policy.yaml:{}], by limit `few`", line("\"few\""));
        let calls = line("\"calls\"");
        let calls =
            format!("  rate_limit   REFUSED    [policy.yaml:{calls}], by limit `calls` of plan `gold`");

        let passed = ["  jwt          passed", "  rate_limit   passed", "=> 200, answered by u"];
        let expired = [&jwt, "  rate_limit   unknown", "=> 401 token_expired, by jwt"];
        let by_plan = ["  jwt          passed", &calls, "=> 429 rate_limited, by rate_limit"];
        let by_route = ["  jwt          passed", &few, "=> 429 rate_limited, by rate_limit"];
        for (claims, passes, expected) in [
            (json!({ "sub": "user-1" }), true, passed),
            (json!({ "sub": "user-1" }), false, by_plan),
            (json!({ "sub": "user-1", "exp": "-600" }), false, expired),
            (json!({ "sub": "user-2" }), true, passed),
            (json!({ "sub": "user-3" }), false, by_route),
        ] {
            let step = json!({ "target": "/told", "token": { "claims": claims }, "verdict": "" });
            let step: Step = serde_json::from_value(step).unwrap();
            let sent = Sent::new(&step, &world.keys, Times::new(world.epoch_ms, 0).unwrap()).unwrap();
            let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let answer =
                exchange(plane.address(), from, &world.client, &bytes(&sent)).await.unwrap().unwrap();
            let request_id = answer.fields.iter().find(|(name, _)| name == "x-request-id");
            let request_id = std::str::from_utf8(&request_id.unwrap().1).unwrap();

            let (has_passed, told) = explain(&programs, &folder, request_id).await;
            assert_eq!(has_passed, passes, "{name}: {told:#?}");
            for expected in expected {
                let found = told.iter().any(|line| line.starts_with(expected));
                assert!(found, "{name}: expected {expected}\ntold {told:#?}");
            }
            // It knows the policy for the one that decided.
            assert!(!told.iter().any(|line| line.starts_with("note: the policy")), "{name}: {told:#?}");
        }
        drop(plane);
    }
}
