//! What the SQLite store reads.

use std::collections::{HashMap, HashSet};

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::cells::{self, Cells as _, Loaded, odd};
use super::decide::FirstUse;
use super::record::{key_hash, wake_name};
use super::sqlite_rows::hex;
use super::{Apply, Figures, HistoryRow, NewTxn, OutboxRow, StoreError};
use crate::txn::{TxnId, UnixMs, WakeKind};

const FIND_KEY: &str = "SELECT fingerprint, txn_id FROM idempotency WHERE key_hash = ?1";

const FIND_TXNS: &str = "SELECT t.*, w.kind AS wake_kind, w.due_at AS wake_at, c.block AS cred_block
    FROM json_each(?1) AS asked JOIN transactions AS t ON t.txn_id = unhex(asked.value)
    LEFT JOIN timers AS w ON w.txn_id = t.txn_id LEFT JOIN cred_blocks AS c ON c.txn_id = t.txn_id";

const FIND_INBOX: &str = "SELECT i.consumer, i.message_id FROM json_each(?1) AS asked JOIN inbox AS i
      ON i.consumer = asked.value ->> 0 AND i.message_id = asked.value ->> 1";

const FIND_HISTORY: &str = "SELECT version, at, state, event, reason, applied FROM txn_history
    WHERE txn_id = unhex(?1) ORDER BY version";

const FIND_UNPUBLISHED: &str =
    "SELECT position, event_id, aggregate_id, event_type, payload FROM outbox_events
    ORDER BY position LIMIT ?1";

const CLAIM_DUE: &str = "UPDATE timers SET lease_until = ?1 + ?2 WHERE txn_id IN (
        SELECT txn_id FROM timers WHERE kind = ?4 AND due_at <= ?1 AND lease_until <= ?1
        ORDER BY due_at LIMIT ?3)
    RETURNING txn_id";

const FIGURES: &str = "SELECT (SELECT count(*) FROM outbox_events) AS outbox, (SELECT count(*) FROM timers) AS timers,
    (SELECT count(*) FROM transactions WHERE flagged_at IS NOT NULL AND status IN ('PENDING', 'DEBITED', 'DEEMED'))
    AS flagged";

/// What a key that is taken was first used for.
pub(super) async fn first_use(db: &mut SqliteConnection, new: &NewTxn) -> Result<FirstUse, StoreError> {
    let key = key_hash(&new.idempotency);
    let row = sqlx::query(FIND_KEY).bind(key.as_slice()).fetch_one(db).await?;
    Ok(FirstUse {
        fingerprint: row.bytes("fingerprint")?.try_into().map_err(|_| odd("fingerprint"))?,
        txn_id: TxnId::from_parts(new.txn.id.psp(), row.uuid("txn_id")?),
    })
}

/// The payments that these events are about.
pub(super) async fn txns(
    db: &mut SqliteConnection,
    ids: impl Iterator<Item = TxnId>,
) -> Result<HashMap<Uuid, Loaded>, StoreError> {
    let mut asked: Vec<String> = ids.map(|id| hex(id.uuid())).collect();
    asked.sort_unstable();
    asked.dedup();
    let rows = sqlx::query(FIND_TXNS).bind(json(&asked)?).fetch_all(db).await?;
    rows.iter().map(|row| cells::loaded(row).map(|loaded| (loaded.txn.id.uuid(), loaded))).collect()
}

/// Which of these messages have been taken in before.
pub(super) async fn seen(
    db: &mut SqliteConnection,
    inputs: &[&Apply],
) -> Result<HashSet<(String, String)>, StoreError> {
    let asked: Vec<_> = inputs.iter().filter_map(|input| input.inbox.as_ref()).collect();
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(FIND_INBOX).bind(json(&asked)?).fetch_all(db).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

pub(super) async fn history(db: &mut SqliteConnection, id: TxnId) -> Result<Vec<HistoryRow>, StoreError> {
    let rows = sqlx::query(FIND_HISTORY).bind(hex(id.uuid())).fetch_all(db).await?;
    rows.iter().map(cells::history).collect()
}

pub(super) async fn unpublished(db: &mut SqliteConnection, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
    let rows = sqlx::query(FIND_UNPUBLISHED).bind(limit).fetch_all(db).await?;
    rows.iter().map(|row| cells::outbox(row, (0, 0), row.text("aggregate_id")?)).collect()
}

/// Claims within the caller's transaction.
pub(super) async fn claim_due(
    db: &mut SqliteConnection,
    kind: WakeKind,
    now: UnixMs,
    lease_ms: u64,
    limit: u32,
) -> Result<Vec<TxnId>, StoreError> {
    let lease_ms = i64::try_from(lease_ms).map_err(odd)?;
    let claim = sqlx::query(CLAIM_DUE).bind(now.0).bind(lease_ms).bind(limit).bind(wake_name(kind));
    let rows = claim.fetch_all(&mut *db).await?;
    let claimed: Vec<Uuid> = rows.iter().map(|row| row.uuid("txn_id")).collect::<Result<_, _>>()?;
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<String> = claimed.iter().map(|id| hex(*id)).collect();
    let rows = sqlx::query(FIND_TXNS).bind(json(&asked)?).fetch_all(db).await?;
    rows.iter().map(|row| cells::txn_id(row, "txn_id")).collect()
}

pub(super) async fn figures(db: &mut SqliteConnection) -> Result<Figures, StoreError> {
    let row = sqlx::query(FIGURES).fetch_one(db).await?;
    Ok(Figures {
        outbox: row.try_get("outbox")?,
        timers: row.try_get("timers")?,
        flagged: row.try_get("flagged")?,
    })
}

fn json(asked: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(asked).map_err(odd)
}
