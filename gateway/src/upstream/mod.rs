//! Services behind the edge: whom to connect to, how to know them, how much they may be given at once, and which of
//! their addresses are believed to serve.

pub(crate) mod deadline;
pub(crate) mod failure;
mod fitness;
pub(crate) mod mirror;
pub(crate) mod probe;
mod repeat;
pub(crate) mod resolve;
mod transport;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use certs::{Live, Versioned, Watch};
use filters::policy::{self, Upstream as Settings};
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result as Answered};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use self::failure::{Cause, Failures};
use self::fitness::{Fitness, Leave};
pub(crate) use self::mirror::MOST_COPIES;
pub(crate) use self::repeat::{LEAST_REPEATS, Repeat};
use self::resolve::{Found, Name};
pub(crate) use self::resolve::{first_retry_ms, resolve_interval_ms};
pub(crate) use self::transport::MOST_STREAMS;
use self::transport::Transport;
use crate::load::UpstreamFiles;

/// Fields of one connection, and those that the client of another sets itself.
pub(crate) const HOP: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    /// As they were resolved last; `None` before the first lookup of a name.
    addresses: watch::Sender<Option<Arc<[Arc<Address>]>>>,
    /// What its names were last resolved to. The next policy starts with it.
    found: Mutex<Found>,
    transport: Live<Transport>,
    next: AtomicUsize,
    in_flight: Arc<Semaphore>,
    websockets: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    repeats: Arc<AtomicUsize>,
    began: Instant,
    failures: Failures,
}

#[derive(Debug)]
struct Address {
    at: SocketAddr,
    fitness: Arc<Fitness>,
    /// For probes and copies, made with the certificates of one moment; Pingora carries requests only.
    client: Mutex<Option<(Arc<Transport>, reqwest::Client)>>,
}

/// The address that a request was given to, until it is known what came of that.
#[derive(Debug)]
pub(crate) struct Tried {
    address: Arc<Address>,
    leave: Leave,
}

impl Upstream {
    /// What is known of the addresses that it had `before`, and what is in flight there, still counts.
    pub(crate) fn new(
        name: &str,
        settings: &Settings,
        files: &UpstreamFiles,
        watch: &Watch,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        if let (Some(trust), Some(tls)) = (&files.trust, settings.tls.tls()) {
            watch.connects(certs::Client {
                name: format!("upstream/{name}"),
                server_name: Some(tls.server_name.value.clone()),
                identity: files.identity.clone(),
                trust: trust.clone(),
            });
        }
        let of_identity = files.identity.iter().map(|set| set as &dyn Versioned);
        let from: Vec<_> = of_identity.chain(files.trust.iter().map(|set| set as &dyn Versioned)).collect();
        let (own, sets) = (settings.clone(), files.clone());
        let transport = watch.derive(&from, move || Transport::new(&own, &sets))?;
        let alike = before.filter(|before| connects_alike(&before.settings, settings));
        let upstream = Self {
            name: name.to_owned(),
            settings: settings.clone(),
            addresses: watch::Sender::new(alike.and_then(|before| before.addresses.borrow().clone())),
            found: Mutex::new(before.map(Self::found).unwrap_or_default()),
            transport,
            next: AtomicUsize::new(0),
            in_flight: before
                .filter(|before| before.settings.max_in_flight == settings.max_in_flight)
                .map_or_else(
                    || Arc::new(Semaphore::new(settings.max_in_flight as usize)),
                    |before| Arc::clone(&before.in_flight),
                ),
            websockets: before
                .filter(|before| before.settings.max_websockets == settings.max_websockets)
                .map_or_else(
                    || Arc::new(Semaphore::new(settings.max_websockets as usize)),
                    |before| Arc::clone(&before.websockets),
                ),
            copies: before.map_or_else(mirror::room, |before| Arc::clone(&before.copies)),
            repeats: before.map(|before| Arc::clone(&before.repeats)).unwrap_or_default(),
            began: before.map_or_else(Instant::now, |before| before.began),
            failures: Failures::default(),
        };
        let names = upstream.names();
        if names.iter().all(Name::is_resolved) {
            upstream.set_addresses(&resolve::addresses(&names));
        } else {
            // Requests wait for the first lookup of the new names.
            upstream.addresses.send_replace(None);
        }
        Ok(upstream)
    }

    fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses as they are written, with what they were last resolved to.
    fn names(&self) -> Vec<Name> {
        let found = self.found();
        self.settings.addresses.iter().map(|written| Name::new(written, &found)).collect()
    }

    /// Uses what the names were resolved to.
    fn resolved(&self, names: &[Name]) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = resolve::found(names);
        self.set_addresses(&resolve::addresses(names));
    }

    /// Whether it has a name that must be looked up.
    pub(crate) fn has_names(&self) -> bool {
        self.settings.addresses.iter().any(policy::Address::is_name)
    }

    /// The addresses are these from now on. What is known of those that stay, still counts.
    fn set_addresses(&self, found: &[SocketAddr]) {
        self.addresses.send_if_modified(|addresses| {
            let before = addresses.as_deref().unwrap_or_default();
            let same = before.iter().map(|address| address.at).eq(found.iter().copied());
            if same && addresses.is_some() {
                return false;
            }
            let known = |at: &SocketAddr| before.iter().find(|address| address.at == *at).cloned();
            let new = |at: &SocketAddr| known(at).unwrap_or_else(|| Arc::new(Address::new(*at)));
            *addresses = Some(found.iter().map(new).collect());
            true
        });
    }

    fn addresses(&self) -> Arc<[Arc<Address>]> {
        self.addresses.borrow().clone().unwrap_or_default()
    }

    /// Waits for the first lookup of its names, no longer than for a connection.
    pub(crate) async fn known(&self) {
        let mut addresses = self.addresses.subscribe();
        let known = addresses.wait_for(Option::is_some);
        // Without an address the request is refused.
        let _ = tokio::time::timeout(Duration::from_millis(self.settings.connect_timeout_ms), known).await;
    }

    /// A place among the requests in flight; `None` when all are taken. It is held until dropped.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// A place among the WebSockets; `None` when all are taken. It is held until dropped.
    pub(crate) fn enter_websocket(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.websockets).try_acquire_owned().ok()
    }

    /// Leave to send a request again, unless too many of those in flight are repeats. It lasts until dropped.
    pub(crate) fn repeat(&self) -> Option<Repeat> {
        let most = self.settings.max_in_flight as usize;
        let in_flight = most.saturating_sub(self.in_flight.available_permits());
        Repeat::within(&self.repeats, in_flight, self.settings.retry_budget_percent)
    }

    /// Whether no name of it was ever resolved to an address.
    pub(crate) fn is_unresolved(&self) -> bool {
        self.has_names() && self.addresses().is_empty()
    }

    /// Whether any address is believed to serve, or may be tried again.
    pub(crate) fn serves(&self) -> bool {
        let now_ms = self.now_ms();
        self.addresses().iter().any(|address| address.fitness.is_fit(now_ms))
    }

    /// The next address in turn that is believed to serve, or may be tried again. Connecting to it, and each read and
    /// write, take no longer than `most`, if that is given.
    pub(crate) fn peer(&self, most: Option<Duration>) -> Option<(Tried, HttpPeer)> {
        let (turn, now_ms) = (self.next.fetch_add(1, Ordering::Relaxed), self.now_ms());
        let addresses = self.addresses();
        let count = addresses.len();
        let tried = (0..count).map(|step| turn.wrapping_add(step) % count).find_map(|position| {
            let address = addresses.get(position)?;
            let leave = address.fitness.leave(&self.settings.outlier, now_ms)?;
            Some(Tried { address: Arc::clone(address), leave })
        })?;
        let mut peer = self.transport.current().peer(tried.address.at);
        let options = &mut peer.options;
        (options.read_timeout, options.write_timeout) = (most, most);
        options.connection_timeout = options.connection_timeout.into_iter().chain(most).min();
        options.total_connection_timeout = options.total_connection_timeout.into_iter().chain(most).min();
        Some((tried, peer))
    }

    /// Whether a request may go out on a connection to that address, for what the revocation lists say. Pingora looks at
    /// none; it tells the serial number of the certificate that the upstream has shown.
    pub(crate) fn believes(&self, tried: &Tried, digest: Option<&Digest>) -> Answered<()> {
        let transport = self.transport.current();
        let Some(trust) = transport.trust() else { return Ok(()) };
        let shown = digest.and_then(|digest| digest.ssl_digest.as_ref());
        let serial = shown.and_then(|shown| shown.serial_number.as_deref());
        trust.unrevoked(serial, OffsetDateTime::now_utc()).or_else(|why| {
            tracing::warn!(address = %tried.address.at, serial, why, "an upstream is not believed");
            Error::e_explain(ErrorType::InvalidCert, why)
        })
    }

    /// The request was answered, whatever the answer. Tells the address when it serves again since then.
    pub(crate) fn answered(&self, tried: &mut Tried) -> Option<SocketAddr> {
        tried.leave.answered().then_some(tried.address.at)
    }

    /// The request got no answer. Tells the address when it is left out from now on.
    pub(crate) fn failed(&self, tried: Tried) -> Option<SocketAddr> {
        let at = tried.address.at;
        tried.leave.failed(&self.settings.outlier, self.now_ms()).then_some(at)
    }

    /// Notes why the address that was tried gave no connection.
    pub(crate) fn unconnected(&self, tried: &Tried, cause: Cause, error: &Error) {
        self.failures.note(&self.name, tried.address.at, cause, &error.to_string(), Instant::now());
    }

    /// What `/config` tells of it.
    pub(crate) fn report(&self) -> serde_json::Value {
        let now_ms = self.now_ms();
        let address = |address: &Arc<Address>| serde_json::json!({ "address": address.at, "serves": address.fitness.is_fit(now_ms) });
        let addresses: Vec<_> = self.addresses().iter().map(address).collect();
        serde_json::json!({ "addresses": addresses, "failures": self.failures.report() })
    }

    /// A client of an address that serves, and what its requests are addressed to, `https://NAME:PORT` say.
    fn client(&self) -> Option<(reqwest::Client, String)> {
        let (addresses, now_ms) = (self.addresses(), self.now_ms());
        let fit = || addresses.iter().filter(|address| address.fitness.is_fit(now_ms));
        // A copy is no trial; where nothing else could be one, waiting for it would be for ever.
        let address = fit().find(|address| address.fitness.is_whole()).or_else(|| fit().next())?;
        address.client(&self.transport.current())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whether what was found of an address by one policy holds by the next one too. An address that was left out because its
/// certificate could not be verified, say, may be fine with other settings.
fn connects_alike(before: &Settings, after: &Settings) -> bool {
    before.health == after.health
        && before.outlier == after.outlier
        && before.tls == after.tls
        && before.protocol == after.protocol
        && before.connect_timeout_ms == after.connect_timeout_ms
}

impl Address {
    fn new(at: SocketAddr) -> Self {
        Self { at, fitness: Arc::default(), client: Mutex::default() }
    }

    /// A client with these certificates, and what its requests are addressed to.
    fn client(&self, transport: &Arc<Transport>) -> Option<(reqwest::Client, String)> {
        let origin = transport.origin(self.at);
        let mut known = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*known
            && Arc::ptr_eq(of, transport)
        {
            return Some((client.clone(), origin));
        }
        let made = transport.client(self.at);
        let client =
            made.inspect_err(|error| tracing::error!(address = %self.at, %error, "no client")).ok()?;
        *known = Some((Arc::clone(transport), client.clone()));
        Some((client, origin))
    }
}
