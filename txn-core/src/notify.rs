//! Tells clients that wait how their payments go on: from `upi.notification.status` to whoever subscribed.
//!
//! Every instance sees every status and remembers none: a subscriber is told the status that stands, then what
//! comes. One that cannot keep up is dropped, and polls or comes again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::bus::consume;
use crate::bus::{Bus, BusError, Topic};
use crate::store::record::Envelope;
use crate::txn::{Txn, TxnId};

/// A payment's status, as it is pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    pub txn_id: String,
    pub status: String,
    pub at: String,
    /// Orders a payment's updates.
    pub version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rrn: Option<String>,
}

/// Who waits for which payment.
#[derive(Debug)]
pub struct Hub {
    waiting: Mutex<Waiting>,
    max_subscribers: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    payments: HashMap<TxnId, Vec<(u64, mpsc::Sender<Update>)>>,
    subscribers: usize,
    next: u64,
    closed: bool,
}

/// One that waits. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Subscriber {
    hub: Arc<Hub>,
    txn_id: TxnId,
    number: u64,
    updates: mpsc::Receiver<Update>,
}

/// There is no place for another subscriber, or the service is stopping. Try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no place for another subscriber")]
pub struct HubFull;

/// More than a payment has: whoever is so far behind does not read.
const UPDATES_AHEAD: usize = 16;
const BATCH: u32 = 256;
const AFTER_AN_ERROR: Duration = Duration::from_secs(1);

impl Hub {
    pub fn new(max_subscribers: usize) -> Arc<Hub> {
        Arc::new(Hub { waiting: Mutex::default(), max_subscribers })
    }

    /// Waits for a payment's updates from now on.
    ///
    /// # Errors
    /// [`HubFull`].
    pub fn subscribe(self: &Arc<Hub>, txn_id: TxnId) -> Result<Subscriber, HubFull> {
        let mut waiting = self.waiting();
        if waiting.closed || waiting.subscribers >= self.max_subscribers {
            return Err(HubFull);
        }
        let (to, updates) = mpsc::channel(UPDATES_AHEAD);
        let number = waiting.next;
        waiting.next += 1;
        waiting.subscribers += 1;
        waiting.payments.entry(txn_id).or_default().push((number, to));
        drop(waiting);
        Ok(Subscriber { hub: self.clone(), txn_id, number, updates })
    }

    /// Pushes to everybody who waits for this payment.
    pub fn push(&self, txn_id: TxnId, update: &Update) {
        let mut waiting = self.waiting();
        let Some(subscribers) = waiting.payments.get_mut(&txn_id) else { return };
        // Full: the sender goes, and with it the subscriber's connection.
        subscribers.retain(|(_, to)| to.try_send(update.clone()).is_ok());
    }

    /// Drops every subscriber: they come again, and are told what stands.
    fn drop_all(&self) {
        self.waiting().payments.values_mut().for_each(Vec::clear);
    }

    fn close(&self) {
        self.waiting().closed = true;
        self.drop_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber {
    /// The next update; none when it was too slow, or the service stops.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut waiting = self.hub.waiting();
        waiting.subscribers = waiting.subscribers.saturating_sub(1);
        if let Some(subscribers) = waiting.payments.get_mut(&self.txn_id) {
            subscribers.retain(|(number, _)| *number != self.number);
            if subscribers.is_empty() {
                waiting.payments.remove(&self.txn_id);
            }
        }
    }
}

/// Pushes what the bus says until `stop` turns true.
pub async fn run(bus: Arc<dyn Bus>, hub: Arc<Hub>, mut stop: watch::Receiver<bool>) {
    loop {
        let ended = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            ended = watch_until_it_breaks(&*bus, &hub) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "statuses are not heard; watching again");
        }
        // What was said meanwhile is not heard again.
        hub.drop_all();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = sleep(AFTER_AN_ERROR) => {}
        }
    }
    hub.close();
}

async fn watch_until_it_breaks(bus: &dyn Bus, hub: &Hub) -> Result<(), BusError> {
    let mut statuses = bus.watch(Topic::Notification).await?;
    // Who came before it watched may have missed something.
    hub.drop_all();
    loop {
        for delivery in statuses.next(BATCH).await? {
            match consume::event(&delivery.message) {
                Ok(event) => {
                    if let Ok(txn_id) = event.txn_id.parse() {
                        hub.push(txn_id, &Update::from(event));
                    }
                }
                Err(error) => {
                    tracing::warn!(place = ?delivery.place, %error, "a status that nobody can read")
                }
            }
        }
    }
}

impl From<Envelope> for Update {
    fn from(event: Envelope) -> Update {
        Update {
            txn_id: event.txn_id,
            status: event.data.status,
            at: event.at,
            version: event.data.version,
            code: event.data.code,
            rrn: event.data.rrn,
        }
    }
}

/// The status that stands.
impl From<&Txn> for Update {
    fn from(txn: &Txn) -> Update {
        Update {
            txn_id: txn.id.to_string(),
            status: txn.state.status().name().to_owned(),
            at: txn.updated_at.to_string(),
            version: txn.version,
            code: txn.code.clone(),
            rrn: txn.rrn.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::contract::message;
    use crate::bus::{LocalBus, Retention};
    use crate::txn::UnixMs;

    fn update(version: u32) -> Update {
        Update { version, ..Update::from(&crate::store::contract::request("k").txn) }
    }

    fn id() -> TxnId {
        TxnId::fresh("TOR".parse().unwrap(), UnixMs::now())
    }

    #[tokio::test]
    async fn who_waits_is_told_and_who_is_slow_is_dropped() {
        let hub = Hub::new(3);
        let (a, b) = (id(), id());
        let mut quick = hub.subscribe(a).unwrap();
        let mut slow = hub.subscribe(a).unwrap();
        let mut other = hub.subscribe(b).unwrap();
        assert_eq!(hub.subscribe(a).unwrap_err(), HubFull);
        for version in 0..20 {
            hub.push(a, &update(version));
            assert_eq!(quick.next().await.unwrap().version, version);
        }
        for version in 0..16 {
            assert_eq!(slow.next().await.unwrap().version, version);
        }
        assert!(slow.next().await.is_none(), "dropped when it was too far behind");
        hub.push(b, &update(1));
        assert_eq!(other.next().await.unwrap().version, 1);
        drop((quick, slow));
        let _place = hub.subscribe(a).expect("there is room again");
        hub.close();
        assert!(other.next().await.is_none());
        assert_eq!(hub.subscribe(b).unwrap_err(), HubFull);
        drop(other);
        assert_eq!(hub.waiting().payments.len(), 1, "nobody is remembered who is gone");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_bus_says_is_pushed() {
        let dir = tempfile::tempdir().unwrap();
        let bus = LocalBus::open(&dir.path().join("bus.db"), Retention::default()).await.unwrap();
        let (bus, hub): (Arc<dyn Bus>, _) = (Arc::new(bus), Hub::new(10));
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(run(bus.clone(), hub.clone(), stopped));
        let id = id();
        // Who came before the watch is sent away.
        let mut first = hub.subscribe(id).unwrap();
        while first.next().await.is_some() {}
        let mut subscriber = hub.subscribe(id).unwrap();
        bus.publish(vec![message(Topic::Notification, &id.to_string(), 7)]).await.unwrap();
        let told = subscriber.next().await.unwrap();
        assert_eq!((told.txn_id, told.version, told.status.as_str()), (id.to_string(), 7, "PENDING"));
        stop.send(true).unwrap();
        running.await.unwrap();
        assert!(subscriber.next().await.is_none());
    }
}
