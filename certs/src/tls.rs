use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use crate::{Anonymous, CertError, Identity, Trust};

/// Whether a listener asks its clients for a certificate.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; a client may come without one, but not with one that does not verify.
    Optional(Trust),
    /// No handshake completes without one.
    Required(Trust),
}

/// Which TLS versions a side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// Between our own services and towards the network.
    Tls13Only,
    /// At the public edge.
    Tls12And13,
}

/// Makes `ring` the process's one cryptography provider. Call it first in every `main`;
/// calling it again changes nothing.
pub fn install_crypto_provider() {
    // An error only says that a provider is there already, and ours is the only one linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a TLS listener serves with, as it is now; [`ServerTls`](crate::ServerTls) follows its files.
///
/// # Errors
/// [`CertError::Tls`] or [`CertError::Verifier`] when `rustls` refuses the parts.
pub fn server_config(
    id: &Identity,
    clients: ClientAuth,
    versions: Versions,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, CertError> {
    server_config_with(id.resolver(), client_verifier(clients)?, versions, alpn)
}

pub(crate) fn server_config_with(
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
    versions: Versions,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, CertError> {
    let resumable = !clients.offer_client_auth();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.supported())
        .map_err(|source| CertError::Tls { what: "the listener's versions".into(), source })?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // The strongest that both have, whatever the client would rather have.
    config.ignore_client_order = true;
    // A resumed session skips the verifier: a client whose certificate has expired or lost its
    // CA would keep coming in. Where clients are known by certificate, every handshake is full.
    if !resumable {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// What a TLS client connects with; `id` is presented when the server asks for a certificate.
///
/// # Errors
/// [`CertError::Tls`] or [`CertError::Verifier`] when `rustls` refuses the parts.
pub fn client_config(
    trust: &Trust,
    id: Option<&Identity>,
    versions: Versions,
) -> Result<ClientConfig, CertError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.supported())
        .map_err(|source| CertError::Tls { what: "the client's versions".into(), source })?
        .dangerous()
        .with_custom_certificate_verifier(trust.server_verifier()?);
    Ok(match id {
        Some(id) => builder.with_client_cert_resolver(id.resolver()),
        None => builder.with_no_client_auth(),
    })
}

fn client_verifier(clients: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
    match clients {
        ClientAuth::Off => Ok(Arc::new(NoClientAuth)),
        ClientAuth::Optional(trust) => trust.client_verifier(Anonymous::Allowed),
        ClientAuth::Required(trust) => trust.client_verifier(Anonymous::Refused),
    }
}

impl Versions {
    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Versions::Tls13Only => &ONLY_13,
            Versions::Tls12And13 => &BOTH,
        }
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
