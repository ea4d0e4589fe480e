//! From the outbox to the bus: what was committed is published, each payment's events in order.
//!
//! Reads the unpublished set, never "everything after the last position": a row that commits late is not
//! missed. A crash between publishing and taking out publishes again; consumers have inboxes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::bus::{Bus, Message, Topic};
use crate::metrics::Metrics;
use crate::store::{OutboxRow, Store};

/// The task that empties the outbox.
#[derive(Debug, Clone)]
pub struct Relay {
    pub store: Arc<dyn Store>,
    pub bus: Arc<dyn Bus>,
    pub metrics: Arc<Metrics>,
}

const BATCH: u32 = 500;
/// The bell may be rung by another process's commits, which nobody here hears.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
const AFTER_AN_ERROR: Duration = Duration::from_millis(500);

impl Relay {
    /// Relays until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let bell = self.store.outbox_bell();
        while !*stop.borrow() {
            match self.relay_some().await {
                Ok(0) => tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    _ = timeout(LOOK_AT_LEAST_EVERY, bell.notified()) => {}
                },
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "outbox not relayed; trying again");
                    tokio::select! {
                        _ = stop.wait_for(|stop| *stop) => return,
                        () = sleep(AFTER_AN_ERROR) => {}
                    }
                }
            }
        }
    }

    /// Publishes the oldest unpublished events and takes them out; gives how many.
    ///
    /// # Errors
    /// Of the store or the bus; what was not taken out is still there.
    pub async fn relay_some(&self) -> anyhow::Result<usize> {
        let rows = self.store.unpublished(BATCH).await?;
        if rows.is_empty() {
            return Ok(0);
        }
        self.bus.publish(rows.iter().flat_map(messages).collect()).await?;
        self.metrics.published.inc_by(rows.len() as u64);
        self.store.published(rows.iter().map(|row| row.position).collect()).await?;
        Ok(rows.len())
    }
}

fn messages(row: &OutboxRow) -> impl Iterator<Item = Message> {
    Topic::of(row.event_type).iter().map(|topic| Message {
        topic: *topic,
        key: row.txn_id.clone(),
        event_id: row.event_id.simple().to_string(),
        headers: Vec::new(),
        payload: row.payload.clone(),
    })
}
