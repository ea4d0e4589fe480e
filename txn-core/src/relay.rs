//! From the outbox to the bus: what was committed is published, each payment's events in order.
//!
//! Reads the unpublished set, never "everything after the last position": a row that commits late is not
//! missed. A crash between publishing and taking out publishes again; consumers have inboxes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
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
/// Every round costs a commit on both sides; no client waits for it.
const GATHER: Duration = Duration::from_millis(2);
const AFTER_AN_ERROR: Duration = Duration::from_millis(500);

impl Relay {
    /// Relays until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let bell = self.store.outbox_bell();
        while !*stop.borrow() {
            match self.relay_some().await {
                Ok(0) => tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = woken(&bell) => {}
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

/// Waits for something to relay. What is committed in the next moment goes out in the same round.
async fn woken(bell: &Notify) {
    if timeout(LOOK_AT_LEAST_EVERY, bell.notified()).await.is_ok() {
        sleep(GATHER).await;
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
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bus::{LocalBus, Retention};
    use crate::store::contract::request;
    use crate::store::{NewTxn, SqliteStore, WriterLimits};
    use crate::txn::Rules;

    async fn open(dir: &Path) -> Relay {
        let metrics = Arc::new(Metrics::new().unwrap());
        let limits = WriterLimits::default();
        let store = SqliteStore::open(&dir.join("txn.db"), Rules::default(), &limits, metrics.clone()).await;
        let bus = LocalBus::open(&dir.join("bus.db"), Retention::default()).await;
        Relay { store: Arc::new(store.unwrap()), bus: Arc::new(bus.unwrap()), metrics }
    }

    async fn on_the_bus(relay: &Relay, topic: Topic) -> Vec<String> {
        let mut reader = relay.bus.subscribe("test", topic).await.unwrap();
        let mut ids = Vec::new();
        while let Ok(some) = timeout(Duration::from_millis(200), reader.next(100)).await {
            ids.extend(some.unwrap().into_iter().map(|delivery| delivery.message.key));
        }
        ids
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_committed_goes_out_whenever_the_process_dies() {
        let dir = tempfile::tempdir().unwrap();
        let payments: Vec<NewTxn> = (0..3).map(|n| request(&format!("k-{n}"))).collect();
        let ids: Vec<String> = payments.iter().map(|new| new.txn.id.to_string()).collect();

        // Dies after the COMMIT, before anything is published.
        let relay = open(dir.path()).await;
        for new in payments {
            relay.store.accept(new).await.unwrap();
        }
        drop(relay);
        // Dies after publishing, before the outbox is emptied.
        let relay = open(dir.path()).await;
        let rows = relay.store.unpublished(100).await.unwrap();
        relay.bus.publish(rows.iter().flat_map(messages).collect()).await.unwrap();
        drop(relay);
        // Lives: the same events once more, in the same order, and then none.
        let relay = open(dir.path()).await;
        assert_eq!(relay.relay_some().await.unwrap(), 3);
        assert_eq!(relay.relay_some().await.unwrap(), 0);
        for topic in [Topic::Initiated, Topic::Audit] {
            assert_eq!(on_the_bus(&relay, topic).await, [ids.clone(), ids.clone()].concat());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_wakes_the_relay() {
        let dir = tempfile::tempdir().unwrap();
        let relay = open(dir.path()).await;
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(relay.clone().run(stopped));
        let mut reader = relay.bus.subscribe("test", Topic::Initiated).await.unwrap();
        for n in 0..5 {
            relay.store.accept(request(&format!("k-{n}"))).await.unwrap();
            let woken = timeout(LOOK_AT_LEAST_EVERY / 2, reader.next(1)).await;
            assert!(woken.is_ok(), "published without waiting for the next look");
        }
        stop.send(true).unwrap();
        running.await.unwrap();
    }
}
