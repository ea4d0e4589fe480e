use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::prelude::{GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::CertError;

/// What a certificate says about itself. Parsed, not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    pub sans: Vec<San>,
    /// Serial number, lower-case hexadecimal without separators.
    pub serial_hex: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Base64 of the SHA-256 of the SubjectPublicKeyInfo: the pin of RFC 7469 section 2.4.
    pub spki_sha256: String,
    pub is_ca: bool,
}

/// A subject alternative name (RFC 5280 section 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "lowercase")]
pub enum San {
    Dns(String),
    Ip(IpAddr),
    Uri(String),
    Email(String),
    /// A kind that Torana gives no meaning to, as the parser prints it.
    Other(String),
}

/// What can be told about a private key without showing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyFacts {
    pub algorithm: String,
    /// The pin of the public half: equal to [`Facts::spki_sha256`] of the certificate it belongs to.
    pub spki_sha256: String,
}

impl Facts {
    /// Reads one DER certificate.
    ///
    /// # Errors
    /// A text that says what the parser did not understand.
    pub fn from_der(der: &[u8]) -> Result<Facts, String> {
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(der).map_err(|_| "its section holds something else")?;
        if !rest.is_empty() {
            return Err(format!("{} bytes follow the certificate", rest.len()));
        }
        let sans = match parsed.subject_alternative_name().map_err(|_| "its names cannot be read")? {
            Some(extension) => extension.value.general_names.iter().map(San::from).collect(),
            None => Vec::new(),
        };
        Ok(Facts {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            sans,
            serial_hex: hex(parsed.raw_serial()),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            spki_sha256: pin(parsed.public_key().raw),
            is_ca: parsed.is_ca(),
        })
    }

    /// Whether `name` is among the DNS names, compared as DNS does (case-insensitively) and
    /// without wildcards: an identity is one name, not a family of them.
    pub fn has_dns(&self, name: &str) -> bool {
        self.sans.iter().any(|san| matches!(san, San::Dns(dns) if dns.eq_ignore_ascii_case(name)))
    }

    /// Whether it bears a name, or a wildcard that covers it (RFC 6125 section 6.4.3: one label, the left-most).
    pub fn covers(&self, name: &San) -> bool {
        self.sans.iter().any(|san| match (san, name) {
            (San::Dns(held), San::Dns(name)) => {
                held.eq_ignore_ascii_case(name)
                    || held
                        .strip_prefix("*.")
                        .zip(name.split_once('.'))
                        .is_some_and(|(held, (label, name))| label != "*" && held.eq_ignore_ascii_case(name))
            }
            (held, name) => held == name,
        })
    }

    /// Whole days until the end of validity; negative once expired.
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_days()
    }
}

/// Facts about every certificate in a PEM text, in its order.
///
/// # Errors
/// [`CertError::NoCertificate`], [`CertError::BadPem`] or [`CertError::BadCertificate`], with the
/// file called `input`; the caller knows its name.
pub fn inspect_pem(pem: &[u8]) -> Result<Vec<Facts>, CertError> {
    let path = Path::new("input");
    let ders = certificates(path, pem)?;
    if ders.is_empty() {
        return Err(CertError::NoCertificate { path: path.into() });
    }
    facts_of(path, &ders)
}

/// What can be told about the private key in a PEM text, `None` when there is none.
///
/// # Errors
/// [`CertError::BadPem`] or [`CertError::BadKey`], with the file called `input`.
pub fn inspect_key_pem(pem: &[u8]) -> Result<Option<KeyFacts>, CertError> {
    let path = Path::new("input");
    let Some(der) = private_key(path, pem)? else { return Ok(None) };
    let bad = |reason: String| CertError::BadKey { path: path.into(), reason };
    let signer = rustls::crypto::ring::sign::any_supported_type(&der)
        .map_err(|_| bad("it is of no such kind, or damaged".into()))?;
    let spki = signer.public_key().ok_or_else(|| bad("its public half cannot be derived".into()))?;
    let algorithm = match signer.algorithm() {
        rustls::SignatureAlgorithm::RSA => "RSA",
        rustls::SignatureAlgorithm::ECDSA => "ECDSA",
        rustls::SignatureAlgorithm::ED25519 => "Ed25519",
        _ => "other",
    };
    Ok(Some(KeyFacts { algorithm: algorithm.into(), spki_sha256: pin(&spki) }))
}

