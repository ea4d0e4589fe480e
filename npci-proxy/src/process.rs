//! The frame of a process: logs, signals, listening sockets, the exit code. The simulator runs in the same one.

use std::{fmt::Display, future::Future, io, io::Write as _, net::SocketAddr, pin::Pin, process::ExitCode};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Completes on SIGTERM or SIGINT.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Runs `service` as the process called `name`: JSON lines on standard output, and one line on standard error
/// if it ends with an error. `E` says its causes in its own text, as all errors here do.
pub async fn run<E: Display>(name: &str, service: impl AsyncFnOnce(Shutdown) -> Result<(), E>) -> ExitCode {
    certs::install_crypto_provider();
    logging::init("info");
    let ended = match shutdown() {
        Ok(shutdown) => service(shutdown).await.map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot wait for signals: {error}")),
    };
    logging::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|source| CannotListen { address, source })
}

fn shutdown() -> io::Result<Shutdown> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(Box::pin(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }))
}
