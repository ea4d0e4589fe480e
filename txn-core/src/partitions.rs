//! `txn-core partitions`: months made ahead, looked at, and dropped.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Subcommand;
use txn_core::config::{Config, StoreConfig};
use txn_core::store::postgres::{Month, Partition, Partitions};
use txn_core::txn::UnixMs;

use crate::ConfigFile;

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Make the partitions of this month and of those to come. `serve` does it too.
    Ensure {
        /// Months after this one; `store.postgres.months_ahead` unless given.
        #[arg(long, value_name = "N")]
        months_ahead: Option<u32>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print every month, how large it is, and how many of its payments are unfinished.
    List(ConfigFile),
    /// Drop whole months that were kept for long enough. Says what it would do, and does it only with --yes.
    Drop {
        /// Months before this one that are kept.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(FEWEST_KEPT..=1200))]
        keep_months: u16,
        /// Drop them.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// More than the 90 days for which an idempotency key gives its payment again.
const FEWEST_KEPT: i64 = 4;

pub(crate) async fn run(what: What) -> anyhow::Result<()> {
    let this_month = Month::of(UnixMs::now());
    match what {
        What::Ensure { months_ahead, config } => {
            let (partitions, configured) = open(&config)?;
            let made = partitions.ensure(this_month, months_ahead.unwrap_or(configured)).await?;
            for month in &made {
                say(&format!("made {month}"))?;
            }
            if made.is_empty() { say("nothing was missing") } else { Ok(()) }
        }
        What::List(config) => {
            for partition in open(&config)?.0.list().await? {
                say(&line(&partition))?;
            }
            Ok(())
        }
        What::Drop { keep_months, yes, config } => {
            let first_kept = this_month.plus(-i32::from(keep_months));
            drop_before(&open(&config)?.0, first_kept, yes).await
        }
    }
}

async fn drop_before(partitions: &Partitions, first_kept: Month, yes: bool) -> anyhow::Result<()> {
    let old: Vec<Partition> =
        partitions.list().await?.into_iter().filter(|partition| partition.month < first_kept).collect();
    if old.is_empty() {
        return say(&format!("nothing is older than {first_kept}"));
    }
    for partition in &old {
        let verdict = match (partition.unfinished, yes) {
            (1.., _) => "stays: payments in it are unfinished",
            (_, false) => "would be dropped; --yes does it",
            (_, true) => {
                partitions.drop(partition.month).await.with_context(|| partition.month.to_string())?;
                "dropped"
            }
        };
        say(&format!("{}  {verdict}", line(partition)))?;
    }
    Ok(())
}

fn line(partition: &Partition) -> String {
    let rows = if partition.rows < 0 { "?".to_owned() } else { partition.rows.to_string() };
    let mib = partition.bytes / (1024 * 1024);
    format!("{}  about {rows} payments, {mib} MiB, {} unfinished", partition.month, partition.unfinished)
}

fn open(file: &ConfigFile) -> anyhow::Result<(Partitions, u32)> {
    match Config::load(&file.config)?.store {
        StoreConfig::Postgres(postgres) => Ok((Partitions::of(&postgres)?, postgres.months_ahead)),
        StoreConfig::Sqlite(_) => {
            anyhow::bail!("SQLite keeps everything in one table; there are no partitions")
        }
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("stdout")
}
