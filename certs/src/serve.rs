//! HTTPS serving with bounds: connections, handshakes, headers and the time to drain.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::Facts;

/// Bounds of a listener. Whoever is over one waits or is disconnected; others don't notice.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, those in their handshake included; further ones wait in the
    /// kernel's accept queue.
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    /// For the head of an HTTP/1.1 request; a connection that is idle for as long is closed.
    pub header_read_timeout: Duration,
    /// For requests in flight when `shutdown` comes; then they are cut off.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(5),
            header_read_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Request extension: what the client's verified certificate says, when it sent one.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub Option<Arc<Facts>>);

/// Serves `app` over TLS until `shutdown` completes, then finishes what is in flight.
///
/// HTTP/2 or HTTP/1.1 is chosen by ALPN. Requests carry the extensions [`PeerCertificate`],
/// `SocketAddr` (the peer) and axum's `ConnectInfo<SocketAddr>`.
///
/// # Errors
/// None at present: failures to accept are logged and waited out. The type leaves room for a
/// listener that breaks for good.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    app: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let http = Arc::new(http(&limits));
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);

    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (slot, stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: connections must end before another begins.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = sleep(Duration::from_millis(100)) => continue,
                }
            }
        };
        let (acceptor, http, app) = (acceptor.clone(), Arc::clone(&http), app.clone());
        let watcher = graceful.watcher();
        connections.spawn(async move {
            connection(stream, peer, &acceptor, limits.handshake_timeout, &http, app, watcher).await;
            drop(slot);
        });
    }

    drop(listener);
    if timeout(limits.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!(open = connections.len(), "drain timeout: connections are cut off");
    }
    connections.shutdown().await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(tokio::sync::OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((slot, stream, peer))
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    handshake_timeout: Duration,
    http: &auto::Builder<TokioExecutor>,
    app: Router,
    watcher: Watcher,
) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(handshake_timeout, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
    };
    let session = stream.get_ref().1;
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| Facts::from_der(leaf).ok())
        .map(Arc::new);
    // Named outright, as ALPN agreed: guessing from the first bytes would wait for them
    // without a bound.
    let http = match session.alpn_protocol() {
        Some(b"h2") => http.clone().http2_only(),
        _ => http.clone().http1_only(),
    };

    let service = app.map_request(move |mut request: Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(PeerCertificate(certificate.clone()));
        extensions.insert(peer);
        extensions.insert(ConnectInfo(peer));
        request
    });
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = watcher.watch(served.into_owned()).await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_read_timeout);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(256)
        .max_header_list_size(32 * 1024);
    http
}
