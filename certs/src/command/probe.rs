//! What a listener really serves: asked over TLS, as its clients do.
//!
//! The certificate is read and told, not believed: nothing is sent to the other side that it should not see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use certs::Facts;
use certs::pki::Issued;
use certs::report::Leaf;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const WITHIN: Duration = Duration::from_secs(5);

/// What came over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Served {
    #[serde(flatten)]
    pub(super) leaf: Leaf,
    /// `TLSv1_3`; none when the handshake did not come to its end, for a certificate of ours is missing say.
    pub(super) protocol: Option<String>,
    pub(super) cipher: Option<String>,
}

/// Asks a listener for the certificate of a name, or for the one that it has for no name. The key is proven, the
/// chain is not.
pub(super) async fn served(address: SocketAddr, name: Option<&str>) -> anyhow::Result<Served> {
    let (seen, tls) = config(None)?;
    let handshake = async {
        let stream = TcpStream::connect(reachable(address))
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        let connector = TlsConnector::from(Arc::new(tls));
        anyhow::Ok(connector.connect(server_name(address, name)?, stream).await)
    };
    let handshake =
        timeout(WITHIN, handshake).await.with_context(|| format!("{address} does not answer"))??;
    let Some(der) = seen.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        let why = handshake.err().map(|error| error.to_string()).unwrap_or_default();
        anyhow::bail!("{address} showed no certificate: {why}");
    };
    let facts = Facts::from_der(&der).map_err(anyhow::Error::msg)?;
    let connection = handshake.ok();
    let tls = connection.as_ref().map(|stream| stream.get_ref().1);
    Ok(Served {
        leaf: Leaf::from(&facts),
        protocol: tls.and_then(|tls| tls.protocol_version()).map(|version| format!("{version:?}")),
        cipher: tls.and_then(|tls| tls.negotiated_cipher_suite()).map(|suite| format!("{:?}", suite.suite())),
    })
}

/// Whether a listener lets in a client with this certificate; what it says otherwise. An HTTP answer of any status
/// counts as let in: whom it serves is another question than whom it believes.
pub(super) async fn lets_in(
    address: SocketAddr,
    name: Option<&str>,
    client: &Issued,
) -> anyhow::Result<Result<(), String>> {
    let (_, tls) = config(Some(client))?;
    let server_name = server_name(address, name)?;
    let stream = timeout(WITHIN, TcpStream::connect(reachable(address))).await;
    let stream = stream.map_err(anyhow::Error::new).and_then(|stream| Ok(stream?));
    let stream = stream.with_context(|| format!("cannot connect to {address}"))?;
    let exchange = async {
        let mut stream = TlsConnector::from(Arc::new(tls)).connect(server_name, stream).await?;
        let host = name.unwrap_or("localhost");
        let request = format!("GET /certs-probe HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    Ok(match timeout(WITHIN, exchange).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", WITHIN.as_secs())),
    })
}

/// An address to connect to: one that listens everywhere is found on this host.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(ip, address.port())
}

fn server_name(address: SocketAddr, name: Option<&str>) -> anyhow::Result<ServerName<'static>> {
    match name {
        // Any host below a wildcard is shown its certificate.
        Some(name) => ServerName::try_from(name.replacen('*', "any", 1))
            .with_context(|| format!("{name} is no server name")),
        None => Ok(ServerName::IpAddress(reachable(address).ip().into())),
    }
}

type Seen = Arc<Mutex<Option<CertificateDer<'static>>>>;

fn config(client: Option<&Issued>) -> anyhow::Result<(Seen, ClientConfig)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let seen = Seen::default();
    let observer = Observer { seen: Arc::clone(&seen), provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(observer));
    let mut config = match client {
        Some(client) => {
            let chain = CertificateDer::pem_slice_iter(client.certificate_pem.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes())?;
            builder.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((seen, config))
}

/// Writes down what it is shown.
#[derive(Debug)]
struct Observer {
    seen: Seen,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Observer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
