//! PostgreSQL: many processes, one truth. Payments are partitioned by month; requests that arrive together are
//! one statement, one round trip and one commit.
//!
//! Other processes write the same payments. A new payment is claimed by its idempotency key, a change by the
//! version that it was decided on; whoever comes second finds out and looks again. No lock is held while this
//! process thinks.

mod accept;
mod apply;
mod config;
mod lanes;
mod link;
mod partitions;
mod read;
mod schema;
#[cfg(test)]
pub(crate) mod tests;

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use certs::Watch;
use sqlx::postgres::{PgPool, PgPoolOptions};
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

pub use config::{PostgresConfig, Tls};
pub use partitions::{Month, Partition, Partitions};
pub use schema::migrate;

use self::accept::Accepting;
use self::apply::Applying;
use self::link::Link;
use super::writer::Writer;
use super::{Accepted, Applied, Apply, Figures, HistoryRow, LaneLease, NewTxn, OutboxRow, Store, StoreError};
use crate::metrics::Metrics;
use crate::txn::{Rules, Txn, TxnId, UnixMs, WakeKind};

/// The store in one database of PostgreSQL 15 or newer.
#[derive(Debug)]
pub struct PostgresStore {
    accepting: Vec<Writer<Accepting>>,
    applying: Vec<Writer<Applying>>,
    readers: PgPool,
    distrust: Distrust,
    partitions: Partitions,
    months_ahead: u32,
    floors: lanes::Floors,
    bell: Arc<Notify>,
}

/// Lanes of the outbox: so many relays can share the work at most. As many rows are in `outbox_lanes`.
const LANES: u8 = 32;

/// Commits of other processes ring no bell here.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl PostgresStore {
    /// Connects and checks that the tables are as new as this program needs. Waits a while for a database that
    /// is away.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it stays away; [`StoreError::Engine`] if `txn-core migrate` has to be run.
    pub async fn open(
        config: &PostgresConfig,
        rules: Rules,
        metrics: Arc<Metrics>,
    ) -> Result<PostgresStore, StoreError> {
        PostgresStore::open_and_follow(config, rules, metrics, &Watch::new("txn-core")).await
    }

    /// As [`open`](Self::open), and uses a new password from the file of the URL as long as `watch` runs.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub async fn open_and_follow(
        config: &PostgresConfig,
        rules: Rules,
        metrics: Arc<Metrics>,
        watch: &Watch,
    ) -> Result<PostgresStore, StoreError> {
        let options = config.follow(watch)?;
        schema::wait_until_current(&options.current(), config).await?;
        let partitions = Partitions::new(options.clone(), config);
        let distrust = Distrust::default();
        let trusted = distrust.clone();
        let readers = PgPoolOptions::new()
            .before_acquire(move |_, meta| {
                let is_trusted = trusted.trusts(meta.age);
                Box::pin(async move { Ok(is_trusted) })
            })
            .max_connections(config.readers.max(1))
            .acquire_timeout(Duration::from_millis(config.acquire_timeout_ms))
            .connect_lazy_with((*options.current()).clone());
        let (pool, followed) = (readers.clone(), options.clone());
        watch.derive(&[&options], move || {
            pool.set_connect_options((*followed.current()).clone());
            Ok::<_, StoreError>(())
        })?;
        let bell = Arc::new(Notify::new());
        let accepting = (0..config.accept_writers.max(1)).map(|_| {
            // Joins a batch with itself and looks up nothing.
            let link = Link::new(options.clone(), &[("enable_hashjoin", "on")], config);
            let engine = Accepting { link, partitions: partitions.clone() };
            Writer::start(engine, &config.writer, bell.clone(), metrics.clone())
        });
        let applying = (0..config.apply_writers.max(1)).map(|_| {
            let engine = Applying { link: Link::new(options.clone(), &[], config), rules: rules.clone() };
            Writer::start(engine, &config.writer, bell.clone(), metrics.clone())
        });
        let (accepting, applying) = (accepting.collect(), applying.collect());
        let months_ahead = config.months_ahead;
        let store = PostgresStore {
            accepting,
            applying,
            readers,
            distrust,
            partitions,
            months_ahead,
            floors: lanes::Floors::default(),
            bell,
        };
        store.make_room(UnixMs::now()).await?;
        Ok(store)
    }
}

