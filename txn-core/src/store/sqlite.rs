//! SQLite: WAL, `synchronous = FULL`, one writing connection, a small pool of reading ones.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, SqlSafeStr as _};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::record::wake_name;
use super::sqlite_rows::{self, Rows};
use super::writer::{Committed, Engine, Writer, WriterLimits};
use super::{
    Accepted, Applied, Apply, Figures, HistoryRow, LaneLease, NewTxn, OutboxRow, Store, StoreError, decide,
    record, sqlite_read,
};
use crate::metrics::Metrics;
use crate::txn::{Rules, Txn, TxnId, UnixMs, WakeKind};

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer<SqliteEngine>,
    readers: SqlitePool,
    bell: Arc<Notify>,
}

/// Forward only: an applied file never changes, a new one is added.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "payments", include_str!("../../migrations/sqlite/0001_payments.sql")),
    (2, "timers_by_kind", include_str!("../../migrations/sqlite/0002_timers_by_kind.sql")),
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
        let db = open_file(file, MIGRATIONS).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options(file).read_only(true))
            .await?;
        let bell = Arc::new(Notify::new());
        let writer = Writer::start(SqliteEngine { db, rules }, limits, bell.clone(), metrics);
        Ok(SqliteStore { writer, readers, bell })
    }
}

