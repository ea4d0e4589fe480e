//! HTTPS serving with bounds: connections, handshakes, headers and the time to drain.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::serve::ListenerExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::guarded::Guarded;
use crate::{Facts, ServerTls};

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
/// Connections of clients whose certificate is revoked meanwhile, or loses its CA, are cut off.
///
/// HTTP/2 or HTTP/1.1 is chosen by ALPN. Requests carry the extensions [`PeerCertificate`],
/// `SocketAddr` (the peer) and axum's `ConnectInfo<SocketAddr>`.
///
/// # Errors
/// None at present: failures to accept are logged and waited out. The type leaves room for a
/// listener that breaks for good.
pub async fn serve(
    listener: TcpListener,
    tls: impl Into<ServerTls>,
    app: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let tls = tls.into();
    let http = Arc::new(http(&limits));
    let (closing, closed) = watch::channel(false);
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
        let (tls, http, app) = (tls.clone(), Arc::clone(&http), app.clone());
        let closing = Closing { watcher: graceful.watcher(), closed: closed.clone() };
        connections.spawn(async move {
            connection(stream, peer, &tls, limits.handshake_timeout, &http, app, closing).await;
            drop(slot);
        });
    }

    drop(listener);
    closing.send_replace(true);
    let drained = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    if timeout(limits.drain_timeout, drained).await.is_err() {
        tracing::warn!(open = connections.len(), "drain timeout: connections are cut off");
    }
    connections.shutdown().await;
    Ok(())
}

/// Serves `app` over plain HTTP until `shutdown` completes: the admin address of a service, for its operators.
///
/// # Errors
/// None at present: failures to accept are logged and waited out.
pub async fn serve_admin(
    listener: TcpListener,
    app: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await
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
    tls: &ServerTls,
    handshake_timeout: Duration,
    http: &Http,
    app: Router,
    mut closing: Closing,
) {
    let _ = stream.set_nodelay(true);
    let serving = tls.current();
    let acceptor = TlsAcceptor::from(Arc::clone(&serving.config));
    let accepted = tokio::select! {
        accepted = timeout(handshake_timeout, acceptor.accept(stream)) => accepted,
        _ = closing.closed.wait_for(|closed| *closed) => return,
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
    };
    let session = stream.get_ref().1;
    let chain = session.peer_certificates();
    let Some(guest) = tls.enter(chain.unwrap_or_default(), &serving) else {
        return tracing::debug!(%peer, "its certificate was revoked in the handshake");
    };
    let certificate =
        chain.and_then(|chain| chain.first()).and_then(|leaf| Facts::from_der(leaf).ok()).map(Arc::new);
    let is_h2 = session.alpn_protocol() == Some(b"h2");

    let service = app.map_request(move |mut request: Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(PeerCertificate(certificate.clone()));
        extensions.insert(peer);
        extensions.insert(ConnectInfo(peer));
        request
    });
    let stream = match Guarded::new(stream, guest) {
        Ok(stream) => TokioIo::new(stream),
        Err(error) => return tracing::warn!(%peer, %error, "a connection cannot be followed"),
    };
    let service = TowerToHyperService::new(service);
    // Named outright, as ALPN agreed: guessing from the first bytes would wait for them without a bound.
    let ended = if is_h2 {
        closing.watcher.watch(http.of_h2.serve_connection(stream, service).into_owned()).await
    } else {
        // A connection that becomes a WebSocket ends here: whoever takes it over bounds it.
        let served = http.of_h1.serve_connection(stream, service).with_upgrades();
        closing.watch(served).await.map_err(Into::into)
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Tells a connection that the listener closes.
struct Closing {
    watcher: Watcher,
    closed: watch::Receiver<bool>,
}

impl Closing {
    /// Serves until the connection ends by itself, or finishes what is in flight when the listener closes.
    async fn watch<I, S>(mut self, connection: http1::UpgradeableConnection<I, S>) -> hyper::Result<()>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        S: HttpService<Incoming, ResBody = axum::body::Body> + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // It counts HTTP/2 alone.
        drop(self.watcher);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            // An error means that the listener is gone, which is a close too.
            _ = self.closed.wait_for(|closed| *closed) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

struct Http {
    of_h1: http1::Builder,
    of_h2: auto::Builder<TokioExecutor>,
}

fn http(limits: &Limits) -> Http {
    let mut of_h1 = http1::Builder::new();
    of_h1.timer(TokioTimer::new()).header_read_timeout(limits.header_read_timeout);
    let mut of_h2 = auto::Builder::new(TokioExecutor::new()).http2_only();
    of_h2
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(256)
        .max_header_list_size(32 * 1024);
    Http { of_h1, of_h2 }
}
