//! What happens to payments: a batch is read, decided on, and written by one statement that takes only what
//! nobody has changed in between. What somebody has is read and decided on again.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use time::OffsetDateTime;
use uuid::Uuid;

use super::link::{Fault, Link, Work};
use super::{lane_of, read, timestamp};
use crate::store::cells::Cells as _;
use crate::store::decide::{self, Changes};
use crate::store::record::{OutgoingEvent, Record, wake_name};
use crate::store::writer::{Committed, Engine};
use crate::store::{Applied, Apply, StoreError};
use crate::txn::{Rules, Txn, TxnId, UnixMs};

/// Rows are locked in the order of their ids, the same in every process. An UPDATE that has waited for another
/// one looks at the version again and leaves the row alone if it is not the one that was decided on; then nothing
/// of this payment is written. Every join goes from the batch to a key.
const WRITE: &str = "
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::int[], $4::int[], $5::text[], $6::text[],
        $7::timestamptz[], $8::timestamptz[], $9::timestamptz[], $10::int[], $11::int[], $12::text[], $13::text[])
    AS a (txn_id, created_at, was_version, version, state, status, updated_at, dispatched_at, flagged_at, sends,
        checks, code, rrn)
), locked AS (
    SELECT t.txn_id AS id FROM asked AS a CROSS JOIN LATERAL (
        SELECT txn_id FROM transactions
        WHERE txn_id = a.txn_id AND created_at = a.created_at AND version = a.was_version FOR UPDATE) AS t
), mine AS MATERIALIZED (
    SELECT asked.* FROM asked JOIN locked ON locked.id = asked.txn_id
), changed AS (
    UPDATE transactions AS t SET version = a.version, state = a.state, status = a.status,
        updated_at = a.updated_at, dispatched_at = a.dispatched_at, flagged_at = a.flagged_at, sends = a.sends,
        checks = a.checks, code = a.code, rrn = a.rrn
    FROM mine AS a WHERE t.txn_id = a.txn_id AND t.created_at = a.created_at AND t.version = a.was_version
    RETURNING t.txn_id
), said AS (
    INSERT INTO txn_history (txn_id, created_at, at, version, applied, state, event, reason)
    SELECT h.* FROM unnest($14::uuid[], $15::timestamptz[], $16::timestamptz[], $17::int[], $18::bool[],
        $19::text[], $20::text[], $21::text[])
        AS h (txn_id, created_at, at, version, applied, state, event, reason)
    JOIN changed USING (txn_id)
), waits AS (
    INSERT INTO timers (txn_id, due_at, psp, kind)
    SELECT w.* FROM unnest($22::uuid[], $23::timestamptz[], $24::text[], $25::text[])
        AS w (txn_id, due_at, psp, kind)
    JOIN changed USING (txn_id)
    ON CONFLICT (txn_id) DO UPDATE SET due_at = excluded.due_at, kind = excluded.kind,
        lease_until = excluded.lease_until
), woken AS (
    DELETE FROM timers AS w USING changed WHERE w.txn_id = changed.txn_id AND w.txn_id = ANY($26)
), erased AS (
    DELETE FROM cred_blocks AS c USING changed WHERE c.txn_id = changed.txn_id AND c.txn_id = ANY($27)
), taken_in AS (
    INSERT INTO inbox (consumer, message_id, at)
    SELECT i.consumer, i.message_id, i.at
    FROM unnest($28::uuid[], $29::text[], $30::text[], $31::timestamptz[]) AS i (txn_id, consumer, message_id, at)
    WHERE i.txn_id <> ALL($1) OR i.txn_id IN (SELECT txn_id FROM changed)
    ON CONFLICT DO NOTHING
), outgoing AS (
    INSERT INTO outbox_events (event_id, aggregate_id, created_at, lane, psp, event_type, payload)
    SELECT e.event_id, e.txn_id, e.at, e.lane, e.psp, e.event_type, e.payload
    FROM unnest($32::uuid[], $33::uuid[], $34::timestamptz[], $35::smallint[], $36::text[], $37::text[],
        $38::text[]) AS e (event_id, txn_id, at, lane, psp, event_type, payload)
    JOIN changed USING (txn_id)
)
SELECT txn_id FROM changed";

/// Payments of a batch are joined with each other row by row: so many at a time.
const AT_A_TIME: usize = 128;

/// Times an event is decided on again because another process changed its payment in between.
const TRIES: u32 = 16;

/// None: not decided for good yet.
type Answer = Option<Result<Applied, StoreError>>;

/// The engine of a writer of changes.
#[derive(Debug)]
pub(super) struct Applying {
    pub link: Link,
    pub rules: Rules,
}

#[async_trait]
impl Engine for Applying {
    type Op = Apply;
    type Reply = Applied;

