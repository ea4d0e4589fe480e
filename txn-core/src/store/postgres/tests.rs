//! PostgreSQL holds to the contract; and the database that the other tests use.

mod bad_days;
mod months;
mod reads;
mod rotation;
mod two_processes;

use std::sync::Arc;

use engines::Postgres;
use sqlx::ConnectOptions as _;

use super::*;
use crate::secret::SecretRef;
use crate::store::contract;

/// A PostgreSQL with one database, and how it is configured.
pub(crate) struct Database {
    postgres: Postgres,
    config: PostgresConfig,
    _dir: tempfile::TempDir,
}

impl Database {
    /// With no tables in it.
    async fn start() -> Database {
        let dir = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(dir.path()).await.unwrap();
        postgres.create_database("payments").await.unwrap();
        let file = dir.path().join("url");
        certs::file::write_secret(&file, &postgres.url("payments")).unwrap();
        // While it is stopped on purpose nobody waits for long.
        let config = PostgresConfig { acquire_timeout_ms: 250, ..PostgresConfig::new(SecretRef::File(file)) };
        Database { postgres, config, _dir: dir }
    }

    pub(crate) async fn migrated() -> Database {
        let database = Database::start().await;
        migrate(&database.config).await.unwrap();
        database
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<PostgresStore, StoreError> {
        let metrics = Arc::new(Metrics::new().unwrap());
        PostgresStore::open(&self.config, Rules::default(), metrics).await
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let mut db = self.config.options().unwrap().connect().await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_holds_to_the_contract() {
    let database = Database::migrated().await;
    contract::holds(async || database.open().await).await;
}
