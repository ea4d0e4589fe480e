//! `txn-core dlq`: looks at dead letters and sends them back.

use std::io::{Write as _, stdout};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};
use txn_core::bus::consume::header;
use txn_core::bus::letters::{self, Letter, LetterId, Replayed, Wanted};
use txn_core::bus::{Bus, Topic};
use txn_core::config::Config;
use txn_core::server::open_bus;
use txn_core::txn::{UnixMs, mask_vpas};

use crate::ConfigFile;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum What {
    /// Print letters, the oldest first.
    List {
        #[command(flatten)]
        which: Which,
        /// Also those that were sent back already.
        #[arg(long)]
        replayed: bool,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print one whole letter, addresses masked.
    Show {
        id: LetterId,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Send letters back to the topic that they came from, and remember it.
    Replay {
        /// As `dlq list` prints them: 3-17.
        ids: Vec<LetterId>,
        /// All that the conditions hold for, a thousand at a time.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// Even those that were sent back already.
        #[arg(long)]
        again: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        config: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Who could not handle it: orchestrator, audit.
    #[arg(long)]
    group: Option<String>,
    /// The topic that it came from.
    #[arg(long)]
    topic: Option<String>,
    /// The payment.
    #[arg(long, value_name = "TXN_ID")]
    txn: Option<String>,
    /// What the reason contains.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Not before: 2026-11-24T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

/// One run sends at most so many back.
const MOST: usize = 1_000;

impl Which {
    fn wanted(self, ids: Vec<LetterId>, replayed: bool) -> anyhow::Result<Wanted> {
        let topic =
            |name: String| Topic::from_name(&name).with_context(|| format!("--topic: there is no {name}"));
        let since = |text: String| {
            UnixMs::parse(&text)
                .with_context(|| format!("--since: {text} is not a time like 2026-11-24T00:00:00Z"))
        };
        Ok(Wanted {
            ids,
            group: self.group,
            topic: self.topic.map(topic).transpose()?,
            key: self.txn,
            reason: self.reason,
            since: self.since.map(since).transpose()?,
            replayed: if replayed { Replayed::Included } else { Replayed::LeftOut },
        })
    }
}

pub(crate) async fn run(what: What) -> anyhow::Result<()> {
    match what {
        What::List { which, replayed, limit, json, config } => {
            let wanted = which.wanted(Vec::new(), replayed)?;
            on_bus(config, async |bus| list(bus, &wanted, limit as usize, json).await).await
        }
        What::Show { id, config } => on_bus(config, async |bus| show(bus, id).await).await,
        What::Replay { ids, all, again, which, config } => {
            ensure!(all || !ids.is_empty(), "say which letters: their ids, or --all with conditions");
            let wanted = which.wanted(ids, again)?;
            on_bus(config, async |bus| replay(bus, &wanted).await).await
        }
    }
}

async fn on_bus(
    config: ConfigFile,
    what: impl AsyncFnOnce(&dyn Bus) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bus = open_bus(&Config::load(&config.config)?).await?;
    let result = what(&*bus).await;
    bus.close().await;
    result
}

async fn list(bus: &dyn Bus, wanted: &Wanted, limit: usize, json: bool) -> anyhow::Result<()> {
    let found = letters::find(bus, wanted, limit).await?;
    let mut out = stdout().lock();
    for letter in &found.letters {
        let replayed = found.marks.contains(&letter.id);
        if json {
            writeln!(out, "{}", summary(letter, replayed))?;
            continue;
        }
        writeln!(
            out,
            "{:<10} {}  {:<26} {:<14} {:<36} {:>3} tries  {}{}",
            letter.id.to_string(),
            letter.header(header::FAILED_AT),
            letter.header(header::ORIGIN),
            letter.header(header::GROUP),
            letter.message.key,
            letter.header(header::ATTEMPTS),
            if replayed { "(sent back) " } else { "" },
            mask_vpas(letter.header(header::REASON)),
        )?;
    }
    if found.more {
        // Beside the list, so that a program that reads it is not led astray.
        writeln!(std::io::stderr(), "there are more; narrow the conditions or raise --limit")?;
    }
    Ok(())
}

fn summary(letter: &Letter, replayed: bool) -> Value {
    let number = |name: &str| letter.header(name).parse::<i64>().ok();
    json!({
        "id": letter.id.to_string(),
        "key": letter.message.key,
        "eventId": letter.message.event_id,
        "failedAt": letter.header(header::FAILED_AT),
        "group": letter.header(header::GROUP),
        "originTopic": letter.header(header::ORIGIN),
        "originPartition": number(header::ORIGIN_PARTITION),
        "originOffset": number(header::ORIGIN_OFFSET),
        "attempts": number(header::ATTEMPTS),
        "reason": mask_vpas(letter.header(header::REASON)),
        "replayed": replayed,
    })
}

async fn show(bus: &dyn Bus, id: LetterId) -> anyhow::Result<()> {
    let wanted = Wanted { ids: vec![id], replayed: Replayed::Included, ..Wanted::default() };
    let found = letters::find(bus, &wanted, 1).await?;
    let letter = found.letters.first().with_context(|| format!("there is no letter {id}"))?;
    let headers: Map<String, Value> = letter
        .message
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), Value::String(mask_vpas(value))))
        .collect();
    let mut page = summary(letter, found.marks.contains(&id));
    page["headers"] = Value::Object(headers);
    match letter.message.payload.event() {
        Ok(event) => page["event"] = serde_json::from_str(&mask_vpas(event)).unwrap_or_default(),
        Err(why) => {
            page["unreadable"] = json!(why);
            let bytes = letter.message.payload.wire().map(|wire| wire.escape_ascii().to_string());
            page["bytes"] = json!(mask_vpas(&bytes.unwrap_or_default()));
        }
    }
    writeln!(stdout().lock(), "{}", serde_json::to_string_pretty(&page)?).context("stdout")
}

async fn replay(bus: &dyn Bus, wanted: &Wanted) -> anyhow::Result<()> {
    let found = letters::find(bus, wanted, MOST).await?;
    let mut out = stdout().lock();
    for letter in &found.letters {
        let topic = letters::replay(bus, letter, UnixMs::now()).await?;
        writeln!(out, "{:<10} {} sent back to {}", letter.id.to_string(), letter.message.key, topic.name())?;
    }
    let left_out = wanted.ids.iter().filter(|id| !found.letters.iter().any(|letter| letter.id == **id));
    let mut none = 0;
    for id in left_out {
        if found.marks.contains(id) {
            writeln!(out, "{:<10} was sent back already; --again sends it once more", id.to_string())?;
        } else {
            writeln!(out, "{:<10} is no letter, or a condition does not hold", id.to_string())?;
            none += 1;
        }
    }
    writeln!(
        out,
        "{} sent back{}",
        found.letters.len(),
        if found.more { "; there are more: run it again" } else { "" }
    )?;
    if none > 0 {
        bail!("{none} of the letters that were named are not there");
    }
    Ok(())
}
