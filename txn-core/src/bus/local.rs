//! The embedded bus: messages and positions in one SQLite file, written by one thread in batches.
//!
//! Only one process has the file open, and one connection writes it: offsets become visible in their order,
//! so here (and only here) a position says everything about what has been read.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{Bus, BusError, Delivery, Message, Place, Subscription, Topic, Visit};
use crate::sqlite::{self, Migration, Readers};
use crate::store::StoreError;
use crate::txn::UnixMs;

/// What the bus keeps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Consumed messages are kept this long.
    pub keep_ms: u64,
    /// And at most this many of each topic; a group's unread messages are always kept.
    pub keep_messages: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { keep_ms: 7 * 24 * 3_600_000, keep_messages: 1_000_000 }
    }
}

/// Topics in a SQLite file.
#[derive(Debug)]
pub struct LocalBus {
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    readers: Readers,
    /// Counts commits that brought messages.
    bell: watch::Receiver<u64>,
    retention: Retention,
}

const MIGRATIONS: &[Migration] = &[(1, include_str!("../../migrations/sqlite-bus/0001_bus.sql"))];
const READERS: u32 = 2;
const QUEUE: usize = 1024;
const BATCH: usize = 256;
const PURGE_ROWS: i64 = 10_000;
const SCAN_ROWS: u32 = 500;
/// `txn-core dlq replay` publishes beside a running service, and rings no bell in it.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Op {
    Publish(Vec<Message>),
    Position { group: &'static str, topic: Topic, position: i64 },
    Purge { now: UnixMs, retention: Retention },
}

type Waiting = (Op, oneshot::Sender<Result<u64, BusError>>);

impl LocalBus {
    /// Opens the file, making it and bringing its tables up to date if need be.
    ///
    /// # Errors
    /// [`BusError::Engine`] if the file can't be opened, or was made by something newer.
    pub async fn open(file: &Path, retention: Retention) -> Result<LocalBus, BusError> {
        let db = sqlite::open(file, MIGRATIONS)?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (ring, bell) = watch::channel(0);
        let (end, ended) = oneshot::channel();
        let write = move || {
            write_all(db, waiting, &ring);
            // Nobody may be waiting for it.
            let _unheard = end.send(());
        };
        let thread = std::thread::Builder::new().name("bus-writer".to_owned()).spawn(write);
        thread.map_err(|error| BusError::Engine(format!("no thread to write on: {error}")))?;
        Ok(LocalBus {
            queue: Mutex::new(Some(queue)),
            ended: tokio::sync::Mutex::new(Some(ended)),
            readers: Readers::of(file, READERS),
            bell,
            retention,
        })
    }

    fn queue(&self) -> Result<mpsc::Sender<Waiting>, BusError> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(BusError::Closed)
    }

    fn reader(&self, queue: &mpsc::Sender<Waiting>, topic: Topic, given: i64) -> LocalSubscription {
        LocalSubscription {
            group: None,
            topic,
            given,
            queue: queue.downgrade(),
            readers: self.readers.clone(),
            bell: self.bell.clone(),
        }
    }
}

/// Queues a request and waits until it is durable.
async fn ask(queue: &mpsc::Sender<Waiting>, op: Op) -> Result<u64, BusError> {
    let (answer, answered) = oneshot::channel();
    queue.send((op, answer)).await.map_err(|_| BusError::Closed)?;
    answered.await.unwrap_or(Err(BusError::Closed))
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, messages: Vec<Message>) -> Result<(), BusError> {
        if messages.is_empty() {
            return Ok(());
        }
        ask(&self.queue()?, Op::Publish(messages)).await.map(drop)
    }

    async fn subscribe(&self, group: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, BusError> {
        let queue = self.queue()?;
        // Written down at once: from now on purging waits for this group.
        ask(&queue, Op::Position { group, topic, position: 0 }).await?;
        let position = move |db: &Connection| {
            let sql = "SELECT position FROM bus_positions WHERE consumer = ?1 AND topic = ?2";
            Ok(db.query_row(sql, [group, topic.name()], |row| row.get(0)).optional()?)
        };
        let position: Option<i64> = self.readers.ask(position).await?;
        let reader = self.reader(&queue, topic, position.unwrap_or(0));
        Ok(Box::new(LocalSubscription { group: Some(group), ..reader }))
    }

    async fn watch(&self, topic: Topic) -> Result<Box<dyn Subscription>, BusError> {
        let queue = self.queue()?;
        let newest = move |db: &Connection| {
            let sql = "SELECT coalesce(max(offset_id), 0) FROM bus_messages WHERE topic = ?1";
            Ok(db.query_row(sql, [topic.name()], |row| row.get(0))?)
        };
        let newest: i64 = self.readers.ask(newest).await?;
        Ok(Box::new(LocalSubscription { group: None, ..self.reader(&queue, topic, newest) }))
    }

    async fn scan(&self, topic: Topic, visit: &mut Visit) -> Result<(), BusError> {
        let mut reader = self.reader(&self.queue()?, topic, 0);
        loop {
            let some = reader.look(SCAN_ROWS).await?;
            if some.is_empty() {
                return Ok(());
            }
            for delivery in some {
                if visit(delivery).is_break() {
                    return Ok(());
                }
            }
        }
    }

    async fn ready(&self) -> Result<(), BusError> {
        Ok(self.readers.ask(|db| Ok(db.execute_batch("SELECT 1 FROM bus_positions LIMIT 1")?)).await?)
    }

    async fn purge(&self, now: UnixMs) -> Result<u64, BusError> {
        ask(&self.queue()?, Op::Purge { now, retention: self.retention.clone() }).await
    }

    async fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.readers.close().await;
        if let Some(ended) = self.ended.lock().await.take() {
            // It ends by itself once its queue is empty.
            let _ended = ended.await;
        }
    }
}

