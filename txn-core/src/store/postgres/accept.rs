//! New payments: a batch is one statement, which claims the keys and writes what comes with those it got.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::apply::Outgoing;
use super::link::{Fault, Link, Work};
use super::partitions::{Month, Partitions};
use super::timestamp;
use crate::store::cells::{Cells as _, odd};
use crate::store::decide::{self, FirstUse};
use crate::store::record::{self, key_hash, wake_name};
use crate::store::writer::{Committed, Engine};
use crate::store::{Accepted, NewTxn, StoreError};
use crate::txn::TxnId;

/// Keys are claimed in their order in every batch, so that two processes never wait for each other in a circle;
/// whoever finds a key claimed and not yet committed waits for that. Nothing has happened to a new payment yet:
/// no sending, no check, no flag, no code.
const ACCEPT: &str = "
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::bigint[],
        $6::int[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
        $14::text[], $15::text[], $16::bytea[], $17::bytea[], $18::text[], $19::timestamptz[], $20::text[],
        $21::text[])
    AS a (txn_id, created_at, updated_at, send_by, amount_paise, version, psp, tenant, subject, device_id,
        from_vpa, to_vpa, note, state, status, key_hash, fingerprint, wake_kind, wake_at, block, event)
), claimed AS (
    INSERT INTO idempotency (key_hash, fingerprint, txn_id, created_at)
    SELECT key_hash, fingerprint, txn_id, created_at FROM asked ON CONFLICT DO NOTHING RETURNING txn_id
), new AS MATERIALIZED (
    SELECT asked.* FROM asked JOIN claimed USING (txn_id)
), txns AS (
    INSERT INTO transactions (txn_id, created_at, updated_at, send_by, amount_paise, version, sends, checks,
        psp, tenant, subject, device_id, from_vpa, to_vpa, note, state, status)
    SELECT txn_id, created_at, updated_at, send_by, amount_paise, version, 0, 0,
        psp, tenant, subject, device_id, from_vpa, to_vpa, note, state, status FROM new
), said AS (
    INSERT INTO txn_history (txn_id, created_at, at, version, applied, state, event)
    SELECT txn_id, created_at, updated_at, version, true, state, event FROM new
), waits AS (
    INSERT INTO timers (txn_id, due_at, psp, kind)
    SELECT txn_id, wake_at, psp, wake_kind FROM new WHERE wake_kind IS NOT NULL
), blocks AS (
    INSERT INTO cred_blocks (txn_id, block) SELECT txn_id, block FROM new WHERE block IS NOT NULL
), outgoing AS (
    INSERT INTO outbox_events (event_id, aggregate_id, created_at, lane, psp, event_type, payload)
    SELECT e.event_id, e.txn_id, e.at, e.lane, e.psp, e.event_type, e.payload
    FROM unnest($22::uuid[], $23::uuid[], $24::timestamptz[], $25::smallint[], $26::text[], $27::text[],
        $28::text[]) AS e (event_id, txn_id, at, lane, psp, event_type, payload)
    JOIN claimed USING (txn_id)
)
SELECT txn_id FROM claimed";

/// What keys that were taken stand for. A statement of its own: it sees what others have committed meanwhile.
const FIRST_USES: &str = "SELECT key_hash, fingerprint, txn_id FROM idempotency WHERE key_hash = ANY($1)";

/// The engine of a writer of new payments.
#[derive(Debug)]
pub(super) struct Accepting {
    pub link: Link,
    pub partitions: Partitions,
}

#[async_trait]
impl Engine for Accepting {
    type Op = NewTxn;
    type Reply = Accepted;

    fn is_urgent(_: &NewTxn) -> bool {
        true
    }

    async fn commit(&mut self, batch: &[NewTxn]) -> Result<Committed<Accepted>, StoreError> {
        for new in batch {
            if new.txn.id.made_at() != Some(new.txn.created_at) {
                let what = format!("{}: created_at is not the time in its id", new.txn.id);
                return Err(StoreError::Engine(what));
            }
        }
        let mut order: Vec<(&NewTxn, [u8; 32])> =
            batch.iter().map(|new| (new, key_hash(&new.idempotency))).collect();
        order.sort_unstable_by_key(|(_, key)| *key);
        let claims = Claims { order };
        let answers = match self.link.run(&claims).await {
            // Nobody made this month's partitions ahead: now, then.
            Err(Fault::NoPartition) => {
                let months: HashSet<Month> = batch.iter().map(|new| Month::of(new.txn.created_at)).collect();
                for month in months {
                    tracing::warn!(%month, "no partition was made ahead for this month");
                    self.partitions.ensure(month, 0).await?;
                }
                self.link.run(&claims).await
            }
            done => done,
        }?;
        let answer = |new: &NewTxn| answers.get(&new.txn.id.uuid()).copied();
        let replies: Option<Vec<Accepted>> = batch.iter().map(answer).collect();
        let replies = replies.ok_or(StoreError::Overloaded)?;
        let outgoing_events = replies.iter().filter(|reply| **reply == Accepted::New).count();
        Ok(Committed { replies: replies.into_iter().map(Ok).collect(), outgoing_events })
    }

