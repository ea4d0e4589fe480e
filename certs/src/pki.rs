//! The development PKI: four CAs, and an identity for everything that speaks TLS on a laptop.
//!
//! The layout is fixed, so that configurations can name its files. The CA keys lie beside the
//! certificates: this is for development and tests, never for production.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::CertError;

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
/// before their keys. Keys have mode 0600.
///
/// # Errors
/// [`CertError::Exists`], before anything is written, when a file is there and `force` is not
/// given; [`CertError::Unwritable`] and [`CertError::Issue`].
pub fn init(dir: &Path, force: bool) -> Result<Vec<PathBuf>, CertError> {
    let names = CAS.iter().map(|(file, _)| file).chain(LEAVES.iter().map(|(file, ..)| file));
    let taken = names
        .flat_map(|name| [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))])
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
        written.extend([certificate, key]);
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
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate_pem: String,
}

/// What to put into a certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub common_name: String,
    /// DNS names and IP addresses, in plain text.
    pub names: Vec<String>,
    pub purpose: Purpose,
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

/// A certificate and its new private key, as PEM. The key is wiped when dropped.
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl Leaf {
    /// Both purposes, valid from a little before now for 90 days.
    pub fn new(common_name: &str, names: &[&str]) -> Leaf {
        let now = OffsetDateTime::now_utc();
        Leaf {
            common_name: common_name.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            purpose: Purpose::Both,
            not_before: now - BACKDATED,
            not_after: now + LEAF_LIFETIME,
        }
    }
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
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(|e| cannot_issue(name, &e))?;
        let certificate_pem = issuer.pem();
        Ok(Authority { issuer, certificate_pem })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// # Errors
    /// [`CertError::Issue`], among others for a name that is neither DNS nor IP.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued, CertError> {
        let name = leaf.common_name.as_str();
        let mut params = params(name, leaf.not_before, leaf.not_after)?;
        params.subject_alt_names = leaf
            .names
            .iter()
            .map(|san| match san.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => san.as_str().try_into().map(SanType::DnsName).map_err(|e| cannot_issue(san, &e)),
            })
            .collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match leaf.purpose {
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| cannot_issue(name, &e))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| cannot_issue(name, &e))?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    fn key_pem(&self) -> Zeroizing<String> {
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

#[derive(Clone, Copy)]
enum Readable {
    ByAll,
    ByOwner,
}

/// Through a temporary name, so that a reader never sees half a file and a key is never, not
/// even for a moment, readable by others.
fn write(path: &Path, text: &str, readable: Readable) -> Result<(), CertError> {
    let unwritable = |source| CertError::Unwritable { path: path.into(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let partial = path.with_file_name(name);
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(unwritable(e)),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(match readable {
            Readable::ByAll => 0o644,
            Readable::ByOwner => 0o600,
        });
    }
    let mut file = options.open(&partial).map_err(unwritable)?;
    file.write_all(text.as_bytes()).map_err(unwritable)?;
    std::fs::rename(&partial, path).map_err(unwritable)
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
        assert_eq!(written.len(), 2 * (CAS.len() + LEAVES.len()));

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
