//! `parity`: every case, three ways.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use parity::case::{Named, all};
use parity::plane::{Kind, Programs};
use parity::replay::{Tally, replay};
use parity::world::World;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Replays every case of every filter, and of whole policies, in process, over TLS against the gateway, and over
/// TLS against Envoy, and tells every difference.
///
/// The same status, problem code, fields towards the upstream, fields of the answer, and things remembered are
/// expected of all three. What a data plane forces to differ is in the case itself, with the reason.
///
/// It needs the gateway (built beside this program), Envoy and the module:
///
///   cargo build --bin gateway && tests/run install && filters/wasm/build && cargo run --bin parity
///
/// Requests come from the addresses that the cases name, so it runs in a network namespace of its own (`unshare`,
/// as any user whom the system lets). Where that is not to be had, requests from other addresses are left out,
/// and the last line says how many.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Only cases whose name or filter contains this.
    case: Option<String>,
    /// Only this data plane, besides the crate itself.
    #[arg(long, value_enum)]
    plane: Option<Plane>,
    /// Cases at once.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Tell every request and its verdict.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Plane {
    Gateway,
    Envoy,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match apart().and_then(|()| run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("parity: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Set in the process that runs in a namespace of its own.
const APART: &str = "PARITY_APART";

/// Goes on in a network namespace of its own, if the system lets us; otherwise here.
fn apart() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    if std::env::var_os(APART).is_some() {
        return Ok(());
    }
    let unshare = ["--net", "--map-root-user"];
    let possible = Command::new("unshare").args(unshare).args(["ip", "link", "set", "lo", "up"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let this = std::env::current_exe()?;
    let error = Command::new("unshare")
        .args(unshare)
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(APART, "1")
        .exec();
    Err(error).context("unshare")
}

/// Makes addresses of ours, so that requests can come from them; answers with those that could not be had.
fn own(peers: &BTreeSet<IpAddr>) -> anyhow::Result<BTreeSet<IpAddr>> {
    let foreign = peers.iter().copied().filter(|peer| !peer.is_loopback());
    if std::env::var_os(APART).is_none() {
        return Ok(foreign.collect());
    }
    let ip = |arguments: &[&str]| -> anyhow::Result<()> {
        let status = Command::new("ip").args(arguments).status().context("ip")?;
        anyhow::ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
        Ok(())
    };
    ip(&["link", "set", "lo", "up"])?;
    for peer in foreign {
        let (bits, more) = if peer.is_ipv4() { (32, None) } else { (128, Some("nodad")) };
        let address = format!("{peer}/{bits}");
        let mut arguments = vec!["addr", "add", &address, "dev", "lo"];
        arguments.extend(more);
        ip(&arguments)?;
    }
    Ok(BTreeSet::new())
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    certs::install_crypto_provider();
    let wanted = |named: &Named| {
        let full = format!("{}: {}", named.family, named.case.name);
        arguments.case.as_ref().is_none_or(|part| full.contains(part.as_str()))
    };
    let cases: Vec<Named> = all()?.into_iter().filter(wanted).collect();
    anyhow::ensure!(!cases.is_empty(), "no case is named so");
    let kinds: &[Kind] = match arguments.plane {
        None => &Kind::ALL,
        Some(Plane::Gateway) => &[Kind::Gateway],
        Some(Plane::Envoy) => &[Kind::Envoy],
    };
    let peers = cases.iter().flat_map(|named| &named.case.requests).map(|step| step.peer.to_canonical());
    let out_of_reach = own(&peers.collect())?;
    let (gateway, target) = built()?;
    let programs = Programs::find(gateway, &target, kinds)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let began = Instant::now();
    let count = cases.len();
    let tally = runtime.block_on(everything(arguments, cases, kinds, programs, out_of_reach))?;
    let mut out = std::io::stdout().lock();
    for line in &tally.lines {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{}", tally.summary(count, began.elapsed()))?;
    Ok(if tally.differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The gateway beside this program, and `target`.
fn built() -> anyhow::Result<(PathBuf, PathBuf)> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program lies in no folder")?;
    let target = folder.parent().unwrap_or(Path::new("."));
    Ok((folder.join("gateway"), target.to_owned()))
}

async fn everything(
    arguments: &Arguments,
    cases: Vec<Named>,
    kinds: &'static [Kind],
    programs: Programs,
    out_of_reach: BTreeSet<IpAddr>,
) -> anyhow::Result<Tally> {
    let shared = Arc::new((World::new().await?, programs, out_of_reach));
    let slots = Arc::new(Semaphore::new(arguments.jobs.max(1)));
    let mut running = JoinSet::new();
    for (number, named) in cases.into_iter().enumerate() {
        let (shared, slots, verbose) = (Arc::clone(&shared), Arc::clone(&slots), arguments.verbose);
        running.spawn(async move {
            let _slot = slots.acquire().await;
            let (world, programs, out_of_reach) = &*shared;
            let tally = replay(world, programs, kinds, &named, out_of_reach, number, verbose).await;
            (number, tally)
        });
    }
    let mut tallies = Vec::new();
    while let Some(done) = running.join_next().await {
        tallies.push(done?);
    }
    tallies.sort_by_key(|(number, _)| *number);
    Ok(tallies.into_iter().map(|(_, tally)| tally).fold(Tally::default(), Tally::and))
}
