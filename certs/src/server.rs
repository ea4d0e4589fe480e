//! What a listener serves with while its files change, and which of its connections may stay.
//!
//! Each handshake sees one generation whole: certificates, client CAs and revocation lists of one moment, and sessions
//! that can be resumed within it alone. Connections that are up are not touched, unless their client would not be let
//! in any more.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{oneshot, watch};

use crate::tls::server_config_with;
use crate::{Anonymous, CertError, Facts, Identity, Live, San, Set, Trust, Versioned, Versions, Watch};

/// What a listener presents: the first whose names match what the client asks for, else the default.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub default: Set<Identity>,
    pub others: Vec<Named>,
}

/// A certificate for certain names.
#[derive(Debug, Clone)]
pub struct Named {
    /// Empty: the DNS names that the certificate bears. A name may begin with `*.`.
    pub names: Vec<String>,
    pub identity: Set<Identity>,
}

/// Whether a listener asks its clients for a certificate, and whose it believes.
#[derive(Debug, Clone)]
pub enum Clients {
    Off,
    /// A client may come without one, but not with one that does not verify.
    Optional(Set<Trust>),
    Required(Set<Trust>),
}

/// A listener's side of TLS. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct ServerTls {
    serving: Live<Serving>,
    guests: Arc<Guests>,
}

/// One generation.
pub struct Serving {
    pub config: Arc<rustls::ServerConfig>,
    /// None: clients are not asked, or nothing that they are verified against ever changes.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Certificates {
    pub fn one(default: Set<Identity>) -> Certificates {
        Certificates { default, others: Vec::new() }
    }
}

impl Named {
    /// The names that clients ask for to get it.
    pub fn names(&self) -> Vec<String> {
        if self.names.is_empty() {
            let of_san = |san: &San| if let San::Dns(name) = san { Some(name.clone()) } else { None };
            self.identity.current().facts().sans.iter().filter_map(of_san).collect()
        } else {
            self.names.clone()
        }
    }
}

impl Clients {
    /// Whose certificates are believed, if any are asked for.
    pub fn trust(&self) -> Option<&Set<Trust>> {
        match self {
            Clients::Off => None,
            Clients::Optional(trust) | Clients::Required(trust) => Some(trust),
        }
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
        match self {
            Clients::Off => Ok(Arc::new(NoClientAuth)),
            Clients::Optional(trust) => trust.current().client_verifier(Anonymous::Allowed),
            Clients::Required(trust) => trust.current().client_verifier(Anonymous::Refused),
        }
    }
}

