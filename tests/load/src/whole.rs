//! A payment's whole life on a fleet's engines, at a steady rate, everything on the same machine: from the phone's
//! request through gateway, core, PostgreSQL, Kafka, proxy and simulated network to COMPLETED; and what it costs whom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::Ledger;
use serde_json::json;
use stack::{Binaries, Engines, Options, Service, Stack};

use crate::cost::{cpu_ns, cpu_with_children_us, machine};
use crate::store::empty_folder;
use crate::{say, steady};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Payments a second.
    #[arg(long, default_value_t = Arguments::default().rate, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds of load that count; five more go before them.
    #[arg(long, default_value_t = Arguments::default().seconds, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments { rate: 500, seconds: 60 }
    }
}

const WARM_UP_S: u32 = 5;
/// Payments that have not ended by then are counted as left behind.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
const DATABASE: &str = "torana";

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let binaries = Binaries::build().await?;
    let dir = empty_folder("bench-whole")?;
    say(&format!("machine: {}", machine()))?;
    // Two users pay for everybody.
    let limit = |name: &str, by: &str| json!([{ "name": name, "by": by, "requests": 10 * arguments.rate, "per_s": 1 }]);
    let options = Options::new(&dir)
        .engines(Engines::Fleet)
        .set(Service::Edge, "/plans/app/rate_limit", limit("tenant", "tenant"))
        .set(Service::Edge, "/routes/0/filters/rate_limit/limits", limit("payments", "user"));
    let stack = Arc::new(Stack::start(&binaries, options).await?);

    steady::send(&stack, arguments.rate, WARM_UP_S).await?;
    drained(&stack).await?;
    let counts_from: i64 = query(&stack, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .await?
        .trim()
        .parse()
        .context("the database's clock")?;

    let before = costs(&stack).await?;
    let latencies = steady::send(&stack, arguments.rate, arguments.seconds).await?;
    let open = query(
        &stack,
        "SELECT count(*) FROM transactions WHERE status NOT IN ('COMPLETED', 'FAILED', 'REVERSED')",
    )
    .await?;
    let ended = Instant::now();
    let left = drained(&stack).await?;
    let drained_after = ended.elapsed();
    let after = costs(&stack).await?;

    steady::report(&latencies, arguments.rate, arguments.seconds)?;
    say(&format!(
        "when the last was answered {} payments were under way; {:.1} s later {left} were",
        open.trim(),
        drained_after.as_secs_f64()
    ))?;
    ends(&stack, counts_from).await?;
    stages(&stack, counts_from).await?;
    say("CPU a payment, its whole life:")?;
    let mut sum = 0;
    for ((who, before), (_, after)) in before.iter().zip(&after) {
        let us = (after - before) / u64::try_from(latencies.len().max(1))?;
        sum += us;
        say(&format!("  {who:<14} {us:>6} us"))?;
    }
    say(&format!("  {:<14} {sum:>6} us", "together"))?;

    let ledger = Ledger::of(&stack).await?;
    ledger.check()?;
    ensure!(left == 0, "{left} payments were left behind");
    Arc::into_inner(stack).context("the load has ended")?.stop().await;
    Ok(())
}

/// Waits until no timer and no event waits, and gives how many payments have not ended.
async fn drained(stack: &Stack) -> anyhow::Result<u64> {
    let sql = "SELECT (SELECT count(*) FROM outbox_events) + (SELECT count(*) FROM timers)
        + (SELECT count(*) FROM transactions WHERE status IN ('PENDING', 'DEBITED'))";
    let began = Instant::now();
    loop {
        let waiting: u64 = query(stack, sql).await?.trim().parse()?;
        if waiting == 0 || began.elapsed() > DRAINED_WITHIN {
            return Ok(waiting);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How the payments ended, and how long after they were accepted.
async fn ends(stack: &Stack, counts_from: i64) -> anyhow::Result<()> {
    let sql = format!(
        "SELECT status, count(*), percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP
            (ORDER BY 1000 * extract(epoch FROM updated_at - created_at))
         FROM transactions WHERE created_at >= to_timestamp({counts_from} / 1000.0) GROUP BY status"
    );
    say("how payments ended: status | payments | milliseconds from accepted to ended {p50, p99}")?;
    for row in query(stack, &sql).await?.lines() {
        say(&format!("  {row}"))?;
    }
    Ok(())
}

/// From each step of a payment's history to the next. The network takes 100 ms for debit and credit.
async fn stages(stack: &Stack, counts_from: i64) -> anyhow::Result<()> {
    let sql = format!(
        "WITH steps AS (
            SELECT txn_id, version, state, at, lag(state) OVER way AS from_state, at - lag(at) OVER way AS took
            FROM txn_history WHERE created_at >= to_timestamp({counts_from} / 1000.0) AND applied
            WINDOW way AS (PARTITION BY txn_id ORDER BY version))
         SELECT from_state || ' to ' || state, count(*), percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP
            (ORDER BY 1000 * extract(epoch FROM took))
         FROM steps WHERE from_state IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
    );
    say("where payments wait: step | payments | milliseconds {p50, p99}")?;
    for row in query(stack, &sql).await?.lines() {
        say(&format!("  {row}"))?;
    }
    Ok(())
}

/// CPU time so far, microseconds: every service, every engine, and this process, which is the phones.
async fn costs(stack: &Stack) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let mut costs = Vec::new();
    for (service, pid) in stack.pids() {
        costs.push((service.name(), cpu_ns(pid)? / 1000));
    }
    let fleet = stack.fleet().context("it has engines")?;
    let (postgres, kafka, redis) =
        (fleet.postgres.lock().await.id(), fleet.kafka.lock().await.id(), fleet.redis.lock().await.id());
    costs.push(("PostgreSQL", cpu_with_children_us(&[postgres.context("it runs")?])?));
    costs.push(("Kafka", cpu_ns(kafka.context("it runs")?)? / 1000));
    costs.push(("Redis", cpu_ns(redis.context("it runs")?)? / 1000));
    costs.push(("the phones", cpu_ns(std::process::id())? / 1000));
    Ok(costs)
}

async fn query(stack: &Stack, sql: &str) -> anyhow::Result<String> {
    stack.fleet().context("it has engines")?.postgres.lock().await.query(DATABASE, sql).await
}
