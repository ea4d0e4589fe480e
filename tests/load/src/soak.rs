//! Memory over very many tokens and nonces: what a worker remembers is bounded, so its memory stays flat.

use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engines::ports;
use parity::case::{Sign, Step, Token};
use parity::mint::{Sent, Times};
use parity::wire::bytes;
use parity::world::World;
use serde_json::json;

use crate::clients::Clients;
use crate::cost::resident_bytes;
use crate::edge::{QUIET, Running, document, gateway, generate, ready, target};
use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Requests, each with a token and a nonce of its own.
    #[arg(long, default_value_t = 1_000_000)]
    requests: usize,
    /// Points of the curve.
    #[arg(long, default_value_t = 20)]
    points: usize,
    #[arg(long, default_value_t = 16)]
    connections: usize,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    stack::Binaries::build().await?;
    let world = Arc::new(World::new().await?);
    let (address, admin, state) = (ports::v4()?, ports::v4()?, ports::v4()?);
    let folder = world.case_folder("soak")?;
    let filters = json!({
        "jwt": {},
        "signature": { "signer": "client", "components": [] },
        "nonce": { "max_skew_s": 0 },
        "rate_limit": { "limits": [{ "name": "user", "by": "user", "requests": 10, "per_s": 1 }] },
    });
    let upstream = world.upstreams[0].address;
    let policy = folder.join("policy.yaml");
    std::fs::write(&policy, document(&world, [address, admin, state, upstream], &filters).to_string())?;
    let file = folder.join("envoy.json");
    std::fs::write(&file, generate(&policy)?)?;
    let service =
        Running::start(Command::new(gateway()?).arg("state").arg(&policy), &folder.join("state.log"))?;
    // Signatures tell whole seconds: what is made from the next second on is younger than the memory.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let envoy = target()?.join("envoy/envoy");
    let envoy = Running::start(
        Command::new(envoy).arg("-c").arg(&file).args(QUIET).args(["--concurrency", "1"]),
        &folder.join("log"),
    )?;
    ready(&world, address, &signed(&world, usize::MAX)?, &folder.join("log")).await?;

    say("  requests    Envoy    state service")?;
    let mut clients = Clients::connect(address, &world.client, arguments.connections).await?;
    let each = arguments.requests.div_ceil(arguments.points.max(1));
    for point in 0..arguments.points {
        let (world, first) = (Arc::clone(&world), point * each);
        let make = move |number: usize| signed(&world, first + number).unwrap_or_default();
        clients.send(each, Arc::new(make)).await?;
        let mb = |pid: u32| resident_bytes(pid).map(|bytes| bytes / 1_000_000);
        say(&format!(
            "  {:>8}   {:>4} MB   {:>4} MB",
            (point + 1) * each,
            mb(envoy.id())?,
            mb(service.id())?
        ))?;
    }
    Ok(())
}

/// A request of a user of its own, with a nonce of its own.
fn signed(world: &World, number: usize) -> anyhow::Result<Vec<u8>> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims =
        [("sub".to_owned(), json!(format!("user-{number}"))), ("cnf".to_owned(), json!(null))].into();
    let sign = Sign {
        key: "partner".to_owned(),
        keyid: None,
        components: ["@method", "@path", "@query", "authorization"].map(str::to_owned).to_vec(),
        created: Some(0),
        nonce: Some(format!("nonce-{number:020}")),
        alg: None,
        digest: false,
        then: parity::case::Then::default(),
    };
    let step = Step {
        target: "/v1/transactions/TOR0123".to_owned(),
        token: Some(Token { claims, ..Token::default() }),
        sign: Some(sign),
        ..Step::default()
    };
    let sent = Sent::new(&step, &world.keys, Times::new(now_s * 1_000, 0)?)?;
    Ok(bytes(&sent))
}
