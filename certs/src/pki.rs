//! The development PKI: four CAs, and an identity for everything that speaks TLS on a laptop.
//!
//! The layout is fixed, so that configurations can name its files. The CA keys lie beside the
//! certificates: this is for development and tests, never for production.

pub mod crl;
pub mod files;
mod leaf;

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::file::{self, Content};
use crate::{CertError, Facts, inspect};
use files::{Readable, write};
pub use leaf::{KeyAlgorithm, Leaf, Purpose};

/// Ten years: a development CA outlives the laptop.
const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(90);
/// Certificates start in the past, for clocks that are behind ours.
const BACKDATED: Duration = Duration::minutes(5);

const CAS: [(&str, &str); 4] = [
    ("internal-ca", "Torana development internal CA"),
    ("edge-ca", "Torana development edge CA"),
    ("network-ca", "Torana development payment network CA"),
    ("partner-ca", "Torana development partner CA"),
];

/// File name, its CA, its purpose and its names. The first name is the subject's common name.
const LEAVES: [(&str, &str, Purpose, &[&str]); 8] = [
    ("edge", "edge-ca", Purpose::Server, &["edge.torana.test", "localhost", "127.0.0.1", "::1"]),
    ("gateway", "internal-ca", Purpose::Both, &["gateway.torana.internal"]),
    ("txn-core", "internal-ca", Purpose::Both, &["txn-core.torana.internal", "localhost", "127.0.0.1"]),
    ("npci-proxy", "internal-ca", Purpose::Both, &["npci-proxy.torana.internal", "localhost", "127.0.0.1"]),
    ("issuer", "internal-ca", Purpose::Both, &["issuer.torana.internal", "localhost", "127.0.0.1"]),
    ("network", "network-ca", Purpose::Both, &["npci.network.test", "localhost", "127.0.0.1"]),
    ("psp", "network-ca", Purpose::Both, &["psp.torana.test", "localhost", "127.0.0.1"]),
    ("partner", "partner-ca", Purpose::Client, &["partner-acme.partner.test"]),
];

/// Makes the PKI in `dir`, creating the folder, and returns the files written, certificates
/// before their keys. Keys have mode 0600. Each CA has a list of what it revoked, which is empty.
///
/// # Errors
/// [`CertError::Exists`], before anything is written, when a file is there and `force` is not
/// given; [`CertError::Unwritable`] and [`CertError::Issue`].
pub fn init(dir: &Path, force: bool) -> Result<Vec<PathBuf>, CertError> {
    let names = CAS.iter().map(|(file, _)| file).chain(LEAVES.iter().map(|(file, ..)| file));
    let taken = names
        .flat_map(|name| ["pem", "key", "crl"].map(|ending| dir.join(format!("{name}.{ending}"))))
        .find(|path| path.exists());
    if let Some(path) = taken
        && !force
    {
        return Err(CertError::Exists { path });
    }
    std::fs::create_dir_all(dir).map_err(|source| CertError::Unwritable { path: dir.into(), source })?;

    let mut written = Vec::new();
    for (ca_file, ca_name) in CAS {
        let ca = Authority::create(ca_name)?;
        let (certificate, key) = (dir.join(format!("{ca_file}.pem")), dir.join(format!("{ca_file}.key")));
        write(&certificate, ca.certificate_pem(), Readable::ByAll)?;
        write(&key, &ca.key_pem(), Readable::ByOwner)?;
        let list = dir.join(format!("{ca_file}.crl"));
        // What another CA revoked means nothing any more.
        let _ = std::fs::remove_file(&list);
        crl::revoke(&list, &ca, &[], crl::Reason::Unspecified, LEAF_LIFETIME)?;
        written.extend([certificate, key, list]);
        for (file, issuer, purpose, names) in LEAVES {
            if issuer != ca_file {
                continue;
            }
            let name = names.first().copied().unwrap_or(file);
            let issued = ca.issue(&Leaf { purpose, ..Leaf::new(name, names) })?;
            written.extend(issued.write(dir, file)?);
        }
    }
    Ok(written)
}

/// A CA whose key is at hand.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    facts: Facts,
    certificate_pem: String,
    /// What follows a leaf in its file: this CA and those above it, without the root. PEM, empty for a root.
    chain_pem: String,
}

