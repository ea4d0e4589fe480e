//! From the outbox to the bus: what was committed is published, each payment's events in order.
//!
//! Reads the unpublished set, never "everything after the last position": a row that commits late is not
//! missed. A crash between publishing and taking out publishes again; consumers have inboxes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use uuid::Uuid;

use crate::bus::{Bus, Message, Topic};
use crate::metrics::Metrics;
use crate::store::{LaneLease, OutboxRow, Store};

/// The task that empties the outbox.
#[derive(Debug, Clone)]
pub struct Relay {
    pub store: Arc<dyn Store>,
    pub bus: Arc<dyn Bus>,
    pub metrics: Arc<Metrics>,
}

/// How a relay shares the outbox with others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// For how long lanes are nobody else's unless they are given back: after a crash their events wait this long.
    pub lease_ms: u64,
    /// Events of a round.
    pub batch: u32,
}

impl Default for RelayConfig {
    fn default() -> Self {
        RelayConfig { lease_ms: 5_000, batch: 1_000 }
    }
}

/// Every round costs a commit on both sides; no client waits for it.
const GATHER: Duration = Duration::from_millis(2);
const AFTER_AN_ERROR: Duration = Duration::from_millis(500);

impl Relay {
    /// Relays until `stop` turns true, finishes its round and gives its lanes back.
    pub async fn run(self, config: RelayConfig, mut stop: watch::Receiver<bool>) {
        // A name that nobody had before: what an earlier life of this process left behind runs out by itself.
        let me = Uuid::new_v4();
        while !*stop.borrow() {
            if let Err(error) = self.relay_lease(me, &config, &mut stop).await {
                tracing::warn!(%error, "outbox not relayed; trying again");
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => {}
                    () = sleep(AFTER_AN_ERROR) => {}
                }
            }
        }
        if let Err(error) = self.store.return_lanes(me).await {
            tracing::warn!(%error, "lanes not given back; their lease runs out");
        }
    }

    /// Relays for a third of a lease: then it is time to renew it, and to see who else there is.
    async fn relay_lease(
        &self,
        me: Uuid,
        config: &RelayConfig,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let bell = self.store.outbox_bell();
        let renew_at = Instant::now() + Duration::from_millis(config.lease_ms) / 3;
        let lease = self.store.lease_lanes(me, config.lease_ms).await?;
        while Instant::now() < renew_at && !*stop.borrow() {
            if self.relay_some(&lease, config.batch).await? > 0 {
                continue;
            }
            let look_at = (Instant::now() + self.store.look_every()).min(renew_at);
            let rang = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => false,
                () = sleep_until(look_at) => false,
                () = bell.notified() => true,
            };
            if rang {
                // What is committed in the next moment goes out in the same round.
                sleep(GATHER).await;
            }
        }
        Ok(())
    }

    /// Publishes the oldest unpublished events of these lanes and takes them out; gives how many.
    ///
    /// # Errors
    /// Of the store or the bus, or when the lease has run out; what was not taken out is still there.
    pub async fn relay_some(&self, lease: &LaneLease, batch: u32) -> anyhow::Result<usize> {
        let rows = self.store.unpublished(lease, batch).await?;
        if rows.is_empty() {
            return Ok(0);
        }
        // Whoever has the lanes after us would publish the same: no longer than they are ours.
        let publish = self.bus.publish(rows.iter().flat_map(messages).collect());
        timeout_at(lease.until, publish).await.context("the lease of the lanes ran out")??;
        self.metrics.published.inc_by(rows.len() as u64);
        self.store.published(lease, &rows).await?;
        Ok(rows.len())
    }
}

fn messages(row: &OutboxRow) -> impl Iterator<Item = Message> {
    Topic::of(row.event_type).iter().map(|topic| Message {
        topic: *topic,
        key: row.txn_id.clone(),
        event_id: row.event_id.simple().to_string(),
        headers: Vec::new(),
        payload: row.payload.clone().into(),
    })
}

#[cfg(test)]
mod tests;
