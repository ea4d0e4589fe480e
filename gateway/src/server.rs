//! The process: listeners, background work, shutdown.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use filters::policy::Document;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::services::listening::Service;

use crate::StopSignal;
use crate::admin::Admin;
use crate::gate::Gate;
use crate::listeners::{Accepting, Listeners};
use crate::load::Loaded;
use crate::reload::{HangUp, Reload};

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads of the proxy.
    pub threads: usize,
    /// Seconds from SIGTERM until the listeners close. A load balancer must notice within them that the gateway is
    /// not ready.
    pub drain_delay_s: u64,
    /// Seconds that requests in flight may take to finish once the listeners are closed.
    pub drain_s: u64,
}

/// Serves until a signal, then drains. Returns only before anything is served, with what is wrong.
pub fn run(file: &Path, loaded: Loaded, options: Options) -> anyhow::Result<()> {
    let hang_up = HangUp::receive().context("SIGHUP cannot be received")?;
    let document = loaded.policy.document().clone();
    let conf = ServerConf {
        threads: options.threads,
        // The drain below ends the process as soon as nothing is in flight, at the latest then.
        grace_period_seconds: Some(options.drain_s + 2),
        graceful_shutdown_timeout_seconds: Some(1),
        // Tries, the first included. What is tried again the door decides: what never reached an upstream, and what is
        // safe.
        max_retries: 4,
        upstream_keepalive_pool_size: 1_024,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let conf = Arc::clone(&server.configuration);
    let admin_address = document.admin.address;
    let (gate, files) = Gate::new(loaded)?;
    let listeners = Listeners::new(&gate, &conf);
    let prepared = listeners.prepare(&document, files, &gate.edge().watch())?;
    listeners.put_to_use(prepared);
    server.add_service(Accepting(Arc::clone(&listeners)));
    let reload = Reload::new(file, &listeners, hang_up);
    let mut admin = Service::new("admin".to_owned(), Admin::new(&gate, &reload));
    drop(std::net::TcpListener::bind(admin_address).with_context(|| format!("{admin_address}"))?);
    admin.add_tcp(&admin_address.to_string());
    admin.threads = Some(1);
    server.add_service(admin);
    let mut policy = background_service("policy", Policies(reload));
    policy.threads = Some(1);
    server.add_service(policy);
    let mut state = background_service("state", Standing(Arc::clone(&gate)));
    state.threads = Some(1);
    server.add_service(state);
    server.bootstrap();
    announce(Arc::clone(&gate), &document);
    server.run(RunArgs {
        shutdown_signal: Box::new(Drain {
            gate,
            delay: Duration::from_secs(options.drain_delay_s),
            limit: Duration::from_secs(options.drain_s),
        }),
    });
    Ok(())
}

/// Says when the edge is ready: everything it needs is there and every listener open.
fn announce(gate: Arc<Gate>, document: &Document) {
    let admin = document.admin.address;
    let listeners: Vec<_> = document
        .listeners
        .iter()
        .map(|listener| format!("{} {}", listener.value.name, listener.value.address))
        .collect();
    std::thread::spawn(move || {
        let mut told = Vec::new();
        loop {
            let missing = gate.edge().missing();
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

struct Policies(Arc<Reload<Listeners>>);

#[async_trait]
impl BackgroundService for Policies {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.0.run() => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// What goes on whichever policy serves.
struct Standing(Arc<Gate>);

#[async_trait]
impl BackgroundService for Standing {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let standing = self.0.standing();
        tokio::select! {
            () = standing.state.keep_watch() => {}
            () = Arc::clone(&standing.watch).run() => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// For requests that are cut off as the edge stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Turns SIGTERM into a drain that clients behind a load balancer do not notice.
///
/// First `/readiness` fails, and HTTP/1.1 responses carry `Connection: close`; the listeners stay open for `delay`, so
/// that connections of a load balancer that has not noticed yet are served. Then the listeners close, HTTP/2
/// connections get GOAWAY, and requests in flight finish within `limit` or are cut off. Idle HTTP/1.1 connections
/// stay until the process ends, which it does as soon as nothing is in flight.
///
/// SIGINT, or a second SIGTERM, skips the delay.
struct Drain {
    gate: Arc<Gate>,
    delay: Duration,
    limit: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        let delay = match crate::stop_signal().await {
            StopSignal::Terminate => self.delay,
            StopSignal::Interrupt => Duration::ZERO,
        };
        self.gate.drain();
        tracing::info!(delay_s = delay.as_secs(), "draining: not ready, listeners are still open");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = crate::stop_signal() => {}
        }
        tracing::info!("listeners are closed");
        let (gate, limit) = (Arc::clone(&self.gate), self.limit);
        std::thread::spawn(move || {
            // Long enough for the listeners to close and for a request that was being read to count.
            std::thread::sleep(Duration::from_millis(300));
            let started = Instant::now();
            while gate.in_flight() > 0 && started.elapsed() < limit {
                std::thread::sleep(Duration::from_millis(20));
            }
            let unfinished = gate.in_flight();
            gate.stop();
            // For what is cut off to be told of, and what it held to be given back.
            let stopped = Instant::now();
            let state = &gate.standing().state;
            while (gate.in_flight() > 0 || state.is_telling()) && stopped.elapsed() < FAREWELL {
                std::thread::sleep(Duration::from_millis(20));
            }
            tracing::info!(unfinished, "stopped");
            logging::flush();
            std::process::exit(0);
        });
        ShutdownSignal::GracefulTerminate
    }
}
