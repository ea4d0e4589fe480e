//! What goes into a leaf, and what went into one that is to be renewed.

use std::net::IpAddr;

use rcgen::SanType;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::X509Certificate;

use super::{BACKDATED, LEAF_LIFETIME};
use crate::{CertError, Facts, San};

/// What to put into a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub common_name: String,
    /// DNS names, IP addresses, URIs and email addresses, in plain text. What cannot be told apart by its looks says
    /// what it is: `uri:urn:torana:acme`.
    pub names: Vec<String>,
    pub purpose: Purpose,
    pub key: KeyAlgorithm,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// Which side of a connection a certificate may speak for (RFC 5280 section 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Server,
    Client,
    Both,
}

/// What a new key is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    EcdsaP256,
    EcdsaP384,
    Ed25519,
}

impl KeyAlgorithm {
    pub(super) fn of_rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            KeyAlgorithm::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyAlgorithm::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyAlgorithm::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

impl Leaf {
    /// Both purposes, ECDSA P-256, valid from a little before now for 90 days.
    pub fn new(common_name: &str, names: &[&str]) -> Leaf {
        let now = OffsetDateTime::now_utc();
        Leaf {
            common_name: common_name.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            purpose: Purpose::Both,
            key: KeyAlgorithm::EcdsaP256,
            not_before: now - BACKDATED,
            not_after: now + LEAF_LIFETIME,
        }
    }

    /// The same names, purpose, kind of key and lifetime as a certificate has, from now on.
    ///
    /// # Errors
    /// [`CertError::Issue`] for a certificate that says something that would be lost.
    pub fn like(certificate: &[u8], now: OffsetDateTime) -> Result<Leaf, CertError> {
        let lost = |name: &str, reason: String| CertError::Issue { name: name.into(), reason };
        let facts = Facts::from_der(certificate).map_err(|reason| lost("a certificate", reason))?;
        let subject = facts.subject.as_str();
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|e| lost(subject, e.to_string()))?;
        let mut attributes = parsed.subject().iter_attributes();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let (Some(common_name), Some(_), None) = (common_name, attributes.next(), attributes.next()) else {
            let reason = "its subject is more than a common name; let its own CA renew it, then `certs wait`";
            return Err(lost(subject, reason.into()));
        };
        let names = facts.sans.iter().map(|san| match san {
            San::Dns(name) => Ok(format!("dns:{name}")),
            San::Ip(ip) => Ok(format!("ip:{ip}")),
            San::Uri(uri) => Ok(format!("uri:{uri}")),
            San::Email(address) => Ok(format!("email:{address}")),
            San::Other(other) => {
                Err(lost(subject, format!("its name {other} is of a kind that is not issued here")))
            }
        });
        Ok(Leaf {
            common_name: common_name.to_owned(),
            names: names.collect::<Result<_, _>>()?,
            purpose: purpose(&parsed).map_err(|reason| lost(subject, reason))?,
            key: key(&parsed),
            not_before: now - BACKDATED,
            not_after: now + lifetime(&facts),
        })
    }
}

/// Without the time that it was backdated by.
fn lifetime(facts: &Facts) -> Duration {
    let whole = facts.not_after - facts.not_before;
    if whole > BACKDATED * 2 { whole - BACKDATED } else { whole }
}

fn purpose(parsed: &X509Certificate<'_>) -> Result<Purpose, String> {
    let usage = parsed.extended_key_usage().map_err(|e| e.to_string())?;
    match usage.map(|usage| (usage.value.server_auth, usage.value.client_auth)) {
        Some((true, true)) => Ok(Purpose::Both),
        Some((true, false)) => Ok(Purpose::Server),
        Some((false, true)) => Ok(Purpose::Client),
        Some((false, false)) | None => Err("it is neither for servers nor for clients".into()),
    }
}

/// As the certificate's own key, ECDSA P-256 in the place of RSA, which is not made here.
fn key(parsed: &X509Certificate<'_>) -> KeyAlgorithm {
    let algorithm = &parsed.public_key().algorithm;
    if algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519 {
        return KeyAlgorithm::Ed25519;
    }
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if curve == Some(x509_parser::oid_registry::OID_NIST_EC_P384) {
        KeyAlgorithm::EcdsaP384
    } else {
        KeyAlgorithm::EcdsaP256
    }
}

