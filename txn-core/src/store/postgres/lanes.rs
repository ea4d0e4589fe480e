//! The outbox in lanes: relays share them by leases.
//!
//! All events of a payment are in one lane, and each is numbered only after the one before is committed. A relay
//! reads what is unpublished in its lanes, publishes it in order and takes it out: an event leaves the outbox only
//! after it was published. So whatever a relay that lost its lease still does, a payment's events first appear in
//! order; all that can happen is that some appear once more.

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

/// Lane by lane, so that a long lane costs no more than its share.
const UNPUBLISHED: &str = "
SELECT e.* FROM unnest($1::smallint[]) AS l (lane)
CROSS JOIN LATERAL (
    SELECT lane, position, event_id, aggregate_id, psp, event_type, payload FROM outbox_events
    WHERE outbox_events.lane = l.lane ORDER BY position LIMIT $2) AS e
ORDER BY e.position";

const PUBLISHED: &str = "
DELETE FROM outbox_events AS e
USING unnest($2::smallint[], $3::bigint[]) AS p (lane, position), outbox_lanes AS l
WHERE l.lane = p.lane AND l.relay = $1 AND e.lane = p.lane AND e.position = p.position";

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
    lease: &LaneLease,
    limit: u32,
) -> Result<Vec<OutboxRow>, StoreError> {
    if lease.lanes.is_empty() {
        return Ok(Vec::new());
    }
    let lanes = i64::try_from(lease.lanes.len()).unwrap_or(i64::MAX);
    let of_a_lane = (i64::from(limit) / lanes).max(AT_LEAST_OF_A_LANE);
    let rows = sqlx::query(UNPUBLISHED).bind(&lease.lanes).bind(of_a_lane).fetch_all(readers).await?;
    rows.iter()
        .map(|row| {
            let txn_id = cells::txn_id(row, "aggregate_id")?;
            cells::outbox(row, row.try_get("lane")?, txn_id.to_string())
        })
        .collect()
}

pub(super) async fn published(
    readers: &PgPool,
    lease: &LaneLease,
    rows: &[OutboxRow],
) -> Result<(), StoreError> {
    let lanes: Vec<i16> = rows.iter().map(|row| row.lane).collect();
    let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
    sqlx::query(PUBLISHED).bind(lease.relay).bind(lanes).bind(positions).execute(readers).await?;
    Ok(())
}
