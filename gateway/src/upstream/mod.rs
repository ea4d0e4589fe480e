//! Services behind the edge: whom to connect to, how to know them, how much they may be given at once, and which of
//! their addresses are believed to serve.

pub(crate) mod deadline;
mod fitness;
pub(crate) mod mirror;
pub(crate) mod probe;
mod repeat;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::client::ClientLimits;
use certs::{Identity, Live, Trust, Watch};
use filters::policy::{Health, Outlier, Upstream as Settings};
use pingora::protocols::{ALPN, Digest};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use pingora::{Error, ErrorType, Result as Answered};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::fitness::{Fitness, Leave};
pub(crate) use self::mirror::MOST_COPIES;
pub(crate) use self::repeat::{LEAST_REPEATS, Repeat};
use crate::load::UpstreamFiles;

/// Fields of one connection, and those that the client of another sets itself.
pub(crate) const HOP: [&str; 8] =
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// One upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    addresses: Vec<Address>,
    next: AtomicUsize,
    max_in_flight: u32,
    in_flight: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    repeats: Arc<AtomicUsize>,
    retry_budget_percent: u32,
    pub(crate) health: Option<Health>,
    outlier: Outlier,
    began: Instant,
}

#[derive(Debug)]
struct Address {
    at: SocketAddr,
    fitness: Arc<Fitness>,
    way: Live<Way>,
    /// What probes and copies are addressed to.
    authority: String,
}

/// The address that a request was given to, until it is known what came of that.
#[derive(Debug)]
pub(crate) struct Tried {
    position: usize,
    leave: Leave,
}

