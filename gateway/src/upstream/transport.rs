//! How an upstream's addresses are connected to, with the certificates of one moment.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use certs::client::ClientLimits;
use certs::{Identity, Trust};
use filters::policy::{Protocol, Upstream as Settings};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};

use crate::load::UpstreamFiles;

/// Most requests at once on one connection of HTTP/2. An upstream may allow fewer.
pub(crate) const MOST_STREAMS: usize = 100;
/// Between two pings on a connection of HTTP/2. One that answers none is closed, with all that it carries.
const PING_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Transport {
    /// Of no address yet.
    peer: HttpPeer,
    protocol: Protocol,
    limits: ClientLimits,
    /// `None` for plain HTTP.
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Tls {
    server_name: String,
    trust: Arc<Trust>,
    /// For probes and copies.
    config: rustls::ClientConfig,
}

impl Transport {
    pub(super) fn new(settings: &Settings, files: &UpstreamFiles) -> anyhow::Result<Self> {
        let identity = files.identity.as_ref().map(|set| set.current());
        let trust = files.trust.as_ref().map(|set| set.current());
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let server_name = settings.tls.tls().map(|tls| tls.server_name.value.clone());
        // Never empty where there is TLS: the policy refuses an empty name, with which Pingora would verify nothing.
        let mut peer = HttpPeer::new(nowhere, server_name.is_some(), server_name.clone().unwrap_or_default());
        let options = &mut peer.options;
        options.verify_cert = true;
        options.verify_hostname = true;
        options.alpn = match settings.protocol.value {
            Protocol::Http1 => ALPN::H1,
            Protocol::H2 | Protocol::H2c => ALPN::H2,
        };
        options.max_h2_streams = MOST_STREAMS;
        options.h2_ping_interval = Some(PING_INTERVAL);
        options.connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
        options.total_connection_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
        options.idle_timeout = Some(Duration::from_millis(settings.idle_timeout_ms));
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        let limits = ClientLimits {
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
            pool_idle_timeout: Duration::from_millis(settings.idle_timeout_ms),
            ..ClientLimits::default()
        };
        let tls = match (server_name, trust) {
            (Some(server_name), Some(trust)) => {
                let roots = trust.ders().iter().map(|der| WrappedX509::new(der.to_vec(), parse_x509));
                // Pingora would take the system's CAs for an absent list. An empty one it refuses.
                options.ca = Some(roots.collect());
                peer.group_key = generation(identity.as_deref(), &trust);
                if let Some(identity) = &identity {
                    let chain = identity.chain().iter().map(|der| der.to_vec()).collect();
                    let key = identity.key().secret_der().to_vec();
                    peer.client_cert_key = Some(Arc::new(CertKey::new(chain, key)));
                }
                let versions = certs::Versions::Tls12And13;
                let mut config = certs::client_config(&trust, identity.as_deref(), versions)?;
                config.alpn_protocols = match settings.protocol.value {
                    Protocol::Http1 | Protocol::H2c => vec![b"http/1.1".to_vec()],
                    Protocol::H2 => vec![b"h2".to_vec()],
                };
                Some(Tls { server_name, trust, config })
            }
            (Some(_), None) => anyhow::bail!("the CAs of an upstream with TLS were not loaded"),
            (None, _) => None,
        };
        Ok(Self { peer, protocol: settings.protocol.value, limits, tls })
    }

    /// How Pingora connects to that address.
    pub(super) fn peer(&self, at: SocketAddr) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer._address = at.into();
        peer
    }

    /// Whose certificates are believed; `None` for plain HTTP.
    pub(super) fn trust(&self) -> Option<&Trust> {
        self.tls.as_ref().map(|tls| &*tls.trust)
    }

    /// A client of that address.
    pub(super) fn client(&self, at: SocketAddr) -> Result<reqwest::Client, certs::CertError> {
        match &self.tls {
            Some(tls) => certs::client::https_to(tls.config.clone(), self.limits, &tls.server_name, at),
            None => certs::client::http(self.limits, self.protocol == Protocol::H2c),
        }
    }

    /// What requests of a client of that address are addressed to.
    pub(super) fn origin(&self, at: SocketAddr) -> String {
        match &self.tls {
            Some(tls) => match tls.server_name.contains(':') {
                // An IPv6 address.
                true => format!("https://[{}]:{}", tls.server_name, at.port()),
                false => format!("https://{}:{}", tls.server_name, at.port()),
            },
            None => format!("http://{at}"),
        }
    }
}

/// Pingora's pool does not look at the CA, and knows a client certificate by its serial only. A connection
/// made under other trust must not be handed out, so the trust is part of the pool's key.
fn generation(identity: Option<&Identity>, trust: &Trust) -> u64 {
    let mut hasher = DefaultHasher::new();
    for der in trust.ders().iter().chain(identity.into_iter().flat_map(Identity::chain)) {
        der.as_ref().hash(&mut hasher);
    }
    trust.lists().for_each(|list| list.hash(&mut hasher));
    hasher.finish()
}
