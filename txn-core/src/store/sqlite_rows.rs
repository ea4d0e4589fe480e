//! Rows on their way into SQLite: each table takes its share of a batch in a few prepared multi-row
//! statements, so that the number of calls hardly grows with the batch.

use std::collections::{HashMap, HashSet};

use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::record::Record;
use super::{IdempotencyKey, NewTxn, StoreError};
use crate::txn::{UnixMs, WakeKind};

/// Rows of one transaction, table by table.
#[derive(Debug, Default)]
pub(super) struct Rows {
    new_txns: Vec<Vec<Cell>>,
    /// By id: of several versions in one batch only the last is written.
    changed_txns: HashMap<Uuid, Vec<Cell>>,
    history: Vec<Vec<Cell>>,
    inbox: Vec<Vec<Cell>>,
    outbox: Vec<Vec<Cell>>,
    /// By id; none: the timer goes.
    timers: HashMap<Uuid, Option<Vec<Cell>>>,
    cred_blocks: Vec<Vec<Cell>>,
    cred_blocks_gone: Vec<String>,
}

#[derive(Debug, Clone)]
enum Cell {
    Text(String),
    Static(&'static str),
    Int(i64),
    Blob(Vec<u8>),
    Null,
}

/// A statement that takes any number of rows: what stands before and after its `VALUES`.
struct Insert {
    before: &'static str,
    columns: usize,
    after: &'static str,
}

const INSERT_TXNS: Insert = Insert { before: "INSERT INTO transactions VALUES ", columns: 21, after: "" };

const UPSERT_TXNS: Insert = Insert {
    before: "INSERT INTO transactions VALUES ",
    columns: 21,
    after: " ON CONFLICT (txn_id) DO UPDATE SET state = excluded.state, status = excluded.status,
        version = excluded.version, code = excluded.code, rrn = excluded.rrn, updated_at = excluded.updated_at,
        dispatched_at = excluded.dispatched_at, sends = excluded.sends, checks = excluded.checks,
        flagged_at = excluded.flagged_at",
};

const INSERT_HISTORY: Insert = Insert { before: "INSERT INTO txn_history VALUES ", columns: 7, after: "" };

const INSERT_IDEMPOTENCY: Insert = Insert {
    before: "INSERT INTO idempotency VALUES ",
    columns: 4,
    after: " ON CONFLICT DO NOTHING RETURNING txn_id",
};

const INSERT_INBOX: Insert = Insert { before: "INSERT INTO inbox VALUES ", columns: 3, after: "" };

const INSERT_OUTBOX: Insert = Insert {
    before: "INSERT INTO outbox_events (event_id, aggregate_id, event_type, payload, created_at) VALUES ",
    columns: 5,
    after: "",
};

const UPSERT_TIMERS: Insert = Insert {
    before: "INSERT INTO timers VALUES ",
    columns: 4,
    after: " ON CONFLICT (txn_id) DO UPDATE SET kind = excluded.kind, due_at = excluded.due_at, lease_until = 0",
};

const INSERT_CRED_BLOCKS: Insert =
    Insert { before: "INSERT INTO cred_blocks VALUES ", columns: 2, after: "" };

const DELETE_TIMERS: &str = "DELETE FROM timers WHERE txn_id IN (SELECT unhex(value) FROM json_each(?1))";
const DELETE_CRED_BLOCKS: &str =
    "DELETE FROM cred_blocks WHERE txn_id IN (SELECT unhex(value) FROM json_each(?1))";

/// Rows of a statement, largest first: few different texts, so that all of them stay prepared.
const SIZES: [usize; 4] = [64, 16, 4, 1];

/// Writes the keys that are still free; gives the payments whose keys these were.
pub(super) async fn claim_keys(
    db: &mut SqliteConnection,
    new: &[&NewTxn],
) -> Result<HashSet<Uuid>, StoreError> {
    let rows: Vec<Vec<Cell>> = new
        .iter()
        .map(|new| {
            vec![
                Cell::Blob(key_hash(&new.idempotency)),
                Cell::Blob(new.fingerprint.to_vec()),
                id(new.txn.id.uuid()),
                Cell::Int(new.txn.created_at.0),
            ]
        })
        .collect();
    let mut claimed = HashSet::with_capacity(new.len());
    for (sql, arguments) in INSERT_IDEMPOTENCY.statements(&rows)? {
        for row in sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(&mut *db).await? {
            let bytes: Vec<u8> = row.try_get(0)?;
            claimed.insert(Uuid::from_slice(&bytes).map_err(|e| StoreError::Engine(e.to_string()))?);
        }
    }
    Ok(claimed)
}

/// The key of the table `idempotency`: of fixed length, and nothing in it that a client wrote.
pub(super) fn key_hash(key: &IdempotencyKey) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [key.tenant.as_str(), key.route, &key.key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

impl Rows {
    /// A new payment with everything that comes with it, but for its key.
    pub(super) fn accept(&mut self, new: &NewTxn, record: Record) {
        self.new_txns.push(txn_row(&record));
        if let Some(block) = &new.cred_block {
            self.cred_blocks.push(vec![id(new.txn.id.uuid()), Cell::Text(block.0.clone())]);
        }
        self.shared(record);
    }

    /// A payment's next version; the last one pushed wins.
    pub(super) fn change(&mut self, record: Record) {
        self.changed_txns.insert(record.txn.id.uuid(), txn_row(&record));
        self.shared(record);
    }

    pub(super) fn take_in(&mut self, consumer: &'static str, message: &str, at: UnixMs) {
        self.inbox.push(vec![Cell::Static(consumer), Cell::Text(message.to_owned()), Cell::Int(at.0)]);
    }

    fn shared(&mut self, record: Record) {
        let (txn, history) = (record.txn, record.history);
        let key = txn.id.uuid();
        self.history.push(vec![
            id(key),
            Cell::Int(i64::from(txn.version)),
            Cell::Int(history.at.0),
            Cell::Static(history.state.name()),
            Cell::Static(history.event),
            history.reason.map_or(Cell::Null, Cell::Text),
            Cell::Int(i64::from(history.applied)),
        ]);
        for event in record.events {
            self.outbox.push(vec![
                id(event.event_id),
                Cell::Text(txn.id.to_string()),
                Cell::Static(event.event_type.name()),
                Cell::Text(event.payload),
                Cell::Int(history.at.0),
            ]);
        }
        if record.erase_cred_block {
            self.cred_blocks_gone.push(hex(key));
        }
        if history.applied {
            let timer = txn.wake.map(|wake| {
                vec![id(key), Cell::Static(wake_name(wake.kind)), Cell::Int(wake.at.0), Cell::Int(0)]
            });
            self.timers.insert(key, timer);
        }
    }

    pub(super) fn outgoing_events(&self) -> usize {
        self.outbox.len()
    }

    /// Writes all of it; the caller commits.
    pub(super) async fn write(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        let changed: Vec<_> = self.changed_txns.into_values().collect();
        let gone: Vec<String> =
            self.timers.iter().filter(|(_, timer)| timer.is_none()).map(|(key, _)| hex(*key)).collect();
        let timers: Vec<_> = self.timers.into_values().flatten().collect();
        INSERT_TXNS.run(db, &self.new_txns).await?;
        UPSERT_TXNS.run(db, &changed).await?;
        INSERT_HISTORY.run(db, &self.history).await?;
        INSERT_INBOX.run(db, &self.inbox).await?;
        INSERT_OUTBOX.run(db, &self.outbox).await?;
        UPSERT_TIMERS.run(db, &timers).await?;
        delete(db, DELETE_TIMERS, &gone).await?;
        INSERT_CRED_BLOCKS.run(db, &self.cred_blocks).await?;
        delete(db, DELETE_CRED_BLOCKS, &self.cred_blocks_gone).await
    }
}

impl Insert {
    async fn run(&self, db: &mut SqliteConnection, rows: &[Vec<Cell>]) -> Result<(), StoreError> {
        for (sql, arguments) in self.statements(rows)? {
            sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *db).await?;
        }
        Ok(())
    }

    /// Texts of ours with question marks for every value, and the values.
    fn statements(&self, mut rows: &[Vec<Cell>]) -> Result<Vec<(String, SqliteArguments)>, StoreError> {
        let one = format!("(?{})", ", ?".repeat(self.columns - 1));
        let mut statements = Vec::new();
        for size in SIZES {
            while rows.len() >= size {
                let (now, later) = rows.split_at(size);
                rows = later;
                let values = vec![one.as_str(); size].join(", ");
                statements.push((format!("{}{values}{}", self.before, self.after), arguments(now)?));
            }
        }
        Ok(statements)
    }
}

fn arguments(rows: &[Vec<Cell>]) -> Result<SqliteArguments, StoreError> {
    use sqlx::Arguments as _;
    let mut arguments = SqliteArguments::default();
    for cell in rows.iter().flatten() {
        match cell {
            Cell::Text(text) => arguments.add(text.clone()),
            Cell::Static(text) => arguments.add(*text),
            Cell::Int(int) => arguments.add(*int),
            Cell::Blob(bytes) => arguments.add(bytes.clone()),
            Cell::Null => arguments.add(None::<i64>),
        }
        .map_err(|error| StoreError::Engine(error.to_string()))?;
    }
    Ok(arguments)
}

async fn delete(db: &mut SqliteConnection, sql: &'static str, ids: &[String]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids = serde_json::to_string(ids).map_err(|error| StoreError::Engine(error.to_string()))?;
    sqlx::query(sql).bind(ids).execute(db).await?;
    Ok(())
}

/// In the order of the table's columns.
fn txn_row(record: &Record) -> Vec<Cell> {
    let txn = &record.txn;
    let text = |text: &str| Cell::Text(text.to_owned());
    let optional = |text: &Option<String>| text.clone().map_or(Cell::Null, Cell::Text);
    let time = |at: Option<UnixMs>| at.map_or(Cell::Null, |at| Cell::Int(at.0));
    vec![
        id(txn.id.uuid()),
        text(txn.id.psp().as_str()),
        text(&txn.tenant),
        text(&txn.subject),
        text(&txn.device_id),
        text(txn.from.as_str()),
        text(txn.to.as_str()),
        // Ten digits of rupees at most: far below i64's end.
        Cell::Int(i64::try_from(txn.amount.paise()).unwrap_or(i64::MAX)),
        text(&txn.note),
        Cell::Static(txn.state.name()),
        Cell::Static(txn.state.status().name()),
        Cell::Int(i64::from(txn.version)),
        optional(&txn.code),
        optional(&txn.rrn),
        Cell::Int(txn.created_at.0),
        Cell::Int(txn.updated_at.0),
        Cell::Int(txn.send_by.0),
        time(txn.dispatched_at),
        Cell::Int(i64::from(txn.sends)),
        Cell::Int(i64::from(txn.checks)),
        time(txn.flagged_at),
    ]
}

fn id(uuid: Uuid) -> Cell {
    Cell::Blob(uuid.as_bytes().to_vec())
}

/// The 32 digits that `unhex` takes.
pub(super) fn hex(uuid: Uuid) -> String {
    uuid.simple().to_string()
}

pub(super) fn wake_name(kind: WakeKind) -> &'static str {
    match kind {
        WakeKind::Send => "send",
        WakeKind::Check => "check",
    }
}

pub(super) fn wake_from_name(name: &str) -> Option<WakeKind> {
    [WakeKind::Send, WakeKind::Check].into_iter().find(|kind| wake_name(*kind) == name)
}
