//! The outbox in lanes: relays share them by leases.
//!
//! All events of a payment are in one lane, and each is written by a transaction that began to write only after the
//! one before was committed: the order of transactions is theirs. A relay reads what is unpublished in its lanes, publishes it in order and takes it out: an event leaves the outbox only
//! after it was published. So whatever a relay that lost its lease still does, a payment's events first appear in
//! order; all that can happen is that some appear once more.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use super::link::Fault;
use crate::store::cells;
use crate::store::{LaneLease, OutboxRow, StoreError};

/// Says that this relay lives; forgets those that do not.
const ALIVE: &str = "
WITH dead AS (
    DELETE FROM outbox_relays WHERE relay = ANY(ARRAY(
        SELECT relay FROM outbox_relays WHERE alive_until < now() AND relay <> $1 FOR UPDATE SKIP LOCKED))
)
INSERT INTO outbox_relays (relay, alive_until) VALUES ($1, now() + $2 * interval '1 millisecond')
ON CONFLICT (relay) DO UPDATE SET alive_until = excluded.alive_until";

/// Keeps what it has up to its fair share, gives away what is above it, and takes free lanes up to it. Rows that
/// another relay is changing are left to it. Times are the database's.
const LEASE: &str = "
WITH share AS (
    SELECT ceil((SELECT count(*) FROM outbox_lanes) / count(*)::numeric)::bigint AS lanes
    FROM outbox_relays WHERE alive_until >= now()
), mine AS (
    SELECT lane FROM outbox_lanes WHERE relay = $1 ORDER BY lane FOR UPDATE
), kept AS (
    SELECT lane FROM mine ORDER BY lane LIMIT (SELECT lanes FROM share)
), free AS (
    SELECT lane FROM outbox_lanes WHERE (relay IS NULL OR lease_until < now()) AND relay IS DISTINCT FROM $1
    ORDER BY lane LIMIT (SELECT greatest(lanes - (SELECT count(*) FROM kept), 0) FROM share)
    FOR UPDATE SKIP LOCKED
), given AS (
    UPDATE outbox_lanes SET relay = NULL, lease_until = '-infinity'
    WHERE lane IN (SELECT lane FROM mine EXCEPT SELECT lane FROM kept)
), held AS (
    UPDATE outbox_lanes SET relay = $1, lease_until = now() + $2 * interval '1 millisecond'
    WHERE lane IN (SELECT lane FROM kept UNION ALL SELECT lane FROM free) RETURNING lane
)
SELECT lane FROM held ORDER BY lane";

/// Lane by lane, so that a long lane costs no more than its share. `settled`: every transaction before this one has
/// ended, and what it wrote can be seen. `server` tells one life of one server from another.
const UNPUBLISHED: &str = "
SELECT l.lane, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS settled,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS server,
    e.xact, e.position, e.event_id, e.aggregate_id, e.psp, e.event_type, e.payload
FROM unnest($1::smallint[], $2::bigint[]) AS l (lane, floor)
LEFT JOIN LATERAL (
    SELECT xact, position, event_id, aggregate_id, psp, event_type, payload FROM outbox_events
    WHERE outbox_events.lane = l.lane AND xact >= l.floor ORDER BY xact, position LIMIT $3) AS e ON true
ORDER BY e.xact, e.position";

const PUBLISHED: &str = "
DELETE FROM outbox_events AS e
USING unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS p (lane, xact, position), outbox_lanes AS l
WHERE l.lane = p.lane AND l.relay = $1 AND e.lane = p.lane AND e.xact = p.xact AND e.position = p.position";

/// For each lane a transaction before which nothing is in it and nothing will ever be: all before it have ended, and
/// what they wrote is published. Holds whoever has the lane, but for one life of one server: another that takes over
/// may count the same transactions again. So may one that recovers from the crash of a backend, and that looks like
/// the same life: floors are forgotten now and then, so that nothing below one waits for long.
#[derive(Debug)]
pub(super) struct Floors(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// When the server was started.
    server: i64,
    floors: HashMap<i16, i64>,
    since: Instant,
}

const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

impl Default for Floors {
    fn default() -> Self {
        Floors(Mutex::new(Known::of(0)))
    }
}

impl Known {
    fn of(server: i64) -> Self {
        Known { server, floors: HashMap::new(), since: Instant::now() }
    }
}

impl Floors {
    fn of(&self, lanes: &[i16]) -> (i64, Vec<i64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.since.elapsed() > FORGOTTEN_AFTER {
            *known = Known::of(known.server);
        }
        (known.server, lanes.iter().map(|lane| known.floors.get(lane).copied().unwrap_or(0)).collect())
    }

