//! What the SQLite store writes. Every function works within its caller's transaction, with statements that stay
//! prepared.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::cells;
use super::decide::Changes;
use super::record::{Record, key_hash, wake_name};
use super::{CredBlock, NewTxn, StoreError};
use crate::txn::{TxnId, UnixMs, WakeKind};

const CLAIM_KEY: &str = "INSERT INTO idempotency VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";

const INSERT_TXN: &str = "INSERT INTO transactions (txn_id, psp, tenant, subject, device_id, from_vpa, to_vpa,
        amount_paise, note, state, status, version, code, rrn, created_at, updated_at, send_by, dispatched_at, sends,
        checks, flagged_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)";

/// What does not change after a payment was accepted stays out of it.
const UPDATE_TXN: &str = "UPDATE transactions SET state = ?2, status = ?3, version = ?4, code = ?5, rrn = ?6,
        updated_at = ?7, dispatched_at = ?8, sends = ?9, checks = ?10, flagged_at = ?11
    WHERE txn_id = ?1";

const INSERT_HISTORY: &str = "INSERT INTO txn_history (txn_id, version, at, state, event, reason, applied)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const INSERT_OUTBOX: &str =
    "INSERT INTO outbox_events (event_id, aggregate_id, event_type, payload, created_at)
    VALUES (?1, ?2, ?3, ?4, ?5)";

const INSERT_INBOX: &str = "INSERT INTO inbox (consumer, message_id, at) VALUES (?1, ?2, ?3)";

const SET_TIMER: &str = "INSERT INTO timers (txn_id, kind, due_at, lease_until) VALUES (?1, ?2, ?3, 0)
    ON CONFLICT (txn_id) DO UPDATE SET kind = excluded.kind, due_at = excluded.due_at, lease_until = 0";

const DELETE_TIMER: &str = "DELETE FROM timers WHERE txn_id = ?1";

const INSERT_CRED_BLOCK: &str = "INSERT INTO cred_blocks (txn_id, block) VALUES (?1, ?2)";

const DELETE_CRED_BLOCK: &str = "DELETE FROM cred_blocks WHERE txn_id = ?1";

const DELETE_PUBLISHED: &str = "DELETE FROM outbox_events WHERE position = ?1";

const CLAIM_DUE: &str = "UPDATE timers SET lease_until = ?1 + ?2 WHERE txn_id IN (
        SELECT txn_id FROM timers WHERE kind = ?4 AND due_at <= ?1 AND lease_until <= ?1
        ORDER BY due_at LIMIT ?3)
    RETURNING txn_id";

const PSP_OF: &str = "SELECT txn_id, psp FROM transactions WHERE txn_id = ?1";

/// Rows of one transaction.
#[derive(Debug, Default)]
pub(super) struct Rows {
    new: Vec<(Record, Option<CredBlock>)>,
    changes: Vec<Record>,
    /// A payment may have several versions in one batch: the last is written, with the history of all.
    last: HashMap<Uuid, Last>,
    inbox: Vec<(&'static str, String, UnixMs)>,
}

#[derive(Debug)]
struct Last {
    version: u32,
    /// What changes nothing leaves the timer alone, and whoever has claimed it.
    applied: bool,
}

/// Whether the key was free; it is this payment's now.
pub(super) fn claim_key(db: &Connection, new: &NewTxn) -> Result<bool, StoreError> {
    let key = key_hash(&new.idempotency);
    let mut claim = db.prepare_cached(CLAIM_KEY)?;
    Ok(claim.execute(params![key, new.fingerprint, new.txn.id.uuid(), new.txn.created_at.0])? == 1)
}

/// Events that have been published go.
pub(super) fn published(db: &Connection, positions: &[i64]) -> Result<(), StoreError> {
    let mut delete = db.prepare_cached(DELETE_PUBLISHED)?;
    for position in positions {
        delete.execute([position])?;
    }
    Ok(())
}

pub(super) fn claim_due(
    db: &Connection,
    kind: WakeKind,
    now: UnixMs,
    lease_ms: u64,
    limit: u32,
) -> Result<Vec<TxnId>, StoreError> {
    let lease_ms = i64::try_from(lease_ms).map_err(cells::odd)?;
    let mut claim = db.prepare_cached(CLAIM_DUE)?;
    let claimed = claim.query_map(params![now.0, lease_ms, limit, wake_name(kind)], |row| row.get(0))?;
    let claimed: Vec<Uuid> = claimed.collect::<Result<_, _>>()?;
    let mut of = db.prepare_cached(PSP_OF)?;
    let mut ids = Vec::with_capacity(claimed.len());
    for id in claimed {
        let found = of.query_row([id], |row| Ok(cells::txn_id(row, "txn_id"))).optional()?;
        ids.extend(found.transpose()?);
    }
    Ok(ids)
}

impl Rows {
    /// A new payment with everything that comes with it, but for its key.
    pub(super) fn accept(&mut self, new: &NewTxn, record: Record) {
        self.new.push((record, new.cred_block.clone()));
    }

