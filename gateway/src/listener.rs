//! Where clients connect: an accept loop with bounds that Pingora's own does not have.
//!
//! Owns how many connections there are, how long a handshake may take, and for how long a connection may be
//! without a request. What is said on a connection is Pingora's and the [`Door`]'s.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use certs::{Live, ServerTls, Serving, Versions};
use filters::certificate::Certificate;
use filters::policy;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::l4::listener::Listener as Socket;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{Digest, Ssl as _};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::door::Door;
use crate::edge::Edge;
use crate::load::ListenerFiles;

/// An open socket and what serves it.
pub(crate) struct Listener {
    name: String,
    socket: Option<std::net::TcpListener>,
    connections: Arc<Semaphore>,
    way: Arc<Way>,
}

/// What every connection of a listener goes through.
struct Way {
    tls: ServerTls,
    acceptor: Live<Generation>,
    proxy: Arc<HttpProxy<Door>>,
    handshake_timeout: Duration,
    request_timeout: Duration,
    idle_timeout: Duration,
}

/// Certificates of one moment, as Pingora accepts with them.
struct Generation {
    serving: Arc<Serving>,
    acceptor: Acceptor,
}

impl Listener {
    /// Opens the socket: from now on clients can connect, and are served once the server runs.
    pub(crate) fn open(
        settings: &policy::Listener,
        files: ListenerFiles,
        edge: &Arc<Edge>,
        conf: &Arc<ServerConf>,
    ) -> anyhow::Result<Self> {
        let socket = std::net::TcpListener::bind(settings.address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .with_context(|| format!("listener {}: {}", settings.name, settings.address))?;
        let watch = edge.watch();
        let ListenerFiles { certificates, clients } = files;
        watch.serves(&settings.name, settings.address, certificates.clone(), clients.clone());
        let resolver = Arc::new(SingleCertAndKey::from(certificates.default.current().certified()));
        let tls = ServerTls::new(&watch, certificates, clients, Versions::Tls12And13, &[b"h2", b"http/1.1"])?;
        let served = tls.clone();
        let acceptor = watch.derive(&[&tls], move || generation(served.current(), &resolver))?;
        let request_timeout = Duration::from_millis(settings.request_timeout_ms);
        let idle_timeout = Duration::from_millis(settings.idle_timeout_ms);
        let mut proxy = http_proxy(conf, Door { edge: Arc::clone(edge), request_timeout, idle_timeout });
        let mut options = HttpServerOptions::default();
        options.keepalive_request_limit = Some(settings.max_requests_per_connection);
        options.h2_idle_timeout = Some(idle_timeout);
        proxy.server_options = Some(options);
        let way = Way {
            tls,
            acceptor,
            proxy: Arc::new(proxy),
            handshake_timeout: Duration::from_millis(settings.handshake_timeout_ms),
            request_timeout,
            idle_timeout,
        };
        Ok(Self {
            name: settings.name.clone(),
            socket: Some(socket),
            connections: Arc::new(Semaphore::new(settings.max_connections as usize)),
            way: Arc::new(way),
        })
    }

    async fn accept(&self, socket: &Socket, shutdown: &ShutdownWatch) {
        // A connection beyond the bound waits in the kernel's queue, where it costs nearly nothing.
        let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else { return };
        match socket.accept().await {
            Ok(stream) => {
                tokio::spawn(Arc::clone(&self.way).serve(stream, place, shutdown.clone()));
            }
            Err(error) => {
                tracing::error!(listener = self.name, %error, "cannot accept connections");
                // Out of file descriptors, most likely: others must end before it gets better.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Pingora makes an acceptor with callbacks of its own settings only; what it made of them is then replaced.
fn generation(serving: Arc<Serving>, any: &Arc<SingleCertAndKey>) -> anyhow::Result<Generation> {
    let mut settings =
        TlsSettings::with_callbacks(Box::new(Handshakes)).map_err(|why| anyhow::anyhow!("{why}"))?;
    settings.set_cert_resolver(Arc::clone(any) as Arc<dyn ResolvesServerCert>);
    let mut acceptor = settings.build();
    acceptor.acceptor = TlsAcceptor::from(Arc::clone(&serving.config));
    Ok(Generation { serving, acceptor })
}

impl Way {
    async fn serve(self: Arc<Self>, stream: Stream, _place: OwnedSemaphorePermit, shutdown: ShutdownWatch) {
        let now = self.acceptor.current();
        let stream = match timeout(self.handshake_timeout, now.acceptor.tls_handshake(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "no handshake"),
            Err(_) => return tracing::debug!("a handshake took too long"),
        };
        let chain = stream.get_ssl().and_then(TlsRef::peer_cert_chain_der).unwrap_or_default();
        let Some(mut guest) = self.tls.enter(chain, &now.serving) else {
            return tracing::debug!("a client's certificate was revoked in the handshake");
        };
        let Some(digest) = stream.get_ssl_digest() else { return };
        let Some(connection) = digest.extension.get::<Connection>() else { return };
        let serve = async {
            let mut next: Option<pingora::protocols::Stream> = Some(Box::new(stream));
            while let Some(stream) = next {
                next = self.proxy.process_new(stream, &shutdown).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = connection.clock.ran_out(self.request_timeout, self.idle_timeout) => {}
            // Its stream goes with `serve`: whatever is in flight on it is cut off.
            () = guest.expelled() => {}
        }
    }
}

#[async_trait]
impl pingora::services::Service for Listener {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        let socket = self.socket.take().map(tokio::net::TcpListener::from_std);
        let socket = match socket {
            Some(Ok(socket)) => Socket::from(socket),
            Some(Err(error)) => return tracing::error!(listener = self.name, %error, "cannot listen"),
            None => return,
        };
        let stop = shutdown.clone();
        while !*stop.borrow() {
            tokio::select! {
                () = self.accept(&socket, &stop) => {}
                _ = shutdown.changed() => {}
            }
        }
        drop(socket);
        self.way.proxy.cleanup().await;
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Gives every connection what its requests find in its digest.
struct Handshakes;

#[async_trait]
impl TlsAccept for Handshakes {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let clock = Clock(Mutex::new(Waiting { requests: 0, since: Instant::now(), first: true }));
        // The verifier has accepted it, or the handshake would not be complete.
        let certificate = tls.peer_certificate_der().map(|der| Arc::new(Certificate::new(der)));
        Some(Arc::new(Connection { clock, certificate }))
    }
}

/// What is known of a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) clock: Clock,
    /// The client's certificate, read once.
    certificate: Option<Arc<Certificate>>,
}

impl Connection {
    /// The connection of a request.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<&Self> {
        digest?.ssl_digest.as_ref()?.extension.get()
    }

    pub(crate) fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.clone()
    }
}

/// For how long a connection has been without a request. A client that sends its header byte by byte never
/// gets to be one with a request, however long it takes.
#[derive(Debug)]
pub(crate) struct Clock(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// Being answered now.
    requests: u32,
    since: Instant,
    first: bool,
}

impl Clock {
    /// A request's header has arrived whole.
    pub(crate) fn request_begins(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.requests += 1;
        waiting.first = false;
    }

    /// A request has been answered.
    pub(crate) fn request_ends(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.requests = waiting.requests.saturating_sub(1);
        waiting.since = Instant::now();
    }

    /// Waits until the connection has been without its first request, or without another one, for too long.
    async fn ran_out(&self, first: Duration, idle: Duration) {
        loop {
            let left = {
                let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let limit = if waiting.first { first } else { idle };
                match waiting.requests {
                    0 => limit.saturating_sub(waiting.since.elapsed()),
                    _ => limit,
                }
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}
