//! Revocation lists (RFC 5280 section 5), in a PEM file that has one for each CA.

use std::path::Path;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, ParsedExtension};
use x509_parser::revocation_list::CertificateRevocationList;

use super::files::{Readable, pem, write};
use super::{Authority, BACKDATED};
use crate::{CertError, Facts, inspect};

/// How long a list is good: half as long again as the 30 days after which it is signed anew, so that a routine that is
/// late leaves nobody outside.
pub const VALID: Duration = Duration::days(VALID_DAYS as i64);
/// The same, as it is written.
pub const VALID_DAYS: u16 = 45;

/// Why a certificate is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Unspecified,
    KeyCompromise,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

/// A CA's list as it is after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Counts up with each list.
    pub number: u64,
    pub next_update: OffsetDateTime,
    /// All serials on it, lower-case hexadecimal, the new ones last.
    pub serials: Vec<String>,
}

/// Adds serials to the list of `ca` in `file`, or signs the same list anew when there are none, and replaces the file
/// whole. The lists of other CAs in it stay as they are.
///
/// # Errors
/// [`CertError::BadCrl`] when the file holds what is no list, or one in the CA's name that its key did not sign;
/// [`CertError::Issue`], [`CertError::Unwritable`].
pub fn revoke(
    file: &Path,
    ca: &Authority,
    serials: &[Vec<u8>],
    reason: Reason,
    valid: Duration,
) -> Result<List, CertError> {
    let now = OffsetDateTime::now_utc();
    let bad = |reason: String| CertError::BadCrl { path: file.into(), reason };
    let _alone = alone(file)?;
    let (mut revoked, mut number, mut others) = (Vec::<RevokedCertParams>::new(), 0, String::new());
    for der in lists(file)? {
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|e| bad(e.to_string()))?;
        if !ca.signed(&list).map_err(bad)? {
            others += &pem("X509 CRL", &der);
            continue;
        }
        let own = list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap_or_default();
        number = number.max(own);
        for one in list.iter_revoked_certificates() {
            let serial_number = SerialNumber::from_slice(one.raw_serial());
            if revoked.iter().any(|other| other.serial_number == serial_number) {
                continue;
            }
            revoked.push(RevokedCertParams {
                serial_number,
                revocation_time: one.revocation_date.to_datetime(),
                reason_code: one.reason_code().and_then(|(_, code)| of_code(code.0)),
                invalidity_date: None,
            });
        }
    }
    for serial in serials {
        let serial_number = SerialNumber::from_slice(serial);
        if revoked.iter().all(|one| one.serial_number.to_bytes() != *serial) {
            let reason_code = reason.of_rcgen();
            revoked.push(RevokedCertParams {
                serial_number,
                revocation_time: now,
                reason_code,
                invalidity_date: None,
            });
        }
    }
    let list = List {
        number: number.saturating_add(1),
        next_update: now + valid,
        serials: revoked.iter().map(|one| inspect::hex(&one.serial_number.to_bytes())).collect(),
    };
    let params = CertificateRevocationListParams {
        this_update: now - BACKDATED,
        next_update: list.next_update,
        crl_number: SerialNumber::from(list.number),
        issuing_distribution_point: None,
        revoked_certs: revoked,
        key_identifier_method: ca.key_id().map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified),
    };
    let signed = params.signed_by(&ca.issuer).map_err(|e| super::cannot_issue(&ca.facts.subject, &e))?;
    write(file, &(others + &pem("X509 CRL", signed.der())), Readable::ByAll)?;
    Ok(list)
}

/// Takes the list of a CA out of a file; says whether there was one.
///
/// # Errors
/// [`CertError::BadCrl`], [`CertError::Unwritable`].
pub fn forget(file: &Path, ca: &Authority) -> Result<bool, CertError> {
    let bad = |reason: String| CertError::BadCrl { path: file.into(), reason };
    let _alone = alone(file)?;
    let (mut left, mut found) = (Vec::new(), false);
    for der in lists(file)? {
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|e| bad(e.to_string()))?;
        if ca.signed(&list).map_err(bad)? {
            found = true;
        } else {
            left.push(pem("X509 CRL", &der));
        }
    }
    if found {
        write(file, &left.concat(), Readable::ByAll)?;
    }
    Ok(found)
}

