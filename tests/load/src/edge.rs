//! What the module costs Envoy, beside what Envoy's own filters cost it for the same work.
//!
//! All Envoys have one worker, the same listener, the same TLS on both sides and the same upstream; only the
//! filter differs. They take turns, so that what else the machine does weighs on all alike.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use engines::ports;
use parity::case::Token;
use parity::mint::{AUTHORITY, Keys, Times};
use parity::wire::exchange;
use parity::world::World;
use serde_json::{Value, json};

use crate::clients::Clients;
use crate::cost::{cpu_ns, resident_bytes};
use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Requests of each round.
    #[arg(long, default_value_t = 4_000)]
    requests: usize,
    /// Rounds; in each every Envoy has its turn.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Connections to each Envoy.
    #[arg(long, default_value_t = 8)]
    connections: usize,
}

/// What stands in Envoy's chain of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    /// Nothing but the router.
    Plain,
    Module,
    /// `jwt_authn` with its cache, and `local_ratelimit`.
    OwnCached,
    /// `jwt_authn` without a cache, and `local_ratelimit`.
    Own,
}

impl Chain {
    const ALL: [Self; 4] = [Self::Plain, Self::Module, Self::OwnCached, Self::Own];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Module => "module",
            Self::OwnCached => "own-cached",
            Self::Own => "own",
        }
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log)?;
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("{}", command.get_program().display()))?;
        Ok(Self(child))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    stack::Binaries::build().await?;
    let world = World::new().await?;
    let upstream = upstream(&world).await?;
    let mut envoys = Vec::new();
    for chain in Chain::ALL {
        envoys.push(Envoy::start(&world, chain, upstream, 1).await?);
    }
    let times = Times::new(world.epoch_ms, 0)?;
    let warm = Arc::new(request(&world.keys.token(&Token::default(), times)?));
    let fresh_each = arguments.requests;
    let rounds = arguments.rounds;
    say(&format!("making {} tokens that nobody has seen", fresh_each * rounds))?;
    let fresh = Arc::new(fresh_requests(&world.keys, fresh_each * rounds, times)?);

    // Warm: the same token again and again.
    let mut warm_ns = vec![Vec::new(); envoys.len()];
    let mut fresh_ns = vec![Vec::new(); envoys.len()];
    let mut clients = Vec::new();
    for envoy in &envoys {
        clients.push(Clients::connect(envoy.address, &world.client, arguments.connections).await?);
    }
    let same = {
        let warm = Arc::clone(&warm);
        Arc::new(move |_: usize| warm.as_ref().clone())
    };
    for clients in &mut clients {
        clients.send(2_000, same.clone()).await?;
    }
    for round in 0..rounds {
        for (((envoy, clients), warm_ns), fresh_ns) in
            envoys.iter().zip(&mut clients).zip(&mut warm_ns).zip(&mut fresh_ns)
        {
            let before = cpu_ns(envoy.process.id())?;
            clients.send(arguments.requests, same.clone()).await?;
            let between = cpu_ns(envoy.process.id())?;
            warm_ns.push(per_request(between - before, arguments.requests));
            let slice = {
                let fresh = Arc::clone(&fresh);
                let first = round * fresh_each;
                Arc::new(move |number: usize| fresh.get(first + number).cloned().unwrap_or_default())
            };
            clients.send(fresh_each, slice).await?;
            fresh_ns.push(per_request(cpu_ns(envoy.process.id())? - between, fresh_each));
        }
    }
    report(&envoys, &warm_ns, &fresh_ns, &arguments)?;
    drop(clients);
    drop(envoys);
    memory(&world, upstream).await
}

fn report(
    envoys: &[Envoy],
    warm_ns: &[Vec<u64>],
    fresh_ns: &[Vec<u64>],
    arguments: &Arguments,
) -> anyhow::Result<()> {
    say(&format!(
        "CPU time of Envoy a request, one worker, median of {} rounds of {} requests, {} connections",
        arguments.rounds, arguments.requests, arguments.connections
    ))?;
    let of = |all: &[Vec<u64>], chain: Chain| {
        let position = envoys.iter().position(|envoy| envoy.chain == chain).unwrap_or_default();
        let mut rounds = all.get(position).cloned().unwrap_or_default();
        rounds.sort_unstable();
        rounds.get(rounds.len() / 2).copied().unwrap_or_default()
    };
    let us = |ns: u64| format!("{}.{:01} us", ns / 1_000, ns % 1_000 / 100);
    say("  filters                        a warm token   a token never seen")?;
    for (chain, what) in [
        (Chain::Plain, "none                      "),
        (Chain::Module, "the module                "),
        (Chain::OwnCached, "jwt_authn with cache, local_ratelimit"),
        (Chain::Own, "jwt_authn, local_ratelimit"),
    ] {
        say(&format!("  {what:38} {:>10}   {:>10}", us(of(warm_ns, chain)), us(of(fresh_ns, chain))))?;
    }
    let percent = |ours: u64, theirs: u64| format!("{:.2}", ours as f64 / theirs.max(1) as f64);
    say(&format!(
        "  module / own, warm (cache)      {} (asked: at most 1.25)",
        percent(of(warm_ns, Chain::Module), of(warm_ns, Chain::OwnCached))
    ))?;
    say(&format!(
        "  module / own, never seen        {} (asked: at most 1.20)",
        percent(of(fresh_ns, Chain::Module), of(fresh_ns, Chain::Own))
    ))?;
    Ok(())
}

