//! The process: three listeners and what they share, from configuration to drained.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use certs::{ServerTls, TlsFiles, Versions, Watch, pki::Purpose, serve};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::Admin,
    callback::Callbacks,
    clock::Clock,
    config::{Config, ConfigError, KeyList},
    core::{Core, CoreSetupError},
    inside::Inside,
    metrics::Metrics,
    network::{Network, NetworkError},
    process::{CannotListen, bind},
    seal::{Signer, Verifier},
};

/// The bound sockets; bound first, so that a test can learn the ports before anything runs.
#[derive(Debug)]
pub struct Listeners {
    pub admin: TcpListener,
    pub inside: TcpListener,
    pub outside: TcpListener,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error("{listener}.tls: {source}")]
    Tls { listener: &'static str, source: certs::CertError },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Core(#[from] CoreSetupError),
    #[error("network.sign or network.verify: {0}")]
    Key(certs::CertError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Listeners {
    pub async fn bind(config: &Config) -> Result<Listeners, StartError> {
        Ok(Listeners {
            admin: bind(config.admin.listen).await?,
            inside: bind(config.inside.listen).await?,
            outside: bind(config.outside.listen).await?,
        })
    }
}

/// Serves until `shutdown` completes and what was in flight is done, or its time is up.
pub async fn run(
    config: &Config,
    listeners: Listeners,
    clock: Clock,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let watch = Watch::new("npci-proxy");
    let metrics = Metrics::new()?;
    metrics.tell_of(&watch)?;
    let follow = |keys: &KeyList, owner| keys.follow(owner, config.folder(), &watch).map_err(StartError::Key);
    let (ours, networks) =
        (follow(&config.network.sign, "ours")?, follow(&config.network.verify, "network")?);
    let network = Network::new(
        &config.network,
        Signer::new(&ours),
        Verifier::new(&networks),
        config.freshness,
        clock.clone(),
        metrics.clone(),
        &watch,
    )?;
    let (network, core) = (Arc::new(network), Arc::new(Core::new(&config.core, &watch)?));
    let inside_tls = server_tls("inside", listeners.inside.local_addr()?, &config.inside.tls, &watch)?;
    let outside_tls = server_tls("outside", listeners.outside.local_addr()?, &config.outside.tls, &watch)?;

    let inside =
        Inside::new(Arc::clone(&network), config, clock.clone()).router(&config.inside.allowed_clients);
    let (signer, verifier) = (Signer::new(&ours), Verifier::new(&networks));
    let outside = Callbacks::new(config, signer, verifier, Arc::clone(&core), clock, metrics.clone())
        .router(&config.outside.allowed_clients);
    let admin = Admin { network, core, metrics, watch: Arc::clone(&watch) }.router();

    let limits = serve::Limits {
        drain_timeout: Duration::from_millis(config.drain_timeout_ms),
        ..serve::Limits::default()
    };
    let (stop, stopped) = watch::channel(());
    let stopping = || {
        let mut stopped = stopped.clone();
        // The sender is dropped when it is time.
        async move { while stopped.changed().await.is_ok() {} }
    };
    tracing::info!(
        admin = %listeners.admin.local_addr()?,
        inside = %listeners.inside.local_addr()?,
        outside = %listeners.outside.local_addr()?,
        "ready"
    );
    let admin_stop = stopping();
    let serving = async {
        tokio::try_join!(
            serve::serve(listeners.inside, inside_tls, inside, limits, stopping()),
            serve::serve(listeners.outside, outside_tls, outside, limits, stopping()),
        )
    };
    let ending = async {
        shutdown.await;
        drop(stop);
    };
    // The admin address answers while the others drain.
    let admin = tokio::spawn(async move {
        let _ = serve::serve_admin(listeners.admin, admin, admin_stop).await;
    });
    let following = tokio::spawn(watch.run());
    let (served, ()) = tokio::join!(serving, ending);
    following.abort();
    admin.abort();
    served?;
    tracing::info!("stopped");
    Ok(())
}

fn server_tls(
    listener: &'static str,
    address: SocketAddr,
    files: &TlsFiles,
    watch: &Watch,
) -> Result<ServerTls, StartError> {
    let made = files.watch(watch, listener, Purpose::Server).and_then(|live| {
        live.serves(watch, listener, address);
        live.server(watch, Versions::Tls13Only, &[b"h2", b"http/1.1"])
    });
    made.map_err(|source| StartError::Tls { listener, source })
}