#[derive(Debug)]
struct LocalSubscription {
    /// None: nothing is remembered.
    group: Option<&'static str>,
    topic: Topic,
    given: i64,
    queue: mpsc::WeakSender<Waiting>,
    readers: Readers,
    bell: watch::Receiver<u64>,
}

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self, limit: u32) -> Result<Vec<Delivery>, BusError> {
        loop {
            // Seen before the look: what is published in between rings again.
            self.bell.borrow_and_update();
            let some = self.look(limit).await?;
            if !some.is_empty() {
                return Ok(some);
            }
            if let Ok(rang) = timeout(LOOK_AT_LEAST_EVERY, self.bell.changed()).await {
                rang.map_err(|_| BusError::Closed)?;
            }
        }
    }

    async fn done(&mut self, handled: &[Place]) -> Result<(), BusError> {
        let last = handled.iter().map(|place| place.offset).max();
        let (Some(group), Some(position)) = (self.group, last) else { return Ok(()) };
        let op = Op::Position { group, topic: self.topic, position };
        let queue = self.queue.upgrade().ok_or(BusError::Closed)?;
        ask(&queue, op).await.map(drop)
    }
}

impl LocalSubscription {
    /// What is there after the last one given; nothing if nothing is.
    async fn look(&mut self, limit: u32) -> Result<Vec<Delivery>, BusError> {
        let (topic, given) = (self.topic, self.given);
        let some = move |db: &Connection| {
            let mut find = db.prepare_cached(
                "SELECT offset_id, key, event_id, headers, payload FROM bus_messages
                 WHERE topic = ?1 AND offset_id > ?2 ORDER BY offset_id LIMIT ?3",
            )?;
            let rows = find.query_map(params![topic.name(), given, limit], |row| Ok(delivery(topic, row)))?;
            rows.map(|row| row?).collect::<Result<Vec<_>, StoreError>>()
        };
        let some = self.readers.ask(some).await?;
        if let Some(last) = some.last() {
            self.given = last.place.offset;
        }
        Ok(some)
    }
}

fn delivery(topic: Topic, row: &Row<'_>) -> Result<Delivery, StoreError> {
    let headers: String = row.get("headers")?;
    Ok(Delivery {
        place: Place { partition: 0, offset: row.get("offset_id")? },
        message: Message {
            topic,
            key: row.get("key")?,
            event_id: row.get("event_id")?,
            headers: serde_json::from_str(&headers).map_err(|error| StoreError::Engine(error.to_string()))?,
            payload: row.get::<_, String>("payload")?.into(),
        },
    })
}

fn write_all(mut db: Connection, mut waiting: mpsc::Receiver<Waiting>, ring: &watch::Sender<u64>) {
    let mut taken = Vec::with_capacity(BATCH);
    while waiting.blocking_recv_many(&mut taken, BATCH) > 0 {
        let (ops, answers): (Vec<Op>, Vec<_>) = taken.drain(..).unzip();
        let result = commit(&mut db, &ops);
        if let Err(error) = &result {
            tracing::error!(%error, "the bus could not write");
        }
        if result.is_ok() && ops.iter().any(|op| matches!(op, Op::Publish(_))) {
            ring.send_modify(|commits| *commits += 1);
        }
        for (n, answer) in answers.into_iter().enumerate() {
            // Whoever asked may have gone; it is written all the same.
            let _gone = answer.send(match &result {
                Ok(rows) => Ok(rows.get(n).copied().unwrap_or(0)),
                Err(error) => Err(error.clone()),
            });
        }
    }
    if let Err(error) = sqlite::close(db) {
        tracing::warn!(%error, "the bus did not close cleanly; what was published is durable all the same");
    }
}

