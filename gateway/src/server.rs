//! The process: listeners, background work, shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use filters::policy::{At, Document};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::services::listening::Service;

use crate::admin::Admin;
use crate::edge::Edge;
use crate::jwks::KeyStore;
use crate::listener::Listener;
use crate::load::Loaded;
use crate::state::State;
use crate::upstream::probe;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads of the proxy.
    pub threads: usize,
    /// Seconds that requests in flight may take to finish after a signal.
    pub drain_s: u64,
}

/// Serves until a signal, then drains. Returns only before anything is served, with what is wrong.
pub fn run(loaded: Loaded, options: Options) -> anyhow::Result<()> {
    let document = loaded.policy.document().clone();
    let conf = ServerConf {
        threads: options.threads,
        // The drain below ends the process as soon as nothing is in flight, at the latest then.
        grace_period_seconds: Some(options.drain_s + 1),
        graceful_shutdown_timeout_seconds: Some(1),
        // A payment is never sent twice by the edge; `Edge` allows only what never reached an upstream.
        max_retries: 2,
        upstream_keepalive_pool_size: 1_024,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let conf = Arc::clone(&server.configuration);
    let admin_address = document.admin.address;
    let (edge, files) = Edge::new(loaded)?;
    for (At { value: settings, .. }, files) in document.listeners.iter().zip(files) {
        server.add_service(Listener::open(settings, files, &edge, &conf)?);
    }
    let mut admin = Service::new("admin".to_owned(), Admin(Arc::clone(&edge)));
    drop(std::net::TcpListener::bind(admin_address).with_context(|| format!("{admin_address}"))?);
    admin.add_tcp(&admin_address.to_string());
    admin.threads = Some(1);
    server.add_service(admin);
    let mut probes = background_service("probes", Probes(Arc::clone(&edge)));
    probes.threads = Some(1);
    server.add_service(probes);
    let mut keys = background_service("jwks", Refresh(edge.keys()));
    keys.threads = Some(1);
    server.add_service(keys);
    let mut certificates = background_service("certificates", Follow(edge.watch()));
    certificates.threads = Some(1);
    server.add_service(certificates);
    let mut state = background_service("state", Watch(edge.state()));
    state.threads = Some(1);
    server.add_service(state);
    server.bootstrap();
    announce(Arc::clone(&edge), &document);
    server.run(RunArgs {
        shutdown_signal: Box::new(Drain { edge, limit: Duration::from_secs(options.drain_s) }),
    });
    Ok(())
}

/// Says when the edge is ready: everything it needs is there and every listener open.
fn announce(edge: Arc<Edge>, document: &Document) {
    let admin = document.admin.address;
    let listeners: Vec<_> = document
        .listeners
        .iter()
        .map(|listener| format!("{} {}", listener.value.name, listener.value.address))
        .collect();
    std::thread::spawn(move || {
        let mut told = Vec::new();
        loop {
            let missing = edge.missing();
            if missing.is_empty() {
                return tracing::info!(%admin, listeners = listeners.join(", "), "ready");
            }
            if missing != told {
                tracing::info!(missing = missing.join(", "), "not ready yet");
                told = missing;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

struct Refresh(Arc<KeyStore>);

#[async_trait]
impl BackgroundService for Refresh {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = Arc::clone(&self.0).keep_fresh() => {}
            _ = shutdown.changed() => {}
        }
    }
}

struct Follow(Arc<certs::Watch>);

#[async_trait]
impl BackgroundService for Follow {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = Arc::clone(&self.0).run() => {}
            _ = shutdown.changed() => {}
        }
    }
}

struct Watch(Arc<State>);

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.0.keep_watch() => {}
            _ = shutdown.changed() => {}
        }
    }
}

struct Probes(Arc<Edge>);

#[async_trait]
impl BackgroundService for Probes {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut probing = tokio::task::JoinSet::new();
        for (name, upstream) in self.0.probed() {
            probing.spawn(probe::keep_probing(name, upstream, self.0.metrics().healthy.clone()));
        }
        let _ = shutdown.changed().await;
    }
}

/// Turns SIGTERM and SIGINT into a drain: no new connections, what is in flight finishes, then the process
/// ends, without waiting out a grace period that nobody needs.
struct Drain {
    edge: Arc<Edge>,
    limit: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        crate::stop_signal().await;
        tracing::info!("draining");
        self.edge.drain();
        let (edge, limit) = (Arc::clone(&self.edge), self.limit);
        std::thread::spawn(move || {
            // Long enough for the listeners to close and for a request that was being read to count.
            std::thread::sleep(Duration::from_millis(300));
            let started = Instant::now();
            while edge.in_flight() > 0 && started.elapsed() < limit {
                std::thread::sleep(Duration::from_millis(20));
            }
            tracing::info!(unfinished = edge.in_flight(), "stopped");
            std::process::exit(0);
        });
        ShutdownSignal::GracefulTerminate
    }
}
