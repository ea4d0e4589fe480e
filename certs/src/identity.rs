use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::InconsistentKeys;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::file::{self, Content};
use crate::inspect::Holds;
use crate::pki::{Purpose, files};
use crate::set::{Bytes, Subject};
use crate::tls::provider;
use crate::{CertError, Facts, San, Set, Trust, inspect};

/// Who a process is on the wire: a certificate chain and its private key.
///
/// A value of this type has been checked: the key belongs to the leaf, each certificate issued
/// the one before it, and all were valid when it was loaded. The key is wiped when dropped.
pub struct Identity {
    certified: Arc<CertifiedKey>,
    key: Zeroizing<PrivateKeyDer<'static>>,
    facts: Facts,
    /// Whether it came from the CAs that are trusted beside it, when it was accepted.
    is_anchored: bool,
}

/// Where an identity is found.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, unencrypted.
    pub key: PathBuf,
}

/// What a new identity must be, besides sound, to replace another.
#[derive(Debug, Clone)]
pub struct Must {
    pub purpose: Purpose,
    /// Names that it must bear; none given: those of the one before it. A wildcard bears what it covers.
    pub names: Vec<String>,
    pub issuer: Issuer,
    pub reader: Reader,
}

/// Who is to use the private key: not everybody can use every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// This process, or another with the same library.
    Ours,
    /// No Ed25519.
    Envoy,
}

/// Where an identity must come from.
#[derive(Debug, Clone)]
pub enum Issuer {
    /// From wherever: only its readers know whom they believe.
    Any,
    /// From one of these CAs.
    OneOf(Set<Trust>),
    /// From one of these CAs, which are there to verify the other side, if the one before it did. Both sides of our
    /// own connections have the same CAs; a partner's server and its clients need not.
    AsBefore(Set<Trust>),
}

impl Identity {
    /// Reads a PEM chain (leaf first) and its PEM key, and checks them.
    ///
    /// # Errors
    /// One [`CertError`] variant for each thing that can be wrong with them.
    pub fn load(chain: &Path, key: &Path) -> Result<Identity, CertError> {
        let chain_pem = file::read(chain, Content::Public)?;
        let key_pem = file::read(key, Content::Key)?;
        Identity::check((chain, &chain_pem), (key, &key_pem), OffsetDateTime::now_utc())
    }

    /// The leaf's facts.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The chain as PEM, for processes that want files.
    pub fn chain_pem(&self) -> String {
        self.chain().iter().map(|der| files::pem("CERTIFICATE", der)).collect()
    }

