//! Where clients connect: an accept loop with bounds that Pingora's own does not have.
//!
//! Owns how many connections there are, how long a handshake may take, and when a connection ends. What is said on a
//! connection is Pingora's and the [`Door`]'s.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use certs::{Live, ServerTls, Serving, Versions, Watch};
use filters::policy;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::listener::Listener as Socket;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{GetSocketDigest as _, Ssl as _};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use prometheus::IntCounter;
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::connection::{Connection, Handshakes};
use crate::door::Door;
use crate::exchange::Cut;
use crate::framing::{Framed, Memory};
use crate::gate::Gate;
use crate::load::ListenerFiles;

/// A socket and what serves it, as the policy of the moment says.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    connections: Arc<Semaphore>,
    /// How many connections there may be.
    most: Mutex<u32>,
    way: ArcSwap<Way>,
    /// Taken by whoever accepts.
    socket: Mutex<Option<std::net::TcpListener>>,
    closed: watch::Sender<bool>,
}

/// What every connection of a listener goes through that arrives under one policy.
pub(crate) struct Way {
    settings: policy::Listener,
    tls: ServerTls,
    acceptor: Live<Generation>,
    line: Arc<Line>,
}

/// What connections of the same settings share, of whichever policy those are: connections to upstreams too.
struct Line {
    proxy: Arc<HttpProxy<Door>>,
    retired: watch::Sender<bool>,
    /// True once the edge cuts off what is in flight.
    stopped: watch::Receiver<bool>,
    headers: Arc<Memory>,
    headers_dropped: IntCounter,
    handshake_timeout: Duration,
    request_timeout: Duration,
    idle_timeout: Duration,
}

/// Certificates of one moment, as Pingora accepts with them.
struct Generation {
    serving: Arc<Serving>,
    acceptor: Acceptor,
}

impl Way {
    /// The way that a policy has for a listener; `before` is the one that it takes over from.
    pub(crate) fn new(
        settings: &policy::Listener,
        files: ListenerFiles,
        watch: &Watch,
        gate: &Arc<Gate>,
        conf: &Arc<ServerConf>,
        before: Option<&Way>,
    ) -> anyhow::Result<Self> {
        let ListenerFiles { certificates, clients } = files;
        watch.serves(&settings.name, settings.address, certificates.clone(), clients.clone());
        let resolver = Arc::new(SingleCertAndKey::from(certificates.default.current().certified()));
        let versions = Versions::Tls12And13;
        let tls = match before {
            Some(before) => before.tls.successor(watch, certificates, clients, versions, ALPN)?,
            None => ServerTls::new(watch, certificates, clients, versions, ALPN)?,
        };
        let served = tls.clone();
        let acceptor = watch.derive(&[&tls], move || generation(served.current(), &resolver))?;
        let line = match before.filter(|before| before.settings == *settings) {
            Some(before) => Arc::clone(&before.line),
            None => Arc::new(Line::new(settings, gate, conf)),
        };
        Ok(Self { settings: settings.clone(), tls, acceptor, line })
    }
}

/// How long connections may stay that end after their next answer: one may never be asked for, or never end.
const RETIRES_WITHIN: Duration = Duration::from_secs(60);

/// `http/1.0` is accepted, so that such a client reads 426 and not a failed handshake.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1", b"http/1.0"];

impl Line {
    fn new(settings: &policy::Listener, gate: &Arc<Gate>, conf: &Arc<ServerConf>) -> Self {
        let request_timeout = Duration::from_millis(settings.request_timeout_ms);
        let idle_timeout = Duration::from_millis(settings.idle_timeout_ms);
        let (retired, told) = watch::channel(false);
        let door = Door { gate: Arc::clone(gate), request_timeout, idle_timeout, retired: told };
        let mut proxy = http_proxy(conf, door);
        let mut options = HttpServerOptions::default();
        options.keepalive_request_limit = Some(settings.max_requests_per_connection);
        options.h2_idle_timeout = Some(idle_timeout);
        // For WebSockets over HTTP/2. No route serves any other CONNECT.
        options.allow_connect_method_proxying = true;
        let mut h2 = default_h2_options();
        h2.enable_connect_protocol();
        proxy.h2_options = Some(h2);
        proxy.server_options = Some(options);
        Self {
            proxy: Arc::new(proxy),
            retired,
            stopped: gate.stopped(),
            headers: gate.headers(),
            headers_dropped: gate.edge().metrics().headers_dropped.clone(),
            handshake_timeout: Duration::from_millis(settings.handshake_timeout_ms),
            request_timeout,
            idle_timeout,
        }
    }
}

impl Listener {
    /// Opens the socket: from now on clients can connect, and are served once somebody [accepts](Self::accept_all).
    pub(crate) fn open(way: Way) -> anyhow::Result<Self> {
        let settings = &way.settings;
        let socket = std::net::TcpListener::bind(settings.address)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .with_context(|| format!("listener {}: {}", settings.name, settings.address))?;
        Ok(Self {
            address: settings.address,
            connections: Arc::new(Semaphore::new(settings.max_connections as usize)),
            most: Mutex::new(settings.max_connections),
            way: ArcSwap::from_pointee(way),
            socket: Mutex::new(Some(socket)),
            closed: watch::channel(false).0,
        })
    }