/// What the module adds to Envoy's memory: once, and with every worker.
async fn memory(world: &World, upstream: SocketAddr) -> anyhow::Result<()> {
    const WORKERS: u32 = 4;
    let mut resident = Vec::new();
    for chain in [Chain::Plain, Chain::Module] {
        for workers in [1, WORKERS] {
            let envoy = Envoy::start(world, chain, upstream, workers).await?;
            let token = world.keys.token(&Token::default(), Times::new(world.epoch_ms, 0)?)?;
            // Connections enough that every worker has some.
            let mut clients = Clients::connect(envoy.address, &world.client, 32).await?;
            clients.send(4_000, Arc::new(move |_| request(&token))).await?;
            resident.push(resident_bytes(envoy.process.id())?);
        }
    }
    let [plain, plain_more, module, module_more] = resident[..] else { anyhow::bail!("four were measured") };
    let mb = |bytes: u64| bytes / 1_000_000;
    let of_workers = (module_more.saturating_sub(module)).saturating_sub(plain_more.saturating_sub(plain));
    say(&format!(
        "  memory above plain Envoy        {} MB with one worker, {} MB with each worker more (asked: at most 40 a worker)",
        mb(module.saturating_sub(plain)),
        mb(of_workers / u64::from(WORKERS - 1))
    ))
}

fn per_request(ns: u64, requests: usize) -> u64 {
    ns / u64::try_from(requests.max(1)).unwrap_or(1)
}