    /// The key likewise.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = match &*self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            // There is no other kind that could be loaded.
            _ => "PRIVATE KEY",
        };
        Zeroizing::new(files::pem(label, self.key.secret_der()))
    }

    /// Both as `rustls` signs with them.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// What either side of TLS presents.
    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(self.certified()))
    }

    /// What a watched chain and key amount to.
    pub(crate) fn accept(
        must: &Must,
        files: &[Bytes],
        before: Option<&Identity>,
        now: OffsetDateTime,
    ) -> Result<Identity, CertError> {
        let [chain, key] = files else { return Err(CertError::NoCertificate { path: PathBuf::new() }) };
        let mut identity = Identity::check(chain.named(), key.named(), now)?;
        let path = &chain.path;
        identity.serves_as(path, must.purpose)?;
        let is_ed25519 = identity.certified.key.algorithm() == rustls::SignatureAlgorithm::ED25519;
        match must.reader {
            Reader::Envoy if is_ed25519 => return Err(CertError::NotForEnvoy { path: key.path.clone() }),
            Reader::Envoy | Reader::Ours => {}
        }
        let required = if must.names.is_empty() {
            before.map(|before| before.facts.sans.clone()).unwrap_or_default()
        } else {
            must.names.iter().map(|name| San::of_text(name)).collect()
        };
        if let Some(missing) = required.iter().find(|name| !identity.facts.covers(name)) {
            return Err(CertError::NameMissing {
                path: path.clone(),
                subject: identity.facts.subject,
                name: missing.to_string(),
            });
        }
        let is_issued = match &must.issuer {
            Issuer::Any => return Ok(identity),
            Issuer::OneOf(trust) | Issuer::AsBefore(trust) => trust.current().issued(&identity, now),
        };
        let needed = match &must.issuer {
            Issuer::AsBefore(_) => before.is_some_and(|before| before.is_anchored),
            Issuer::Any | Issuer::OneOf(_) => true,
        };
        if needed && !is_issued {
            return Err(CertError::Untrusted { path: path.clone(), subject: identity.facts.subject });
        }
        identity.is_anchored = is_issued;
        Ok(identity)
    }

    /// Without extended key usages a certificate is for everything (RFC 5280 section 4.2.1.12).
    fn serves_as(&self, path: &Path, purpose: Purpose) -> Result<(), CertError> {
        let leaf = self.chain().first().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
        let usages = leaf.as_ref().and_then(|(_, leaf)| leaf.extended_key_usage().ok().flatten());
        let Some(usages) = usages.map(|extension| extension.value) else { return Ok(()) };
        let (server, client) = (usages.any || usages.server_auth, usages.any || usages.client_auth);
        let purpose = match purpose {
            Purpose::Server | Purpose::Both if !server => "TLS servers",
            Purpose::Client | Purpose::Both if !client => "TLS clients",
            Purpose::Server | Purpose::Client | Purpose::Both => return Ok(()),
        };
        Err(CertError::WrongPurpose { path: path.into(), subject: self.facts.subject.clone(), purpose })
    }

    fn check(
        (chain_path, chain_pem): (&Path, &[u8]),
        (key_path, key_pem): (&Path, &[u8]),
        now: OffsetDateTime,
    ) -> Result<Identity, CertError> {
        if (Holds::of(chain_pem), Holds::of(key_pem)) == (Holds::Key, Holds::Certificates) {
            return Err(CertError::Swapped { certificate: chain_path.into(), key: key_path.into() });
        }
        let chain = inspect::certificates(chain_path, chain_pem)?;
        let facts = inspect::facts_of(chain_path, &chain)?;
        let Some(leaf) = facts.first().cloned() else {
            return Err(inspect::no_certificate(chain_path, chain_pem));
        };
        if leaf.is_ca {
            return Err(CertError::LeafIsCa { path: chain_path.into(), subject: leaf.subject });
        }
        for (index, (pair, facts)) in chain.windows(2).zip(facts.windows(2)).enumerate() {
            let ([child, issuer], [child_facts, issuer_facts]) = (pair, facts) else { continue };
            if !inspect::issued_by(child, issuer) {
                return Err(CertError::BrokenChain {
                    path: chain_path.into(),
                    position: index + 2,
                    subject: issuer_facts.subject.clone(),
                    issuer: child_facts.issuer.clone(),
                });
            }
        }
        for one in &facts {
            valid_at(chain_path, one, now)?;
        }

        let key =
            inspect::private_key(key_path, key_pem)?.ok_or_else(|| inspect::no_key(key_path, key_pem))?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertError::KeyMismatch { certificate: chain_path.into(), key: key_path.into() }
            }
            rustls::Error::General(_) => CertError::BadKey {
                path: key_path.into(),
                reason: "it is of no such kind, or damaged".into(),
            },
            other => CertError::BadKey { path: key_path.into(), reason: other.to_string() },
        })?;
        Ok(Identity { certified: Arc::new(certified), key, facts: leaf, is_anchored: false })
    }
}

impl Subject for Identity {
    fn summary(&self) -> String {
        format!("{}, serial {}", self.facts.subject, self.facts.serial_hex)
    }

    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)> {
        vec![("certificate", self.facts.not_after)]
    }
}