/// The serial of a certificate as a list has it.
///
/// # Errors
/// [`CertError::Issue`] when `ca` did not issue it: its list would not be asked about it.
pub fn serial(ca: &Authority, certificate: &[u8]) -> Result<Vec<u8>, CertError> {
    let refused = |name: String, reason: String| CertError::Issue { name, reason };
    let facts = Facts::from_der(certificate).map_err(|reason| refused("a certificate".into(), reason))?;
    if !ca.issued(certificate) {
        let reason = format!("{} did not issue it, {} did; give that CA", ca.facts.subject, facts.issuer);
        return Err(refused(facts.subject, reason));
    }
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| refused(facts.subject, e.to_string()))?;
    Ok(parsed.raw_serial().to_vec())
}

/// When the first list of a file ends; none: there is no file, or its lists have no end.
///
/// # Errors
/// [`CertError::BadCrl`] when the file holds what is no list.
pub fn next_update(file: &Path) -> Result<Option<OffsetDateTime>, CertError> {
    let mut first = None;
    for der in lists(file)? {
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|e| CertError::BadCrl { path: file.into(), reason: e.to_string() })?;
        let ends = list.next_update().map(|at| at.to_datetime());
        first = first.into_iter().chain(ends).min();
    }
    Ok(first)
}

/// The lists of a file: PEM, or a single one in DER as CAs publish it. What holds no list is not taken for an empty
/// one: whoever is revoked on what cannot be read would be let in again.
fn lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CertError> {
    let bytes = match std::fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| CertError::Unreadable { path: file.into(), source })?,
    };
    if is_der(&bytes) {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let bad = |reason: &str| CertError::BadCrl { path: file.into(), reason: reason.into() };
    let all = CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|_| bad("it is not well-formed PEM"))?;
    if all.is_empty() && !bytes.trim_ascii().is_empty() {
        return Err(bad("it is neither a list in DER nor PEM with a section X509 CRL"));
    }
    Ok(all)
}

/// A sequence, where PEM has text.
pub(crate) fn is_der(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30)
}

/// Two who change a list at once would each leave out what the other revoked. The folder is locked, as the file is
/// replaced; until what this returns is dropped.
fn alone(file: &Path) -> Result<std::fs::File, CertError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = std::fs::File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    locked.map_err(|source| CertError::Unwritable { path: file.into(), source })
}

/// Which of two CAs of one name signed a list.
pub(crate) fn key_id(list: &CertificateRevocationList<'_>) -> Option<Vec<u8>> {
    list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

impl Authority {
    /// Whether a list is this CA's: in its name and signed by its key. Another CA may bear the same name, as long as
    /// the list does not say that it is of this one's key.
    fn signed(&self, list: &CertificateRevocationList<'_>) -> Result<bool, String> {
        let (_, own) = x509_parser::parse_x509_certificate(&self.der).map_err(|e| e.to_string())?;
        if list.issuer().as_raw() != own.subject().as_raw() {
            return Ok(false);
        }
        if list.verify_signature(own.public_key()).is_ok() {
            return Ok(true);
        }
        match key_id(list) {
            Some(id) if Some(&id) != self.key_id().as_ref() => Ok(false),
            _ => Err(format!("{} did not sign the list in its name", self.facts.subject)),
        }
    }

    /// The subject key identifier.
    fn key_id(&self) -> Option<Vec<u8>> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.der).ok()?;
        parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    }
}

impl Reason {
    /// A reason that says nothing is left out (RFC 5280 section 5.3.1).
    fn of_rcgen(self) -> Option<RevocationReason> {
        match self {
            Reason::Unspecified => None,
            Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Reason::Superseded => Some(RevocationReason::Superseded),
            Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        }
    }
}