    fn is_urgent(_: &Apply) -> bool {
        false
    }

    async fn commit(&mut self, batch: &[Apply]) -> Result<Committed<Applied>, StoreError> {
        let mut replies: Vec<Answer> = batch.iter().map(|_| None).collect();
        let mut outgoing_events = 0;
        for _ in 0..TRIES {
            let open: Vec<usize> =
                replies.iter().enumerate().filter(|(_, r)| r.is_none()).map(|(at, _)| at).collect();
            for some in open.chunks(AT_A_TIME) {
                outgoing_events += self.round(batch, some, &mut replies).await;
            }
        }
        let replies = replies.into_iter().map(|reply| reply.unwrap_or(Err(StoreError::Overloaded))).collect();
        Ok(Committed { replies, outgoing_events })
    }

    async fn close(self) -> Result<(), StoreError> {
        self.link.close().await
    }
}

impl Applying {
    /// One transaction for these of the batch: what comes of it says nothing about the others. Gives how many events
    /// go out.
    async fn round(&mut self, batch: &[Apply], some: &[usize], replies: &mut [Answer]) -> usize {
        let inputs: Vec<&Apply> = some.iter().filter_map(|at| batch.get(*at)).collect();
        let done = self.link.run(&Round { inputs, rules: &self.rules }).await.map_err(StoreError::from);
        match done {
            Ok(done) => {
                for (at, reply) in some.iter().zip(done.replies) {
                    if let (Some(slot), Ok(reply)) = (replies.get_mut(*at), reply) {
                        *slot = reply.map(Ok);
                    }
                }
                done.outgoing_events
            }
            // One may be what the engine chokes on: the others must not suffer for it.
            Err(error @ StoreError::Engine(_)) if some.len() > 1 => {
                tracing::warn!(%error, batch = some.len(), "commit failed; trying its requests one by one");
                let mut outgoing_events = 0;
                for at in some {
                    outgoing_events += Box::pin(self.round(batch, std::slice::from_ref(at), replies)).await;
                }
                outgoing_events
            }
            Err(error) => {
                tracing::error!(%error, batch = some.len(), "commit failed");
                for at in some {
                    if let Some(slot) = replies.get_mut(*at) {
                        *slot = Some(Err(error.clone()));
                    }
                }
                0
            }
        }
    }
}

#[derive(Debug)]
struct Round<'a> {
    inputs: Vec<&'a Apply>,
    rules: &'a Rules,
}

#[async_trait]
impl Work for Round<'_> {
    /// An answer for each input, but for those whose payment somebody else has changed meanwhile.
    type Done = Committed<Option<Applied>>;

    async fn attempt(&self, db: &mut PgConnection) -> Result<Committed<Option<Applied>>, Fault> {
        let read::ForApply { mut txns, mut seen } = read::for_apply(db, &self.inputs).await?;
        let versions = txns.iter().map(|(id, loaded)| (*id, loaded.txn.version)).collect();
        let mut rows = Rows::default();
        let answers = decide::apply_all(&self.inputs, &mut txns, &mut seen, self.rules, &mut rows);
        let outgoing_events = rows.outgoing.len();
        let lost = rows.write(db, &versions).await?;
        let replies = self.inputs.iter().zip(answers);
        let replies = replies.map(|(input, answer)| (!lost.contains(&input.txn_id.uuid())).then_some(answer));
        Ok(Committed { replies: replies.map(Ok).collect(), outgoing_events })
    }
}

/// Rows of one statement, table by table.
#[derive(Debug, Default)]
struct Rows {
    /// By id: of several versions in one batch only the last is written.
    txns: HashMap<Uuid, Txn>,
    history: Vec<Record>,
    inbox: Vec<(Uuid, &'static str, String, UnixMs)>,
    cred_blocks_gone: HashSet<Uuid>,
    outgoing: Outgoing,
}

impl Changes for Rows {
    fn change(&mut self, mut record: Record) {
        let id = record.txn.id;
        self.txns.insert(id.uuid(), record.txn.clone());
        if record.erase_cred_block {
            self.cred_blocks_gone.insert(id.uuid());
        }
        self.outgoing.add(id, record.history.at, std::mem::take(&mut record.events));
        self.history.push(record);
    }