    pub(crate) fn way(&self) -> Arc<Way> {
        self.way.load_full()
    }

    /// From now on connections arrive on another way. Those that are there stay, if their clients may: with the
    /// settings that they began with when these have not changed, and until their next answer when they have.
    pub(crate) fn lead(&self, way: Way) {
        self.allow(way.settings.max_connections);
        let (line, tls) = (Arc::clone(&way.line), way.tls.clone());
        let before = self.way.swap(Arc::new(way));
        tls.recheck();
        if !Arc::ptr_eq(&before.line, &line) {
            before.line.retired.send_replace(true);
        }
    }

    /// Takes no more connections; those that are there end after their next answer.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        self.way().line.retired.send_replace(true);
    }

    fn allow(&self, most: u32) {
        let mut before = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        match (most.checked_sub(*before), before.checked_sub(most)) {
            (Some(more), _) => self.connections.add_permits(more as usize),
            (None, Some(fewer)) => {
                let connections = Arc::clone(&self.connections);
                tokio::spawn(async move {
                    // Places that are taken go when their connections end.
                    if let Ok(places) = connections.acquire_many(fewer).await {
                        places.forget();
                    }
                });
            }
            (None, None) => {}
        }
        *before = most;
    }

    /// Accepts until it is closed or the process ends; accepts at all only the first who asks.
    pub(crate) async fn accept_all(self: Arc<Self>) {
        let taken = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let socket = match taken.map(tokio::net::TcpListener::from_std) {
            Some(Ok(socket)) => Socket::from(socket),
            Some(Err(error)) => return tracing::error!(address = %self.address, %error, "cannot listen"),
            None => return,
        };
        let mut closed = self.closed.subscribe();
        while !*closed.borrow_and_update() {
            tokio::select! {
                () = self.accept(&socket) => {}
                _ = closed.changed() => {}
            }
        }
    }

    async fn accept(self: &Arc<Self>, socket: &Socket) {
        // A connection beyond the bound waits in the kernel's queue, where it costs nearly nothing.
        let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else { return };
        match socket.accept().await {
            Ok(mut stream) => {
                // A response is written in two parts, header and body. With Nagle's algorithm the second part waits
                // for the client's delayed acknowledgement of the first: 40 ms.
                if let Err(error) = stream.set_nodelay() {
                    tracing::debug!(%error, "a client left before its connection was set up");
                    return;
                }
                tokio::spawn(Arc::clone(self).serve(stream, place));
            }
            Err(error) => {
                tracing::error!(address = %self.address, %error, "cannot accept connections");
                // Out of file descriptors, most likely: others must end before it gets better.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: Stream, _place: OwnedSemaphorePermit) {
        let way = self.way();
        let now = way.acceptor.current();
        let stream = match timeout(way.line.handshake_timeout, now.acceptor.tls_handshake(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "no handshake"),
            Err(_) => return tracing::debug!("a handshake took too long"),
        };
        let chain = stream.get_ssl().and_then(TlsRef::peer_cert_chain_der).unwrap_or_default();
        // Whom the policy of this moment lets in: it may be another than the handshake's.
        let Some(mut guest) = self.way().tls.enter_whoever(chain, &now.serving) else {
            return tracing::debug!("a client's certificate was revoked in the handshake");
        };
        let Some(digest) = stream.get_ssl_digest() else { return };
        let Some(connection) = digest.extension.get::<Connection>() else { return };
        let line = &way.line;
        let Some(peer) = stream.get_socket_digest().and_then(|digest| digest.peer_addr()?.as_inet().copied())
        else {
            return;
        };
        let stream =
            Framed::new(stream, Arc::clone(&connection.messages), Arc::clone(&line.headers), peer.ip());
        let mut retired = line.retired.subscribe();
        if *retired.borrow() {
            // Since the handshake: what has been is news to whoever waits for it.
            retired.mark_changed();
        }
        let mut overdue = line.retired.subscribe();
        let overdue = async {
            // An error cannot be: the line is ours too.
            let _ = overdue.wait_for(|retired| *retired).await;
            tokio::time::sleep(RETIRES_WITHIN).await;
        };
        let serve = async {
            let mut next: Option<pingora::protocols::Stream> = Some(Box::new(stream));
            while let Some(stream) = next {
                next = line.proxy.process_new(stream, &retired).await;
            }
        };
        // The stream goes with `serve`: what is in flight on it is cut off, and tells why.
        let cut = |why| {
            let _ = connection.cut.set(why);
        };
        tokio::select! {
            () = serve => {}
            () = async {
                connection.clock.ran_out(line.request_timeout, line.idle_timeout).await;
                cut(Cut::TimeOver);
            } => {}
            () = connection.messages.dropped.notified() => {
                line.headers_dropped.inc();
                tracing::debug!(%peer, "a connection ends: unfinished headers hold too much memory");
            }
            () = async {
                guest.expelled().await;
                cut(Cut::ClientRevoked);
            } => {}
            () = async {
                overdue.await;
                cut(Cut::ListenerChanged);
            } => {}
            () = async {
                // An error cannot be: the gate is there for as long as the process.
                let _ = line.stopped.clone().wait_for(|stopped| *stopped).await;
                cut(Cut::EdgeStopped);
            } => {}
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
