//! The tables' versions. `txn-core migrate` brings them up to date, `serve` only looks: in a fleet it is an
//! operator who decides when tables change, not whichever process happens to start first.

use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, SqlSafeStr as _};
use tokio::time::{Instant, sleep, timeout};

use super::config::PostgresConfig;
use super::link::Fault;
use super::partitions::{Month, Partitions};
use crate::store::StoreError;
use crate::txn::UnixMs;

/// Forward only: an applied file never changes, a new one is added. One that has to run outside a transaction
/// (CREATE INDEX CONCURRENTLY) gets `true`.
const MIGRATIONS: &[(i64, &str, &str, bool)] =
    &[(1, "payments", include_str!("../../../migrations/postgres/0001_payments.sql"), false)];

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Tries of a migration whose locks were not to be had.
const TRIES: u32 = 10;

/// Brings the tables up to date and makes the partitions of the months to come: `txn-core migrate`. Two at once
/// wait for each other.
///
/// # Errors
/// [`StoreError::Unavailable`] if the database is away, [`StoreError::Engine`] if it refuses.
pub async fn migrate(config: &PostgresConfig) -> Result<(), StoreError> {
    // Nobody waits for an answer, and an index may take its time.
    let options = config.options()?.options([("statement_timeout", "0")]);
    let mut db = connect(&options, config).await?;
    let migrations = MIGRATIONS.iter().map(|(version, name, sql, no_tx)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), *no_tx)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // Tables may be newer than this program: it is not the last one of its kind.
    migrator.set_ignore_missing(true);
    for attempt in 1.. {
        match migrator.run_direct(None, &mut db, false).await {
            Ok(()) => break,
            Err(sqlx::migrate::MigrateError::ExecuteMigration(error, _))
                if attempt < TRIES && lock_not_available(&error) =>
            {
                tracing::warn!(attempt, "a lock was not to be had; trying again");
                drop(db);
                sleep(LOOK_AGAIN_AFTER).await;
                db = connect(&options, config).await?;
            }
            Err(error) => return Err(StoreError::Engine(format!("migration: {error}"))),
        }
    }
    db.close().await?;
    Partitions::new(options.into(), config).ensure(Month::of(UnixMs::now()), config.months_ahead).await?;
    Ok(())
}

/// Waits for a database that is away, and looks whether its tables are as new as this program needs. Newer ones
/// are all right: migrations are made so that the program before them still works.
pub(super) async fn wait_until_current(
    options: &PgConnectOptions,
    config: &PostgresConfig,
) -> Result<(), StoreError> {
    let until = Instant::now() + Duration::from_millis(config.start_wait_ms);
    loop {
        match check(options, config).await {
            Err(StoreError::Unavailable(why)) if Instant::now() < until => {
                tracing::warn!(why, "waits for PostgreSQL");
                sleep(LOOK_AGAIN_AFTER).await;
            }
            done => return done,
        }
    }
}

async fn check(options: &PgConnectOptions, config: &PostgresConfig) -> Result<(), StoreError> {
    let mut db = connect(options, config).await?;
    let needed = MIGRATIONS.iter().map(|(version, ..)| *version).max().unwrap_or_default();
    let there: Option<String> =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text").fetch_one(&mut db).await?;
    let found: i64 = match there {
        Some(_) => {
            let sql = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
            sqlx::query_scalar(sql).fetch_one(&mut db).await?
        }
        None => 0,
    };
    db.close().await?;
    if found >= needed {
        return Ok(());
    }
    Err(StoreError::Engine(format!(
        "the database's tables are of version {found} and {needed} is needed: run `txn-core migrate` first"
    )))
}

fn lock_not_available(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

async fn connect(options: &PgConnectOptions, config: &PostgresConfig) -> Result<PgConnection, StoreError> {
    let connected = timeout(config.connect_timeout(), options.connect()).await;
    let connected = connected.map_err(|_| StoreError::Unavailable("does not take connections".to_owned()))?;
    connected.map_err(|error| Fault::from(error).into())
}
