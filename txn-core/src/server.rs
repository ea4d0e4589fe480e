//! The whole service: opens what it needs, runs every part, and closes in the right order.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use certs::client::ClientLimits;
use certs::pki::Purpose;
use certs::serve::Limits;
use certs::{ServerTls, Versions, Watch};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::api::{self, Api};
use crate::audit::{self, Audit};
use crate::bus::consume::{Consumer, Handler};
use crate::bus::{Bus, KafkaBus, LocalBus, Topic};
use crate::config::{BusConfig, Config, StoreConfig};
use crate::metrics::Metrics;
use crate::network::NpciProxy;
use crate::notify::{self, Hub};
use crate::orchestrator::{Bounds, GROUP, Orchestrator};
use crate::relay::Relay;
use crate::roles::Role;
use crate::store::{PostgresStore, SqliteStore, Store};
use crate::timers;
use crate::txn::WakeKind;

/// A service whose listeners are bound and whose stores are open, as far as its roles need them.
#[derive(Debug)]
pub struct Server {
    config: Config,
    store: Option<Arc<dyn Store>>,
    bus: Option<Arc<dyn Bus>>,
    metrics: Arc<Metrics>,
    network: Arc<NpciProxy>,
    tls: ServerTls,
    watch: Arc<Watch>,
    listener: Option<TcpListener>,
    admin: TcpListener,
}

impl Server {
    /// Opens everything; nothing runs yet.
    ///
    /// # Errors
    /// What could not be opened, and why.
    pub async fn bind(config: Config) -> anyhow::Result<Server> {
        let watch = Watch::new("txn-core");
        let live = config.tls.watch(&watch, "tls", Purpose::Both).context("tls")?;
        let ms = Duration::from_millis;
        let limits = ClientLimits {
            connect_timeout: ms(config.network.connect_timeout_ms),
            timeout: ms(config.network.timeout_ms),
            ..ClientLimits::default()
        };
        let http = live.client(&watch, Versions::Tls13Only, limits)?;
        let tls = live.server(&watch, Versions::Tls13Only, &[b"h2", b"http/1.1"])?;
        let metrics = Arc::new(Metrics::new()?);
        metrics.tell_of(&watch)?;
        let store = if config.roles.need_store() {
            Some(open_store(&config, metrics.clone(), &watch).await?)
        } else {
            None
        };
        let bus = if config.roles.need_bus() { Some(open_bus(&config).await?) } else { None };
        let network = Arc::new(NpciProxy::new(http, &config.network.url));
        let listener =
            if config.roles.need_listener() { Some(listen(config.listen, "listen").await?) } else { None };
        let host = network.authority();
        live.connects(&watch, "npci-proxy", host.rsplit_once(':').map(|(host, _)| host.to_owned()));
        if let Some(listener) = &listener {
            live.serves(&watch, "api", listener.local_addr()?);
        }
        let admin = listen(config.admin, "admin").await?;
        Ok(Server { config, store, bus, metrics, network, tls, watch, listener, admin })
    }

