//! The process: two listeners, from configuration to drained.

use std::{future::Future, io, sync::Arc, time::Duration};

use certs::{Versions, Watch, pki::Purpose, serve};
use npci_proxy::{
    clock::Clock,
    config::ConfigError,
    process::{CannotListen, bind},
};
use tokio::net::TcpListener;

use crate::{
    admin,
    config::Config,
    front,
    settlement::{Settler, SettlerError},
    sim::{Sim, SimError},
};

/// The bound sockets; bound first, so that a test can learn the ports before anything runs.
#[derive(Debug)]
pub struct Listeners {
    pub admin: TcpListener,
    pub front: TcpListener,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error("front.tls: {0}")]
    Tls(#[from] certs::CertError),
    #[error(transparent)]
    Sim(#[from] SimError),
    #[error(transparent)]
    Settler(#[from] SettlerError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Listeners {
    pub async fn bind(config: &Config) -> Result<Listeners, StartError> {
        Ok(Listeners { admin: bind(config.admin.listen).await?, front: bind(config.front.listen).await? })
    }
}

/// Serves until `shutdown` completes. Payments that are not settled by then stay so: nothing is kept.
pub async fn run(
    config: Config,
    listeners: Listeners,
    clock: Clock,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let watch = Watch::new("npci-sim");
    let sim = Arc::new(Sim::new(config, clock, &watch)?);
    let settler = Arc::new(Settler::new(Arc::clone(&sim), &watch)?);
    let live = sim.config.front.tls.watch(&watch, "front", Purpose::Server)?;
    live.serves(&watch, "front", listeners.front.local_addr()?);
    let tls = live.server(&watch, Versions::Tls13Only, &[b"h2", b"http/1.1"])?;
    let limits = serve::Limits {
        drain_timeout: Duration::from_millis(sim.config.drain_timeout_ms),
        ..serve::Limits::default()
    };
    tracing::info!(
        admin = %listeners.admin.local_addr()?,
        front = %listeners.front.local_addr()?,
        "ready"
    );
    let admin = admin::router(sim, certs::metrics::Metrics::new(Arc::clone(&watch))?, Arc::clone(&watch));
    let following = tokio::spawn(watch.run());
    let admin = tokio::spawn(async move {
        let _ = serve::serve_admin(listeners.admin, admin, std::future::pending()).await;
    });
    serve::serve(listeners.front, tls, front::router(settler), limits, shutdown).await?;
    admin.abort();
    following.abort();
    tracing::info!("stopped");
    Ok(())
}