/// Which connections of the pool may be used. A server that was demoted to a standby keeps its connections and refuses
/// writes on them. So after an error of that kind every connection that is older is closed, and its successor finds
/// the host anew.
#[derive(Debug, Clone, Default)]
struct Distrust(Arc<Mutex<Option<Instant>>>);

impl Distrust {
    /// Whether a connection of this age was made since the last such error.
    fn trusts(&self, age: Duration) -> bool {
        self.since().is_none_or(|since| age < since.elapsed())
    }

    async fn after<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let done = work.await;
        if let Err(StoreError::Unavailable(_)) = &done {
            *self.since() = Some(Instant::now());
        }
        done
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn accept(&self, new: NewTxn) -> Result<Accepted, StoreError> {
        one_of(&self.accepting, &new.idempotency)?.ask(new).await
    }

    async fn apply(&self, input: Apply) -> Result<Applied, StoreError> {
        // One payment's changes go one way, so that this process never races with itself.
        one_of(&self.applying, &input.txn_id)?.ask(input).await
    }

    async fn find(&self, tenant: &str, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError> {
        Ok(self.inspect(id).await?.filter(|(txn, _)| txn.tenant == tenant))
    }

    async fn inspect(&self, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError> {
        self.distrust.after(read::inspect(&self.readers, id)).await
    }

    async fn lease_lanes(&self, relay: Uuid, lease_ms: u64) -> Result<LaneLease, StoreError> {
        self.distrust.after(lanes::lease(&self.readers, relay, lease_ms)).await
    }

    async fn return_lanes(&self, relay: Uuid) -> Result<(), StoreError> {
        self.distrust.after(lanes::give_back(&self.readers, relay)).await
    }

    async fn unpublished(&self, lease: &LaneLease, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        self.distrust.after(lanes::unpublished(&self.readers, &self.floors, lease, limit)).await
    }

    async fn published(&self, lease: &LaneLease, rows: &[OutboxRow]) -> Result<(), StoreError> {
        self.distrust.after(lanes::published(&self.readers, lease, rows)).await
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY
    }

    async fn claim_due(
        &self,
        kind: WakeKind,
        now: UnixMs,
        lease_ms: u64,
        limit: u32,
    ) -> Result<Vec<TxnId>, StoreError> {
        self.distrust.after(read::claim_due(&self.readers, kind, now, lease_ms, limit)).await
    }

    async fn purge(&self, idempotency_before: UnixMs, inbox_before: UnixMs) -> Result<u64, StoreError> {
        self.distrust.after(read::purge(&self.readers, idempotency_before, inbox_before)).await
    }

    async fn make_room(&self, now: UnixMs) -> Result<(), StoreError> {
        self.partitions.ensure(Month::of(now), self.months_ahead).await.map(drop)
    }

    async fn figures(&self) -> Result<Figures, StoreError> {
        self.distrust.after(read::figures(&self.readers)).await
    }

    fn outbox_bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    async fn close(&self) {
        for writer in &self.accepting {
            writer.close().await;
        }
        for writer in &self.applying {
            writer.close().await;
        }
        self.readers.close().await;
    }
}

/// The same one for the same key.
fn one_of<'a, W>(writers: &'a [W], key: &impl Hash) -> Result<&'a W, StoreError> {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    let at = usize::try_from(hash % writers.len().max(1) as u64).unwrap_or(0);
    writers.get(at).ok_or(StoreError::Closed)
}

/// The lane of a payment's events: the last byte of a UUIDv7 is random.
fn lane_of(txn_id: Uuid) -> i16 {
    let [.., last] = *txn_id.as_bytes();
    i16::from(last % LANES)
}

/// As the column types want it. Times of payments are far from the ends of either type.
fn timestamp(at: UnixMs) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
