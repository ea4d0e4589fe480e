//! Rows on their way out of SQLite, checked like anything else that comes from outside.

use std::collections::HashMap;
use std::fmt::Display;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use super::sqlite_rows::{hex, key_hash, wake_from_name, wake_name};
use super::{Apply, CredBlock, Figures, HistoryRow, NewTxn, OutboxRow, StoreError};
use crate::txn::{AmountPaise, EventType, PspCode, State, Txn, TxnId, UnixMs, Wake, WakeKind};

/// What an idempotency key stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstUse {
    pub fingerprint: [u8; 32],
    pub txn_id: TxnId,
}

/// A payment as the writer needs it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub txn: Txn,
    pub cred_block: Option<CredBlock>,
}

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
    let row = sqlx::query(FIND_KEY).bind(key_hash(&new.idempotency)).fetch_one(db).await?;
    let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
    Ok(FirstUse {
        fingerprint: fingerprint.try_into().map_err(|_| odd("fingerprint"))?,
        txn_id: TxnId::from_parts(new.txn.id.psp(), uuid(&row, "txn_id")?),
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
    rows.iter()
        .map(|row| {
            let txn = txn(row)?;
            let cred_block: Option<String> = row.try_get("cred_block")?;
            Ok((txn.id.uuid(), Loaded { txn, cred_block: cred_block.map(CredBlock) }))
        })
        .collect()
}

/// Which of these messages have been taken in before.
pub(super) async fn seen(
    db: &mut SqliteConnection,
    inputs: &[&Apply],
) -> Result<std::collections::HashSet<(String, String)>, StoreError> {
    let asked: Vec<_> = inputs.iter().filter_map(|input| input.inbox.as_ref()).collect();
    if asked.is_empty() {
        return Ok(std::collections::HashSet::new());
    }
    let rows = sqlx::query(FIND_INBOX).bind(json(&asked)?).fetch_all(db).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

pub(super) async fn history(db: &mut SqliteConnection, id: TxnId) -> Result<Vec<HistoryRow>, StoreError> {
    let rows = sqlx::query(FIND_HISTORY).bind(hex(id.uuid())).fetch_all(db).await?;
    rows.iter()
        .map(|row| {
            Ok(HistoryRow {
                version: row.try_get("version")?,
                at: UnixMs(row.try_get("at")?),
                state: state(row)?,
                event: row.try_get("event")?,
                reason: row.try_get("reason")?,
                applied: row.try_get::<i64, _>("applied")? != 0,
            })
        })
        .collect()
}

pub(super) async fn unpublished(db: &mut SqliteConnection, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
    let rows = sqlx::query(FIND_UNPUBLISHED).bind(limit).fetch_all(db).await?;
    rows.iter()
        .map(|row| {
            let kind: String = row.try_get("event_type")?;
            Ok(OutboxRow {
                position: row.try_get("position")?,
                event_id: uuid(row, "event_id")?,
                txn_id: row.try_get("aggregate_id")?,
                event_type: EventType::from_name(&kind).ok_or_else(|| odd("event_type"))?,
                payload: row.try_get("payload")?,
            })
        })
        .collect()
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
    let claimed: Vec<Uuid> = rows.iter().map(|row| uuid(row, "txn_id")).collect::<Result<_, _>>()?;
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<String> = claimed.iter().map(|id| hex(*id)).collect();
    let rows = sqlx::query(FIND_TXNS).bind(json(&asked)?).fetch_all(db).await?;
    rows.iter().map(|row| Ok(txn(row)?.id)).collect()
}

pub(super) async fn figures(db: &mut SqliteConnection) -> Result<Figures, StoreError> {
    let row = sqlx::query(FIGURES).fetch_one(db).await?;
    Ok(Figures {
        outbox: row.try_get("outbox")?,
        timers: row.try_get("timers")?,
        flagged: row.try_get("flagged")?,
    })
}

fn txn(row: &SqliteRow) -> Result<Txn, StoreError> {
    let psp: PspCode = row.try_get::<String, _>("psp")?.parse().map_err(odd)?;
    let optional_time = |name| Ok::<_, StoreError>(row.try_get::<Option<i64>, _>(name)?.map(UnixMs));
    let wake = match (row.try_get::<Option<String>, _>("wake_kind")?, optional_time("wake_at")?) {
        (Some(kind), Some(at)) => {
            Some(Wake { kind: wake_from_name(&kind).ok_or_else(|| odd("wake_kind"))?, at })
        }
        (None, _) | (_, None) => None,
    };
    Ok(Txn {
        id: TxnId::from_parts(psp, uuid(row, "txn_id")?),
        tenant: row.try_get("tenant")?,
        subject: row.try_get("subject")?,
        device_id: row.try_get("device_id")?,
        from: row.try_get::<String, _>("from_vpa")?.parse().map_err(odd)?,
        to: row.try_get::<String, _>("to_vpa")?.parse().map_err(odd)?,
        amount: AmountPaise::from_paise(row.try_get::<i64, _>("amount_paise")?.try_into().map_err(odd)?)
            .map_err(odd)?,
        note: row.try_get("note")?,
        state: state(row)?,
        version: row.try_get("version")?,
        code: row.try_get("code")?,
        rrn: row.try_get("rrn")?,
        created_at: UnixMs(row.try_get("created_at")?),
        updated_at: UnixMs(row.try_get("updated_at")?),
        send_by: UnixMs(row.try_get("send_by")?),
        dispatched_at: optional_time("dispatched_at")?,
        sends: row.try_get("sends")?,
        checks: row.try_get("checks")?,
        flagged_at: optional_time("flagged_at")?,
        wake,
    })
}

fn state(row: &SqliteRow) -> Result<State, StoreError> {
    State::from_name(&row.try_get::<String, _>("state")?).ok_or_else(|| odd("state"))
}

fn uuid(row: &SqliteRow, column: &str) -> Result<Uuid, StoreError> {
    Uuid::from_slice(&row.try_get::<Vec<u8>, _>(column)?).map_err(odd)
}

fn json(asked: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(asked).map_err(odd)
}

/// The database holds something that we never wrote.
fn odd(what: impl Display) -> StoreError {
    StoreError::Engine(format!("unreadable row: {what}"))
}
