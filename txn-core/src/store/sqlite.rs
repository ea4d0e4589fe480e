//! SQLite: WAL, `synchronous = FULL`, one writing connection on its own thread, a few reading ones.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::sqlite_rows::{self, Rows};
use super::writer::{Committed, Engine, Writer, WriterLimits};
use super::{
    Accepted, Applied, Apply, Figures, HistoryRow, LaneLease, NewTxn, OutboxRow, Store, StoreError, decide,
    record, sqlite_read,
};
use crate::metrics::Metrics;
use crate::sqlite::{self, Migration, Readers};
use crate::txn::{Rules, Txn, TxnId, UnixMs, WakeKind};

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer<SqliteEngine>,
    readers: Readers,
    bell: Arc<Notify>,
}

const MIGRATIONS: &[Migration] = &[
    (1, include_str!("../../migrations/sqlite/0001_payments.sql")),
    (2, include_str!("../../migrations/sqlite/0002_timers_by_kind.sql")),
];

const READERS: u32 = 4;
const PURGE_ROWS: i64 = 5_000;

impl SqliteStore {
    /// Opens the file, making it and bringing its tables up to date if need be.
    ///
    /// # Errors
    /// [`StoreError::Engine`] if the file can't be opened, or was made by something newer.
    pub async fn open(
        file: &Path,
        rules: Rules,
        limits: &WriterLimits,
        metrics: Arc<Metrics>,
    ) -> Result<SqliteStore, StoreError> {
        let db = sqlite::open(file, MIGRATIONS)?;
        let bell = Arc::new(Notify::new());
        let writer = Writer::on_a_thread(SqliteEngine { db, rules }, limits, bell.clone(), metrics)?;
        Ok(SqliteStore { writer, readers: Readers::of(file, READERS), bell })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn accept(&self, new: NewTxn) -> Result<Accepted, StoreError> {
        match self.writer.ask(Op::Accept(Box::new(new))).await? {
            Reply::Accepted(accepted) => Ok(accepted),
            other => Err(mismatch(&other)),
        }
    }

    async fn apply(&self, input: Apply) -> Result<Applied, StoreError> {
        match self.writer.ask(Op::Apply(Box::new(input))).await? {
            Reply::Applied(applied) => Ok(applied),
            other => Err(mismatch(&other)),
        }
    }

    async fn find(&self, tenant: &str, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError> {
        Ok(self.inspect(id).await?.filter(|(txn, _)| txn.tenant == tenant))
    }

    async fn inspect(&self, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError> {
        let question = move |db: &Connection| {
            let Some(loaded) = sqlite_read::txn(db, id)? else { return Ok(None) };
            Ok(Some((loaded.txn, sqlite_read::history(db, id)?)))
        };
        self.readers.ask(question).await
    }

    /// The file is one process's, and so is its one lane.
    async fn lease_lanes(&self, relay: Uuid, lease_ms: u64) -> Result<LaneLease, StoreError> {
        Ok(LaneLease { relay, lanes: vec![0], until: Instant::now() + Duration::from_millis(lease_ms) })
    }

    async fn return_lanes(&self, _: Uuid) -> Result<(), StoreError> {
        Ok(())
    }

    async fn unpublished(&self, _: &LaneLease, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        self.readers.ask(move |db| sqlite_read::unpublished(db, limit)).await
    }

    async fn published(&self, _: &LaneLease, rows: &[OutboxRow]) -> Result<(), StoreError> {
        match self.writer.ask(Op::Published(rows.iter().map(|row| row.position).collect())).await? {
            Reply::Published => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    fn look_every(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn claim_due(
        &self,
        kind: WakeKind,
        now: UnixMs,
        lease_ms: u64,
        limit: u32,
    ) -> Result<Vec<TxnId>, StoreError> {
        // Looks before it asks the writer, so that an idle core writes nothing.
        if !self.readers.ask(move |db| sqlite_read::anything_due(db, kind, now)).await? {
            return Ok(Vec::new());
        }
        match self.writer.ask(Op::Claim { kind, now, lease_ms, limit }).await? {
            Reply::Claimed(due) => Ok(due),
            other => Err(mismatch(&other)),
        }
    }

    async fn purge(&self, idempotency_before: UnixMs, inbox_before: UnixMs) -> Result<u64, StoreError> {
        match self.writer.ask(Op::Purge { idempotency_before, inbox_before }).await? {
            Reply::Purged(rows) => Ok(rows),
            other => Err(mismatch(&other)),
        }
    }

    async fn make_room(&self, _: UnixMs) -> Result<(), StoreError> {
        Ok(())
    }

    async fn figures(&self) -> Result<Figures, StoreError> {
        self.readers.ask(sqlite_read::figures).await
    }

    fn outbox_bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    async fn close(&self) {
        // The writing connection goes last: it folds the WAL, with all that was erased, into the file.
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A request to the writer.
#[derive(Debug)]
enum Op {
    Accept(Box<NewTxn>),
    Apply(Box<Apply>),
    Published(Vec<i64>),
    Claim { kind: WakeKind, now: UnixMs, lease_ms: u64, limit: u32 },
    Purge { idempotency_before: UnixMs, inbox_before: UnixMs },
}

/// The answer to the [`Op`] of the same name.
#[derive(Debug)]
enum Reply {
    Accepted(Accepted),
    Applied(Applied),
    Published,
    Claimed(Vec<TxnId>),
    Purged(u64),
}

#[derive(Debug)]
struct SqliteEngine {
    db: Connection,
    rules: Rules,
}

#[async_trait]
impl Engine for SqliteEngine {
    type Op = Op;
    type Reply = Reply;

    fn is_urgent(op: &Op) -> bool {
        matches!(op, Op::Accept(_))
    }

    /// Works on the calling thread, which is the writer's own.
    async fn commit(&mut self, batch: &[Op]) -> Result<Committed<Reply>, StoreError> {
        let db = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let committed = write(&db, &self.rules, batch)?;
        db.commit()?;
        Ok(committed)
    }

    async fn close(self) -> Result<(), StoreError> {
        sqlite::close(self.db)
    }
}

fn write(db: &Connection, rules: &Rules, batch: &[Op]) -> Result<Committed<Reply>, StoreError> {
    let mut rows = Rows::default();
    let new = batch.iter().filter_map(as_accept);
    let mut accepted = new.map(|new| accept(db, new, &mut rows)).collect::<Result<Vec<_>, _>>()?.into_iter();
    let inputs: Vec<&Apply> = batch.iter().filter_map(as_apply).collect();
    let mut applied = apply_all(db, rules, &inputs, &mut rows)?.into_iter();
    let outgoing_events = rows.outgoing_events();
    rows.write(db)?;

    let mut replies = Vec::with_capacity(batch.len());
    for op in batch {
        replies.push(Ok(match op {
            Op::Accept(_) => Reply::Accepted(accepted.next().ok_or_else(missing)?),
            Op::Apply(_) => Reply::Applied(applied.next().ok_or_else(missing)?),
            Op::Published(positions) => {
                sqlite_rows::published(db, positions)?;
                Reply::Published
            }
            Op::Claim { kind, now, lease_ms, limit } => {
                Reply::Claimed(sqlite_rows::claim_due(db, *kind, *now, *lease_ms, *limit)?)
            }
            Op::Purge { idempotency_before, inbox_before } => {
                let sql = "DELETE FROM idempotency WHERE key_hash IN
                    (SELECT key_hash FROM idempotency WHERE created_at < ?1 LIMIT ?2)";
                let keys = db.execute(sql, params![idempotency_before.0, PURGE_ROWS])?;
                let sql = "DELETE FROM inbox WHERE (consumer, message_id) IN
                    (SELECT consumer, message_id FROM inbox WHERE at < ?1 LIMIT ?2)";
                let inbox = db.execute(sql, params![inbox_before.0, PURGE_ROWS])?;
                Reply::Purged(u64::try_from(keys + inbox).unwrap_or(u64::MAX))
            }
        }));
    }
    Ok(Committed { replies, outgoing_events })
}

fn accept(db: &Connection, new: &NewTxn, rows: &mut Rows) -> Result<Accepted, StoreError> {
    if sqlite_rows::claim_key(db, new)? {
        rows.accept(new, record::accepted(new));
        return Ok(Accepted::New);
    }
    Ok(decide::again(new, sqlite_read::first_use(db, new)?))
}

fn apply_all(
    db: &Connection,
    rules: &Rules,
    inputs: &[&Apply],
    rows: &mut Rows,
) -> Result<Vec<Applied>, StoreError> {
    let mut txns = sqlite_read::txns(db, inputs)?;
    let mut seen = sqlite_read::seen(db, inputs)?;
    Ok(decide::apply_all(inputs, &mut txns, &mut seen, rules, rows))
}

fn as_accept(op: &Op) -> Option<&NewTxn> {
    match op {
        Op::Accept(new) => Some(new),
        Op::Apply(_) | Op::Published(_) | Op::Claim { .. } | Op::Purge { .. } => None,
    }
}

fn as_apply(op: &Op) -> Option<&Apply> {
    match op {
        Op::Apply(input) => Some(input),
        Op::Accept(_) | Op::Published(_) | Op::Claim { .. } | Op::Purge { .. } => None,
    }
}

fn missing() -> StoreError {
    StoreError::Engine("fewer answers than requests".to_owned())
}

fn mismatch(reply: &Reply) -> StoreError {
    StoreError::Engine(format!("the writer answered something else: {reply:?}"))
}

/// Brings a file's tables up to date and closes it: `txn-core migrate`.
///
/// # Errors
/// As [`SqliteStore::open`].
pub fn migrate(file: &Path) -> Result<(), StoreError> {
    sqlite::close(sqlite::open(file, MIGRATIONS)?)
}
