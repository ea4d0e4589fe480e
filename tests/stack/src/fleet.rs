//! The engines of a fleet under a stack: PostgreSQL, Kafka and Redis of its own, and what the services are told of
//! them. They are chosen by configuration alone: the programs are the same.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    /// PostgreSQL, Kafka and Redis of the stack's own.
    Fleet,
    /// The same as `compose.yaml` beside this crate runs them.
    Containers,
}

const DATABASE: &str = "torana";

/// Where services find the engines.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) postgres: SocketAddr,
    pub(crate) kafka: SocketAddr,
    pub(crate) redis: SocketAddr,
}

impl Places {
    /// Where `compose.yaml` puts the engines.
    pub(crate) const CONTAINERS: Places =
        Places { postgres: loopback(15_432), kafka: loopback(19_092), redis: loopback(16_379) };

    /// What differs from the development configuration; what may hold a password is written down in `keys`.
    pub(crate) fn settings(&self, keys: &Path) -> anyhow::Result<Vec<Setting>> {
        certs::file::write_secret(
            &keys.join("database.url"),
            &engines::postgres_url(self.postgres, DATABASE),
        )?;
        certs::file::write_secret(&keys.join("redis.url"), &engines::redis_url(self.redis))?;
        let settings = [
            (Service::TxnCore, "/store", json!({ "postgres": { "url": "file:../keys/database.url" } })),
            (Service::TxnCore, "/bus", json!({ "kafka": { "brokers": [self.kafka] } })),
            (Service::Edge, "/state/redis", json!({ "url": "file:../keys/redis.url" })),
        ];
        let setting =
            |(service, pointer, value): (_, &str, _)| Setting { service, pointer: pointer.to_owned(), value };
        Ok(settings.map(setting).into())
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Running engines; they end with this value.
#[derive(Debug)]
pub struct Fleet {
    pub postgres: Mutex<Postgres>,
    pub kafka: Mutex<Kafka>,
    pub redis: Mutex<Redis>,
}

impl Fleet {
    /// Starts them with their data in `data`.
    ///
    /// # Errors
    /// When one is not installed (`tests/run install` brings them) or does not start.
    pub(crate) async fn start(data: &Path) -> anyhow::Result<Fleet> {
        // Kafka takes longest, and most of it is waiting.
        let places = ["postgres", "kafka", "redis"].map(|name| data.join(name));
        let [postgres, kafka, redis] = &places;
        let (postgres, kafka, redis) =
            tokio::try_join!(Postgres::start(postgres), Kafka::start(kafka), Redis::start(redis))?;
        postgres.create_database(DATABASE).await?;
        Ok(Fleet { postgres: Mutex::new(postgres), kafka: Mutex::new(kafka), redis: Mutex::new(redis) })
    }

    /// Where they listen.
    pub(crate) async fn places(&self) -> Places {
        let (postgres, kafka, redis) =
            tokio::join!(self.postgres.lock(), self.kafka.lock(), self.redis.lock());
        Places { postgres: postgres.address(), kafka: kafka.address(), redis: redis.address() }
    }

    /// Stops them.
    pub(crate) async fn stop(self) {
        // Killed, if one cannot be waited for.
        let (kafka, redis, postgres) =
            (&mut *self.kafka.lock().await, &mut *self.redis.lock().await, &mut *self.postgres.lock().await);
        let _ = tokio::join!(kafka.stop(), redis.stop(), postgres.stop());
    }
}

/// Makes tables and topics, as an operator does before the first start and with each new version.
pub(crate) async fn prepare(binaries: &Binaries, config: &Path) -> anyhow::Result<()> {
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
