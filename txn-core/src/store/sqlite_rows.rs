//! Rows on their way into SQLite: every table takes a whole batch in one prepared statement, as a JSON array
//! that SQLite takes apart itself. So a batch costs the same handful of calls whatever its size.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::record::Record;
use super::{NewTxn, StoreError};
use crate::txn::{UnixMs, WakeKind};

/// Rows of one transaction, table by table.
#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    new_txns: Vec<TxnRow>,
    /// By id: of several versions in one batch only the last is written.
    changed_txns: HashMap<String, TxnRow>,
    history: Vec<HistoryJson>,
    idempotency: Vec<IdempotencyJson<'a>>,
    inbox: Vec<InboxJson<'a>>,
    outbox: Vec<OutboxJson>,
    /// By id; none: the timer goes.
    timers: HashMap<String, Option<TimerJson>>,
    cred_blocks: Vec<CredBlockJson<'a>>,
    cred_blocks_gone: Vec<String>,
}

#[derive(Debug, Serialize)]
struct TxnRow {
    id: String,
    psp: String,
    tenant: String,
    subject: String,
    device: String,
    from: String,
    to: String,
    amount: u64,
    note: String,
    state: &'static str,
    status: &'static str,
    version: u32,
    code: Option<String>,
    rrn: Option<String>,
    created: i64,
    updated: i64,
    send_by: i64,
    dispatched: Option<i64>,
    sends: u32,
    checks: u32,
    flagged: Option<i64>,
}

#[derive(Debug, Serialize)]
struct HistoryJson {
    id: String,
    version: u32,
    at: i64,
    state: &'static str,
    event: &'static str,
    reason: Option<String>,
    applied: u8,
}

#[derive(Debug, Serialize)]
struct IdempotencyJson<'a> {
    tenant: &'a str,
    route: &'a str,
    key: &'a str,
    fingerprint: String,
    id: String,
    at: i64,
}

#[derive(Debug, Serialize)]
struct InboxJson<'a> {
    consumer: &'a str,
    message: &'a str,
    at: i64,
}

#[derive(Debug, Serialize)]
struct OutboxJson {
    event_id: String,
    txn: String,
    kind: &'static str,
    payload: String,
    at: i64,
}

#[derive(Debug, Serialize)]
struct TimerJson {
    id: String,
    kind: &'static str,
    due: i64,
}

#[derive(Debug, Serialize)]
struct CredBlockJson<'a> {
    id: String,
    block: &'a str,
}

const INSERT_TXNS: &str = "INSERT INTO transactions
    SELECT unhex(value ->> 'id'), value ->> 'psp', value ->> 'tenant', value ->> 'subject', value ->> 'device',
           value ->> 'from', value ->> 'to', value ->> 'amount', value ->> 'note', value ->> 'state',
           value ->> 'status', value ->> 'version', value ->> 'code', value ->> 'rrn', value ->> 'created',
           value ->> 'updated', value ->> 'send_by', value ->> 'dispatched', value ->> 'sends',
           value ->> 'checks', value ->> 'flagged'
    FROM json_each(?1)";

const UPDATE_TXNS: &str = "UPDATE transactions SET
        state = row.value ->> 'state', status = row.value ->> 'status', version = row.value ->> 'version',
        code = row.value ->> 'code', rrn = row.value ->> 'rrn', updated_at = row.value ->> 'updated',
        dispatched_at = row.value ->> 'dispatched', sends = row.value ->> 'sends',
        checks = row.value ->> 'checks', flagged_at = row.value ->> 'flagged'
    FROM json_each(?1) AS row WHERE transactions.txn_id = unhex(row.value ->> 'id')";

const INSERT_HISTORY: &str = "INSERT INTO txn_history
    SELECT unhex(value ->> 'id'), value ->> 'version', value ->> 'at', value ->> 'state', value ->> 'event',
           value ->> 'reason', value ->> 'applied' FROM json_each(?1)";

const INSERT_IDEMPOTENCY: &str = "INSERT INTO idempotency
    SELECT value ->> 'tenant', value ->> 'route', value ->> 'key', unhex(value ->> 'fingerprint'),
           unhex(value ->> 'id'), value ->> 'at' FROM json_each(?1)";

const INSERT_INBOX: &str = "INSERT INTO inbox
    SELECT value ->> 'consumer', value ->> 'message', value ->> 'at' FROM json_each(?1)";

const INSERT_OUTBOX: &str =
    "INSERT INTO outbox_events (event_id, aggregate_id, event_type, payload, created_at)
    SELECT unhex(value ->> 'event_id'), value ->> 'txn', value ->> 'kind', value ->> 'payload', value ->> 'at'
    FROM json_each(?1) ORDER BY key";

const UPSERT_TIMERS: &str = "INSERT INTO timers
    SELECT unhex(value ->> 'id'), value ->> 'kind', value ->> 'due', 0 FROM json_each(?1) WHERE true
    ON CONFLICT (txn_id) DO UPDATE SET kind = excluded.kind, due_at = excluded.due_at, lease_until = 0";