/// The bytes of a request that bears a token.
pub(crate) fn request(token: &str) -> Vec<u8> {
    format!(
        "GET /v1/transactions/TOR0123 HTTP/1.1\r\nhost: {AUTHORITY}\r\nuser-agent: bench\r\naccept: application/json\r\n\
         authorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

fn fresh_requests(keys: &Keys, count: usize, times: Times) -> anyhow::Result<Vec<Vec<u8>>> {
    (0..count)
        .map(|number| {
            let claims = [("jti".to_owned(), json!(format!("fresh-{number}")))].into();
            Ok(request(&keys.token(&Token { claims, ..Token::default() }, times)?))
        })
        .collect()
}

async fn upstream(world: &World) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tls = world.upstream_tls()?;
    let app = Router::new().fallback(|| async { "ok" });
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    Ok(address)
}

struct Envoy {
    chain: Chain,
    address: SocketAddr,
    process: Running,
    _state: Option<Running>,
}

impl Envoy {
    async fn start(world: &World, chain: Chain, upstream: SocketAddr, workers: u32) -> anyhow::Result<Self> {
        let (address, admin, state) = (ports::v4()?, ports::v4()?, ports::v4()?);
        let folder = world.case_folder(chain.name())?;
        let filters = json!({ "jwt": {}, "rate_limit": { "limits": [{
            "name": "all", "by": "route", "requests": 1_000_000, "per_s": 1, "counted": "here",
        }] } });
        let policy = folder.join("policy.yaml");
        std::fs::write(&policy, document(world, [address, admin, state, upstream], &filters).to_string())?;
        let mut bootstrap: Value = serde_json::from_str(&generate(&policy)?)?;
        own_filters(&mut bootstrap, chain, world)?;
        let file = folder.join("envoy.json");
        std::fs::write(&file, bootstrap.to_string())?;
        let state = match chain {
            Chain::Module => Some(Running::start(
                Command::new(gateway()?).arg("state").arg(&policy),
                &folder.join("state.log"),
            )?),
            Chain::Plain | Chain::OwnCached | Chain::Own => None,
        };
        let process = Running::start(
            Command::new(target()?.join("envoy/envoy"))
                .arg("-c")
                .arg(&file)
                .args(QUIET)
                .args(["--concurrency", &workers.to_string()]),
            &folder.join("log"),
        )?;
        let envoy = Self { chain, address, process, _state: state };
        let token = world.keys.token(&Token::default(), Times::new(world.epoch_ms, 0)?)?;
        ready(world, address, &request(&token), &folder.join("log")).await?;
        Ok(envoy)
    }
}

pub(crate) const QUIET: [&str; 3] = ["--log-level", "warning", "--disable-hot-restart"];

/// Waits until a request is answered with 200.
pub(crate) async fn ready(world: &World, at: SocketAddr, request: &[u8], log: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < Duration::from_secs(20) {
        match exchange(at, [127, 0, 0, 1].into(), &world.client, request).await {
            Ok(Some(answer)) if answer.status == 200 => return Ok(()),
            Ok(answer) => {
                last =
                    answer.map_or_else(|| "closed".to_owned(), |raw| format!("{} {}", raw.status, raw.code()))
            }
            Err(why) => last = format!("{why:#}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("it is not ready: {last}\n{}", std::fs::read_to_string(log).unwrap_or_default())
}

/// A policy of one route. `places`: listener, admin, state service, upstream.
pub(crate) fn document(world: &World, places: [SocketAddr; 4], filters: &Value) -> Value {
    let file = |name: &str| format!("file:{}", world.folder().join(name).display());
    let [address, admin, state, upstream] = places;
    json!({
        "listeners": [{
            "name": "bench", "address": address, "max_requests_per_connection": 100_000_000,
            "tls": { "certificate": file("edge.pem"), "key": file("edge.key") },
        }],
        "admin": { "address": admin },
        "state": { "memory": { "max_entries": 4_000_000 }, "service": { "address": state, "timeout_ms": 2_000 } },
        "upstreams": { "u": { "addresses": [upstream], "tls": {
            "server_name": "upstream.test", "ca": file("ca.pem"),
            "certificate": file("edge.pem"), "key": file("edge.key"),
        } } },
        "issuers": { "main": {
            "issuer": "https://issuer.test", "audiences": ["torana"], "algorithms": ["ES256"],
            "jwks": { "file": file("jwks.json") },
        } },
        "clients": { "partner": { "hmac_keys": [{ "id": "partner-1", "secret": file("partner-1.key") }] } },
        "routes": [{
            "name": "r", "methods": ["GET"], "path": "/v1/transactions/{id}", "upstream": "u", "filters": filters,
        }],
    })
}

/// What `gateway envoy` makes of a policy.
pub(crate) fn generate(policy: &Path) -> anyhow::Result<String> {
    let module = target()?.join("wasm/torana.wasm");
    anyhow::ensure!(module.exists(), "{} is missing; filters/wasm/build makes it", module.display());
    let made = Command::new(gateway()?).arg("envoy").arg(policy).arg("--module").arg(module).output()?;
    anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?)
}

/// The gateway beside this program.
pub(crate) fn gateway() -> anyhow::Result<PathBuf> {
    let gateway = std::env::current_exe()?.with_file_name("gateway");
    anyhow::ensure!(gateway.exists(), "{} is missing; tests/bench builds it", gateway.display());
    Ok(gateway)
}

pub(crate) fn target() -> anyhow::Result<PathBuf> {
    let dev = stack::default_dir();
    Ok(dev.parent().context("the development folder lies in target")?.to_owned())
}

/// Puts Envoy's own filters in place of the module.
fn own_filters(bootstrap: &mut Value, chain: Chain, world: &World) -> anyhow::Result<()> {
    if chain == Chain::Module {
        return Ok(());
    }
    let manager = bootstrap
        .pointer_mut("/static_resources/listeners/0/filter_chains/0/filters/1/typed_config")
        .context("the generated listener has another shape")?;
    let routes = manager.pointer_mut("/route_config/virtual_hosts/0/routes/0/match").context("no route")?;
    *routes = json!({ "prefix": "/" });
    let router = manager.pointer("/http_filters/1").cloned().context("no router")?;
    let own = match chain {
        Chain::Plain | Chain::Module => Vec::new(),
        Chain::OwnCached => own(world, Some(json!({ "jwt_cache_size": 1_000 }))),
        Chain::Own => own(world, None),
    };
    manager["http_filters"] = own.into_iter().chain([router]).collect();
    Ok(())
}

fn own(world: &World, cache: Option<Value>) -> Vec<Value> {
    let mut provider = json!({
        "issuer": "https://issuer.test",
        "audiences": ["torana"],
        "local_jwks": { "inline_string": world.keys.jwks.to_string() },
    });
    if let Some(cache) = cache {
        provider["jwt_cache_config"] = cache;
    }
    vec![
        json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "main": provider },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "main" } }],
        } }),
        json!({ "name": "envoy.filters.http.local_ratelimit", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "bench",
            "token_bucket": { "max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s" },
            "filter_enabled": { "default_value": { "numerator": 100, "denominator": "HUNDRED" } },
            "filter_enforced": { "default_value": { "numerator": 100, "denominator": "HUNDRED" } },
        } }),
    ]
}