    pub(super) fn outgoing_events(&self) -> usize {
        let records = self.new.iter().map(|(record, _)| record).chain(&self.changes);
        records.map(|record| record.events.len()).sum()
    }

    /// Writes all of it; the caller commits.
    pub(super) fn write(self, db: &Connection) -> Result<(), StoreError> {
        for (record, cred_block) in &self.new {
            insert_txn(db, record)?;
            if let Some(CredBlock(block)) = cred_block {
                db.prepare_cached(INSERT_CRED_BLOCK)?.execute(params![record.txn.id.uuid(), block])?;
            }
            with_every_version(db, record)?;
            set_timer(db, record)?;
        }
        for record in &self.changes {
            with_every_version(db, record)?;
            let last = self.last.get(&record.txn.id.uuid());
            if let Some(last) = last.filter(|last| last.version == record.txn.version) {
                update_txn(db, record)?;
                if last.applied {
                    set_timer(db, record)?;
                }
            }
        }
        let mut insert = db.prepare_cached(INSERT_INBOX)?;
        for (consumer, message, at) in &self.inbox {
            insert.execute(params![consumer, message, at.0])?;
        }
        Ok(())
    }
}

impl Changes for Rows {
    fn change(&mut self, record: Record) {
        let (version, applied) = (record.txn.version, record.history.applied);
        let last = self.last.entry(record.txn.id.uuid()).or_insert(Last { version, applied });
        *last = Last { version, applied: applied || last.applied };
        self.changes.push(record);
    }

    fn take_in(&mut self, _: TxnId, consumer: &'static str, message: &str, at: UnixMs) {
        self.inbox.push((consumer, message.to_owned(), at));
    }
}

fn insert_txn(db: &Connection, record: &Record) -> Result<(), StoreError> {
    let txn = &record.txn;
    db.prepare_cached(INSERT_TXN)?.execute(params![
        txn.id.uuid(),
        txn.id.psp().as_str(),
        txn.tenant,
        txn.subject,
        txn.device_id,
        txn.from.as_str(),
        txn.to.as_str(),
        i64::try_from(txn.amount.paise()).map_err(cells::odd)?,
        txn.note,
        txn.state.name(),
        txn.state.status().name(),
        txn.version,
        txn.code,
        txn.rrn,
        txn.created_at.0,
        txn.updated_at.0,
        txn.send_by.0,
        txn.dispatched_at.map(|at| at.0),
        txn.sends,
        txn.checks,
        txn.flagged_at.map(|at| at.0),
    ])?;
    Ok(())
}

fn update_txn(db: &Connection, record: &Record) -> Result<(), StoreError> {
    let txn = &record.txn;
    db.prepare_cached(UPDATE_TXN)?.execute(params![
        txn.id.uuid(),
        txn.state.name(),
        txn.state.status().name(),
        txn.version,
        txn.code,
        txn.rrn,
        txn.updated_at.0,
        txn.dispatched_at.map(|at| at.0),
        txn.sends,
        txn.checks,
        txn.flagged_at.map(|at| at.0),
    ])?;
    Ok(())
}

/// History, outgoing events, and a PIN block that has done its work.
fn with_every_version(db: &Connection, record: &Record) -> Result<(), StoreError> {
    let (txn, history) = (&record.txn, &record.history);
    db.prepare_cached(INSERT_HISTORY)?.execute(params![
        txn.id.uuid(),
        txn.version,
        history.at.0,
        history.state.name(),
        history.event,
        history.reason,
        history.applied,
    ])?;
    for event in &record.events {
        db.prepare_cached(INSERT_OUTBOX)?.execute(params![
            event.event_id,
            txn.id.to_string(),
            event.event_type.name(),
            event.payload,
            history.at.0,
        ])?;
    }
    if record.erase_cred_block {
        db.prepare_cached(DELETE_CRED_BLOCK)?.execute([txn.id.uuid()])?;
    }
    Ok(())
}

fn set_timer(db: &Connection, record: &Record) -> Result<(), StoreError> {
    let txn = &record.txn;
    match txn.wake {
        Some(wake) => {
            let timer = params![txn.id.uuid(), wake_name(wake.kind), wake.at.0];
            db.prepare_cached(SET_TIMER)?.execute(timer)?
        }
        None => db.prepare_cached(DELETE_TIMER)?.execute([txn.id.uuid()])?,
    };
    Ok(())
}
