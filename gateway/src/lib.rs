//! The Pingora edge: runs the policy natively.
//!
//! Owns connections, bytes and time; every decision is the crate `filters`'. A payment is never sent to an
//! upstream twice, a body is decided on before the upstream sees a byte of it, and what is logged names no
//! whole VPA, no token and no secret.

mod access_log;
mod admin;
mod answer;
pub mod api_key;
mod browser;
pub mod check;
mod client_keys;
mod compression;
mod connection;
pub mod diff;
mod door;
mod edge;
pub mod envoy;
mod exchange;
pub mod explain;
mod extended_connect;
mod flags;
mod framing;
mod gate;
mod introspection;
mod issuers;
mod jwks;
mod listener;
mod listeners;
pub mod load;
pub mod logged;
mod message;
mod metrics;
mod places;
mod reload;
mod response;
pub mod revoke;
pub mod schema;
pub mod server;
mod state;
pub mod state_service;
mod stream;
mod upstream;
mod usage;
mod websocket;
mod whole;

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM: of an orchestrator, which may have a load balancer in front.
    Terminate,
    /// SIGINT: of a person at a terminal.
    Interrupt,
}

/// Completes on SIGTERM or SIGINT.
pub async fn stop_signal() -> StopSignal {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be received; the process must be killed to stop");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => StopSignal::Terminate,
        _ = int.recv() => StopSignal::Interrupt,
    }
}
