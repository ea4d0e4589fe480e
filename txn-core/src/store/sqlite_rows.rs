//! Rows on their way into SQLite. Every call goes through a thread of its own and back, which costs more than
//! the writing: a small batch is one call for all tables, each taking its rows from a JSON array. A large batch
//! is a few prepared multi-row statements a table, which cost less for each row.

use std::collections::{HashMap, HashSet};

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::decide::Changes;
use super::record::{Record, key_hash, wake_name};
use super::{NewTxn, StoreError};
use crate::txn::{TxnId, UnixMs};

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
    cred_blocks_gone: Vec<Uuid>,
    published: Vec<i64>,
}

#[derive(Debug, Clone)]
enum Cell {
    Text(String),
    Static(&'static str),
    Int(i64),
    Blob(Vec<u8>),
    Null,
}

/// A statement that takes any number of rows: what stands before and after them, and what they consist of.
struct Insert {
    before: &'static str,
    /// A letter for each column: `b` for bytes, `v` for any other value.
    columns: &'static str,
    after: &'static str,
}

const INSERT_TXNS: Insert =
    Insert { before: "INSERT INTO transactions", columns: "bvvvvvvvvvvvvvvvvvvvv", after: "" };

const UPSERT_TXNS: Insert = Insert {
    before: "INSERT INTO transactions",
    columns: "bvvvvvvvvvvvvvvvvvvvv",
    after: " ON CONFLICT (txn_id) DO UPDATE SET state = excluded.state, status = excluded.status,
        version = excluded.version, code = excluded.code, rrn = excluded.rrn, updated_at = excluded.updated_at,
        dispatched_at = excluded.dispatched_at, sends = excluded.sends, checks = excluded.checks,
        flagged_at = excluded.flagged_at",
};

const INSERT_HISTORY: Insert = Insert { before: "INSERT INTO txn_history", columns: "bvvvvvv", after: "" };

const INSERT_IDEMPOTENCY: Insert = Insert {
    before: "INSERT INTO idempotency",
    columns: "bbbv",
    after: " ON CONFLICT DO NOTHING RETURNING txn_id",
};

const INSERT_INBOX: Insert = Insert { before: "INSERT INTO inbox", columns: "vvv", after: "" };

const INSERT_OUTBOX: Insert = Insert {
    before: "INSERT INTO outbox_events (event_id, aggregate_id, event_type, payload, created_at)",
    columns: "bvvvv",
    after: "",
};

const UPSERT_TIMERS: Insert = Insert {
    before: "INSERT INTO timers",
    columns: "bvvv",
    after: " ON CONFLICT (txn_id) DO UPDATE SET kind = excluded.kind, due_at = excluded.due_at, lease_until = 0",
};

const INSERT_CRED_BLOCKS: Insert = Insert { before: "INSERT INTO cred_blocks", columns: "bv", after: "" };

/// Statements that take away what one JSON array names.
const DELETE_TIMERS: &str = "DELETE FROM timers WHERE txn_id IN (SELECT unhex(value) FROM json_each(?))";
const DELETE_CRED_BLOCKS: &str =
    "DELETE FROM cred_blocks WHERE txn_id IN (SELECT unhex(value) FROM json_each(?))";
const DELETE_PUBLISHED: &str = "DELETE FROM outbox_events WHERE position IN (SELECT value FROM json_each(?))";

/// Up to so many rows of a table go as JSON.
const FEW: usize = 32;

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
                Cell::Blob(key_hash(&new.idempotency).to_vec()),
                Cell::Blob(new.fingerprint.to_vec()),
                id(new.txn.id.uuid()),
                Cell::Int(new.txn.created_at.0),
            ]
        })
        .collect();
    let mut script = Script::of(&[rows.len()]);
    INSERT_IDEMPOTENCY.add(&rows, &mut script)?;
    script.run(db).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
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
            self.cred_blocks_gone.push(key);
        }
        if history.applied {
            let timer = txn.wake.map(|wake| {
                vec![id(key), Cell::Static(wake_name(wake.kind)), Cell::Int(wake.at.0), Cell::Int(0)]
            });
            self.timers.insert(key, timer);
        }
    }

    /// Events that have been published go.
    pub(super) fn published(&mut self, positions: &[i64]) {
        self.published.extend_from_slice(positions);
    }

    pub(super) fn outgoing_events(&self) -> usize {
        self.outbox.len()
    }

    /// Writes all of it; the caller commits.
    pub(super) async fn write(self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        let changed: Vec<_> = self.changed_txns.into_values().collect();
        let gone: Vec<Uuid> =
            self.timers.iter().filter(|(_, timer)| timer.is_none()).map(|(key, _)| *key).collect();
        let timers: Vec<_> = self.timers.into_values().flatten().collect();
        let sizes =
            [self.new_txns.len(), changed.len(), self.history.len(), self.inbox.len(), self.outbox.len()];
        let mut script = Script::of(&sizes);
        INSERT_TXNS.add(&self.new_txns, &mut script)?;
        UPSERT_TXNS.add(&changed, &mut script)?;
        INSERT_HISTORY.add(&self.history, &mut script)?;
        INSERT_INBOX.add(&self.inbox, &mut script)?;
        INSERT_OUTBOX.add(&self.outbox, &mut script)?;
        UPSERT_TIMERS.add(&timers, &mut script)?;
        script.delete(DELETE_TIMERS, &hexes(&gone))?;
        INSERT_CRED_BLOCKS.add(&self.cred_blocks, &mut script)?;
        script.delete(DELETE_CRED_BLOCKS, &hexes(&self.cred_blocks_gone))?;
        script.delete(DELETE_PUBLISHED, &self.published)?;
        script.run(db).await?;
        Ok(())
    }
}