pub(crate) fn facts_of(path: &Path, ders: &[CertificateDer<'_>]) -> Result<Vec<Facts>, CertError> {
    ders.iter()
        .enumerate()
        .map(|(index, der)| {
            Facts::from_der(der).map_err(|reason| CertError::BadCertificate {
                path: path.into(),
                position: index + 1,
                reason,
            })
        })
        .collect()
}

/// What a PEM text is for, by the labels of its sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Certificates, and no private key.
    Certificates,
    /// A private key, and no certificate.
    Key,
    /// Both, or neither.
    Other,
}

impl Holds {
    pub(crate) fn of(pem: &[u8]) -> Holds {
        let begins = |label: &[u8]| {
            pem.split(|byte| *byte == b'\n').any(|line| {
                let line = line.trim_ascii();
                line.starts_with(b"-----BEGIN ") && line.ends_with(label)
            })
        };
        match (begins(b"CERTIFICATE-----"), begins(b"PRIVATE KEY-----")) {
            (true, false) => Holds::Certificates,
            (false, true) => Holds::Key,
            (true, true) | (false, false) => Holds::Other,
        }
    }
}

/// Why a file without a certificate cannot be used.
pub(crate) fn no_certificate(path: &Path, pem: &[u8]) -> CertError {
    match Holds::of(pem) {
        Holds::Key => CertError::KeyForCertificate { path: path.into() },
        Holds::Certificates | Holds::Other => CertError::NoCertificate { path: path.into() },
    }
}

/// Why a file without a private key cannot be used.
pub(crate) fn no_key(path: &Path, pem: &[u8]) -> CertError {
    match Holds::of(pem) {
        Holds::Certificates => CertError::CertificateForKey { path: path.into() },
        Holds::Key | Holds::Other => CertError::NoKey { path: path.into() },
    }
}

/// The certificates of a PEM text; other sections are passed over.
pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertError> {
    CertificateDer::pem_slice_iter(pem).map(|item| item.map_err(|e| bad_pem(path, &e))).collect()
}

/// The first private key of a PEM text, wiped from memory when dropped.
pub(crate) fn private_key(
    path: &Path,
    pem: &[u8],
) -> Result<Option<Zeroizing<PrivateKeyDer<'static>>>, CertError> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem);
    for section in sections {
        let (kind, der) = section.map_err(|e| bad_pem(path, &e))?;
        let der = Zeroizing::new(der);
        if let Some(key) = PrivateKeyDer::from_pem(kind, der.to_vec()) {
            return Ok(Some(Zeroizing::new(key)));
        }
    }
    let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    if pem.windows(encrypted.len()).any(|window| window == encrypted) {
        return Err(CertError::EncryptedKey { path: path.into() });
    }
    Ok(None)
}

/// Whether `child` carries a signature that `issuer`'s key made, and names it as its issuer.
pub(crate) fn issued_by(child: &[u8], issuer: &[u8]) -> bool {
    let (Ok((_, child)), Ok((_, issuer))) =
        (x509_parser::parse_x509_certificate(child), x509_parser::parse_x509_certificate(issuer))
    else {
        return false;
    };
    links(&child, &issuer)
}

fn links(child: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    child.issuer().as_raw() == issuer.subject().as_raw()
        && issuer.is_ca()
        && child.verify_signature(Some(issuer.public_key())).is_ok()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn pin(spki_der: &[u8]) -> String {
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, spki_der))
}