/// How an address is connected to, with the certificates of one moment.
#[derive(Debug)]
struct Way {
    peer: HttpPeer,
    /// For probes and copies; Pingora carries requests only.
    client: reqwest::Client,
    trust: Arc<Trust>,
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
        watch.connects(certs::Client {
            name: format!("upstream/{name}"),
            server_name: Some(settings.tls.server_name.value.clone()),
            identity: Some(files.identity.clone()),
            trust: files.trust.clone(),
        });
        let mut addresses = Vec::new();
        // What was found by other rules may never be found otherwise by these.
        let alike =
            before.filter(|before| before.health == settings.health && before.outlier == settings.outlier);
        for &at in &settings.addresses {
            let (settings, files) = (settings.clone(), files.clone());
            let authority = format!("{}:{}", settings.tls.server_name.value, at.port());
            let way = watch.derive(&[&files.identity.clone(), &files.trust.clone()], move || {
                Way::new(&settings, &files.identity.current(), files.trust.current(), at)
            });
            let way = way.with_context(|| format!("{at}"))?;
            let known = alike.and_then(|before| before.addresses.iter().find(|address| address.at == at));
            let fitness = known.map(|address| Arc::clone(&address.fitness)).unwrap_or_default();
            addresses.push(Address { at, fitness, way, authority });
        }
        Ok(Self {
            name: name.to_owned(),
            addresses,
            next: AtomicUsize::new(0),
            max_in_flight: settings.max_in_flight,
            in_flight: before.filter(|before| before.max_in_flight == settings.max_in_flight).map_or_else(
                || Arc::new(Semaphore::new(settings.max_in_flight as usize)),
                |before| Arc::clone(&before.in_flight),
            ),
            copies: before.map_or_else(mirror::room, |before| Arc::clone(&before.copies)),
            repeats: before.map(|before| Arc::clone(&before.repeats)).unwrap_or_default(),
            retry_budget_percent: settings.retry_budget_percent,
            health: settings.health.clone(),
            outlier: settings.outlier,
            began: before.map_or_else(Instant::now, |before| before.began),
        })
    }

    /// A place among the requests in flight; `None` when all are taken. It is held until dropped.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// Leave to send a request again, unless too many of those in flight are repeats. It lasts until dropped.
    pub(crate) fn repeat(&self) -> Option<Repeat> {
        let most = self.max_in_flight as usize;
        let in_flight = most.saturating_sub(self.in_flight.available_permits());
        Repeat::within(&self.repeats, in_flight, self.retry_budget_percent)
    }

    /// Whether any address is believed to serve, or may be tried again.
    pub(crate) fn serves(&self) -> bool {
        let now_ms = self.now_ms();
        self.addresses.iter().any(|address| address.fitness.is_fit(now_ms))
    }

    /// The next address in turn that is believed to serve, or may be tried again. Connecting to it, and each read and
    /// write, take no longer than `most`, if that is given.
    pub(crate) fn peer(&self, most: Option<Duration>) -> Option<(Tried, HttpPeer)> {
        let (turn, now_ms) = (self.next.fetch_add(1, Ordering::Relaxed), self.now_ms());
        let count = self.addresses.len();
        let (tried, address) =
            (0..count).map(|step| turn.wrapping_add(step) % count).find_map(|position| {
                let address = self.addresses.get(position)?;
                let leave = address.fitness.leave(&self.outlier, now_ms)?;
                Some((Tried { position, leave }, address))
            })?;
        let mut peer = address.way.current().peer.clone();
        let options = &mut peer.options;
        (options.read_timeout, options.write_timeout) = (most, most);
        options.connection_timeout = options.connection_timeout.into_iter().chain(most).min();
        options.total_connection_timeout = options.total_connection_timeout.into_iter().chain(most).min();
        Some((tried, peer))
    }

    /// Whether a request may go out on a connection to that address, for what the revocation lists say. Pingora looks at
    /// none; it tells the serial number of the certificate that the upstream has shown.
    pub(crate) fn believes(&self, tried: &Tried, digest: Option<&Digest>) -> Answered<()> {
        let Some(address) = self.addresses.get(tried.position) else {
            return Error::e_explain(ErrorType::InternalError, "no such address");
        };
        let shown = digest.and_then(|digest| digest.ssl_digest.as_ref());
        let serial = shown.and_then(|shown| shown.serial_number.as_deref());
        let trust = &address.way.current().trust;
        trust.unrevoked(serial, OffsetDateTime::now_utc()).or_else(|why| {
            tracing::warn!(address = %address.at, serial, why, "an upstream is not believed");
            Error::e_explain(ErrorType::InvalidCert, why)
        })
    }

    /// The request was answered, whatever the answer. Tells the address when it serves again since then.
    pub(crate) fn answered(&self, tried: &mut Tried) -> Option<SocketAddr> {
        self.addresses.get(tried.position).filter(|_| tried.leave.answered()).map(|address| address.at)
    }

    /// The request got no answer. Tells the address when it is left out from now on.
    pub(crate) fn failed(&self, tried: Tried) -> Option<SocketAddr> {
        let is_left_out = tried.leave.failed(&self.outlier, self.now_ms());
        self.addresses.get(tried.position).filter(|_| is_left_out).map(|address| address.at)
    }

    /// A client of an address that serves, and what its requests are addressed to.
    fn client(&self) -> Option<(reqwest::Client, &str)> {
        let now_ms = self.now_ms();
        let fit = || self.addresses.iter().filter(|address| address.fitness.is_fit(now_ms));
        // A copy is no trial; where nothing else could be one, waiting for it would be for ever.
        let address = fit().find(|address| address.fitness.is_whole()).or_else(|| fit().next())?;
        Some((address.way.current().client.clone(), &address.authority))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Way {
    fn new(
        settings: &Settings,
        identity: &Identity,
        trust: Arc<Trust>,
        at: SocketAddr,
    ) -> anyhow::Result<Self> {
        let chain = identity.chain().iter().map(|der| der.to_vec()).collect();
        let ca: Arc<[WrappedX509]> =
            trust.ders().iter().map(|der| WrappedX509::new(der.to_vec(), parse_x509)).collect();
        // Never empty: the policy refuses an empty name, with which Pingora would verify nothing.
        let mut peer = HttpPeer::new(at, true, settings.tls.server_name.value.clone());
        peer.client_cert_key = Some(Arc::new(CertKey::new(chain, identity.key().secret_der().to_vec())));
        peer.group_key = generation(identity, &trust);
        let options = &mut peer.options;
        options.ca = Some(Arc::clone(&ca));
        options.verify_cert = true;
        options.verify_hostname = true;
        options.alpn = ALPN::H1;
        options.connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
        options.total_connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
        options.idle_timeout = Some(Duration::from_millis(settings.idle_timeout_ms));
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();

        let mut tls = certs::client_config(&trust, Some(identity), certs::Versions::Tls12And13)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let limits = ClientLimits {
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
            pool_idle_timeout: Duration::from_millis(settings.idle_timeout_ms),
            ..ClientLimits::default()
        };
        let client = certs::client::https_to(tls, limits, &settings.tls.server_name.value, at)?;
        Ok(Self { peer, client, trust })
    }
}

/// Pingora's pool does not look at the CA, and knows a client certificate by its serial only. A connection
/// made under other trust must not be handed out, so the trust is part of the pool's key.
fn generation(identity: &Identity, trust: &Trust) -> u64 {
    let mut hasher = DefaultHasher::new();
    for der in trust.ders().iter().chain(identity.chain()) {
        der.as_ref().hash(&mut hasher);
    }
    trust.lists().for_each(|list| list.hash(&mut hasher));
    hasher.finish()
}
