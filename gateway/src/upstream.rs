//! Services behind the edge: whom to connect to, how to know them, and how much they may be given at once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use filters::policy::Upstream as Settings;
use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::load::UpstreamFiles;

/// One upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    peers: Vec<HttpPeer>,
    next: AtomicUsize,
    in_flight: Arc<Semaphore>,
}

impl Upstream {
    pub(crate) fn new(settings: &Settings, files: &UpstreamFiles) -> Self {
        let chain = files.identity.chain().iter().map(|der| der.to_vec()).collect();
        let identity = Arc::new(CertKey::new(chain, files.identity.key().secret_der().to_vec()));
        let ca: Arc<[WrappedX509]> =
            files.trust.ders().iter().map(|der| WrappedX509::new(der.to_vec(), parse_x509)).collect();
        let trust = trust_generation(files);
        let peers = settings
            .addresses
            .iter()
            .map(|address| {
                // Never empty: the policy refuses an empty name, with which Pingora would verify nothing.
                let mut peer = HttpPeer::new(address, true, settings.tls.server_name.value.clone());
                peer.client_cert_key = Some(Arc::clone(&identity));
                peer.group_key = trust;
                let options = &mut peer.options;
                options.ca = Some(Arc::clone(&ca));
                options.verify_cert = true;
                options.verify_hostname = true;
                options.alpn = ALPN::H1;
                options.connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
                options.total_connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
                options.idle_timeout = Some(Duration::from_millis(settings.idle_timeout_ms));
                options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
                peer
            })
            .collect();
        let in_flight = Arc::new(Semaphore::new(settings.max_in_flight as usize));
        Self { peers, next: AtomicUsize::new(0), in_flight }
    }

    /// A place among the requests in flight; `None` when all are taken. It is held until dropped.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// The next address in turn.
    pub(crate) fn peer(&self, timeout: Duration) -> Option<HttpPeer> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut peer = self.peers.get(turn % self.peers.len().max(1))?.clone();
        peer.options.read_timeout = Some(timeout);
        peer.options.write_timeout = Some(timeout);
        Some(peer)
    }
}

/// Pingora's pool does not look at the CA, and knows a client certificate by its serial only. A connection
/// made under other trust must not be handed out, so the trust is part of the pool's key.
fn trust_generation(files: &UpstreamFiles) -> u64 {
    let mut hasher = DefaultHasher::new();
    for der in files.trust.ders().iter().chain(files.identity.chain()) {
        der.as_ref().hash(&mut hasher);
    }
    hasher.finish()
}
