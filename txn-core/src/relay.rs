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
        payload: row.payload.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::time::timeout;

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
        let lease = relay.store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
        let rows = relay.store.unpublished(&lease, 100).await.unwrap();
        relay.bus.publish(rows.iter().flat_map(messages).collect()).await.unwrap();
        drop(relay);
        // Lives: the same events once more, in the same order, and then none.
        let relay = open(dir.path()).await;
        let lease = relay.store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
        assert_eq!(relay.relay_some(&lease, 100).await.unwrap(), 3);
        assert_eq!(relay.relay_some(&lease, 100).await.unwrap(), 0);
        for topic in [Topic::Initiated, Topic::Audit] {
            assert_eq!(on_the_bus(&relay, topic).await, [ids.clone(), ids.clone()].concat());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_wakes_the_relay() {
        let dir = tempfile::tempdir().unwrap();
        let relay = open(dir.path()).await;
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(relay.clone().run(RelayConfig::default(), stopped));
        let mut reader = relay.bus.subscribe("test", Topic::Initiated).await.unwrap();
        for n in 0..5 {
            relay.store.accept(request(&format!("k-{n}"))).await.unwrap();
            let woken = timeout(relay.store.look_every() / 2, reader.next(1)).await;
            assert!(woken.is_ok(), "published without waiting for the next look");
        }
        stop.send(true).unwrap();
        running.await.unwrap();
    }
}
