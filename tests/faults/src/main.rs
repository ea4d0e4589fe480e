//! Faults under load. What is to survive them: every payment that was answered 200 ends as the banks' books say, its
//! events are all on the bus in order, and an API that cannot do something says so and nothing else.

mod account;
mod clients;
mod events;
mod inject;
mod schedule;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use serde_json::json;
use stack::{Binaries, Options, Service, Stack};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use crate::account::Account;
use crate::clients::load;
use crate::inject::Injection;
use crate::schedule::Schedule;

/// Two instances of every service under load and seeded faults; then the account. Exit status 1 when anything is wrong.
#[derive(Debug, Parser)]
#[command(name = "tests/chaos", version)]
struct Arguments {
    /// The same seed and length make the same schedule.
    #[arg(long)]
    seed: u64,
    /// Minutes of load; from 5 on every fault lasts as long as it should.
    #[arg(long, value_parser = minutes)]
    minutes: Duration,
    /// Payments a second, as long as they are answered.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
}

/// Violations that are printed; the others are counted.
const TOLD: usize = 40;
/// The whole stack is ready again within this after the last fault.
const HEALS_WITHIN: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    certs::install_crypto_provider();
    let Arguments { seed, minutes, rate } = Arguments::parse();
    let schedule = Schedule::new(seed, minutes);
    say(&format!("seed {seed}, {} s of load at {rate} payments a second", minutes.as_secs()))?;
    if schedule.scale < 1.0 {
        say(&format!(
            "a short run: every fault lasts {:.2} of its time (Kafka stopped for 60 s: {:.0} s)",
            schedule.scale,
            60.0 * schedule.scale
        ))?;
    }
    let target = stack::default_dir();
    let dir = target.parent().context("the development folder lies in target")?.join("chaos");
    let stack = Arc::new(Stack::start(&Binaries::build().await?, options(&dir)).await?);
    let names: Vec<&str> = stack.instances().iter().map(|instance| instance.name()).collect();
    say(&format!("running: {}", names.join(", ")))?;

    let account = run(&stack, &schedule, seed, minutes, rate).await;
    let logs = stack.dir().join("logs");
    if let Some(stack) = Arc::into_inner(stack) {
        stack.stop().await;
    }
    say(&format!("logs: {}", logs.display()))?;
    let account = account?;
    say("the account:")?;
    for (name, value) in &account.figures {
        say(&format!("  {name}: {value}"))?;
    }
    for violation in account.violations.iter().take(TOLD) {
        say(&format!("VIOLATION {violation}"))?;
    }
    if account.violations.is_empty() {
        say("nothing lost, nothing twice, nothing out of order")?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{} violations with seed {seed}", account.violations.len()))?;
    Ok(ExitCode::FAILURE)
}

async fn run(
    stack: &Arc<Stack>,
    schedule: &Schedule,
    seed: u64,
    length: Duration,
    rate: u32,
) -> anyhow::Result<Account> {
    let (over, until) = watch::channel(false);
    let injection = Injection::new(Arc::clone(stack));
    let ends = injection.began + length;
    let loaded = tokio::spawn(load(Arc::clone(stack), seed, f64::from(rate), until));
    let injected = injection.run(schedule).await;
    drop(injection);
    if injected.is_ok() {
        sleep_until(ends).await;
    }
    over.send_replace(true);
    let (seen, injected) = (loaded.await??, injected?);
    say("the load is over; waiting until every instance is ready and every payment has ended")?;
    timeout(HEALS_WITHIN, async {
        for instance in stack.instances() {
            stack.ready(*instance).await?;
        }
        anyhow::Ok(())
    })
    .await
    .context("not every instance is ready after the last fault")??;
    Account::of(stack, &seen, &injected).await
}

/// Times that fit faults of a minute: nothing is given up while Kafka is away, and status checks go on for longer than
/// any silence. And payers whose money does not run out: a payment that is refused for want of it proves little.
fn options(dir: &std::path::Path) -> Options {
    let core = |options: Options, pointer: &str, value| options.set(Service::TxnCore, pointer, value);
    let options = core(Options::new(dir).twins(), "/rules/send_within_ms", json!(120_000));
    let options = core(options, "/rules/status_checks_ms", json!([3_000, 12_000, 40_000]));
    options.set(Service::NpciSim, "/accounts/1/balance_paise", json!(1_000_000_000_000_i64))
}

fn minutes(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (1.0..=1_440.0).contains(&minutes) => Ok(Duration::from_secs_f64(minutes * 60.0)),
        _ => Err("1 to 1440; a shorter run has no room for every fault".to_owned()),
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