fn commit(db: &mut Connection, ops: &[Op]) -> Result<Vec<u64>, BusError> {
    let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut rows = Vec::with_capacity(ops.len());
    for op in ops {
        let written = match op {
            Op::Publish(messages) => insert(&txn, messages)?,
            Op::Position { group, topic, position } => {
                let sql = "INSERT INTO bus_positions VALUES (?1, ?2, ?3) ON CONFLICT (consumer, topic)
                           DO UPDATE SET position = max(position, excluded.position)";
                txn.prepare_cached(sql)?.execute(params![group, topic.name(), position])?
            }
            Op::Purge { now, retention } => delete_old(&txn, *now, retention)?,
        };
        rows.push(u64::try_from(written).unwrap_or(u64::MAX));
    }
    txn.commit()?;
    Ok(rows)
}

fn insert(db: &Connection, messages: &[Message]) -> Result<usize, BusError> {
    let now = UnixMs::now();
    let mut insert = db.prepare_cached(
        "INSERT INTO bus_messages (topic, key, event_id, headers, payload, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for message in messages {
        let headers = serde_json::to_string(&message.headers);
        insert.execute(params![
            message.topic.name(),
            message.key,
            message.event_id,
            headers.map_err(|error| BusError::Engine(error.to_string()))?,
            message.payload.event().map_err(|why| BusError::Engine(why.to_owned()))?,
            now.0,
        ])?;
    }
    Ok(messages.len())
}

fn delete_old(db: &Connection, now: UnixMs, retention: &Retention) -> Result<usize, BusError> {
    let sql = "DELETE FROM bus_messages WHERE offset_id IN (
        SELECT m.offset_id FROM bus_messages AS m WHERE m.topic = ?1
          AND m.offset_id <= coalesce((SELECT min(position) FROM bus_positions WHERE topic = ?1), m.offset_id)
          AND (m.at < ?2 OR m.offset_id <= coalesce((SELECT offset_id FROM bus_messages WHERE topic = ?1
                                                     ORDER BY offset_id DESC LIMIT 1 OFFSET ?3), 0))
        ORDER BY m.offset_id LIMIT ?4)";
    let before = now.minus(retention.keep_ms).0;
    let mut deleted = 0;
    for topic in Topic::ALL {
        deleted += db.execute(sql, params![topic.name(), before, retention.keep_messages, PURGE_ROWS])?;
    }
    Ok(deleted)
}

/// Brings a file's tables up to date and closes it: `txn-core migrate`.
///
/// # Errors
/// As [`LocalBus::open`].
pub fn migrate(file: &Path) -> Result<(), BusError> {
    Ok(sqlite::close(sqlite::open(file, MIGRATIONS)?)?)
}

impl From<StoreError> for BusError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => BusError::Overloaded,
            StoreError::Closed => BusError::Closed,
            StoreError::Unavailable(what) | StoreError::Engine(what) => BusError::Engine(what),
        }
    }
}

impl From<rusqlite::Error> for BusError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::contract;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_local_bus_holds_to_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bus.db");
        contract::holds(async || LocalBus::open(&file, Retention::default()).await.unwrap()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn purging_keeps_what_a_group_has_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention { keep_ms: 3_600_000, keep_messages: 2 };
        let bus = LocalBus::open(&dir.path().join("bus.db"), retention).await.unwrap();
        let five = |topic| (0..5).map(|n| contract::message(topic, "TOR1", n)).collect::<Vec<_>>();
        bus.publish(five(Topic::Initiated)).await.unwrap();
        bus.publish(five(Topic::Audit)).await.unwrap();
        let mut reader = bus.subscribe("orchestrator", Topic::Initiated).await.unwrap();
        assert_eq!(bus.purge(UnixMs::now()).await.unwrap(), 3, "of the topic that nobody reads, two stay");
        let read = reader.next(10).await.unwrap();
        reader.done(&[read[3].place]).await.unwrap();
        assert_eq!(bus.purge(UnixMs::now()).await.unwrap(), 3);
        let in_two_hours = UnixMs::now().plus(7_200_000);
        assert_eq!(bus.purge(in_two_hours).await.unwrap(), 3, "the unread one stays");
    }
}