    fn forget(&self, server: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Known::of(server);
    }

    /// What a read has found: the first transaction in the lane, if there is any.
    fn found(&self, lane: i16, first: Option<i64>, settled: i64) {
        let floor = first.map_or(settled, |first| first.min(settled));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.floors.entry(lane).or_default();
        *known = floor.max(*known);
    }
}

/// Of one lane at a time, whatever the number of lanes.
const AT_LEAST_OF_A_LANE: i64 = 16;

const TRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(10);

pub(super) async fn lease(readers: &PgPool, relay: Uuid, lease_ms: u64) -> Result<LaneLease, StoreError> {
    for attempt in 0..TRIES {
        match lease_once(readers, relay, lease_ms).await {
            Err(Fault::Lost) => tokio::time::sleep(super::link::jittered(RETRY_AFTER, attempt)).await,
            done => return Ok(done?),
        }
    }
    Err(StoreError::Overloaded)
}

async fn lease_once(readers: &PgPool, relay: Uuid, lease_ms: u64) -> Result<LaneLease, Fault> {
    let ms = i64::try_from(lease_ms).unwrap_or(i64::MAX);
    // Counted from before the database began to: it never ends later here than there.
    let until = Instant::now() + Duration::from_millis(lease_ms);
    // Two statements, so that the second sees the first.
    sqlx::query(ALIVE).bind(relay).bind(ms).execute(readers).await?;
    let rows = sqlx::query(LEASE).bind(relay).bind(ms).fetch_all(readers).await?;
    let lanes = rows.iter().map(|row| row.try_get("lane")).collect::<Result<_, _>>()?;
    Ok(LaneLease { relay, lanes, until })
}

pub(super) async fn give_back(readers: &PgPool, relay: Uuid) -> Result<(), StoreError> {
    let sql = "UPDATE outbox_lanes SET relay = NULL, lease_until = '-infinity' WHERE relay = $1";
    sqlx::query(sql).bind(relay).execute(readers).await?;
    sqlx::query("DELETE FROM outbox_relays WHERE relay = $1").bind(relay).execute(readers).await?;
    Ok(())
}

pub(super) async fn unpublished(
    readers: &PgPool,
    floors: &Floors,
    lease: &LaneLease,
    limit: u32,
) -> Result<Vec<OutboxRow>, StoreError> {
    if lease.lanes.is_empty() {
        return Ok(Vec::new());
    }
    let lanes = i64::try_from(lease.lanes.len()).unwrap_or(i64::MAX);
    let of_a_lane = (i64::from(limit) / lanes).max(AT_LEAST_OF_A_LANE);
    match read(readers, floors, &lease.lanes, of_a_lane).await? {
        Some(rows) => Ok(rows),
        // Another server than before: from the beginning.
        None => Ok(read(readers, floors, &lease.lanes, of_a_lane).await?.unwrap_or_default()),
    }
}

/// None, and the floors are forgotten, if they were another server's: what was read from there says nothing here.
async fn read(
    readers: &PgPool,
    floors: &Floors,
    lanes: &[i16],
    of_a_lane: i64,
) -> Result<Option<Vec<OutboxRow>>, StoreError> {
    let (server, from) = floors.of(lanes);
    let read = sqlx::query(UNPUBLISHED).bind(lanes).bind(from).bind(of_a_lane);
    let found = read.fetch_all(readers).await?;
    let answered: i64 = found.first().map_or(Ok(server), |row| row.try_get("server"))?;
    if answered != server {
        floors.forget(answered);
        return Ok(None);
    }
    let (mut rows, mut looked_at) = (Vec::new(), HashSet::new());
    for row in &found {
        let lane: i16 = row.try_get("lane")?;
        let xact: Option<i64> = row.try_get("xact")?;
        if looked_at.insert(lane) {
            floors.found(lane, xact, row.try_get("settled")?);
        }
        if let Some(xact) = xact {
            let txn_id = cells::txn_id(row, "aggregate_id")?;
            rows.push(cells::outbox(row, (lane, xact), txn_id.to_string())?);
        }
    }
    Ok(Some(rows))
}

pub(super) async fn published(
    readers: &PgPool,
    lease: &LaneLease,
    rows: &[OutboxRow],
) -> Result<(), StoreError> {
    let lanes: Vec<i16> = rows.iter().map(|row| row.lane).collect();
    let xacts: Vec<i64> = rows.iter().map(|row| row.xact).collect();
    let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
    let delete = sqlx::query(PUBLISHED).bind(lease.relay).bind(lanes).bind(xacts).bind(positions);
    delete.execute(readers).await?;
    Ok(())
}