/// A name in plain text as a certificate has it.
pub(super) fn san(text: &str) -> Result<SanType, CertError> {
    let wrong = |reason: &str| CertError::Issue { name: text.into(), reason: reason.into() };
    let (kind, rest) = match text.split_once(':') {
        Some((kind @ ("dns" | "ip" | "uri" | "email"), rest)) => (kind, rest),
        _ if text.parse::<IpAddr>().is_ok() => ("ip", text),
        _ if text.contains("://") => ("uri", text),
        _ if text.contains('@') => ("email", text),
        _ => ("dns", text),
    };
    let ascii = || rest.try_into().map_err(|_| wrong("a name is ASCII; write IDNs as xn--"));
    match kind {
        "ip" => rest.parse().map(SanType::IpAddress).map_err(|_| wrong("it is no IP address")),
        "uri"
            if rest.split_once(':').is_some_and(|(scheme, path)| !scheme.is_empty() && !path.is_empty()) =>
        {
            Ok(SanType::URI(ascii()?))
        }
        "uri" => Err(wrong("a URI begins with a scheme, as spiffe://torana/edge does")),
        "email" if rest.split_once('@').is_some_and(|(user, host)| !user.is_empty() && is_dns(host)) => {
            Ok(SanType::Rfc822Name(ascii()?))
        }
        "email" => Err(wrong("an email address is USER@HOST")),
        _ if is_dns(rest.strip_prefix("*.").unwrap_or(rest)) => Ok(SanType::DnsName(ascii()?)),
        _ => Err(wrong("it is no DNS name")),
    }
}

fn is_dns(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect_pem;
    use crate::pki::Authority;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    #[test]
    fn names_are_what_they_look_like() {
        let cases = [
            ("svc.test", Some("DNS:svc.test")),
            ("*.svc.test", Some("DNS:*.svc.test")),
            ("10.0.0.1", Some("IP:10.0.0.1")),
            ("::1", Some("IP:::1")),
            ("spiffe://torana/edge", Some("URI:spiffe://torana/edge")),
            ("uri:urn:torana:acme", Some("URI:urn:torana:acme")),
            ("ops@bank.test", Some("email:ops@bank.test")),
            ("dns:localhost", Some("DNS:localhost")),
            ("", None),
            ("a..b", None),
            ("*.*.test", None),
            ("svc test", None),
            ("-a.test", None),
            ("bücher.test", None),
            ("ip:svc", None),
            ("uri:nothing", None),
            ("email:@bank.test", None),
        ];
        let ca = Authority::create("ca").unwrap();
        for (name, expected) in cases {
            let issued = ca.issue(&Leaf::new("svc", &[name])).ok();
            let told = issued
                .map(|issued| inspect_pem(issued.certificate_pem.as_bytes()).unwrap()[0].sans[0].to_string());
            assert_eq!(told.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_renewed_certificate_says_the_same() {
        let ca = Authority::create("ca").unwrap();
        let now = OffsetDateTime::from_unix_timestamp(OffsetDateTime::now_utc().unix_timestamp()).unwrap();
        let names = ["dns:svc.test", "ip:::1", "uri:spiffe://torana/svc", "email:ops@bank.test"];
        for (purpose, key, days) in [
            (Purpose::Server, KeyAlgorithm::EcdsaP256, 30),
            (Purpose::Client, KeyAlgorithm::EcdsaP384, 1),
            (Purpose::Both, KeyAlgorithm::Ed25519, 397),
        ] {
            let leaf = Leaf {
                purpose,
                key,
                not_before: now - BACKDATED,
                not_after: now + Duration::days(days),
                ..Leaf::new("svc", &names)
            };
            let issued = ca.issue(&leaf).unwrap();
            let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
            assert_eq!(Leaf::like(&der, now).unwrap(), leaf);
        }
    }

    #[test]
    fn no_leaf_outlives_its_ca() {
        let ca = Authority::create("ca").unwrap();
        let leaf =
            Leaf { not_after: OffsetDateTime::now_utc() + Duration::days(3651), ..Leaf::new("a", &["a"]) };
        assert!(ca.issue(&leaf).unwrap_err().to_string().contains("outlive"));
    }
}
