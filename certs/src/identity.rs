use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::read;
use crate::{CertError, Facts, Trust, inspect};

/// Who a process is on the wire: a certificate chain and its private key.
///
/// A value of this type has been checked: the key belongs to the leaf, each certificate issued
/// the one before it, and all were valid when it was loaded. The key is wiped when dropped.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<PrivateKeyDer<'static>>,
    facts: Facts,
    live: Arc<LiveIdentity>,
}

/// Where a service finds its identity and whom it trusts; part of every service's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, unencrypted; mode 0600.
    pub key: PathBuf,
    /// PEM, the CAs that the other side's certificate must come from.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// The same files, relative paths taken from `folder` (that of the configuration file).
    pub fn relative_to(&self, folder: &Path) -> TlsFiles {
        TlsFiles {
            certificate: folder.join(&self.certificate),
            key: folder.join(&self.key),
            ca: folder.join(&self.ca),
        }
    }

    /// Loads and checks all three.
    ///
    /// # Errors
    /// Those of [`Identity::load`] and [`Trust::load`].
    pub fn load(&self) -> Result<(Identity, Trust), CertError> {
        Ok((Identity::load(&self.certificate, &self.key)?, Trust::load(&self.ca)?))
    }
}

impl Identity {
    /// Reads a PEM chain (leaf first) and its PEM key, and checks them.
    ///
    /// # Errors
    /// One [`CertError`] variant for each thing that can be wrong with them.
    pub fn load(chain: &Path, key: &Path) -> Result<Identity, CertError> {
        let chain_pem = read(chain)?;
        let key_pem = Zeroizing::new(read(key)?);
        warn_when_others_may_read(key);
        Identity::check((chain, &chain_pem), (key, &key_pem), OffsetDateTime::now_utc())
    }

    /// The leaf's facts.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The slot that every configuration made from this identity reads at each handshake.
    pub fn live(&self) -> Arc<LiveIdentity> {
        Arc::clone(&self.live)
    }

    fn check(
        (chain_path, chain_pem): (&Path, &[u8]),
        (key_path, key_pem): (&Path, &[u8]),
        now: OffsetDateTime,
    ) -> Result<Identity, CertError> {
        let chain = inspect::certificates(chain_path, chain_pem)?;
        let facts = inspect::facts_of(chain_path, &chain)?;
        let Some(leaf) = facts.first().cloned() else {
            return Err(CertError::NoCertificate { path: chain_path.into() });
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

        let key = inspect::private_key(key_path, key_pem)?
            .ok_or_else(|| CertError::NoKey { path: key_path.into() })?;
        let provider = rustls::crypto::ring::default_provider();
        let certified =
            CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|e| match e {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    CertError::KeyMismatch { certificate: chain_path.into(), key: key_path.into() }
                }
                other => CertError::BadKey { path: key_path.into(), reason: other.to_string() },
            })?;
        let live = Arc::new(LiveIdentity { current: ArcSwap::from_pointee(certified) });
        Ok(Identity { chain, key, facts: leaf, live })
    }
}

/// An identity that can be replaced while connections are being accepted.
///
/// Both sides of TLS ask it at each handshake; connections that are up keep what they have.
#[derive(Debug)]
pub struct LiveIdentity {
    current: ArcSwap<CertifiedKey>,
}

impl LiveIdentity {
    /// From the next handshake on, be `identity`.
    pub fn swap(&self, identity: &Identity) {
        self.current.store(identity.live.current.load_full());
    }
}

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let single = SingleCertAndKey::from(self.current.load_full());
        ResolvesClientCert::resolve(&single, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
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

/// A warning only: orchestrators mount secrets with modes of their own.
fn warn_when_others_may_read(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
        if open {
            tracing::warn!(file = %key.display(), "other users may read this private key; set mode 0600");
        }
    }
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
        let cases: [(&str, String, &str, OffsetDateTime, Is); 10] = [
            ("no certificate", String::new(), key, now, |e| matches!(e, CertError::NoCertificate { .. })),
            ("no key", leaf.into(), leaf, now, |e| matches!(e, CertError::NoKey { .. })),
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
