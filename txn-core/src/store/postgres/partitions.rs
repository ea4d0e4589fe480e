//! The months of `transactions` and `txn_history`: made ahead, listed, and dropped when they were kept for long
//! enough and nothing in them is unfinished. Never holds up a payment: a partition is made beside the table and
//! attached, and detached concurrently.

use std::fmt;

use certs::Live;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use time::{Date, OffsetDateTime};
use tokio::time::timeout;

use super::config::PostgresConfig;
use super::link::Fault;
use super::timestamp;
use crate::store::StoreError;
use crate::txn::UnixMs;

/// A month of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: i32,
    /// 1 to 12.
    month: u8,
}

/// A month that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub month: Month,
    /// As the planner knows it; -1 if nobody has counted yet.
    pub rows: i64,
    pub bytes: i64,
    /// Payments that may still change.
    pub unfinished: i64,
}

/// Makes, lists and drops months.
#[derive(Debug, Clone)]
pub struct Partitions {
    options: Live<PgConnectOptions>,
    config: PostgresConfig,
}

/// The partitioned tables, and how full their pages are made. A payment's row is changed some times without
/// touching an index, which takes place on its page; a line of history never changes.
const TABLES: [(&str, u8); 2] = [("transactions", 85), ("txn_history", 100)];

/// Locks of whoever works on partitions: one at a time.
const ADVISORY_LOCK: i64 = 0x546f_7261_6e61;

/// What a status check, a callback or reconciliation may still end. DEEMED is an end for who paid: banks settle the
/// rest between them, within days.
const UNFINISHED: &str = "status IN ('PENDING', 'DEBITED')";

impl Month {
    pub fn of(at: UnixMs) -> Month {
        let date = timestamp(at).date();
        Month { year: date.year(), month: date.month().into() }
    }

    /// So many months later, or earlier.
    pub fn plus(self, months: i32) -> Month {
        let count = self.year * 12 + i32::from(self.month) - 1 + months;
        Month { year: count.div_euclid(12), month: u8::try_from(count.rem_euclid(12) + 1).unwrap_or(1) }
    }

    fn begins(self) -> OffsetDateTime {
        let month = time::Month::try_from(self.month).unwrap_or(time::Month::January);
        let first = Date::from_calendar_date(self.year, month, 1);
        first.map_or(OffsetDateTime::UNIX_EPOCH, |date| date.midnight().assume_utc())
    }

    fn table(self, parent: &str) -> String {
        format!("{parent}_y{:04}m{:02}", self.year, self.month)
    }

    fn of_table(name: &str) -> Option<Month> {
        let (_, date) = name.rsplit_once("_y")?;
        let (year, month) = date.split_once('m')?;
        let (year, month) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12).contains(&month).then_some(Month { year, month })
    }
}

/// As in `2026-11`.
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Partitions {
    /// For a database that is configured so.
    ///
    /// # Errors
    /// If the URL can't be read.
    pub fn of(config: &PostgresConfig) -> Result<Partitions, StoreError> {
        Ok(Partitions::new(config.options()?.into(), config))
    }

    pub(super) fn new(options: Live<PgConnectOptions>, config: &PostgresConfig) -> Partitions {
        // Whoever holds a lock that is needed here is more important; the next try comes.
        Partitions { options, config: config.clone() }
    }

    /// Makes what is missing from `first` to so many months later; gives what it made.
    ///
    /// # Errors
    /// If the database is away, or a lock was not to be had: trying again is safe.
    pub async fn ensure(&self, first: Month, months_ahead: u32) -> Result<Vec<Month>, StoreError> {
        let mut db = self.connect().await?;
        let ahead = i32::try_from(months_ahead).unwrap_or(i32::MAX).min(120);
        let wanted: Vec<Month> = (0..=ahead).map(|months| first.plus(months)).collect();
        if missing(&mut db, &wanted).await?.is_empty() {
            return Ok(Vec::new());
        }
        locked(&mut db).await?;
        let made = missing(&mut db, &wanted).await?;
        for (month, parent, fillfactor) in &made {
            make(&mut db, *month, parent, *fillfactor).await?;
        }
        // Closing gives the lock back.
        db.close().await?;
        let mut months: Vec<Month> = made.into_iter().map(|(month, ..)| month).collect();
        months.dedup();
        Ok(months)
    }

    /// Every month that is there, oldest first.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn list(&self) -> Result<Vec<Partition>, StoreError> {
        let mut db = self.connect().await?;
        let mut partitions = Vec::new();
        for month in months(&mut db, "transactions", Attached::OrNot).await? {
            let table = month.table("transactions");
            let sql = format!(
                "SELECT reltuples::bigint AS rows, pg_total_relation_size(oid)::bigint AS bytes,
                 (SELECT count(*) FROM {table} WHERE {UNFINISHED}) AS unfinished
                 FROM pg_class WHERE oid = '{table}'::regclass"
            );
            let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut db).await?;
            partitions.push(Partition {
                month,
                rows: row.try_get("rows")?,
                bytes: row.try_get("bytes")?,
                unfinished: row.try_get("unfinished")?,
            });
        }
        db.close().await?;
        Ok(partitions)
    }

    /// Drops a month for good. Looks once more when nobody can write to it any longer; if something in it is
    /// unfinished after all, the month comes back and this is an error.
    ///
    /// # Errors
    /// If something is unfinished, the database is away, or a lock was not to be had: trying again is safe.
    pub async fn drop(&self, month: Month) -> Result<(), StoreError> {
        let mut db = self.connect().await?;
        locked(&mut db).await?;
        let (payments, history) = (month.table("transactions"), month.table("txn_history"));
        if unfinished(&mut db, &payments).await? > 0 {
            return Err(StoreError::Engine(format!("{month}: payments in it are unfinished")));
        }
        for (parent, table) in [("transactions", &payments), ("txn_history", &history)] {
            if months(&mut db, parent, Attached::Halfway).await?.contains(&month) {
                execute(&mut db, format!("ALTER TABLE {parent} DETACH PARTITION {table} FINALIZE")).await?;
            }
            if months(&mut db, parent, Attached::Yes).await?.contains(&month) {
                execute(&mut db, format!("ALTER TABLE {parent} DETACH PARTITION {table} CONCURRENTLY"))
                    .await?;
            }
        }
        if unfinished(&mut db, &payments).await? > 0 {
            attach(&mut db, month, "transactions").await?;
            attach(&mut db, month, "txn_history").await?;
            return Err(StoreError::Engine(format!("{month}: a payment in it changed meanwhile; it stays")));
        }
        execute(&mut db, format!("DROP TABLE IF EXISTS {payments}, {history}")).await?;
        db.close().await?;
        Ok(())
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let options = (*self.options.current()).clone().options([("lock_timeout", "1000")]);
        let connected = timeout(self.config.connect_timeout(), options.connect()).await;
        let connected =
            connected.map_err(|_| StoreError::Unavailable("does not take connections".to_owned()))?;
        connected.map_err(|error| Fault::from(error).into())
    }
}

