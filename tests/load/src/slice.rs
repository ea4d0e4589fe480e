//! The figures of the whole slice: start, idle memory, `send` at a steady rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stack::{Binaries, Options, Payment, Service, Stack};
use tokio::task::JoinSet;

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Payments a second. They are sent on time whether or not earlier ones were answered, and their latency
    /// counts from when they were due.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds of load.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Times the stack is started.
    #[arg(long, default_value_t = 3)]
    starts: u32,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(
        arguments.rate > 0 && arguments.seconds > 0 && arguments.starts > 0,
        "every number is at least 1"
    );
    let binaries = Binaries::build().await?;
    let target = stack::default_dir();
    let dir = target.parent().context("the development folder lies in target")?.join("bench");
    say(&format!("machine: {} cores, {}", cores(), processor()))?;

    let mut starts = Vec::new();
    let mut running = None;
    for _ in 0..arguments.starts {
        if let Some(stack) = running.take() {
            Stack::stop(stack).await;
        }
        let began = Instant::now();
        running = Some(Stack::start(&binaries, Options::new(&dir)).await?);
        starts.push(began.elapsed());
    }
    let stack = Arc::new(running.context("started at least once")?);
    starts.sort();
    say(&format!(
        "start to ready: median {:?} of {} starts, slowest {:?}",
        mid(&starts),
        starts.len(),
        starts.last().copied().unwrap_or_default()
    ))?;

    tokio::time::sleep(Duration::from_secs(2)).await;
    memory(&stack, "idle after start")?;

    // Connections, caches and pools as they are in a running system.
    load(&stack, arguments.rate, 3).await?;
    let cpu_before = cpu(&stack)?;
    let latencies = load(&stack, arguments.rate, arguments.seconds).await?;
    let cpu_after = cpu(&stack)?;
    report(&latencies, &arguments)?;
    for ((service, before), (_, after)) in cpu_before.iter().zip(&cpu_after) {
        let us = (after - before) * 1_000_000 / TICKS_PER_S / u64::try_from(latencies.len().max(1))?;
        say(&format!("  CPU of {service}: {us} us a payment"))?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    memory(&stack, "idle after load")?;
    Arc::into_inner(stack).context("the load has ended")?.stop().await;
    Ok(())
}

/// Sends payments on time and returns how long each took to be answered, `None` for one that was not accepted.
async fn load(stack: &Arc<Stack>, rate: u32, seconds: u32) -> anyhow::Result<Vec<Option<Duration>>> {
    let interval = Duration::from_secs(1) / rate;
    let began = tokio::time::Instant::now();
    let mut sent = JoinSet::new();
    for number in 0..rate * seconds {
        let due = began + interval * number;
        let stack = Arc::clone(stack);
        sent.spawn(async move {
            tokio::time::sleep_until(due).await;
            let user = stack.users().get(number as usize % 2).context("two users")?;
            let to = stack.users().get((number as usize + 1) % 2).context("two users")?;
            let request = stack.payment(user, &Payment::new(&user.vpa, &to.vpa, "1.00"))?;
            let response = request.send(stack.http()).await;
            let took = due.elapsed();
            let accepted = matches!(&response, Ok(response) if response.status().as_u16() == 200);
            Ok::<_, anyhow::Error>(accepted.then_some(took))
        });
    }
    let mut latencies = Vec::new();
    while let Some(latency) = sent.join_next().await {
        latencies.push(latency??);
    }
    Ok(latencies)
}

fn report(latencies: &[Option<Duration>], arguments: &Arguments) -> anyhow::Result<()> {
    let mut accepted: Vec<Duration> = latencies.iter().flatten().copied().collect();
    accepted.sort();
    let at = |share: f64| {
        let position = (accepted.len() as f64 * share) as usize;
        accepted.get(position.min(accepted.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    say(&format!(
        "send at {}/s for {} s: {} accepted, {} not; p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}, slowest {:?}",
        arguments.rate,
        arguments.seconds,
        accepted.len(),
        latencies.len() - accepted.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0),
    ))
}

fn memory(stack: &Stack, when: &str) -> anyhow::Result<()> {
    let mut total = 0;
    let mut parts = Vec::new();
    for (service, pid) in stack.pids() {
        let kib = status_kib(pid)?;
        total += kib;
        parts.push(format!("{} {:.1}", service.name(), kib as f64 / 1024.0));
    }
    say(&format!("memory {when}: {:.1} MB resident ({})", total as f64 / 1024.0, parts.join(", ")))
}

/// `VmRSS` of /proc/PID/status, KiB.
fn status_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Linux reports CPU time to programs in hundredths of a second, whatever the kernel's own clock.
const TICKS_PER_S: u64 = 100;

/// User and system time of every service, in ticks (fields 14 and 15 of /proc/PID/stat).
fn cpu(stack: &Stack) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let of = |(service, pid): (Service, u32)| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (fields.next().context("utime")??, fields.next().context("stime")??);
        Ok((service.name(), user + system))
    };
    stack.pids().into_iter().map(of).collect()
}

fn mid(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    model.unwrap_or("unknown processor").to_owned()
}