const DELETE_TIMERS: &str = "DELETE FROM timers WHERE txn_id IN (SELECT unhex(value) FROM json_each(?1))";

const INSERT_CRED_BLOCKS: &str = "INSERT INTO cred_blocks
    SELECT unhex(value ->> 'id'), value ->> 'block' FROM json_each(?1)";

const DELETE_CRED_BLOCKS: &str =
    "DELETE FROM cred_blocks WHERE txn_id IN (SELECT unhex(value) FROM json_each(?1))";

impl<'a> Rows<'a> {
    /// A new payment with everything that comes with it.
    pub(super) fn accept(&mut self, new: &'a NewTxn, record: Record) {
        let id = hex(record.txn.id.uuid());
        self.new_txns.push(txn_row(&record));
        self.idempotency.push(IdempotencyJson {
            tenant: &new.idempotency.tenant,
            route: new.idempotency.route,
            key: &new.idempotency.key,
            fingerprint: new.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
            id: id.clone(),
            at: record.txn.created_at.0,
        });
        if let Some(block) = &new.cred_block {
            self.cred_blocks.push(CredBlockJson { id, block: &block.0 });
        }
        self.shared(record);
    }

    /// A payment's next version; the last one pushed wins.
    pub(super) fn change(&mut self, record: Record) {
        let row = txn_row(&record);
        self.changed_txns.insert(row.id.clone(), row);
        self.shared(record);
    }

    pub(super) fn take_in(&mut self, consumer: &'a str, message: &'a str, at: UnixMs) {
        self.inbox.push(InboxJson { consumer, message, at: at.0 });
    }

    fn shared(&mut self, record: Record) {
        let id = hex(record.txn.id.uuid());
        self.history.push(HistoryJson {
            id: id.clone(),
            version: record.txn.version,
            at: record.history.at.0,
            state: record.history.state.name(),
            event: record.history.event,
            reason: record.history.reason,
            applied: u8::from(record.history.applied),
        });
        for event in record.events {
            self.outbox.push(OutboxJson {
                event_id: hex(event.event_id),
                txn: record.txn.id.to_string(),
                kind: event.event_type.name(),
                payload: event.payload,
                at: record.history.at.0,
            });
        }
        if record.erase_cred_block {
            self.cred_blocks_gone.push(id.clone());
        }
        if record.history.applied {
            let timer = record.txn.wake.map(|wake| TimerJson {
                id: id.clone(),
                kind: wake_name(wake.kind),
                due: wake.at.0,
            });
            self.timers.insert(id, timer);
        }
    }

    pub(super) fn outgoing_events(&self) -> usize {
        self.outbox.len()
    }

    /// Writes all of it; the caller commits.
    pub(super) async fn write(&self, db: &mut SqliteConnection) -> Result<(), StoreError> {
        insert(db, INSERT_TXNS, &self.new_txns).await?;
        insert(db, UPDATE_TXNS, &self.changed_txns.values().collect::<Vec<_>>()).await?;
        insert(db, INSERT_HISTORY, &self.history).await?;
        insert(db, INSERT_IDEMPOTENCY, &self.idempotency).await?;
        insert(db, INSERT_INBOX, &self.inbox).await?;
        insert(db, INSERT_OUTBOX, &self.outbox).await?;
        insert(db, UPSERT_TIMERS, &self.timers.values().flatten().collect::<Vec<_>>()).await?;
        let gone: Vec<_> =
            self.timers.iter().filter(|(_, timer)| timer.is_none()).map(|(id, _)| id).collect();
        insert(db, DELETE_TIMERS, &gone).await?;
        insert(db, INSERT_CRED_BLOCKS, &self.cred_blocks).await?;
        insert(db, DELETE_CRED_BLOCKS, &self.cred_blocks_gone).await
    }
}

async fn insert(
    db: &mut SqliteConnection,
    sql: &'static str,
    rows: &[impl Serialize],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let json = serde_json::to_string(rows).map_err(|error| StoreError::Engine(error.to_string()))?;
    sqlx::query(sql).bind(json).execute(db).await?;
    Ok(())
}

fn txn_row(record: &Record) -> TxnRow {
    let txn = &record.txn;
    TxnRow {
        id: hex(txn.id.uuid()),
        psp: txn.id.psp().as_str().to_owned(),
        tenant: txn.tenant.clone(),
        subject: txn.subject.clone(),
        device: txn.device_id.clone(),
        from: txn.from.as_str().to_owned(),
        to: txn.to.as_str().to_owned(),
        amount: txn.amount.paise(),
        note: txn.note.clone(),
        state: txn.state.name(),
        status: txn.state.status().name(),
        version: txn.version,
        code: txn.code.clone(),
        rrn: txn.rrn.clone(),
        created: txn.created_at.0,
        updated: txn.updated_at.0,
        send_by: txn.send_by.0,
        dispatched: txn.dispatched_at.map(|at| at.0),
        sends: txn.sends,
        checks: txn.checks,
        flagged: txn.flagged_at.map(|at| at.0),
    }
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