/// For the rest of the connection.
async fn locked(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_lock($1)").bind(ADVISORY_LOCK).execute(db).await?;
    Ok(())
}

/// How a month's table belongs to its parent.
#[derive(Debug, Clone, Copy)]
enum Attached {
    Yes,
    /// Whoever detached it died over it.
    Halfway,
    /// Also those that were detached and not yet dropped.
    OrNot,
}

async fn months(db: &mut PgConnection, parent: &str, attached: Attached) -> Result<Vec<Month>, StoreError> {
    let sql = match attached {
        Attached::Yes => {
            "SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
             WHERE i.inhparent = $1::regclass AND NOT i.inhdetachpending"
        }
        Attached::Halfway => {
            "SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
             WHERE i.inhparent = $1::regclass AND i.inhdetachpending"
        }
        Attached::OrNot => {
            "SELECT c.relname::text FROM pg_class AS c JOIN pg_class AS parent ON parent.oid = $1::regclass
             WHERE c.relkind = 'r' AND c.relnamespace = parent.relnamespace AND starts_with(c.relname, $1 || '_y')"
        }
    };
    let names: Vec<String> = sqlx::query_scalar(sql).bind(parent).fetch_all(db).await?;
    let mut months: Vec<Month> = names.iter().filter_map(|name| Month::of_table(name)).collect();
    months.sort_unstable();
    Ok(months)
}

async fn missing(
    db: &mut PgConnection,
    wanted: &[Month],
) -> Result<Vec<(Month, &'static str, u8)>, StoreError> {
    let mut missing = Vec::new();
    for (parent, fillfactor) in TABLES {
        let there = months(db, parent, Attached::Yes).await?;
        let gone = wanted.iter().filter(|month| !there.contains(month));
        missing.extend(gone.map(|month| (*month, parent, fillfactor)));
    }
    missing.sort_unstable();
    Ok(missing)
}

/// Beside the table first: attaching what is there already waits for no payment, and no payment waits for it.
async fn make(db: &mut PgConnection, month: Month, parent: &str, fillfactor: u8) -> Result<(), StoreError> {
    let table = month.table(parent);
    let like = format!(
        "CREATE TABLE IF NOT EXISTS {table} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
         WITH (fillfactor = {fillfactor})"
    );
    execute(db, like).await?;
    attach(db, month, parent).await
}

async fn attach(db: &mut PgConnection, month: Month, parent: &str) -> Result<(), StoreError> {
    let table = month.table(parent);
    let (from, to) = (month.begins().date(), month.plus(1).begins().date());
    let sql = format!(
        "ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
    );
    execute(db, sql).await
}

async fn unfinished(db: &mut PgConnection, table: &str) -> Result<i64, StoreError> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(table).fetch_one(&mut *db).await?;
    if !there {
        return Ok(0);
    }
    let sql = format!("SELECT count(*) FROM {table} WHERE {UNFINISHED}");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(db).await?)
}

/// Names in it are made of numbers and our own words.
async fn execute(db: &mut PgConnection, sql: String) -> Result<(), StoreError> {
    sqlx::query(AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}
