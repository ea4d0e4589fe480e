use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use crate::crl::{self, Crl};
use crate::file::{self, Content};
use crate::identity::valid_at;
use crate::pki::files;
use crate::set::{Bytes, Subject};
use crate::tls::provider;
use crate::{CertError, Facts, Identity, StaleCrl, inspect};

/// Whose certificates are believed: the CAs of one PEM file, and what they have revoked.
#[derive(Debug, Clone)]
pub struct Trust {
    ders: Vec<CertificateDer<'static>>,
    facts: Vec<Facts>,
    roots: Arc<RootCertStore>,
    crls: Vec<Crl>,
    stale: StaleCrl,
}

/// Where CAs and their revocation lists are found.
#[derive(Debug, Clone)]
pub struct TrustFiles {
    /// PEM.
    pub ca: PathBuf,
    /// Lists of all those CAs, PEM, or the one list in DER; none: nothing is revoked.
    pub crl: Option<PathBuf>,
    pub stale: StaleCrl,
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
        let bytes = file::read(pem, Content::Public)?;
        Trust::check((pem, &bytes), None, StaleCrl::Refuse, None, OffsetDateTime::now_utc())
    }

    /// What `rustls` verifiers take.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// The CAs themselves, in the file's order.
    pub fn ders(&self) -> &[CertificateDer<'static>] {
        &self.ders
    }

    /// The same CAs as PEM, for libraries that want that.
    pub fn pem(&self) -> String {
        self.ders.iter().map(|der| files::pem("CERTIFICATE", der)).collect()
    }

    /// The same CAs, as they tell of themselves.
    pub fn facts(&self) -> &[Facts] {
        &self.facts
    }

    /// Whether a list is past its time.
    pub fn is_stale(&self, now: OffsetDateTime) -> bool {
        self.crls.iter().any(|crl| crl.next_update.is_some_and(|next| next < now))
    }

    /// When the first of the lists is stale.
    pub fn crl_next_update(&self) -> Option<OffsetDateTime> {
        self.crls.iter().filter_map(|crl| crl.next_update).min()
    }

    /// Verifies clients: chains to a root, nothing in them revoked, for TLS clients, valid now.
    ///
    /// # Errors
    /// [`CertError::Verifier`].
    pub fn client_verifier(&self, anonymous: Anonymous) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
        let mut builder = WebPkiClientVerifier::builder_with_provider(self.roots(), provider())
            .with_crls(self.crls.iter().map(|crl| crl.der.clone()));
        if self.stale == StaleCrl::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        if anonymous == Anonymous::Allowed {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map_err(|source| CertError::Verifier { source })
    }

    /// Verifies servers likewise, and that they are called what they should be.
    ///
    /// # Errors
    /// [`CertError::Verifier`].
    pub fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, CertError> {
        let mut builder = WebPkiServerVerifier::builder_with_provider(self.roots(), provider())
            .with_crls(self.crls.iter().map(|crl| crl.der.clone()));
        if self.stale == StaleCrl::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        builder.build().map_err(|source| CertError::Verifier { source })
    }

    /// Whether somebody who trusts this would believe `identity`, on either side of a connection, were it not for
    /// what is revoked.
    pub(crate) fn issued(&self, identity: &Identity, now: OffsetDateTime) -> bool {
        let Some((leaf, rest)) = identity.chain().split_first() else { return false };
        let Ok(seconds) = u64::try_from(now.unix_timestamp()) else { return false };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let without_lists = Trust { crls: Vec::new(), ..self.clone() };
        let as_client = without_lists
            .client_verifier(Anonymous::Refused)
            .is_ok_and(|verifier| verifier.verify_client_cert(leaf, rest, now).is_ok());
        as_client
            || rustls::server::ParsedCertificate::try_from(leaf).is_ok_and(|parsed| {
                let algorithms = provider().signature_verification_algorithms.all;
                rustls::client::verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &self.roots,
                    rest,
                    now,
                    algorithms,
                )
                .is_ok()
            })
    }

    /// What a watched set of CAs, and perhaps lists, amounts to.
    pub(crate) fn accept(
        stale: StaleCrl,
        files: &[Bytes],
        before: Option<&Trust>,
        now: OffsetDateTime,
    ) -> Result<Trust, CertError> {
        match files {
            [ca] => Trust::check(ca.named(), None, stale, before, now),
            [ca, crl, ..] => Trust::check(ca.named(), Some(crl.named()), stale, before, now),
            [] => Err(CertError::NoCertificate { path: PathBuf::new() }),
        }
    }

    fn check(
        (path, pem): (&Path, &[u8]),
        crl: Option<(&Path, &[u8])>,
        stale: StaleCrl,
        before: Option<&Trust>,
        now: OffsetDateTime,
    ) -> Result<Trust, CertError> {
        let all = inspect::certificates(path, pem)?;
        let all_facts = inspect::facts_of(path, &all)?;
        let mut roots = RootCertStore::empty();
        let (mut ders, mut facts) = (Vec::new(), Vec::new());
        let mut first_defect = None;
        for (index, (der, one)) in all.into_iter().zip(all_facts).enumerate() {
            if !one.is_ca {
                return Err(CertError::NotACa { path: path.into(), subject: one.subject });
            }
            if let Err(defect) = valid_at(path, &one, now) {
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
            facts.push(one);
        }
        if ders.is_empty() {
            return Err(first_defect.unwrap_or_else(|| CertError::NoCertificate { path: path.into() }));
        }
        let crls = match crl {
            Some((path, bytes)) => {
                let crls = crl::parse(path, bytes, &ders)?;
                refuse_older(path, &crls, before)?;
                crls
            }
            None => Vec::new(),
        };
        let trust = Trust { ders, facts, roots: Arc::new(roots), crls, stale };
        // Here, where it is an error of the files: later nothing could be done about it.
        trust.server_verifier()?;
        trust.client_verifier(Anonymous::Refused)?;
        if trust.is_stale(now) {
            let becomes = match stale {
                StaleCrl::Refuse => "certificates that it would tell of are refused",
                StaleCrl::Allow => "it is believed nevertheless",
            };
            tracing::warn!(file = %path.display(), "a revocation list is past its next update: {becomes}");
        }
        Ok(trust)
    }
}

