//! What happens when nobody says anything: timers are rows, claimed with a lease, never sleeps.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::bus::Bus;
use crate::orchestrator::Orchestrator;
use crate::store::{Store, StoreError, Trace};
use crate::txn::{UnixMs, WakeKind};

/// How timers are looked after.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimerConfig {
    /// How often to look.
    pub tick_ms: u64,
    /// For how long a claimed timer is nobody else's: after a crash its payment waits this long. Running one
    /// twice does no harm, so short is right.
    pub lease_ms: u64,
    /// Claimed at a time.
    pub batch: u32,
}

impl Default for TimerConfig {
    fn default() -> Self {
        TimerConfig { tick_ms: 500, lease_ms: 5_000, batch: 100 }
    }
}

/// What is forgotten, and when.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Housekeeping {
    pub every_ms: u64,
    /// How long a key gives its first answer again.
    pub idempotency_keep_ms: u64,
    /// Longer than any message can come again: more than the bus keeps.
    pub inbox_keep_ms: u64,
}

impl Default for Housekeeping {
    fn default() -> Self {
        let day = 24 * 3_600_000;
        Housekeeping { every_ms: 600_000, idempotency_keep_ms: 90 * day, inbox_keep_ms: 14 * day }
    }
}

/// Runs due timers of one kind until `stop` turns true. Each kind has a loop of its own: sendings that wait for
/// their turn hold up no status check.
pub async fn run(
    store: Arc<dyn Store>,
    orchestrator: Orchestrator,
    config: TimerConfig,
    kind: WakeKind,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        // What was claimed and not begun is somebody's again when the lease has run out.
        let ran = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            ran = run_due(&*store, &orchestrator, &config, kind) => ran,
        };
        let full = match ran {
            Ok(claimed) => claimed >= config.batch as usize,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "timers not run; trying again");
                false
            }
        };
        if full {
            continue;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(Duration::from_millis(config.tick_ms)) => {}
        }
    }
}

async fn run_due(
    store: &dyn Store,
    orchestrator: &Orchestrator,
    config: &TimerConfig,
    kind: WakeKind,
) -> Result<usize, StoreError> {
    let due = store.claim_due(kind, UnixMs::now(), config.lease_ms, config.batch.max(1)).await?;
    for txn_id in &due {
        let ran = match kind {
            WakeKind::Send => orchestrator.dispatch(*txn_id, None, Trace::default()).await,
            WakeKind::Check => orchestrator.check(*txn_id).await,
        };
        match ran {
            Ok(()) => {}
            // This payment's own trouble: those behind it go on, and it comes again when its lease has run out.
            Err(error @ StoreError::Engine(_)) => tracing::error!(%txn_id, %error, "timer not run"),
            Err(error @ (StoreError::Overloaded | StoreError::Closed | StoreError::Unavailable(_))) => {
                return Err(error);
            }
        }
    }
    Ok(due.len())
}

/// Forgets what has been kept long enough and makes room for what comes, until `stop` turns true.
pub async fn keep_house(
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    config: Housekeeping,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(Duration::from_millis(config.every_ms)) => {}
        }
        let (began, now) = (Instant::now(), UnixMs::now());
        let keys_before = now.minus(config.idempotency_keep_ms);
        let inbox_before = now.minus(config.inbox_keep_ms);
        // Some thousand rows a call, so that payments are never kept waiting long.
        while let Ok(1..) = store.purge(keys_before, inbox_before).await {}
        while let Ok(1..) = bus.purge(now).await {}
        if let Err(error) = store.make_room(now).await {
            tracing::warn!(%error, "no room made ahead for payments to come; trying again");
        }
        tracing::debug!(elapsed_ms = began.elapsed().as_millis() as u64, "kept house");
    }
}
