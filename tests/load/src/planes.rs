//! What a request costs the gateway, beside what it costs an Envoy with the module, under one policy.
//!
//! Both have the same TLS on both sides and the same upstream, and take turns, so that what else the machine does weighs on
//! both alike.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use engines::ports;
use parity::case::Token;
use parity::mint::{AUTHORITY, Times};
use parity::world::World;
use serde_json::{Value, json};

use crate::clients::Clients;
use crate::cost::{cpu_ns, machine};
use crate::edge::{QUIET, Running, document, gateway, generate, ready, target};
use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Requests of each round.
    #[arg(long, default_value_t = 3_000)]
    requests: usize,
    /// Rounds; in each both have their turn with every kind of request.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Connections to each.
    #[arg(long, default_value_t = 8)]
    connections: usize,
}

/// A kind of request: what it is, its path, the fields that it has.
const KINDS: [(&str, &str, &str); 5] = [
    ("nothing but the route", "/plain", ""),
    ("a token seen before, a limit", "/token", "authorization: Bearer TOKEN\r\n"),
    ("an answer of 32 KiB", "/large", ""),
    ("the same, where it may be compressed, to who takes no gzip", "/compressed", ""),
    ("the same, compressed", "/compressed", "accept-encoding: gzip\r\n"),
];

/// A list of transactions, as long as that.
fn statement() -> String {
    let of = |number: u64| {
        json!({
            "id": format!("TOR{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16), "status": "COMPLETED",
            "amount": format!("{}.{:02}", number * 7_919 % 10_000, number * 31 % 100), "currency": "INR",
            "from": "alice@torana", "to": format!("shop-{}@torana", number * 97 % 1_000),
        })
    };
    let mut transactions = Vec::new();
    let mut length = 0;
    for number in 0.. {
        let transaction = of(number).to_string();
        length += transaction.len() + 1;
        if length > 32 * 1024 {
            break;
        }
        transactions.push(transaction);
    }
    format!("[{}]", transactions.join(","))
}

async fn upstream(world: &World) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tls = world.upstream_tls()?;
    let statement: Arc<str> = statement().into();
    let large = get(async move || ([("content-type", "application/json")], statement.to_string()));
    let app = Router::new().route("/large", large.clone()).route("/compressed", large);
    let app = app.fallback(|| async { "ok" });
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    Ok(address)
}

/// A data plane.
struct Plane {
    name: &'static str,
    address: SocketAddr,
    process: Running,
    _state: Option<Running>,
}

impl Plane {
    async fn start(world: &World, name: &'static str, upstream: SocketAddr) -> anyhow::Result<Self> {
        let (address, admin, state) = (ports::v4()?, ports::v4()?, ports::v4()?);
        let folder = world.case_folder(name)?;
        let mut policy = document(world, [address, admin, state, upstream], &json!({}));
        // Connections wait for their turn.
        policy["listeners"][0]["idle_timeout_ms"] = json!(3_600_000);
        let limits = json!({ "limits": [{
            "name": "all", "by": "route", "requests": 1_000_000, "per_s": 1, "counted": "here",
        }] });
        let route = |path: &str, filters: Value| json!({ "name": path[1..], "methods": ["GET"], "path": path, "upstream": "u", "filters": filters });
        policy["routes"] = json!([
            route("/plain", json!({})),
            route("/token", json!({ "jwt": {}, "rate_limit": limits })),
            route("/large", json!({})),
            route("/compressed", json!({ "compression": {} })),
        ]);
        let file = folder.join("policy.yaml");
        std::fs::write(&file, policy.to_string())?;
        let log = folder.join("log");
        let (process, state) = if name == "gateway" {
            // As many as Envoy has workers.
            let mut gateway = Command::new(gateway()?);
            (Running::start(gateway.args(["serve", "--threads", "1"]).arg(&file), &log)?, None)
        } else {
            let bootstrap = folder.join("envoy.json");
            std::fs::write(&bootstrap, generate(&file)?)?;
            let mut state = Command::new(gateway()?);
            let state = Running::start(state.arg("state").arg(&file), &folder.join("state.log"))?;
            let mut envoy = Command::new(target()?.join("envoy/envoy"));
            envoy.arg("-c").arg(&bootstrap).args(QUIET).args(["--concurrency", "1"]);
            (Running::start(&mut envoy, &log)?, Some(state))
        };
        Ok(Self { name, address, process, _state: state })
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    stack::Binaries::build().await?;
    let world = World::new().await?;
    let upstream = upstream(&world).await?;
    // Longer than any machine takes over this.
    let claims = [("exp".to_owned(), json!("+86400"))].into();
    let token = Token { claims, ..Token::default() };
    let token = world.keys.token(&token, Times::new(world.epoch_ms, 0)?)?;
    let requests = KINDS.map(|(_, path, fields)| {
        let fields = fields.replace("TOKEN", &token);
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\nuser-agent: bench\r\n{fields}\r\n");
        Arc::new(request.into_bytes())
    });
    let mut planes = Vec::new();
    for name in ["gateway", "envoy"] {
        let plane = Plane::start(&world, name, upstream).await?;
        let log = world.case_folder(name)?.join("log");
        for request in &requests {
            ready(&world, plane.address, request, &log).await?;
        }
        let clients = Clients::connect(plane.address, &world.client, arguments.connections).await?;
        planes.push((plane, clients, vec![Vec::new(); KINDS.len()]));
    }
    for round in 0..=arguments.rounds {
        for (kind, request) in requests.iter().enumerate() {
            for (plane, clients, ns) in &mut planes {
                let request = Arc::clone(request);
                let before = cpu_ns(plane.process.id())?;
                clients.send(arguments.requests, Arc::new(move |_| request.as_ref().clone())).await?;
                let spent = cpu_ns(plane.process.id())? - before;
                // The first round warms up.
                if let Some(ns) = ns.get_mut(kind).filter(|_| round > 0) {
                    ns.push(spent / u64::try_from(arguments.requests.max(1))?);
                }
            }
        }
    }
    say(&format!(
        "CPU time a request, median of {} rounds of {} requests, {} connections; {}",
        arguments.rounds,
        arguments.requests,
        arguments.connections,
        machine()
    ))?;
    let median = |mut rounds: Vec<u64>| {
        rounds.sort_unstable();
        rounds.get(rounds.len() / 2).copied().unwrap_or_default()
    };
    let columns: Vec<String> = planes.iter().map(|(plane, ..)| format!("{:>10}", plane.name)).collect();
    say(&format!("  {:60} {}   gateway / envoy", "", columns.join(" ")))?;
    for (kind, (what, ..)) in KINDS.iter().enumerate() {
        let of = planes.iter().map(|(_, _, ns)| median(ns.get(kind).cloned().unwrap_or_default()));
        let of: Vec<u64> = of.collect();
        let told: Vec<String> = of.iter().map(|ns| format!("{:>7} us", ns / 1_000)).collect();
        let ratio =
            of.first().copied().unwrap_or_default() as f64 / of.last().copied().unwrap_or(1).max(1) as f64;
        say(&format!("  {what:60} {}   {ratio:.2}", told.join(" ")))?;
    }
    Ok(())
}
