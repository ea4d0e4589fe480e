//! Server pinning: the network's certificate must come from its CA and, if pins are configured, hold one of
//! the pinned keys. A pin never replaces the CA, the name or the validity.

use std::sync::Arc;

use certs::{CertError, Facts, Identity, Trust, Versions};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(transparent)]
    Certificates(#[from] CertError),
    #[error("the pin {0:?} is not base64 of 32 bytes; `certs show` prints the right form")]
    Form(String),
}

/// TLS 1.3 towards the network with our client certificate, its CA and its pins.
pub fn client_config(id: &Identity, trust: &Trust, pins: &[String]) -> Result<ClientConfig, PinError> {
    let mut config = certs::client_config(trust, Some(id), Versions::Tls13Only)?;
    if pins.is_empty() {
        return Ok(config);
    }
    let pins = pins.iter().map(|pin| Pin::parse(pin)).collect::<Result<Vec<_>, _>>()?;
    let inner = trust.server_verifier()?;
    config.dangerous().set_certificate_verifier(Arc::new(Pinned { inner, pins }));
    // A resumed session presents no certificate to hold against the pins.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[derive(Debug, PartialEq, Eq)]
struct Pin(String);

impl Pin {
    fn parse(text: &str) -> Result<Pin, PinError> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        match STANDARD.decode(text) {
            Ok(bytes) if bytes.len() == 32 => Ok(Pin(STANDARD.encode(bytes))),
            _ => Err(PinError::Form(text.to_owned())),
        }
    }
}

#[derive(Debug)]
struct Pinned {
    inner: Arc<dyn ServerCertVerifier>,
    pins: Vec<Pin>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let facts = Facts::from_der(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.pins.iter().any(|pin| pin.0 == facts.spki_sha256) {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