fn of_code(code: u8) -> Option<RevocationReason> {
    Some(match code {
        1 => RevocationReason::KeyCompromise,
        2 => RevocationReason::CaCompromise,
        3 => RevocationReason::AffiliationChanged,
        4 => RevocationReason::Superseded,
        5 => RevocationReason::CessationOfOperation,
        6 => RevocationReason::CertificateHold,
        9 => RevocationReason::PrivilegeWithdrawn,
        10 => RevocationReason::AaCompromise,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Leaf;
    use rustls_pki_types::CertificateDer;

    const DAY: Duration = Duration::days(1);

    /// Serial and reason of everything on each list of a file.
    fn read(file: &Path) -> Vec<Vec<(Vec<u8>, Option<u8>)>> {
        let entries = |der: &CertificateRevocationListDer<'_>| {
            let (_, list) = CertificateRevocationList::from_der(der).unwrap();
            let revoked = list.iter_revoked_certificates();
            revoked
                .map(|one| (one.raw_serial().to_vec(), one.reason_code().map(|(_, code)| code.0)))
                .collect()
        };
        lists(file).unwrap().iter().map(entries).collect()
    }

    /// Whether a server that knows the list lets this client in.
    fn let_in(file: &Path, ca: &Authority, client: &CertificateDer<'_>) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(std::sync::Arc::new(roots), provider)
                .with_crls(lists(file).unwrap())
                .build()
                .unwrap();
        verifier.verify_client_cert(client, &[], rustls_pki_types::UnixTime::now()).is_ok()
    }

    #[test]
    fn what_is_revoked_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crl");
        let ca = Authority::create("ca").unwrap();
        let leaf = |ca: &Authority| {
            let issued = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
            CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()
        };
        let leaves = [leaf(&ca), leaf(&ca), leaf(&ca)];
        let serials = leaves.each_ref().map(|leaf| serial(&ca, leaf).unwrap());
        let [first, second, _] = serials;
        let served = || leaves.each_ref().map(|leaf| let_in(&file, &ca, leaf));

        revoke(&file, &ca, &[], Reason::Unspecified, DAY).unwrap();
        assert_eq!(served(), [true, true, true]);
        revoke(&file, &ca, std::slice::from_ref(&first), Reason::KeyCompromise, DAY).unwrap();
        assert_eq!(served(), [false, true, true]);
        let list = revoke(&file, &ca, &[second.clone(), first.clone()], Reason::Superseded, DAY).unwrap();
        assert_eq!((list.number, list.serials.len()), (3, 2), "{list:?}");
        assert_eq!(served(), [false, false, true]);
        assert_eq!(read(&file), [[(first, Some(1)), (second, Some(4))]], "the first reason stays");
    }

    #[test]
    fn a_file_has_the_lists_of_many_cas() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.crl");
        // Two CAs of one name: the one before a rollover and the one after it.
        let (old, new) = (Authority::create("ca").unwrap(), Authority::create("ca").unwrap());
        revoke(&file, &old, &[vec![0x41, 1]], Reason::Superseded, DAY).unwrap();
        let list = revoke(&file, &new, &[], Reason::Unspecified, DAY).unwrap();
        assert_eq!((list.number, list.serials.len(), read(&file).len()), (1, 0, 2));
        let list = revoke(&file, &old, &[vec![0x41, 2]], Reason::Superseded, DAY).unwrap();
        assert_eq!(
            (list.number, list.serials, read(&file).len()),
            (2, vec!["4101".into(), "4102".into()], 2)
        );
        assert!(forget(&file, &old).unwrap() && !forget(&file, &old).unwrap());
        assert_eq!(read(&file).len(), 1);
    }

    #[test]
    fn nobody_is_let_in_again_by_another_form() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crl");
        let ca = Authority::create("ca").unwrap();
        let all = |serials: &[&str]| serials.iter().map(ToString::to_string).collect::<Vec<_>>();
        // In DER, as CAs publish it.
        revoke(&file, &ca, &[vec![0x41, 1]], Reason::KeyCompromise, DAY).unwrap();
        let der = lists(&file).unwrap().remove(0);
        std::fs::write(&file, &der).unwrap();
        let list = revoke(&file, &ca, &[vec![0x41, 2]], Reason::Superseded, DAY).unwrap();
        assert_eq!((list.number, list.serials), (2, all(&["4101", "4102"])));
        // Two lists of one CA: what is on either stays revoked, and one list is left.
        let newer = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, newer + &pem("X509 CRL", &der)).unwrap();
        let list = revoke(&file, &ca, &[], Reason::Unspecified, DAY).unwrap();
        assert_eq!((list.number, list.serials), (3, all(&["4101", "4102"])));
        assert_eq!(read(&file).len(), 1);
        // Many at once.
        std::thread::scope(|scope| {
            for serial in 3..11 {
                let (file, ca) = (&file, &ca);
                scope
                    .spawn(move || revoke(file, ca, &[vec![0x41, serial]], Reason::Superseded, DAY).unwrap());
            }
        });
        assert_eq!(read(&file)[0].len(), 10);
        // No list at all.
        std::fs::write(&file, ca.certificate_pem()).unwrap();
        assert!(matches!(revoke(&file, &ca, &[], Reason::Unspecified, DAY), Err(CertError::BadCrl { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), ca.certificate_pem(), "nothing was overwritten");
    }

    #[test]
    fn what_is_no_list_of_this_ca_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crl");
        let (ca, other) = (Authority::create("ca").unwrap(), Authority::create("other").unwrap());
        let issued = other.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        assert!(serial(&ca, &der).unwrap_err().to_string().contains("did not issue it"));
        std::fs::write(&file, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
        assert!(matches!(revoke(&file, &ca, &[], Reason::Unspecified, DAY), Err(CertError::BadCrl { .. })));
        assert!(std::fs::read_to_string(&file).unwrap().contains("AAAA"), "nothing was overwritten");
    }
}
