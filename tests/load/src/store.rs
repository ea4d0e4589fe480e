//! How many payments a second the embedded store makes durable when clients come together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;
use txn_core::metrics::Metrics;
use txn_core::store::{Accepted, IdempotencyKey, NewTxn, SqliteStore, Store as _, Trace, WriterLimits};
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
    let target = stack::default_dir();
    // Beside the checkout's other files and not in a memory file system: the disk is what is measured.
    let dir = target.parent().context("the development folder lies in target")?.join("bench-store");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    let metrics = Arc::new(Metrics::new()?);
    let limits = WriterLimits::default();
    let store = SqliteStore::open(&dir.join("txn.db"), Rules::default(), &limits, metrics).await?;
    let store = Arc::new(store);

    let began = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..arguments.clients {
        let store = Arc::clone(&store);
        clients.spawn(async move {
            let mut latencies = Vec::new();
            for number in 0..arguments.payments {
                let asked = Instant::now();
                let accepted = store.accept(payment(format!("key-{client}-{number}"))?).await?;
                anyhow::ensure!(accepted == Accepted::New, "{accepted:?}");
                latencies.push(asked.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    let elapsed = began.elapsed();
    latencies.sort();
    let at = |share: usize| latencies.get(latencies.len() * share / 100).copied().unwrap_or_default();
    say(&format!(
        "SQLite, WAL, synchronous=FULL: {:.0} accepted payments a second, {} clients; p50 {:?}, p99 {:?}",
        latencies.len() as f64 / elapsed.as_secs_f64(),
        arguments.clients,
        at(50),
        at(99),
    ))?;
    store.close().await;
    Ok(())
}

fn payment(key: String) -> anyhow::Result<NewTxn> {
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