/// An old list put back would let revoked clients in again.
fn refuse_older(path: &Path, crls: &[Crl], before: Option<&Trust>) -> Result<(), CertError> {
    let Some(before) = before else { return Ok(()) };
    let older = crls.iter().find_map(|crl| {
        let same = |other: &&Crl| other.signer.is_some() && other.signer == crl.signer;
        let newest = before.crls.iter().filter(same).map(|other| other.this_update).max()?;
        (crl.this_update < newest).then_some((crl.this_update, newest))
    });
    match older {
        Some((this, newest)) => Err(CertError::BadCrl {
            path: path.into(),
            reason: format!("a list is of {this}, older than the one in use, of {newest}"),
        }),
        None => Ok(()),
    }
}

/// Whether a client may come without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    Allowed,
    Refused,
}

impl Subject for Trust {
    fn summary(&self) -> String {
        let names: Vec<_> = self.facts.iter().map(|facts| facts.subject.as_str()).collect();
        let revoked: usize = self.crls.iter().map(|crl| crl.revoked).sum();
        let lists = if self.crls.is_empty() { String::new() } else { format!("; {revoked} revoked") };
        format!("{}{lists}", names.join(", "))
    }

    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)> {
        let ca = self.facts.iter().map(|facts| facts.not_after).min();
        let crl = self.crl_next_update();
        ca.map(|at| ("ca", at)).into_iter().chain(crl.map(|at| ("crl", at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Leaf};
    use time::Duration;

    fn check(pem: &str, now: OffsetDateTime) -> Result<Trust, CertError> {
        Trust::check((Path::new("ca.pem"), pem.as_bytes()), None, StaleCrl::Refuse, None, now)
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
