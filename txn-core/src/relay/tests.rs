//! The relay on both engines, and what becomes of the outbox when one of two relays dies.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::time::timeout;

use super::*;
use crate::bus::{BusError, LocalBus, Retention, Subscription, Visit};
use crate::store::contract::{callback, request};
use crate::store::postgres::tests::Database;
use crate::store::record::Envelope;
use crate::store::{Apply, NewTxn, SqliteStore, WriterLimits};
use crate::txn::{ReportResult, Rules, Stage, UnixMs};

async fn sqlite(dir: &Path) -> Arc<dyn Store> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let limits = WriterLimits::default();
    Arc::new(SqliteStore::open(&dir.join("txn.db"), Rules::default(), &limits, metrics).await.unwrap())
}

async fn over(store: Arc<dyn Store>, dir: &Path) -> Relay {
    let bus = LocalBus::open(&dir.join("bus.db"), Retention::default()).await;
    Relay { store, bus: Arc::new(bus.unwrap()), metrics: Arc::new(Metrics::new().unwrap()) }
}

async fn on_the_bus(relay: &Relay, topic: Topic) -> Vec<String> {
    let mut reader = relay.bus.subscribe("test", topic).await.unwrap();
    let mut ids = Vec::new();
    while let Ok(some) = timeout(Duration::from_millis(200), reader.next(100)).await {
        ids.extend(some.unwrap().into_iter().map(|delivery| delivery.message.key));
    }
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_goes_out_whenever_the_process_dies() {
    let dir = tempfile::tempdir().unwrap();
    goes_out_whenever_the_process_dies(async || sqlite(dir.path()).await).await;
    let database = Database::migrated().await;
    goes_out_whenever_the_process_dies(async || Arc::new(database.open().await) as Arc<dyn Store>).await;
}

async fn goes_out_whenever_the_process_dies(open: impl AsyncFn() -> Arc<dyn Store>) {
    let dir = tempfile::tempdir().unwrap();
    let payments: Vec<NewTxn> = (0..3).map(|n| request(&format!("k-{n}"))).collect();
    let mut ids: Vec<String> = payments.iter().map(|new| new.txn.id.to_string()).collect();

    // Dies after the COMMIT, before anything is published.
    let relay = over(open().await, dir.path()).await;
    for new in payments {
        relay.store.accept(new).await.unwrap();
    }
    drop(relay);
    // Dies after publishing, before the outbox is emptied.
    let relay = over(open().await, dir.path()).await;
    let lease = relay.store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
    let rows = relay.store.unpublished(&lease, 100).await.unwrap();
    relay.bus.publish(rows.iter().flat_map(messages).collect()).await.unwrap();
    drop(relay);
    // Lives: the same events once more, and then none.
    let relay = over(open().await, dir.path()).await;
    let lease = relay.store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
    assert_eq!(relay.relay_some(&lease, 100).await.unwrap(), 3);
    assert_eq!(relay.relay_some(&lease, 100).await.unwrap(), 0);
    ids.extend(ids.clone());
    ids.sort();
    for topic in [Topic::Initiated, Topic::Audit] {
        assert_eq!(on_the_bus(&relay, topic).await, ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_wakes_the_relay() {
    let dir = tempfile::tempdir().unwrap();
    let relay = over(sqlite(dir.path()).await, dir.path()).await;
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

/// Writes down which version of which payment is published, in order, and takes its time.
#[derive(Debug, Default)]
struct Journal {
    events: Mutex<Vec<(String, u32)>>,
}

#[async_trait]
impl Bus for Journal {
    async fn publish(&self, messages: Vec<Message>) -> Result<(), BusError> {
        for message in messages.iter().filter(|message| message.topic == Topic::Audit) {
            let envelope: Envelope = serde_json::from_str(message.payload.event().unwrap()).unwrap();
            self.events.lock().unwrap().push((message.key.clone(), envelope.data.version));
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(5)).await;
        Ok(())
    }
    async fn subscribe(&self, _: &'static str, _: Topic) -> Result<Box<dyn Subscription>, BusError> {
        Err(BusError::Closed)
    }
    async fn watch(&self, _: Topic) -> Result<Box<dyn Subscription>, BusError> {
        Err(BusError::Closed)
    }
    async fn scan(&self, _: Topic, _: &mut Visit) -> Result<(), BusError> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), BusError> {
        Ok(())
    }
    async fn purge(&self, _: UnixMs) -> Result<u64, BusError> {
        Ok(0)
    }
    async fn close(&self) {}
}

const PAYMENTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn two_share_the_outbox_and_one_may_die() {
    let database = Database::migrated().await;
    let bus = Arc::new(Journal::default());
    let mut relays = Vec::new();
    for _ in 0..2 {
        let store: Arc<dyn Store> = Arc::new(database.open().await);
        relays.push(Relay { store, bus: bus.clone(), metrics: Arc::new(Metrics::new().unwrap()) });
    }
    let (stop, stopped) = watch::channel(false);
    let config = RelayConfig { lease_ms: 300, batch: 64 };
    let mut running: Vec<_> =
        relays.iter().map(|relay| tokio::spawn(relay.clone().run(config.clone(), stopped.clone()))).collect();

    // Both work; then one dies in the middle of it, with its lanes.
    let mut paid = 0;
    let some_of_both = async {
        // One may have published everything before the other has a lane.
        while paid == 0 || relays.iter().any(|relay| relay.metrics.published.get() == 0) {
            pay_through(&relays, paid).await;
            paid += PAYMENTS;
        }
    };
    timeout(Duration::from_secs(60), some_of_both).await.expect("both have lanes");
    running.remove(0).abort();
    pay_through(&relays, paid).await;
    let emptied = async || {
        while relays[1].store.figures().await.unwrap().outbox > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), emptied()).await.expect("the other takes over");
    stop.send(true).unwrap();
    running.remove(0).await.unwrap();

    // Each payment's events first appear in the order of its versions, and none is missing.
    let mut first: HashMap<String, Vec<u32>> = HashMap::new();
    for (key, version) in bus.events.lock().unwrap().iter() {
        let versions = first.entry(key.clone()).or_default();
        if !versions.contains(version) {
            versions.push(*version);
        }
    }
    assert_eq!(first.len(), paid + PAYMENTS);
    for (key, versions) in first {
        assert_eq!(versions, [1, 2, 3], "{key}");
    }
}

/// Payments with three events each, written by both processes in turn.
async fn pay_through(relays: &[Relay], from: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in from..from + PAYMENTS {
        let stores = [relays[n % 2].store.clone(), relays[(n + 1) % 2].store.clone()];
        tasks.spawn(async move {
            let new = request(&format!("k-{n}"));
            let id = new.txn.id;
            stores[0].accept(new).await.unwrap();
            for (store, stage) in [(&stores[1], Stage::Debit), (&stores[0], Stage::Final)] {
                let event = callback(stage, ReportResult::Success, "00");
                let at = request("").txn.created_at.plus(10);
                store.apply(Apply { txn_id: id, event, at, inbox: None }).await.unwrap();
            }
        });
    }
    while let Some(paid) = tasks.join_next().await {
        paid.unwrap();
    }
}