    async fn close(self) -> Result<(), StoreError> {
        self.link.close().await
    }
}

/// A batch in the order of its keys.
#[derive(Debug)]
struct Claims<'a> {
    order: Vec<(&'a NewTxn, [u8; 32])>,
}

#[async_trait]
impl Work for Claims<'_> {
    /// By payment. None for one whose key was given free between two statements.
    type Done = HashMap<Uuid, Accepted>;

    async fn attempt(&self, db: &mut PgConnection) -> Result<HashMap<Uuid, Accepted>, Fault> {
        let rows = Columns::of(&self.order).write(db).await?;
        let mut answers = HashMap::with_capacity(self.order.len());
        for row in &rows {
            answers.insert(row.uuid("txn_id")?, Accepted::New);
        }
        let taken = || self.order.iter().filter(|(new, _)| !answers.contains_key(&new.txn.id.uuid()));
        let keys: Vec<&[u8]> = taken().map(|(_, key)| key.as_slice()).collect();
        if keys.is_empty() {
            return Ok(answers);
        }
        let rows = sqlx::query(FIRST_USES).bind(keys).fetch_all(db).await?;
        let mut first: HashMap<Vec<u8>, &PgRow> = HashMap::new();
        for row in &rows {
            first.insert(row.bytes("key_hash")?, row);
        }
        let mut replays = Vec::new();
        for (new, key) in taken() {
            if let Some(row) = first.get(key.as_slice()) {
                let first = FirstUse {
                    fingerprint: row.bytes("fingerprint")?.try_into().map_err(|_| odd("fingerprint"))?,
                    txn_id: TxnId::from_parts(new.txn.id.psp(), row.uuid("txn_id")?),
                };
                replays.push((new.txn.id.uuid(), decide::again(new, first)));
            }
        }
        answers.extend(replays);
        Ok(answers)
    }
}

/// The parameters of [`ACCEPT`].
#[derive(Debug, Default)]
struct Columns<'a> {
    txn_id: Vec<Uuid>,
    created_at: Vec<OffsetDateTime>,
    updated_at: Vec<OffsetDateTime>,
    send_by: Vec<OffsetDateTime>,
    amount_paise: Vec<i64>,
    version: Vec<i32>,
    texts: [Vec<&'a str>; 9],
    key_hash: Vec<&'a [u8]>,
    fingerprint: Vec<&'a [u8]>,
    wake_kind: Vec<Option<&'static str>>,
    wake_at: Vec<Option<OffsetDateTime>>,
    block: Vec<Option<&'a str>>,
    psps: Vec<String>,
    outgoing: Outgoing,
}

impl<'a> Columns<'a> {
    fn of(order: &'a [(&'a NewTxn, [u8; 32])]) -> Columns<'a> {
        let mut columns = Columns::default();
        for (new, key) in order {
            let (txn, record) = (&new.txn, record::accepted(new));
            columns.txn_id.push(txn.id.uuid());
            columns.created_at.push(timestamp(txn.created_at));
            columns.updated_at.push(timestamp(txn.updated_at));
            columns.send_by.push(timestamp(txn.send_by));
            // Ten digits of rupees at most: far below i64's end.
            columns.amount_paise.push(i64::try_from(txn.amount.paise()).unwrap_or(i64::MAX));
            columns.version.push(i32::try_from(txn.version).unwrap_or(i32::MAX));
            columns.psps.push(txn.id.psp().as_str().to_owned());
            let texts = [
                txn.tenant.as_str(),
                &txn.subject,
                &txn.device_id,
                txn.from.as_str(),
                txn.to.as_str(),
                &txn.note,
                txn.state.name(),
                txn.state.status().name(),
                record.history.event,
            ];
            for (column, text) in columns.texts.iter_mut().zip(texts) {
                column.push(text);
            }
            columns.key_hash.push(key);
            columns.fingerprint.push(&new.fingerprint);
            columns.wake_kind.push(txn.wake.map(|wake| wake_name(wake.kind)));
            columns.wake_at.push(txn.wake.map(|wake| timestamp(wake.at)));
            columns.block.push(new.cred_block.as_ref().map(|block| block.0.as_str()));
            columns.outgoing.add(txn.id, record.history.at, record.events);
        }
        columns
    }

    async fn write(&self, db: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let [tenant, subject, device_id, from_vpa, to_vpa, note, state, status, event] = &self.texts;
        let query = sqlx::query(ACCEPT)
            .bind(&self.txn_id)
            .bind(&self.created_at)
            .bind(&self.updated_at)
            .bind(&self.send_by)
            .bind(&self.amount_paise)
            .bind(&self.version)
            .bind(&self.psps)
            .bind(tenant)
            .bind(subject)
            .bind(device_id)
            .bind(from_vpa)
            .bind(to_vpa)
            .bind(note)
            .bind(state)
            .bind(status)
            .bind(&self.key_hash)
            .bind(&self.fingerprint)
            .bind(&self.wake_kind)
            .bind(&self.wake_at)
            .bind(&self.block)
            .bind(event);
        self.outgoing.bind(query).fetch_all(db).await
    }
}