/// The parser quotes the line it stumbled over; in a key file that line may be key material.
pub(crate) fn bad_pem(path: &Path, error: &rustls_pki_types::pem::Error) -> CertError {
    use rustls_pki_types::pem::Error;
    let reason = match error {
        Error::MissingSectionEnd { .. } => "a section has no END line",
        Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
        Error::Base64Decode(_) => "a section is not base64",
        Error::SectionTooLarge => "a section is too large",
        _ => "it cannot be read",
    };
    CertError::BadPem { path: path.into(), reason: reason.into() }
}

impl San {
    /// An IP address, or else a DNS name.
    pub fn of_text(text: &str) -> San {
        text.parse().map_or_else(|_| San::Dns(text.to_owned()), San::Ip)
    }
}

impl From<&GeneralName<'_>> for San {
    fn from(name: &GeneralName<'_>) -> San {
        match name {
            GeneralName::DNSName(dns) => San::Dns((*dns).to_owned()),
            GeneralName::URI(uri) => San::Uri((*uri).to_owned()),
            GeneralName::RFC822Name(email) => San::Email((*email).to_owned()),
            GeneralName::IPAddress(octets) => {
                let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
                let ip = v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
                ip.map_or_else(|_| San::Other(name.to_string()), San::Ip)
            }
            other => San::Other(other.to_string()),
        }
    }
}

impl std::fmt::Display for San {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            San::Dns(dns) => write!(f, "DNS:{dns}"),
            San::Ip(ip) => write!(f, "IP:{ip}"),
            San::Uri(uri) => write!(f, "URI:{uri}"),
            San::Email(email) => write!(f, "email:{email}"),
            San::Other(other) => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Leaf};

    #[test]
    fn every_certificate_of_a_bundle_is_told() {
        let ca = Authority::create("Torana test CA").unwrap();
        let leaf = ca.issue(&Leaf::new("svc", &["svc.test", "127.0.0.1", "::1"])).unwrap();
        let bundle = format!("{}{}", leaf.certificate_pem, ca.certificate_pem());

        let facts = inspect_pem(bundle.as_bytes()).unwrap();

        let [leaf_facts, ca_facts] = facts.as_slice() else { panic!("two certificates, got {facts:?}") };
        assert_eq!(leaf_facts.issuer, ca_facts.subject);
        assert!(!leaf_facts.is_ca && ca_facts.is_ca);
        assert!(leaf_facts.has_dns("SVC.test") && !leaf_facts.has_dns("vc.test"));
        assert_eq!(
            leaf_facts.sans,
            [
                San::Dns("svc.test".into()),
                San::Ip("127.0.0.1".parse().unwrap()),
                San::Ip("::1".parse().unwrap())
            ]
        );
        assert_eq!(leaf_facts.days_left(OffsetDateTime::now_utc()), 89);
        let key = inspect_key_pem(leaf.key_pem.as_bytes()).unwrap().unwrap();
        assert_eq!(key, KeyFacts { algorithm: "ECDSA".into(), spki_sha256: leaf_facts.spki_sha256.clone() });
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let ca = Authority::create("one").unwrap();
        let leaf = ca.issue(&Leaf::new("svc", &["*.svc.test", "other.test", "127.0.0.1"])).unwrap();
        let facts = inspect_pem(leaf.certificate_pem.as_bytes()).unwrap().remove(0);
        for (name, covered) in [
            ("a.SVC.test", true),
            ("*.svc.test", true),
            ("svc.test", false),
            ("a.b.svc.test", false),
            ("Other.test", true),
            ("a.other.test", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
        ] {
            assert_eq!(facts.covers(&San::of_text(name)), covered, "{name}");
        }
    }

    #[test]
    fn nonsense_is_an_error_and_never_quoted() {
        for (pem, says) in [
            ("", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "no END line"),
            ("-----BEGIN CERTIFICATE-----\n!!secret!!\n-----END CERTIFICATE-----\n", "not base64"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        ] {
            let error = inspect_pem(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert!(matches!(inspect_key_pem(encrypted.as_bytes()), Err(CertError::EncryptedKey { .. })));
        assert!(matches!(inspect_key_pem(b""), Ok(None)));
    }
}
