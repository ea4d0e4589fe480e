//! `txn-core topics`.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use txn_core::bus::kafka::topics::{Missing, TopicState, align};
use txn_core::config::{BusConfig, Config};

use crate::ConfigFile;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Replicas of a topic that is made; one that has others is reported. All but one of them have to hold an event
    /// before it counts as published (`min.insync.replicas`), so that no loss of one broker loses it.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=15))]
    replication_factor: i32,
    /// Make nothing; exit status 1 when something is missing or differs.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigFile,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config.config)?;
    let BusConfig::Kafka(kafka) = &config.bus else {
        bail!("the local bus needs no topics to be made; with bus.kafka this command makes them");
    };
    let missing = if arguments.dry_run { Missing::Report } else { Missing::Make };
    let findings = align(kafka, arguments.replication_factor, missing).await?;
    let mut out = std::io::stdout().lock();
    let mut off = 0;
    for finding in &findings {
        let says = match &finding.state {
            TopicState::AsWanted => "as it should be".to_owned(),
            TopicState::Made => "made".to_owned(),
            TopicState::Missing => "missing".to_owned(),
            TopicState::Differs(differs) => format!("differs: {}", differs.join("; ")),
        };
        off += usize::from(matches!(finding.state, TopicState::Missing | TopicState::Differs(_)));
        writeln!(out, "{:<40} {says}", finding.topic).context("stdout")?;
    }
    if off > 0 {
        bail!(
            "{off} of {} topics are not as they should be; what differs is left to you: this command changes no topic",
            findings.len()
        );
    }
    Ok(())
}
