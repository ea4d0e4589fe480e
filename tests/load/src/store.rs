//! How many payments a second the embedded store makes durable when clients come together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;
use txn_core::metrics::Metrics;
use txn_core::store::{Accepted, IdempotencyKey, NewTxn, SqliteStore, Store, Trace, WriterLimits};
use txn_core::txn::{AmountPaise, Rules, State, Txn, TxnId, UnixMs, Wake, WakeKind};

use crate::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Clients, each with one payment under way at a time.
    #[arg(long, default_value_t = 512)]
    clients: u32,
    /// Payments of each client.
    #[arg(long, default_value_t = 400)]
    payments: u32,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let dir = empty_folder("bench-store")?;
    let (a_second, latencies) = sqlite(&dir, arguments.clients, arguments.payments).await?;
    say(&format!(
        "SQLite, WAL, synchronous=FULL: {a_second:.0} accepted payments a second, {} clients; p50 {:?}, p99 {:?}",
        arguments.clients,
        share(&latencies, 0.5),
        share(&latencies, 0.99),
    ))
}

/// A folder of this name in `target`, with nothing in it: beside the checkout's other files and not in a memory
/// file system, because the disk is part of what is measured.
pub(crate) fn empty_folder(name: &str) -> anyhow::Result<PathBuf> {
    let target = stack::default_dir();
    let dir = target.parent().context("the development folder lies in target")?.join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

pub(crate) async fn sqlite(dir: &Path, clients: u32, payments: u32) -> anyhow::Result<(f64, Vec<Duration>)> {
    let metrics = Arc::new(Metrics::new()?);
    let limits = WriterLimits::default();
    let store = SqliteStore::open(&dir.join("txn.db"), Rules::default(), &limits, metrics).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let measured = accept(&store, clients, payments).await?;
    store.close().await;
    Ok(measured)
}

/// Payments accepted a second, and how long each took, in order of length.
pub(crate) async fn accept(
    store: &Arc<dyn Store>,
    clients: u32,
    payments: u32,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for client in 0..clients {
        let store = Arc::clone(store);
        running.spawn(async move {
            let mut latencies = Vec::new();
            for number in 0..payments {
                let asked = Instant::now();
                let accepted = store.accept(payment(format!("key-{client}-{number}"))?).await?;
                anyhow::ensure!(accepted == Accepted::New, "{accepted:?}");
                latencies.push(asked.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(client) = running.join_next().await {
        latencies.extend(client??);
    }
    let a_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort();
    Ok((a_second, latencies))
}

/// The latency that this share of the sorted ones is not above.
pub(crate) fn share(latencies: &[Duration], share: f64) -> Duration {
    let at = (latencies.len() as f64 * share) as usize;
    latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
}

pub(crate) fn payment(key: String) -> anyhow::Result<NewTxn> {
    let now = UnixMs::now();
    let send_by = now.plus(120_000);
    Ok(NewTxn {
        txn: Txn {
            id: TxnId::fresh("TOR".parse()?, now),
            tenant: "acme".into(),
            subject: "user-1".into(),
            device_id: "device-1".into(),
            from: "alice@torana".parse()?,
            to: "bob@torana".parse()?,
            amount: AmountPaise::from_paise(15_075)?,
            note: "Lunch".into(),
            state: State::Created,
            version: 1,
            code: None,
            rrn: None,
            created_at: now,
            updated_at: now,
            send_by,
            dispatched_at: None,
            sends: 0,
            checks: 0,
            flagged_at: None,
            wake: Some(Wake { kind: WakeKind::Send, at: send_by }),
        },
        cred_block: None,
        idempotency: IdempotencyKey { tenant: "acme".into(), route: "/v1/transactions/send", key },
        fingerprint: [7; 32],
        trace: Trace::default(),
    })
}