    /// Where services call.
    ///
    /// # Errors
    /// Of the operating system; when no role of this instance is called.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.as_ref().ok_or(std::io::ErrorKind::NotConnected)?.local_addr()
    }

    /// Where health, readiness and metrics are.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Runs until `shutdown` completes, then finishes what is in flight.
    ///
    /// # Errors
    /// If a listener breaks, or a part of the service ends by itself.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let drain = Duration::from_millis(self.config.drain_timeout_ms);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let admin = admin::router(Admin {
            roles: self.config.roles.clone(),
            store: self.store.clone(),
            bus: self.bus.clone(),
            proxy: self.network.authority(),
            metrics: self.metrics.clone(),
            watch: self.watch.clone(),
        });
        let mut admin_stopped = stopped.clone();
        let admin_address = self.admin_address()?;
        tokio::spawn(async move {
            let until = async move {
                // An error means that the sender is gone, which is a stop too.
                let _stopped = admin_stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = certs::serve::serve_admin(self.admin, admin, until).await {
                tracing::error!(%error, "admin listener broke");
            }
        });

        let following = tokio::spawn(Arc::clone(&self.watch).run());
        let (config, metrics) = (&self.config, &self.metrics);
        let consumer = |bus: &Arc<dyn Bus>, group, handler: Arc<dyn Handler>| Consumer {
            bus: bus.clone(),
            group,
            handler,
            retry: config.retry.clone(),
            metrics: metrics.clone(),
        };
        let bounds = Bounds {
            sends: config.network.max_sends,
            inquiries: config.network.max_inquiries,
            send_starts_within_ms: config.rules.send_starts_within_ms,
        };
        let orchestrator = self
            .store
            .clone()
            .map(|store| Orchestrator::new(store, self.network.clone(), metrics.clone(), bounds));
        if let (true, Some(store), Some(bus)) = (config.roles.has(Role::Relay), &self.store, &self.bus) {
            let relay = Relay { store: store.clone(), bus: bus.clone(), metrics: metrics.clone() };
            tasks.spawn(relay.run(config.relay.clone(), stopped.clone()));
        }
        if let (true, Some(store), Some(bus), Some(orchestrator)) =
            (config.roles.has(Role::Orchestrator), &self.store, &self.bus, &orchestrator)
        {
            let consumer = consumer(bus, GROUP, Arc::new(orchestrator.clone()));
            tasks.spawn(consumer.run(Topic::Initiated, stopped.clone()));
            for kind in [WakeKind::Send, WakeKind::Check] {
                let (orchestrator, config) = (orchestrator.clone(), config.timers.clone());
                tasks.spawn(timers::run(store.clone(), orchestrator, config, kind, stopped.clone()));
            }
            let housekeeping = config.housekeeping.clone();
            tasks.spawn(timers::keep_house(store.clone(), bus.clone(), housekeeping, stopped.clone()));
        }
        if let (true, Some(bus)) = (config.roles.has(Role::Audit), &self.bus) {
            let consumer = consumer(bus, audit::GROUP, Audit::open(&config.audit)?);
            tasks.spawn(consumer.run(Topic::Audit, stopped.clone()));
        }

        let hub = Hub::new(config.limits.max_subscribers);
        if let (true, Some(bus)) = (config.roles.has(Role::Notify), &self.bus) {
            tasks.spawn(notify::run(bus.clone(), hub.clone(), stopped.clone()));
        }

        // A part that ends before it is told to leaves a service that does half its work and says nothing.
        let mut ended_early = false;
        let shutdown = async {
            tokio::select! {
                () = shutdown => {}
                Some(ended) = tasks.join_next() => {
                    ended_early = true;
                    tracing::error!(?ended, "a part of the service has ended by itself; stopping");
                }
            }
        };
        let served = match (self.listener, &self.store, &orchestrator) {
            (Some(listener), Some(store), Some(orchestrator)) => {
                let api = Arc::new(Api {
                    psp: config.psp.parse()?,
                    store: store.clone(),
                    orchestrator: orchestrator.clone(),
                    hub,
                    metrics: metrics.clone(),
                    in_flight: Mutex::new(HashSet::new()),
                    config: config.clone(),
                });
                let limits = Limits {
                    max_connections: config.limits.max_connections,
                    drain_timeout: drain,
                    ..Limits::default()
                };
                let address = listener.local_addr()?;
                tracing::info!(%address, admin = %admin_address, roles = %config.roles, "ready");
                certs::serve::serve(listener, self.tls, api::router(api), limits, shutdown).await
            }
            (_, _, _) => {
                tracing::info!(admin = %admin_address, roles = %config.roles, "ready");
                shutdown.await;
                Ok(())
            }
        };

        following.abort();
        // Nobody is answered any more; now the parts, then what they wrote to.
        stop.send_replace(true);
        if tokio::time::timeout(drain, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("a background task did not stop in time");
        }
        if let Some(orchestrator) = &orchestrator {
            orchestrator.drain(drain).await;
        }
        if let Some(bus) = &self.bus {
            bus.close().await;
        }
        if let Some(store) = &self.store {
            store.close().await;
        }
        tracing::info!("stopped");
        ensure!(!ended_early, "a part of the service ended by itself");
        served.context("service listener")
    }
}

async fn listen(address: SocketAddr, name: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{name} {address}"))
}

async fn open_store(config: &Config, metrics: Arc<Metrics>, watch: &Watch) -> anyhow::Result<Arc<dyn Store>> {
    match &config.store {
        StoreConfig::Sqlite(sqlite) => {
            make_folder_of(&sqlite.file)?;
            let store = SqliteStore::open(&sqlite.file, config.rules.clone(), &sqlite.writer, metrics).await;
            Ok(Arc::new(store.with_context(|| format!("store {}", sqlite.file.display()))?))
        }
        StoreConfig::Postgres(postgres) => {
            let store = PostgresStore::open_and_follow(postgres, config.rules.clone(), metrics, watch).await;
            Ok(Arc::new(store.context("store on PostgreSQL")?))
        }
    }
}

/// The bus alone, for an operator's commands.
///
/// # Errors
/// What could not be opened, and why.
pub async fn open_bus(config: &Config) -> anyhow::Result<Arc<dyn Bus>> {
    match &config.bus {
        BusConfig::Local(local) => {
            make_folder_of(&local.file)?;
            let bus = LocalBus::open(&local.file, local.retention.clone()).await;
            Ok(Arc::new(bus.with_context(|| format!("bus {}", local.file.display()))?))
        }
        BusConfig::Kafka(kafka) => {
            Ok(Arc::new(KafkaBus::open((**kafka).clone()).await.context("bus on Kafka")?))
        }
    }
}

/// Brings all tables up to date: `txn-core migrate`.
///
/// # Errors
/// What could not be opened, and why.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    match &config.store {
        StoreConfig::Sqlite(sqlite) => {
            make_folder_of(&sqlite.file)?;
            crate::store::migrate(&sqlite.file)?;
        }
        StoreConfig::Postgres(postgres) => crate::store::postgres::migrate(postgres).await?,
    }
    match &config.bus {
        BusConfig::Local(local) => {
            make_folder_of(&local.file)?;
            crate::bus::migrate(&local.file)?;
        }
        // Its topics are made by `txn-core topics`.
        BusConfig::Kafka(_) => {}
    }
    Ok(())
}

/// One payment for an operator's eyes: `txn-core show`.
///
/// # Errors
/// What could not be opened or read.
pub async fn open_store_to_look(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    open_store(config, Arc::new(Metrics::new()?), &Watch::new("txn-core")).await
}

fn make_folder_of(file: &std::path::Path) -> anyhow::Result<()> {
    let folder = file.parent().unwrap_or(std::path::Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}
