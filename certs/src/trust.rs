use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::error::read;
use crate::identity::valid_at;
use crate::{CertError, inspect};

/// Whose certificates are believed: the CAs of one PEM file.
#[derive(Debug, Clone)]
pub struct Trust {
    ders: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl Trust {
    /// Reads a PEM bundle of CAs.
    ///
    /// TLS libraries ignore the dates of a root, so they are checked here: an expired root is
    /// left out with a warning as long as another one is valid.
    ///
    /// # Errors
    /// The file cannot be read or parsed, holds a certificate that is not a CA, or none that is
    /// valid now.
    pub fn load(pem: &Path) -> Result<Trust, CertError> {
        Trust::check(pem, &read(pem)?, OffsetDateTime::now_utc())
    }

    /// What `rustls` verifiers take.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// The CAs themselves, in the file's order.
    pub fn ders(&self) -> &[CertificateDer<'static>] {
        &self.ders
    }

    fn check(path: &Path, pem: &[u8], now: OffsetDateTime) -> Result<Trust, CertError> {
        let all = inspect::certificates(path, pem)?;
        let facts = inspect::facts_of(path, &all)?;
        let mut roots = RootCertStore::empty();
        let mut ders = Vec::new();
        let mut first_defect = None;
        for (index, (der, facts)) in all.into_iter().zip(&facts).enumerate() {
            if !facts.is_ca {
                return Err(CertError::NotACa { path: path.into(), subject: facts.subject.clone() });
            }
            if let Err(defect) = valid_at(path, facts, now) {
                tracing::warn!(%defect, "root left out");
                first_defect.get_or_insert(defect);
                continue;
            }
            roots.add(der.clone()).map_err(|e| CertError::BadCertificate {
                path: path.into(),
                position: index + 1,
                reason: e.to_string(),
            })?;
            ders.push(der);
        }
        if ders.is_empty() {
            return Err(first_defect.unwrap_or_else(|| CertError::NoCertificate { path: path.into() }));
        }
        Ok(Trust { ders, roots: Arc::new(roots) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Leaf};
    use time::Duration;

    fn check(pem: &str, now: OffsetDateTime) -> Result<Trust, CertError> {
        Trust::check(Path::new("ca.pem"), pem.as_bytes(), now)
    }

    #[test]
    fn only_valid_cas_are_trusted() {
        let now = OffsetDateTime::now_utc();
        let ca = Authority::create("one").unwrap();
        let other = Authority::create("two").unwrap();
        let leaf = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let both = format!("{}{}", ca.certificate_pem(), other.certificate_pem());

        assert_eq!(check(&both, now).unwrap().ders().len(), 2);
        assert!(matches!(check("", now), Err(CertError::NoCertificate { .. })));
        assert!(matches!(check(&leaf.certificate_pem, now), Err(CertError::NotACa { .. })));
        let later = now + Duration::days(11 * 365);
        assert!(matches!(check(&both, later), Err(CertError::Expired { .. })));
    }
}