/// The writing connection of a file whose tables are up to date.
pub(crate) async fn open_file(
    file: &Path,
    migrations: &[(i64, &'static str, &'static str)],
) -> Result<SqliteConnection, StoreError> {
    let mut db = options(file).create_if_missing(true).connect().await?;
    let migrations = migrations
        .iter()
        .map(|(version, name, sql)| {
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    Migrator::with_migrations(migrations)
        .run_direct(None, &mut db, false)
        .await
        .map_err(|error| StoreError::Engine(format!("migration: {error}")))?;
    Ok(db)
}

pub(crate) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        // What is erased (PIN blocks) is overwritten, not only unlinked; in the WAL it lives on until the WAL
        // starts over or the store is closed.
        .pragma("secure_delete", "ON")
        .pragma("journal_size_limit", "67108864")
        // Kilobytes; keys are random, so what a batch touches is spread over the table.
        .pragma("cache_size", "-16384")
        .disable_statement_logging()
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
        let mut db = self.readers.acquire().await?;
        let mut found = sqlite_read::txns(&mut db, std::iter::once(id)).await?;
        let Some(loaded) = found.remove(&id.uuid()).filter(|loaded| loaded.txn.id == id) else {
            return Ok(None);
        };
        let history = sqlite_read::history(&mut db, id).await?;
        Ok(Some((loaded.txn, history)))
    }

    /// The file is one process's, and so is its one lane.
    async fn lease_lanes(&self, relay: Uuid, lease_ms: u64) -> Result<LaneLease, StoreError> {
        Ok(LaneLease { relay, lanes: vec![0], until: Instant::now() + Duration::from_millis(lease_ms) })
    }

    async fn return_lanes(&self, _: Uuid) -> Result<(), StoreError> {
        Ok(())
    }

    async fn unpublished(&self, _: &LaneLease, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let mut db = self.readers.acquire().await?;
        sqlite_read::unpublished(&mut db, limit).await
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
        let sql = "SELECT 1 FROM timers WHERE kind = ?2 AND due_at <= ?1 AND lease_until <= ?1 LIMIT 1";
        let anything: Option<i64> =
            sqlx::query_scalar(sql).bind(now.0).bind(wake_name(kind)).fetch_optional(&self.readers).await?;
        if anything.is_none() {
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
        let mut db = self.readers.acquire().await?;
        sqlite_read::figures(&mut db).await
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
    db: SqliteConnection,
    rules: Rules,
}

#[async_trait]
impl Engine for SqliteEngine {
    type Op = Op;
    type Reply = Reply;

    fn is_urgent(op: &Op) -> bool {
        matches!(op, Op::Accept(_))
    }

    async fn commit(&mut self, batch: &[Op]) -> Result<Committed<Reply>, StoreError> {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.db).await?;
        let written = match self.write(batch).await {
            Ok(committed) => {
                sqlx::query("COMMIT").execute(&mut self.db).await.map(|_| committed).map_err(StoreError::from)
            }
            Err(error) => Err(error),
        };
        if written.is_err() {
            // Fails only if SQLite has rolled back already, which is what is wanted.
            let _rolled_back = sqlx::query("ROLLBACK").execute(&mut self.db).await;
        }
        written
    }

    async fn close(self) -> Result<(), StoreError> {
        Ok(self.db.close().await?)
    }
}

impl SqliteEngine {
    async fn write(&mut self, batch: &[Op]) -> Result<Committed<Reply>, StoreError> {
        let new: Vec<&NewTxn> = batch.iter().filter_map(as_accept).collect();
        let inputs: Vec<&Apply> = batch.iter().filter_map(as_apply).collect();
        let mut rows = Rows::default();
        let mut accepted = self.accept_all(&new, &mut rows).await?.into_iter();
        let mut applied = self.apply_all(&inputs, &mut rows).await?.into_iter();
        for op in batch {
            if let Op::Published(positions) = op {
                rows.published(positions);
            }
        }
        let outgoing_events = rows.outgoing_events();
        rows.write(&mut self.db).await?;

        let mut replies = Vec::with_capacity(batch.len());
        for op in batch {
            replies.push(match op {
                Op::Accept(_) => Reply::Accepted(accepted.next().ok_or_else(missing)?),
                Op::Apply(_) => Reply::Applied(applied.next().ok_or_else(missing)?),
                Op::Published(_) => Reply::Published,
                Op::Claim { kind, now, lease_ms, limit } => Reply::Claimed(
                    sqlite_read::claim_due(&mut self.db, *kind, *now, *lease_ms, *limit).await?,
                ),
                Op::Purge { idempotency_before, inbox_before } => {
                    let sql = "DELETE FROM idempotency WHERE key_hash IN
                        (SELECT key_hash FROM idempotency WHERE created_at < ?1 LIMIT ?2)";
                    let keys = sqlx::query(sql).bind(idempotency_before.0).bind(PURGE_ROWS);
                    let keys = keys.execute(&mut self.db).await?.rows_affected();
                    let sql = "DELETE FROM inbox WHERE (consumer, message_id) IN
                        (SELECT consumer, message_id FROM inbox WHERE at < ?1 LIMIT ?2)";
                    let inbox = sqlx::query(sql).bind(inbox_before.0).bind(PURGE_ROWS);
                    Reply::Purged(keys + inbox.execute(&mut self.db).await?.rows_affected())
                }
            });
        }
        Ok(Committed { replies, outgoing_events })
    }

    async fn accept_all(&mut self, new: &[&NewTxn], rows: &mut Rows) -> Result<Vec<Accepted>, StoreError> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let claimed = sqlite_rows::claim_keys(&mut self.db, new).await?;
        let mut answers = Vec::with_capacity(new.len());
        for new in new {
            if claimed.contains(&new.txn.id.uuid()) {
                rows.accept(new, record::accepted(new));
                answers.push(Accepted::New);
                continue;
            }
            answers.push(decide::again(new, sqlite_read::first_use(&mut self.db, new).await?));
        }
        Ok(answers)
    }

    async fn apply_all(&mut self, inputs: &[&Apply], rows: &mut Rows) -> Result<Vec<Applied>, StoreError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let mut txns = sqlite_read::txns(&mut self.db, inputs.iter().map(|input| input.txn_id)).await?;
        let mut seen = sqlite_read::seen(&mut self.db, inputs).await?;
        Ok(decide::apply_all(inputs, &mut txns, &mut seen, &self.rules, rows))
    }
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
pub async fn migrate(file: &Path) -> Result<(), StoreError> {
    open_file(file, MIGRATIONS).await?.close().await?;
    Ok(())
}