impl Changes for Rows {
    /// The last version pushed wins.
    fn change(&mut self, record: Record) {
        self.changed_txns.insert(record.txn.id.uuid(), txn_row(&record));
        self.shared(record);
    }

    fn take_in(&mut self, _: TxnId, consumer: &'static str, message: &str, at: UnixMs) {
        self.inbox.push(vec![Cell::Static(consumer), Cell::Text(message.to_owned()), Cell::Int(at.0)]);
    }
}

/// Statements and their values on their way to SQLite, in order: rows refer to rows of tables before theirs.
enum Script {
    /// One call, with a text for each set of tables.
    Few { text: String, values: SqliteArguments },
    /// A call for each statement.
    Many(Vec<(String, SqliteArguments)>),
}

impl Script {
    /// For tables of these sizes.
    fn of(sizes: &[usize]) -> Script {
        if sizes.iter().all(|rows| *rows <= FEW) {
            Script::Few { text: String::new(), values: SqliteArguments::default() }
        } else {
            Script::Many(Vec::new())
        }
    }

    /// Adds a statement whose one value is JSON.
    fn add(&mut self, sql: &str, json: String) -> Result<(), StoreError> {
        let added = match self {
            Script::Few { text, values } => {
                text.push_str(sql);
                text.push_str(";\n");
                values.add(json)
            }
            Script::Many(statements) => {
                let mut values = SqliteArguments::default();
                let added = values.add(json);
                statements.push((sql.to_owned(), values));
                added
            }
        };
        added.map_err(|error| StoreError::Engine(error.to_string()))
    }

    fn delete(&mut self, sql: &str, what: &[impl serde::Serialize]) -> Result<(), StoreError> {
        if what.is_empty() {
            return Ok(());
        }
        self.add(sql, serde_json::to_string(what).map_err(|error| StoreError::Engine(error.to_string()))?)
    }

    /// Runs everything, and gives the rows that came back.
    async fn run(self, db: &mut SqliteConnection) -> Result<Vec<SqliteRow>, StoreError> {
        let statements = match self {
            Script::Few { text, .. } if text.is_empty() => Vec::new(),
            Script::Few { text, values } => vec![(text, values)],
            Script::Many(statements) => statements,
        };
        let mut rows = Vec::new();
        for (sql, values) in statements {
            rows.extend(sqlx::query_with(AssertSqlSafe(sql), values).fetch_all(&mut *db).await?);
        }
        Ok(rows)
    }
}

impl Insert {
    fn add(&self, rows: &[Vec<Cell>], script: &mut Script) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let Script::Many(statements) = script else {
            return script.add(&self.json_sql(), json(rows));
        };
        let mut rows = rows;
        let one = format!("(?{})", ", ?".repeat(self.columns.len() - 1));
        for size in SIZES {
            while rows.len() >= size {
                let (now, later) = rows.split_at(size);
                rows = later;
                let values = vec![one.as_str(); size].join(", ");
                statements.push((format!("{} VALUES {values}{}", self.before, self.after), values_of(now)?));
            }
        }
        Ok(())
    }

    /// The statement with its rows in one JSON array of arrays, bytes as hexadecimal digits.
    fn json_sql(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .bytes()
            .enumerate()
            .map(
                |(at, kind)| {
                    if kind == b'b' { format!("unhex(value ->> {at})") } else { format!("value ->> {at}") }
                },
            )
            .collect();
        // Without WHERE the parser would take ON CONFLICT for a join's ON. `key` is the place in the array.
        let columns = columns.join(", ");
        format!("{} SELECT {columns} FROM json_each(?) WHERE true ORDER BY key{}", self.before, self.after)
    }
}

fn json(rows: &[Vec<Cell>]) -> String {
    use serde_json::Value;
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => Value::from(text.as_str()),
        Cell::Static(text) => Value::from(*text),
        Cell::Int(int) => Value::from(*int),
        Cell::Blob(bytes) => Value::from(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Cell::Null => Value::Null,
    };
    Value::from_iter(rows.iter().map(|row| row.iter().map(cell).collect::<Value>())).to_string()
}

fn values_of(rows: &[Vec<Cell>]) -> Result<SqliteArguments, StoreError> {
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

fn hexes(ids: &[Uuid]) -> Vec<String> {
    ids.iter().map(|id| hex(*id)).collect()
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
