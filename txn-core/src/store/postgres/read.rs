//! What the PostgreSQL store reads, and the small writes that no batch waits for.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::{PgConnection, PgPool};
use uuid::Uuid;

use super::timestamp;
use crate::store::cells::{self, Cells as _, Loaded};
use crate::store::record::wake_name;
use crate::store::{Apply, Figures, HistoryRow, StoreError};
use crate::txn::{Txn, TxnId, UnixMs, WakeKind};

/// A row for each input whose payment there is: the payment, and whether the message has been taken in. (That is a
/// join and not `EXISTS`: of which the planner makes a hash of the whole inbox for each call.)
const FOR_APPLY: &str = "
SELECT t.*, w.kind AS wake_kind, w.due_at AS wake_at, c.block AS cred_block, asked.consumer, asked.message_id,
    i.consumer IS NOT NULL AS seen
FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[])
    AS asked (txn_id, created_at, consumer, message_id)
CROSS JOIN LATERAL (
    SELECT * FROM transactions
    WHERE txn_id = asked.txn_id AND created_at = asked.created_at OFFSET 0) AS t
LEFT JOIN timers AS w ON w.txn_id = t.txn_id
LEFT JOIN cred_blocks AS c ON c.txn_id = t.txn_id
LEFT JOIN inbox AS i ON i.consumer = asked.consumer AND i.message_id = asked.message_id";

const FIND_TXN: &str = "
SELECT t.*, w.kind AS wake_kind, w.due_at AS wake_at
FROM transactions AS t LEFT JOIN timers AS w ON w.txn_id = t.txn_id
WHERE t.txn_id = $1 AND t.created_at = $2";

const FIND_HISTORY: &str = "
SELECT version, at, state, event, reason, applied FROM txn_history
WHERE txn_id = $1 AND created_at = $2 ORDER BY version";

const CLAIM_DUE: &str = "
UPDATE timers AS w SET lease_until = $2 + $3 * interval '1 millisecond'
FROM (SELECT txn_id FROM timers WHERE kind = $1 AND due_at <= $2 AND lease_until <= $2
    ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) AS due
WHERE w.txn_id = due.txn_id RETURNING w.txn_id, w.psp";

const PURGE_KEYS: &str = "DELETE FROM idempotency
WHERE key_hash = ANY(ARRAY(SELECT key_hash FROM idempotency WHERE created_at < $1 LIMIT $2))";

const PURGE_INBOX: &str = "DELETE FROM inbox AS i
USING (SELECT consumer, message_id FROM inbox WHERE at < $1 LIMIT $2) AS old
WHERE i.consumer = old.consumer AND i.message_id = old.message_id";

const PURGE_ROWS: i64 = 5_000;

/// Counts no further than it takes to see that too much waits: `/readiness` and `/metrics` ask often.
const FIGURES: &str = "
SELECT (SELECT count(*) FROM (SELECT FROM outbox_events LIMIT 100000) AS few) AS outbox,
    (SELECT count(*) FROM (SELECT FROM timers LIMIT 100000) AS few) AS timers,
    (SELECT count(*) FROM (SELECT FROM transactions
        WHERE flagged_at IS NOT NULL AND status IN ('PENDING', 'DEBITED', 'DEEMED') LIMIT 10000) AS few) AS flagged";

/// What there is to know before a batch is decided on.
#[derive(Debug)]
pub(super) struct ForApply {
    pub txns: HashMap<Uuid, Loaded>,
    pub seen: HashSet<(String, String)>,
}

/// An id that has no time in it is nobody's payment, and is not looked for.
pub(super) async fn for_apply(db: &mut PgConnection, inputs: &[&Apply]) -> Result<ForApply, StoreError> {
    let known: Vec<_> =
        inputs.iter().filter_map(|input| Some((input, timestamp(input.txn_id.made_at()?)))).collect();
    let inbox = |input: &Apply| input.inbox.clone().unzip();
    let (consumers, messages): (Vec<Option<&str>>, Vec<Option<String>>) =
        known.iter().map(|(input, _)| inbox(input)).unzip();
    let rows = sqlx::query(FOR_APPLY)
        .bind(known.iter().map(|(input, _)| input.txn_id.uuid()).collect::<Vec<_>>())
        .bind(known.iter().map(|(_, made_at)| *made_at).collect::<Vec<_>>())
        .bind(consumers)
        .bind(messages)
        .fetch_all(db)
        .await?;
    let mut found = ForApply { txns: HashMap::new(), seen: HashSet::new() };
    for row in &rows {
        let loaded = cells::loaded(row)?;
        found.txns.insert(loaded.txn.id.uuid(), loaded);
        if row.flag("seen")? {
            found.seen.insert((row.text("consumer")?, row.text("message_id")?));
        }
    }
    Ok(found)
}

pub(super) async fn inspect(
    readers: &PgPool,
    id: TxnId,
) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError> {
    let Some(made_at) = id.made_at().map(timestamp) else { return Ok(None) };
    let mut db = readers.acquire().await?;
    let row = sqlx::query(FIND_TXN).bind(id.uuid()).bind(made_at).fetch_optional(&mut *db).await?;
    let Some(txn) = row.as_ref().map(cells::txn).transpose()?.filter(|txn| txn.id == id) else {
        return Ok(None);
    };
    let rows = sqlx::query(FIND_HISTORY).bind(id.uuid()).bind(made_at).fetch_all(&mut *db).await?;
    Ok(Some((txn, rows.iter().map(cells::history).collect::<Result<_, _>>()?)))
}

/// What another process is about to claim is left to it.
pub(super) async fn claim_due(
    readers: &PgPool,
    kind: WakeKind,
    now: UnixMs,
    lease_ms: u64,
    limit: u32,
) -> Result<Vec<TxnId>, StoreError> {
    let rows = sqlx::query(CLAIM_DUE)
        .bind(wake_name(kind))
        .bind(timestamp(now))
        .bind(i64::try_from(lease_ms).unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await?;
    rows.iter().map(|row| cells::txn_id(row, "txn_id")).collect()
}

pub(super) async fn purge(
    readers: &PgPool,
    idempotency_before: UnixMs,
    inbox_before: UnixMs,
) -> Result<u64, StoreError> {
    let mut gone = 0;
    for (sql, before) in [(PURGE_KEYS, idempotency_before), (PURGE_INBOX, inbox_before)] {
        let purge = sqlx::query(sql).bind(timestamp(before)).bind(PURGE_ROWS);
        gone += purge.execute(readers).await?.rows_affected();
    }
    Ok(gone)
}

pub(super) async fn figures(readers: &PgPool) -> Result<Figures, StoreError> {
    let row = sqlx::query(FIGURES).fetch_one(readers).await?;
    Ok(Figures { outbox: row.big("outbox")?, timers: row.big("timers")?, flagged: row.big("flagged")? })
}