/// # Errors
/// [`CertError::NotYetValid`] or [`CertError::Expired`].
pub(crate) fn valid_at(path: &Path, facts: &Facts, now: OffsetDateTime) -> Result<(), CertError> {
    if now < facts.not_before {
        return Err(CertError::NotYetValid {
            path: path.into(),
            subject: facts.subject.clone(),
            not_before: facts.not_before,
        });
    }
    if now > facts.not_after {
        return Err(CertError::Expired {
            path: path.into(),
            subject: facts.subject.clone(),
            not_after: facts.not_after,
        });
    }
    Ok(())
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("facts", &self.facts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Leaf};
    use time::Duration;

    fn check(chain: &str, key: &str, now: OffsetDateTime) -> Result<Identity, CertError> {
        Identity::check(
            (Path::new("chain.pem"), chain.as_bytes()),
            (Path::new("key.pem"), key.as_bytes()),
            now,
        )
    }

    #[test]
    fn each_defect_has_its_own_name() {
        let now = OffsetDateTime::now_utc();
        let ca = Authority::create("one").unwrap();
        let other = Authority::create("two").unwrap();
        // The same name, another key: only the signature tells them apart.
        let impostor = Authority::create("one").unwrap();
        let good = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let second = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let leaf = good.certificate_pem.as_str();
        let key = good.key_pem.as_str();
        let with = |ca: &Authority| format!("{leaf}{}", ca.certificate_pem());
        let later = now + Duration::days(91);
        let earlier = now - Duration::days(1);
        let broken_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

        assert!(check(leaf, key, now).is_ok());
        assert!(check(&with(&ca), key, now).is_ok());
        type Is = fn(&CertError) -> bool;
        let cases: [(&str, String, &str, OffsetDateTime, Is); 13] = [
            ("no certificate", String::new(), key, now, |e| matches!(e, CertError::NoCertificate { .. })),
            ("no key", leaf.into(), "", now, |e| matches!(e, CertError::NoKey { .. })),
            ("two certificates", leaf.into(), leaf, now, |e| {
                matches!(e, CertError::CertificateForKey { .. })
            }),
            ("two keys", key.into(), key, now, |e| matches!(e, CertError::KeyForCertificate { .. })),
            ("swapped", key.into(), leaf, now, |e| matches!(e, CertError::Swapped { .. })),
            ("bad key", leaf.into(), broken_key, now, |e| matches!(e, CertError::BadKey { .. })),
            ("other key", leaf.into(), &second.key_pem, now, |e| matches!(e, CertError::KeyMismatch { .. })),
            ("other CA", with(&other), key, now, |e| matches!(e, CertError::BrokenChain { position: 2, .. })),
            ("impostor", with(&impostor), key, now, |e| matches!(e, CertError::BrokenChain { .. })),
            ("not a CA", format!("{leaf}{}", second.certificate_pem), key, now, |e| {
                matches!(e, CertError::BrokenChain { .. })
            }),
            ("CA first", ca.certificate_pem().into(), key, now, |e| matches!(e, CertError::LeafIsCa { .. })),
            ("expired", leaf.into(), key, later, |e| matches!(e, CertError::Expired { .. })),
            ("too early", leaf.into(), key, earlier, |e| matches!(e, CertError::NotYetValid { .. })),
        ];
        for (name, chain, key, now, is) in cases {
            let error = check(&chain, key, now).unwrap_err();
            assert!(is(&error), "{name}: {error:?}");
            let text = error.to_string();
            assert!(text.contains("chain.pem") || text.contains("key.pem"), "{name}: {text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Identity::load(Path::new("/nowhere/a.pem"), Path::new("/nowhere/a.key")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.pem"), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let ca = Authority::create("one").unwrap();
        let leaf = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let identity = check(&leaf.certificate_pem, &leaf.key_pem, OffsetDateTime::now_utc()).unwrap();
        let shown = format!("{identity:?}");
        assert!(shown.contains("CN=svc") && !shown.contains("key"), "{shown}");
    }
}
