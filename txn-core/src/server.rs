//! The whole service: opens what it needs, runs every part, and closes in the right order.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use certs::client::ClientLimits;
use certs::serve::Limits;
use certs::{ClientAuth, Versions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{self, Api};
use crate::bus::consume::Consumer;
use crate::bus::{Bus, LocalBus, Topic};
use crate::config::{BusConfig, Config, StoreConfig};
use crate::metrics::Metrics;
use crate::network::NpciProxy;
use crate::orchestrator::{Bounds, GROUP, Orchestrator};
use crate::relay::Relay;
use crate::store::{PostgresStore, SqliteStore, Store};
use crate::timers;
use crate::txn::WakeKind;

/// A service whose listeners are bound and whose stores are open.
#[derive(Debug)]
pub struct Server {
    config: Config,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    orchestrator: Orchestrator,
    tls: Arc<rustls::ServerConfig>,
    listener: TcpListener,
    admin: TcpListener,
}

impl Server {
    /// Opens everything; nothing runs yet.
    ///
    /// # Errors
    /// What could not be opened, and why.
    pub async fn bind(config: Config) -> anyhow::Result<Server> {
        let (identity, trust) = config.tls.load().context("tls")?;
        let client = certs::client_config(&trust, Some(&identity), Versions::Tls13Only)?;
        let ms = Duration::from_millis;
        let http = certs::client::https(
            client,
            ClientLimits {
                connect_timeout: ms(config.network.connect_timeout_ms),
                timeout: ms(config.network.timeout_ms),
                ..ClientLimits::default()
            },
        )?;
        let tls = certs::server_config(
            &identity,
            ClientAuth::Required(trust),
            Versions::Tls13Only,
            &[b"h2", b"http/1.1"],
        )?;
        let metrics = Arc::new(Metrics::new()?);
        let store = open_store(&config, metrics.clone()).await?;
        let bus = open_bus(&config).await?;
        let network = Arc::new(NpciProxy::new(http, &config.network.url));
        let bounds = Bounds {
            sends: config.network.max_sends,
            inquiries: config.network.max_inquiries,
            send_starts_within_ms: config.rules.send_starts_within_ms,
        };
        let orchestrator = Orchestrator::new(store.clone(), network, metrics.clone(), bounds);
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen {}", config.listen))?;
        let admin =
            TcpListener::bind(config.admin).await.with_context(|| format!("admin {}", config.admin))?;
        Ok(Server { config, store, bus, metrics, orchestrator, tls, listener, admin })
    }

    /// Where services call.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
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
    /// If a listener breaks.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let drain = Duration::from_millis(self.config.drain_timeout_ms);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (store, bus) = (self.store.clone(), self.bus.clone());
        let relay = Relay { store: store.clone(), bus: bus.clone(), metrics: self.metrics.clone() };
        tasks.spawn(relay.run(self.config.relay.clone(), stopped.clone()));
        let consumer = Consumer {
            bus: bus.clone(),
            group: GROUP,
            handler: Arc::new(self.orchestrator.clone()),
            retry: self.config.retry.clone(),
            metrics: self.metrics.clone(),
        };
        tasks.spawn(consumer.run(Topic::Initiated, stopped.clone()));
        for kind in [WakeKind::Send, WakeKind::Check] {
            let (orchestrator, config) = (self.orchestrator.clone(), self.config.timers.clone());
            tasks.spawn(timers::run(store.clone(), orchestrator, config, kind, stopped.clone()));
        }
        let housekeeping = self.config.housekeeping.clone();
        tasks.spawn(timers::keep_house(store.clone(), bus.clone(), housekeeping, stopped.clone()));

        let admin = admin_router(Admin { store: store.clone(), metrics: self.metrics.clone() });
        let mut admin_stopped = stopped.clone();
        let admin_address = self.admin_address()?;
        tokio::spawn(async move {
            let until = async move {
                // An error means that the sender is gone, which is a stop too.
                let _stopped = admin_stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(self.admin, admin).with_graceful_shutdown(until).await {
                tracing::error!(%error, "admin listener broke");
            }
        });

        let api = Arc::new(Api {
            psp: self.config.psp.parse()?,
            store: store.clone(),
            orchestrator: self.orchestrator.clone(),
            metrics: self.metrics.clone(),
            in_flight: Mutex::new(HashSet::new()),
            config: self.config.clone(),
        });
        let limits = Limits {
            max_connections: self.config.limits.max_connections,
            drain_timeout: drain,
            ..Limits::default()
        };
        tracing::info!(address = %self.listener.local_addr()?, admin = %admin_address, "ready");
        let served = certs::serve::serve(self.listener, self.tls, api::router(api), limits, shutdown).await;

        // Nobody is answered any more; now the parts, then what they wrote to.
        stop.send_replace(true);
        if tokio::time::timeout(drain, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("a background task did not stop in time");
        }
        self.orchestrator.drain(drain).await;
        bus.close().await;
        store.close().await;
        tracing::info!("stopped");
        served.context("service listener")
    }
}

async fn open_store(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Arc<dyn Store>> {
    match &config.store {
        StoreConfig::Sqlite(sqlite) => {
            make_folder_of(&sqlite.file)?;
            let store = SqliteStore::open(&sqlite.file, config.rules.clone(), &sqlite.writer, metrics).await;
            Ok(Arc::new(store.with_context(|| format!("store {}", sqlite.file.display()))?))
        }
        StoreConfig::Postgres(postgres) => {
            let store = PostgresStore::open(postgres, config.rules.clone(), metrics).await;
            Ok(Arc::new(store.context("store on PostgreSQL")?))
        }
    }
}

async fn open_bus(config: &Config) -> anyhow::Result<Arc<dyn Bus>> {
    match &config.bus {
        BusConfig::Local(local) => {
            make_folder_of(&local.file)?;
            let bus = LocalBus::open(&local.file, local.retention.clone()).await;
            Ok(Arc::new(bus.with_context(|| format!("bus {}", local.file.display()))?))
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
            crate::store::migrate(&sqlite.file).await?;
        }
        StoreConfig::Postgres(postgres) => crate::store::postgres::migrate(postgres).await?,
    }
    match &config.bus {
        BusConfig::Local(local) => {
            make_folder_of(&local.file)?;
            crate::bus::migrate(&local.file).await?;
        }
    }
    Ok(())
}

/// One payment for an operator's eyes: `txn-core show`.
///
/// # Errors
/// What could not be opened or read.
pub async fn open_store_to_look(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    open_store(config, Arc::new(Metrics::new()?)).await
}

fn make_folder_of(file: &std::path::Path) -> anyhow::Result<()> {
    let folder = file.parent().unwrap_or(std::path::Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

#[derive(Debug, Clone)]
struct Admin {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

fn admin_router(admin: Admin) -> Router {
    Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/readiness", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// The store alone: while the proxy is away payments are still taken, and sent later.
async fn readiness(State(admin): State<Admin>) -> Response {
    match admin.store.figures().await {
        Ok(_) => Json(serde_json::json!({"ready": true})).into_response(),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            let body = serde_json::json!({"ready": false, "missing": ["store"]});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    if let Ok(figures) = admin.store.figures().await {
        admin.metrics.outbox.set(figures.outbox);
        admin.metrics.timers.set(figures.timers);
        admin.metrics.flagged.set(figures.flagged);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.text()).into_response()
}
