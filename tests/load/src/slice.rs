//! The figures of the whole slice: start, idle memory, `send` at a steady rate.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stack::{Binaries, Options, Stack};

use crate::cost::{cpu_ns, machine, resident_bytes};
use crate::{say, steady};

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
    say(&format!("machine: {}", machine()))?;

    let mut starts = Vec::new();
    let mut running = None;
    for _ in 0..arguments.starts {
        if let Some(stack) = running.take() {
            Stack::stop(stack).await;
        }
        let stack = Stack::start(&binaries, Options::new(&dir)).await?;
        starts.push(stack.ready_after());
        running = Some(stack);
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
    steady::send(&stack, arguments.rate, 3).await?;
    let cpu_before = cpu(&stack)?;
    let latencies = steady::send(&stack, arguments.rate, arguments.seconds).await?;
    let cpu_after = cpu(&stack)?;
    steady::report(&latencies, arguments.rate, arguments.seconds)?;
    for ((service, before), (_, after)) in cpu_before.iter().zip(&cpu_after) {
        let us = (after - before) / 1_000 / u64::try_from(latencies.len().max(1))?;
        say(&format!("  CPU of {service}: {us} us a payment"))?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    memory(&stack, "idle after load")?;
    Arc::into_inner(stack).context("the load has ended")?.stop().await;
    Ok(())
}

const MIB: f64 = 1_048_576.0;

fn memory(stack: &Stack, when: &str) -> anyhow::Result<()> {
    let mut total = 0;
    let mut parts = Vec::new();
    for (service, pid) in stack.pids() {
        let bytes = resident_bytes(pid)?;
        total += bytes;
        parts.push(format!("{} {:.1}", service.name(), bytes as f64 / MIB));
    }
    say(&format!("memory {when}: {:.1} MB resident ({})", total as f64 / MIB, parts.join(", ")))
}

fn mid(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// CPU time of every service so far, nanoseconds.
fn cpu(stack: &Stack) -> anyhow::Result<Vec<(&'static str, u64)>> {
    stack.pids().into_iter().map(|(service, pid)| Ok((service.name(), cpu_ns(pid)?))).collect()
}
