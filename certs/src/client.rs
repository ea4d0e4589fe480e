//! HTTPS clients that do what they are told and nothing on their own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::CertError;

/// Bounds of an HTTPS client.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// TCP and TLS handshake together.
    pub connect_timeout: Duration,
    /// From the first byte sent to the last byte of the answer.
    pub timeout: Duration,
    /// Shorter than the server's [`header_read_timeout`](crate::serve::Limits), or the server
    /// closes a connection in the moment that a request goes out on it.
    pub pool_idle_timeout: Duration,
    pub max_idle_per_host: usize,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            pool_idle_timeout: Duration::from_secs(15),
            max_idle_per_host: 32,
        }
    }
}

/// Why a request failed, down to its last cause (a wrong name, an expired certificate, a refused connection), without its
/// URL. One line, for logs.
pub fn cause(error: reqwest::Error) -> String {
    crate::causes(&error.without_url())
}

/// An HTTPS-only client that speaks HTTP/2 or HTTP/1.1 as the server chooses.
///
/// It follows no redirect, uses no proxy of the environment and sends nothing twice: whether a
/// request may be repeated is for the caller, who knows if it moves money.
///
/// # Errors
/// [`CertError::Client`].
pub fn https(tls: rustls::ClientConfig, limits: ClientLimits) -> Result<reqwest::Client, CertError> {
    build(builder(tls, limits))
}

/// The same, but that `name` is found at `address`, whatever the system's resolver says.
///
/// # Errors
/// [`CertError::Client`].
pub fn https_to(
    tls: rustls::ClientConfig,
    limits: ClientLimits,
    name: &str,
    address: SocketAddr,
) -> Result<reqwest::Client, CertError> {
    build(builder(tls, limits).resolve(name, address))
}

/// A client of plain HTTP: HTTP/1.1, or HTTP/2 without an upgrade.
///
/// # Errors
/// [`CertError::Client`].
pub fn http(limits: ClientLimits, is_h2: bool) -> Result<reqwest::Client, CertError> {
    let tls = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| CertError::Tls { what: "a client without TLS".into(), source })?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = builder(tls, limits).https_only(false);
    build(if is_h2 { builder.http2_prior_knowledge() } else { builder })
}

fn builder(mut tls: rustls::ClientConfig, limits: ClientLimits) -> reqwest::ClientBuilder {
    if tls.alpn_protocols.is_empty() {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(limits.connect_timeout)
        .timeout(limits.timeout)
        .pool_idle_timeout(limits.pool_idle_timeout)
        .pool_max_idle_per_host(limits.max_idle_per_host)
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, CertError> {
    builder.build().map_err(|source| CertError::Client { source })
}
