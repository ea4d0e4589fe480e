//! The engines of a fleet under a stack: PostgreSQL, Kafka and Redis of its own, and what the services are told of
//! them. They are chosen by configuration alone: the programs are the same.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use engines::{Kafka, Postgres, Redis};
use serde_json::json;
use tokio::sync::Mutex;

use crate::config::Setting;
use crate::{Binaries, Service};

/// What is under the services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engines {
    /// SQLite, the bus in a file, state in memory: nothing but the services.
    #[default]
    Embedded,
    /// PostgreSQL, Kafka and Redis.
    Fleet,
}

const DATABASE: &str = "torana";

/// Running engines; they end with this value.
#[derive(Debug)]
pub struct Fleet {
    pub postgres: Mutex<Postgres>,
    pub kafka: Mutex<Kafka>,
    pub redis: Mutex<Redis>,
}

impl Fleet {
    /// Starts them with their data in `data`, and writes down in `keys` where they are.
    ///
    /// # Errors
    /// When one is not installed (`tests/run install` brings them) or does not start.
    pub(crate) async fn start(data: &Path, keys: &Path) -> anyhow::Result<Fleet> {
        // Kafka takes longest, and most of it is waiting.
        let places = ["postgres", "kafka", "redis"].map(|name| data.join(name));
        let [postgres, kafka, redis] = &places;
        let (postgres, kafka, redis) =
            tokio::try_join!(Postgres::start(postgres), Kafka::start(kafka), Redis::start(redis))?;
        postgres.create_database(DATABASE).await?;
        std::fs::write(keys.join("database.url"), postgres.url(DATABASE))?;
        std::fs::write(keys.join("redis.url"), redis.url())?;
        Ok(Fleet { postgres: Mutex::new(postgres), kafka: Mutex::new(kafka), redis: Mutex::new(redis) })
    }

    /// What differs from the development configuration.
    pub(crate) async fn settings(&self) -> Vec<Setting> {
        let broker = self.kafka.lock().await.address();
        [
            (Service::TxnCore, "/store", json!({ "postgres": { "url": "file:../keys/database.url" } })),
            (Service::TxnCore, "/bus", json!({ "kafka": { "brokers": [broker] } })),
            (Service::Edge, "/state/redis", json!({ "url": "file:../keys/redis.url" })),
        ]
        .map(|(service, pointer, value)| Setting { service, pointer: pointer.to_owned(), value })
        .into()
    }

    /// Makes tables and topics, as an operator does before the first start and with each new version.
    pub(crate) async fn prepare(&self, binaries: &Binaries, config: &Path) -> anyhow::Result<()> {
        let core = binaries.folder().join("txn-core");
        let topics: [&OsStr; 3] = ["topics".as_ref(), "--replication-factor".as_ref(), "1".as_ref()];
        for arguments in [&["migrate".as_ref()][..], &topics] {
            let mut command = tokio::process::Command::new(&core);
            let ran = command.args(arguments).arg("--config").arg(config).output().await;
            let ran = ran.with_context(|| format!("cannot start {}", core.display()))?;
            let said = String::from_utf8_lossy(&ran.stderr);
            ensure!(ran.status.success(), "txn-core {}: {said}", arguments.join(OsStr::new(" ")).display());
        }
        Ok(())
    }

    /// Stops them.
    pub(crate) async fn stop(self) {
        // Killed, if one cannot be waited for.
        let (kafka, redis, postgres) =
            (&mut *self.kafka.lock().await, &mut *self.redis.lock().await, &mut *self.postgres.lock().await);
        let _ = tokio::join!(kafka.stop(), redis.stop(), postgres.stop());
    }
}