    fn take_in(&mut self, txn_id: TxnId, consumer: &'static str, message: &str, at: UnixMs) {
        self.inbox.push((txn_id.uuid(), consumer, message.to_owned(), at));
    }
}

impl Rows {
    /// Gives the payments that were not what was decided on any more.
    async fn write(
        self,
        db: &mut PgConnection,
        versions: &HashMap<Uuid, u32>,
    ) -> Result<HashSet<Uuid>, Fault> {
        if self.txns.is_empty() && self.inbox.is_empty() {
            return Ok(HashSet::new());
        }
        let mut txns: Vec<&Txn> = self.txns.values().collect();
        txns.sort_unstable_by_key(|txn| txn.id.uuid());
        let ids: Vec<Uuid> = column(&txns, |txn| txn.id.uuid());
        let time = |at: Option<UnixMs>| at.map(timestamp);
        // A timer stands or goes with what was decided last; what changed nothing says nothing about it.
        let stepped: HashSet<Uuid> =
            self.history.iter().filter(|r| r.history.applied).map(|r| r.txn.id.uuid()).collect();
        let stepped: Vec<&Txn> =
            txns.iter().copied().filter(|txn| stepped.contains(&txn.id.uuid())).collect();
        let waits: Vec<_> = stepped.iter().filter_map(|txn| Some((*txn, txn.wake?))).collect();
        let woken: Vec<Uuid> =
            stepped.iter().filter(|txn| txn.wake.is_none()).map(|txn| txn.id.uuid()).collect();
        let erased: Vec<Uuid> = self.cred_blocks_gone.into_iter().collect();
        let history = &self.history;
        let query = sqlx::query(WRITE)
            .bind(&ids)
            .bind(column(&txns, |txn| timestamp(txn.created_at)))
            .bind(column(&ids, |id| versions.get(id).copied().map_or(i32::MAX, count)))
            .bind(column(&txns, |txn| count(txn.version)))
            .bind(column(&txns, |txn| txn.state.name()))
            .bind(column(&txns, |txn| txn.state.status().name()))
            .bind(column(&txns, |txn| timestamp(txn.updated_at)))
            .bind(column(&txns, |txn| time(txn.dispatched_at)))
            .bind(column(&txns, |txn| time(txn.flagged_at)))
            .bind(column(&txns, |txn| count(txn.sends)))
            .bind(column(&txns, |txn| count(txn.checks)))
            .bind(column(&txns, |txn| txn.code.as_deref()))
            .bind(column(&txns, |txn| txn.rrn.as_deref()))
            .bind(column(history, |record| record.txn.id.uuid()))
            .bind(column(history, |record| timestamp(record.txn.created_at)))
            .bind(column(history, |record| timestamp(record.history.at)))
            .bind(column(history, |record| count(record.txn.version)))
            .bind(column(history, |record| record.history.applied))
            .bind(column(history, |record| record.history.state.name()))
            .bind(column(history, |record| record.history.event))
            .bind(column(history, |record| record.history.reason.as_deref()))
            .bind(column(&waits, |(txn, _)| txn.id.uuid()))
            .bind(column(&waits, |(_, wake)| timestamp(wake.at)))
            .bind(column(&waits, |(txn, _)| txn.id.psp().as_str().to_owned()))
            .bind(column(&waits, |(_, wake)| wake_name(wake.kind)))
            .bind(&woken)
            .bind(&erased)
            .bind(column(&self.inbox, |(txn_id, ..)| *txn_id))
            .bind(column(&self.inbox, |(_, consumer, ..)| *consumer))
            .bind(column(&self.inbox, |(_, _, message, _)| message.as_str()))
            .bind(column(&self.inbox, |(_, _, _, at)| timestamp(*at)));
        let rows = self.outgoing.bind(query).fetch_all(db).await?;
        let mut lost: HashSet<Uuid> = ids.into_iter().collect();
        for row in &rows {
            lost.remove(&row.uuid("txn_id")?);
        }
        Ok(lost)
    }
}

/// Columns of `outbox_events`.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    event_id: Vec<Uuid>,
    txn_id: Vec<Uuid>,
    at: Vec<OffsetDateTime>,
    lane: Vec<i16>,
    psp: Vec<String>,
    event_type: Vec<&'static str>,
    payload: Vec<String>,
}

impl Outgoing {
    pub(super) fn add(&mut self, txn_id: TxnId, at: UnixMs, events: Vec<OutgoingEvent>) {
        for event in events {
            self.event_id.push(event.event_id);
            self.txn_id.push(txn_id.uuid());
            self.at.push(timestamp(at));
            self.lane.push(lane_of(txn_id.uuid()));
            self.psp.push(txn_id.psp().as_str().to_owned());
            self.event_type.push(event.event_type.name());
            self.payload.push(event.payload);
        }
    }

    fn len(&self) -> usize {
        self.event_id.len()
    }

    /// The last seven parameters of a statement.
    pub(super) fn bind<'q>(
        &'q self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(&self.event_id)
            .bind(&self.txn_id)
            .bind(&self.at)
            .bind(&self.lane)
            .bind(&self.psp)
            .bind(&self.event_type)
            .bind(&self.payload)
    }
}

fn column<'a, T, C>(rows: &'a [T], cell: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(cell).collect()
}

/// Versions and counts are bounded far below the type's end.
fn count(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
