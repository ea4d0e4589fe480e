use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use crate::crl::{self, Crl};
use crate::file::{self, Content};
use crate::identity::valid_at;
use crate::nobody::Nobody;
use crate::pki::files;
use crate::set::{Bytes, Subject};
use crate::tls::provider;
use crate::{CertError, Facts, Identity, StaleCrl, inspect};

/// Whose certificates are believed: the CAs of one PEM file, and what they have revoked.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Those that are valid; perhaps none by now, and then nobody is believed.
    ders: Vec<CertificateDer<'static>>,
    facts: Vec<Facts>,
    /// All of the file.
    all: Arc<[(CertificateDer<'static>, Facts)]>,
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

    /// The revocation lists, DER.
    pub fn lists(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(|crl| crl.der.as_ref())
    }

    /// The same lists as PEM, for processes that want files.
    pub fn lists_pem(&self) -> String {
        self.lists().map(|der| files::pem("X509 CRL", der)).collect()
    }

    /// A mark of who is let in. It is another one when a CA went or came, somebody else is revoked, or a list went stale
    /// that must not be; lists that were signed anew and say the same leave it.
    pub fn mark(&self, now: OffsetDateTime) -> u64 {
        let mut cas: Vec<&[u8]> = self.ders.iter().map(|der| der.as_ref()).collect();
        cas.sort_unstable();
        let mut lists: Vec<(Option<&[u8]>, Vec<&str>)> = Vec::new();
        for crl in &self.crls {
            let mut serials: Vec<&str> = crl.revoked.iter().map(AsRef::as_ref).collect();
            serials.sort_unstable();
            lists.push((crl.signer.as_ref().map(|der| der.as_ref()), serials));
        }
        lists.sort_unstable();
        let mut hasher = DefaultHasher::new();
        (cas, lists, self.stale == StaleCrl::Refuse && self.is_stale(now)).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether a certificate may not be believed for what the lists say: for TLS libraries that look at none, and tell
    /// of the other side's certificate no more than its serial number (hexadecimal, with colons or without). A number
    /// that is on any of the lists is revoked: who issued the certificate is not known here.
    ///
    /// # Errors
    /// Why not.
    pub fn unrevoked(&self, serial_hex: Option<&str>, now: OffsetDateTime) -> Result<(), &'static str> {
        if self.crls.is_empty() {
            return Ok(());
        }
        if self.stale == StaleCrl::Refuse && self.is_stale(now) {
            return Err("the revocation list is past its next update");
        }
        let Some(serial) = serial_hex.map(crl::serial) else {
            return Err("its certificate has no serial number");
        };
        match self.crls.iter().any(|crl| crl.revoked.contains(&serial)) {
            true => Err("its certificate is revoked"),
            false => Ok(()),
        }
    }

    /// Verifies clients: chains to a root, nothing in them revoked, for TLS clients, valid now.
    ///
    /// # Errors
    /// [`CertError::Verifier`].
    pub fn client_verifier(&self, anonymous: Anonymous) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
        if self.ders.is_empty() {
            return Ok(Arc::new(Nobody { anonymous }));
        }
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
    pub fn server_verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, CertError> {
        if self.ders.is_empty() {
            return Ok(Arc::new(Nobody { anonymous: Anonymous::Refused }));
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(self.roots(), provider())
            .with_crls(self.crls.iter().map(|crl| crl.der.clone()));
        if self.stale == StaleCrl::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        let verifier = builder.build().map_err(|source| CertError::Verifier { source })?;
        Ok(verifier)
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
        let all: Arc<[_]> = all.into_iter().zip(all_facts).collect();
        for (index, (der, one)) in all.iter().cloned().enumerate() {
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
            return Err(first_defect.unwrap_or_else(|| inspect::no_certificate(path, pem)));
        }
        let crls = match crl {
            Some((path, bytes)) => {
                let crls = crl::parse(path, bytes, &ders)?;
                refuse_older(path, &crls, before)?;
                crls
            }
            None => Vec::new(),
        };
        let trust = Trust { ders, facts, all, roots: Arc::new(roots), crls, stale };
        // Here, where it is an error of the files: later nothing could be done about it.
        let unusable = |why: CertError| match (crl, why) {
            // The roots have been accepted, so it is a list that is too old or too new for whoever verifies.
            (Some((path, _)), CertError::Verifier { source }) => {
                CertError::BadCrl { path: path.into(), reason: source.to_string() }
            }
            (_, why) => why,
        };
        trust.server_verifier().map_err(unusable)?;
        trust.client_verifier(Anonymous::Refused).map_err(unusable)?;
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
        let revoked: usize = self.crls.iter().map(|crl| crl.revoked.len()).sum();
        let lists = if self.crls.is_empty() { String::new() } else { format!("; {revoked} revoked") };
        format!("{}{lists}", names.join(", "))
    }

    fn aged(&self, now: OffsetDateTime) -> Option<Trust> {
        let is_valid = |facts: &Facts| facts.not_before <= now && now <= facts.not_after;
        let valid = || self.all.iter().filter(|(_, facts)| is_valid(facts));
        if valid().map(|(der, _)| der).eq(&self.ders) {
            return None;
        }
        let (ders, facts): (Vec<_>, Vec<_>) = valid().cloned().unzip();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(ders.iter().cloned());
        Some(Trust { ders, facts, roots: Arc::new(roots), ..self.clone() })
    }

    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)> {
        let last = || self.all.iter().map(|(_, facts)| facts.not_after).max();
        let ca = self.facts.iter().map(|facts| facts.not_after).min().or_else(last);
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
    fn a_serial_number_tells_who_is_revoked_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, list, now) =
            (Authority::create("one").unwrap(), dir.path().join("ca.crl"), OffsetDateTime::now_utc());
        let revoked = vec![0x0a, 0x0b];
        crate::pki::crl::revoke(
            &list,
            &ca,
            &[revoked],
            crate::pki::crl::Reason::Unspecified,
            Duration::days(1),
        )
        .unwrap();
        let pem = std::fs::read(&list).unwrap();
        let trust = |stale, crl| {
            Trust::check((Path::new("ca.pem"), ca.certificate_pem().as_bytes()), crl, stale, None, now)
        };
        let with = |stale| trust(stale, Some((list.as_path(), pem.as_slice()))).unwrap();
        let (later, refusing, allowing) =
            (now + Duration::days(2), with(StaleCrl::Refuse), with(StaleCrl::Allow));
        for (serial, at, refuses, allows) in [
            (Some("0a:0b"), now, true, true),
            (Some("00:0A:0B"), now, true, true),
            (Some("a0b"), now, true, true),
            (Some("0a:0c"), now, false, false),
            (None, now, true, true),
            (Some("0a:0c"), later, true, false),
            (Some("0a:0b"), later, true, true),
        ] {
            assert_eq!(refusing.unrevoked(serial, at).is_err(), refuses, "{serial:?}");
            assert_eq!(allowing.unrevoked(serial, at).is_err(), allows, "{serial:?}");
        }
        assert!(trust(StaleCrl::Refuse, None).unwrap().unrevoked(None, later).is_ok(), "nothing is revoked");
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
