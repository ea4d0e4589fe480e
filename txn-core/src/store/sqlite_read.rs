//! What the SQLite store reads.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::cells::{self, Cells as _, Loaded};
use super::decide::FirstUse;
use super::record::{key_hash, wake_name};
use super::{Apply, Figures, HistoryRow, NewTxn, OutboxRow, StoreError};
use crate::txn::{TxnId, UnixMs, WakeKind};

const FIND_KEY: &str = "SELECT fingerprint, txn_id FROM idempotency WHERE key_hash = ?1";

const FIND_TXN: &str = "SELECT t.*, w.kind AS wake_kind, w.due_at AS wake_at, c.block AS cred_block
    FROM transactions AS t
    LEFT JOIN timers AS w ON w.txn_id = t.txn_id LEFT JOIN cred_blocks AS c ON c.txn_id = t.txn_id
    WHERE t.txn_id = ?1";

const FIND_INBOX: &str = "SELECT 1 FROM inbox WHERE consumer = ?1 AND message_id = ?2";

const FIND_HISTORY: &str = "SELECT version, at, state, event, reason, applied FROM txn_history
    WHERE txn_id = ?1 ORDER BY version";

const FIND_UNPUBLISHED: &str =
    "SELECT position, event_id, aggregate_id, event_type, payload FROM outbox_events
    ORDER BY position LIMIT ?1";

const ANYTHING_DUE: &str =
    "SELECT 1 FROM timers WHERE kind = ?2 AND due_at <= ?1 AND lease_until <= ?1 LIMIT 1";

const FIGURES: &str = "SELECT (SELECT count(*) FROM outbox_events), (SELECT count(*) FROM timers),
    (SELECT count(*) FROM (SELECT 1 FROM transactions
        WHERE flagged_at IS NOT NULL AND status IN ('PENDING', 'DEBITED', 'DEEMED') LIMIT 10000))";

/// What a key that is taken was first used for.
pub(super) fn first_use(db: &Connection, new: &NewTxn) -> Result<FirstUse, StoreError> {
    let mut find = db.prepare_cached(FIND_KEY)?;
    let (fingerprint, id) =
        find.query_row([key_hash(&new.idempotency)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(FirstUse { fingerprint, txn_id: TxnId::from_parts(new.txn.id.psp(), id) })
}

/// A payment, if it is there under this id to the letter.
pub(super) fn txn(db: &Connection, id: TxnId) -> Result<Option<Loaded>, StoreError> {
    let mut find = db.prepare_cached(FIND_TXN)?;
    let found = find.query_row([id.uuid()], |row| Ok(cells::loaded(row))).optional()?.transpose()?;
    Ok(found.filter(|loaded| loaded.txn.id == id))
}

/// The payments that these events are about.
pub(super) fn txns(db: &Connection, inputs: &[&Apply]) -> Result<HashMap<Uuid, Loaded>, StoreError> {
    let mut txns = HashMap::with_capacity(inputs.len());
    for input in inputs {
        let key = input.txn_id.uuid();
        if !txns.contains_key(&key)
            && let Some(loaded) = txn(db, input.txn_id)?
        {
            txns.insert(key, loaded);
        }
    }
    Ok(txns)
}

/// Which of these messages have been taken in before.
pub(super) fn seen(db: &Connection, inputs: &[&Apply]) -> Result<HashSet<(String, String)>, StoreError> {
    let mut find = db.prepare_cached(FIND_INBOX)?;
    let mut seen = HashSet::new();
    for (consumer, message) in inputs.iter().filter_map(|input| input.inbox.as_ref()) {
        if find.exists(params![consumer, message])? {
            seen.insert(((*consumer).to_owned(), message.clone()));
        }
    }
    Ok(seen)
}

pub(super) fn history(db: &Connection, id: TxnId) -> Result<Vec<HistoryRow>, StoreError> {
    let mut find = db.prepare_cached(FIND_HISTORY)?;
    find.query_map([id.uuid()], |row| Ok(cells::history(row)))?.map(|row| row?).collect()
}

pub(super) fn unpublished(db: &Connection, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
    let mut find = db.prepare_cached(FIND_UNPUBLISHED)?;
    let rows = find.query_map([limit], |row| {
        Ok(row.text("aggregate_id").and_then(|txn_id| cells::outbox(row, (0, 0), txn_id)))
    })?;
    rows.map(|row| row?).collect()
}

pub(super) fn anything_due(db: &Connection, kind: WakeKind, now: UnixMs) -> Result<bool, StoreError> {
    Ok(db.prepare_cached(ANYTHING_DUE)?.exists(params![now.0, wake_name(kind)])?)
}

pub(super) fn figures(db: &Connection) -> Result<Figures, StoreError> {
    let figures = |row: &rusqlite::Row<'_>| {
        Ok(Figures { outbox: row.get(0)?, timers: row.get(1)?, flagged: row.get(2)? })
    };
    Ok(db.prepare_cached(FIGURES)?.query_row([], figures)?)
}