impl ServerTls {
    /// # Errors
    /// [`CertError::Tls`] or [`CertError::Verifier`].
    pub fn new(
        watch: &Watch,
        certificates: Certificates,
        clients: Clients,
        versions: Versions,
        alpn: &'static [&'static [u8]],
    ) -> Result<ServerTls, CertError> {
        Self::among(Arc::default(), watch, (certificates, clients), versions, alpn)
    }

    /// What takes over from this one, with files of its own and the guests of this one: they are followed by what the
    /// new one believes, from its [`recheck`](Self::recheck) on.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn successor(
        &self,
        watch: &Watch,
        certificates: Certificates,
        clients: Clients,
        versions: Versions,
        alpn: &'static [&'static [u8]],
    ) -> Result<ServerTls, CertError> {
        Self::among(Arc::clone(&self.guests), watch, (certificates, clients), versions, alpn)
    }

    fn among(
        guests: Arc<Guests>,
        watch: &Watch,
        (certificates, clients): (Certificates, Clients),
        versions: Versions,
        alpn: &'static [&'static [u8]],
    ) -> Result<ServerTls, CertError> {
        let mut from: Vec<&dyn Versioned> = vec![&certificates.default];
        from.extend(certificates.others.iter().map(|named| &named.identity as &dyn Versioned));
        from.extend(clients.trust().map(|trust| trust as &dyn Versioned));
        let parts = (certificates.clone(), clients.clone());
        let serving = watch.derive(&from, move || {
            let (certificates, clients) = &parts;
            let verifier = clients.verifier()?;
            let resolver = Arc::new(ByName::new(certificates));
            let config = server_config_with(resolver, Arc::clone(&verifier), versions, alpn)?;
            Ok::<_, CertError>(Serving { config, clients: clients.trust().map(|_| verifier) })
        })?;
        watch.recheck(serving.clone(), &guests);
        Ok(ServerTls { serving, guests })
    }

    /// Expels the guests that would not be let in now.
    pub fn recheck(&self) {
        self.guests.recheck(&self.current());
    }

    /// For a connection that arrives now.
    pub fn current(&self) -> Arc<Serving> {
        self.serving.current()
    }

    /// Enters a connection after its handshake `under` a generation. `None`: by now its client would be refused.
    pub fn enter(&self, chain: &[CertificateDer<'_>], under: &Arc<Serving>) -> Option<Guest> {
        self.admit(chain, under, |current| current.clients.is_some() && !chain.is_empty())
    }

    /// The same of a listener that may come to ask for more than it does: whoever has shown no certificate is followed too,
    /// and must leave when one is required.
    pub fn enter_whoever(&self, chain: &[CertificateDer<'_>], under: &Arc<Serving>) -> Option<Guest> {
        self.admit(chain, under, |_| true)
    }

    fn admit(
        &self,
        chain: &[CertificateDer<'_>],
        under: &Arc<Serving>,
        follows: impl Fn(&Serving) -> bool,
    ) -> Option<Guest> {
        let (expel, expelled) = oneshot::channel();
        let mut open = self.guests.open();
        // A generation is replaced first and its guests are looked at next: whoever is not on the list by then sees here
        // that it is not the current one.
        let current = self.serving.current();
        if !Arc::ptr_eq(&current, under) && !current.lets_in(chain) {
            return None;
        }
        let id = follows(&current).then(|| {
            open.last = open.last.wrapping_add(1);
            let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
            let id = open.last;
            open.guests.insert(id, Entry { chain, expel });
            id
        });
        Some(Guest { id, guests: Arc::clone(&self.guests), expelled })
    }
}

impl Serving {
    fn lets_in(&self, chain: &[CertificateDer<'_>]) -> bool {
        match (&self.clients, chain.split_first()) {
            (None, _) => true,
            (Some(clients), None) => !clients.client_auth_mandatory(),
            (Some(clients), Some((leaf, rest))) => {
                clients.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
            }
        }
    }
}

impl Versioned for ServerTls {
    fn generations(&self) -> watch::Receiver<u64> {
        self.serving.generations()
    }
}

impl From<Arc<rustls::ServerConfig>> for ServerTls {
    fn from(config: Arc<rustls::ServerConfig>) -> ServerTls {
        ServerTls { serving: Live::from(Serving { config, clients: None }), guests: Arc::default() }
    }
}

/// The open connections of a listener whose clients have shown a certificate.
#[derive(Default)]
pub(crate) struct Guests(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    guests: HashMap<u64, Entry>,
}

struct Entry {
    chain: Arc<[CertificateDer<'static>]>,
    /// Dropped to expel.
    #[expect(dead_code, reason = "its end is what is waited for")]
    expel: oneshot::Sender<()>,
}

/// A connection's place among the guests; it leaves when this is dropped.
#[derive(Debug)]
pub struct Guest {
    id: Option<u64>,
    guests: Arc<Guests>,
    expelled: oneshot::Receiver<()>,
}

impl Guests {
    /// Expels those whose certificate has expired, was revoked or lost its CA.
    pub(crate) fn recheck(&self, serving: &Serving) {
        let mut chains: HashMap<Arc<[CertificateDer<'static>]>, bool> = HashMap::new();
        for entry in self.open().guests.values() {
            chains.entry(Arc::clone(&entry.chain)).or_default();
        }
        // Verified without the lock, each chain once: handshakes need it meanwhile.
        for (chain, stays) in &mut chains {
            *stays = serving.lets_in(chain);
        }
        for (chain, _) in chains.iter().filter(|(_, stays)| !**stays) {
            let who = chain.first().and_then(|leaf| Facts::from_der(leaf).ok());
            let (subject, serial) = who.map(|facts| (facts.subject, facts.serial_hex)).unwrap_or_default();
            tracing::warn!(
                subject,
                serial,
                "its open connections are closed: its certificate is no longer good, or one is required now"
            );
        }
        self.open().guests.retain(|_, entry| chains.get(&entry.chain).copied().unwrap_or(true));
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Whether it is followed at all.
    pub fn is_known(&self) -> bool {
        self.id.is_some()
    }

    /// Waits until the connection must be closed.
    pub async fn expelled(&mut self) {
        match self.id {
            Some(_) => {
                // An error, always: the other end is dropped.
                let _ = (&mut self.expelled).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.guests.open().guests.remove(&id);
        }
    }
}

/// Chooses a certificate by the name that the client asks for.
#[derive(Debug)]
struct ByName {
    default: Arc<CertifiedKey>,
    others: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    fn new(certificates: &Certificates) -> ByName {
        let mut others = HashMap::new();
        for named in &certificates.others {
            let certified = named.identity.current().certified();
            for name in named.names() {
                others.entry(name.to_ascii_lowercase()).or_insert_with(|| Arc::clone(&certified));
            }
        }
        ByName { default: certificates.default.current().certified(), others }
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.others.get(&name).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.others.get(&format!("*.{rest}"))
        })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name));
        Some(Arc::clone(named.unwrap_or(&self.default)))
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("clients", &self.clients.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guests").field("open", &self.open().guests.len()).finish()
    }
}