/// A certificate and its new private key, as PEM. The key is wiped when dropped.
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl Authority {
    /// A new self-signed CA (ECDSA P-256, ten years) that may issue leaves only.
    ///
    /// # Errors
    /// [`CertError::Issue`].
    pub fn create(name: &str) -> Result<Authority, CertError> {
        let now = OffsetDateTime::now_utc();
        let mut params = params(name, now - BACKDATED, now + CA_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| cannot_issue(name, &e))?;
        let certificate = params.self_signed(&key).map_err(|e| cannot_issue(name, &e))?;
        let facts = Facts::from_der(certificate.der())
            .map_err(|reason| CertError::Issue { name: name.into(), reason })?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
            der: certificate.der().clone(),
            facts,
            certificate_pem: certificate.pem(),
            chain_pem: String::new(),
        })
    }

    /// Reads a CA: the first certificate of a PEM file, and its key. Others that follow it up to a root are given
    /// to every leaf.
    ///
    /// # Errors
    /// What can be wrong with the two files, [`CertError::NotACa`] and [`CertError::KeyMismatch`] among them.
    pub fn load(certificate: &Path, key: &Path) -> Result<Authority, CertError> {
        let pem = file::read(certificate, Content::Public)?;
        let ders = inspect::certificates(certificate, &pem)?;
        let all = inspect::facts_of(certificate, &ders)?;
        let (Some(der), Some(facts)) = (ders.first().cloned(), all.first().cloned()) else {
            return Err(inspect::no_certificate(certificate, &pem));
        };
        if !facts.is_ca {
            return Err(CertError::NotACa { path: certificate.into(), subject: facts.subject });
        }
        crate::identity::valid_at(certificate, &facts, OffsetDateTime::now_utc())?;
        let key_pem = file::read(key, Content::Key)?;
        let key_der = inspect::private_key(key, &key_pem)?.ok_or_else(|| inspect::no_key(key, &key_pem))?;
        let bad = |error: rcgen::Error| CertError::BadKey { path: key.into(), reason: error.to_string() };
        let pair = KeyPair::try_from(key_der.secret_der()).map_err(bad)?;
        if inspect::pin(&rcgen::PublicKeyData::subject_public_key_info(&pair)) != facts.spki_sha256 {
            return Err(CertError::KeyMismatch { certificate: certificate.into(), key: key.into() });
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|e| cannot_issue(&facts.subject, &e))?;
        let mut chain_pem = String::new();
        let mut above = &facts.subject;
        for (der, facts) in ders.iter().zip(&all) {
            // In a bundle of roots what follows is no issuer of the first.
            if facts.subject != *above || facts.issuer == facts.subject {
                break;
            }
            chain_pem += &files::pem("CERTIFICATE", der);
            above = &facts.issuer;
        }
        let certificate_pem = files::pem("CERTIFICATE", &der);
        Ok(Authority { issuer, der, facts, certificate_pem, chain_pem })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether this CA's key signed a certificate.
    pub fn issued(&self, certificate: &[u8]) -> bool {
        inspect::issued_by(certificate, &self.der)
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// # Errors
    /// [`CertError::Issue`], among others for a name that is neither DNS nor IP.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued, CertError> {
        let name = leaf.common_name.as_str();
        let mut params = params(name, leaf.not_before, leaf.not_after)?;
        params.subject_alt_names = leaf.names.iter().map(|san| leaf::san(san)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match leaf.purpose {
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        if leaf.not_after > self.facts.not_after {
            let reason = format!("it would outlive its CA, which ends at {}", self.facts.not_after);
            return Err(CertError::Issue { name: name.into(), reason });
        }
        let key = KeyPair::generate_for(leaf.key.of_rcgen()).map_err(|e| cannot_issue(name, &e))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| cannot_issue(name, &e))?;
        let certificate_pem = certificate.pem() + &self.chain_pem;
        Ok(Issued { certificate_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// For whoever makes a CA: unencrypted PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }
}

impl Issued {
    /// Writes `DIR/NAME.pem` and `DIR/NAME.key` (mode 0600), replacing them whole, and returns
    /// both paths.
    ///
    /// # Errors
    /// [`CertError::Unwritable`].
    pub fn write(&self, dir: &Path, name: &str) -> Result<[PathBuf; 2], CertError> {
        let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        write(&certificate, &self.certificate_pem, Readable::ByAll)?;
        write(&key, &self.key_pem, Readable::ByOwner)?;
        Ok([certificate, key])
    }
}

fn params(
    name: &str,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Result<CertificateParams, CertError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(random_serial(name)?.to_vec()));
    params.not_before = not_before;
    params.not_after = not_after;
    Ok(params)
}

/// Connection pools tell client certificates apart by serial: it is random, never derived from
/// the key, so that a certificate renewed with the same key is another one.
fn random_serial(name: &str) -> Result<[u8; 16], CertError> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    let mut serial =
        random.map_err(|_| CertError::Issue { name: name.into(), reason: "no randomness".into() })?.expose();
    // Positive and of full length in DER (RFC 5280 section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn cannot_issue(name: &str, error: &rcgen::Error) -> CertError {
    CertError::Issue { name: name.to_owned(), reason: error.to_string() }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, San, Trust};

    #[test]
    fn everything_made_can_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let written = init(dir.path(), false).unwrap();
        assert_eq!(written.len(), 3 * CAS.len() + 2 * LEAVES.len());

        for (ca, _) in CAS {
            Trust::load(&dir.path().join(format!("{ca}.pem"))).unwrap();
        }
        for (file, _, _, names) in LEAVES {
            let pem = dir.path().join(format!("{file}.pem"));
            let identity = Identity::load(&pem, &pem.with_extension("key")).unwrap();
            let shown: Vec<String> = identity
                .facts()
                .sans
                .iter()
                .map(|san| match san {
                    San::Dns(dns) => dns.clone(),
                    San::Ip(ip) => ip.to_string(),
                    other => panic!("{other}"),
                })
                .collect();
            assert_eq!(shown, names, "{file}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for path in init(dir.path(), false).unwrap() {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let is_key = path.extension().is_some_and(|extension| extension == "key");
            assert_eq!(mode == 0o600, is_key, "{}", path.display());
        }
    }

    #[test]
    fn nothing_is_replaced_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let psp = dir.path().join("psp.key");
        std::fs::write(&psp, "mine").unwrap();
        assert!(matches!(init(dir.path(), false), Err(CertError::Exists { path }) if path == psp));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else was written");
        init(dir.path(), true).unwrap();
        assert_ne!(std::fs::read(&psp).unwrap(), b"mine");
    }
}
