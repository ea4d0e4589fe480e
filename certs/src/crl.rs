//! Revocation lists (RFC 5280 section 5), as whoever checks certificates sees them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Deserialize;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Extension};
use x509_parser::revocation_list::CertificateRevocationList;

use crate::pki::crl::key_id;
use crate::{CertError, inspect};

/// What becomes of clients when the list that would tell whether they are revoked is past its `nextUpdate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaleCrl {
    /// They are refused: whoever is revoked by the next list would come in otherwise.
    #[default]
    Refuse,
    /// The old list is believed for longer.
    Allow,
}

/// One CA's list.
#[derive(Debug, Clone)]
pub(crate) struct Crl {
    pub(crate) der: CertificateRevocationListDer<'static>,
    pub(crate) this_update: OffsetDateTime,
    pub(crate) next_update: Option<OffsetDateTime>,
    /// As [`serial`] writes them.
    pub(crate) revoked: Arc<HashSet<Box<str>>>,
    /// The CA that signed it; none: an intermediate that only a certificate's chain brings along.
    pub(crate) signer: Option<CertificateDer<'static>>,
    /// Of two lists with the same scope one is newer; none: the list has a scope of its own.
    scope: Option<Scope>,
}

/// Whose certificates a list tells of, if it tells of all of them: the issuer's name and key identifier.
type Scope = (Vec<u8>, Option<Vec<u8>>);

/// The lists of a file: PEM, one for each CA, or a single one in DER as CAs publish it. Each root must have one, and
/// whatever a root's name is on must be signed by it: a missing list would make everybody of that CA unknown.
pub(crate) fn parse(
    path: &Path,
    bytes: &[u8],
    roots: &[CertificateDer<'static>],
) -> Result<Vec<Crl>, CertError> {
    let bad = |reason: String| CertError::BadCrl { path: path.into(), reason };
    let ders = if crate::pki::crl::is_der(bytes) {
        vec![CertificateRevocationListDer::from(bytes.to_vec())]
    } else {
        let all = CertificateRevocationListDer::pem_slice_iter(bytes);
        all.collect::<Result<Vec<_>, _>>().map_err(|e| inspect::bad_pem(path, &e))?
    };
    let lists = ders.into_iter().enumerate().map(|(index, der)| {
        let told = |why: String| bad(format!("list {} {why}", index + 1));
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|_| told("cannot be parsed: its section holds something else".to_owned()))?;
        if !rest.is_empty() {
            return Err(told(format!("is followed by {} bytes", rest.len())));
        }
        let signer = signer(&list, roots).map_err(told)?;
        let (this_update, next_update) =
            (list.last_update().to_datetime(), list.next_update().map(|at| at.to_datetime()));
        let revoked = list.iter_revoked_certificates().map(|one| serial(&inspect::hex(one.raw_serial())));
        let revoked = Arc::new(revoked.collect());
        let distribution_point = |extension: &X509Extension<'_>| {
            matches!(extension.parsed_extension(), ParsedExtension::IssuingDistributionPoint(_))
        };
        let scope = (!list.extensions().iter().any(distribution_point))
            .then(|| (list.issuer().as_raw().to_vec(), key_id(&list)));
        Ok(Crl { this_update, next_update, revoked, signer, scope, der })
    });
    let lists = newest(lists.collect::<Result<Vec<_>, _>>()?);
    for root in roots {
        if lists.iter().all(|list| list.signer.as_ref() != Some(root)) {
            let name = inspect::facts_of(path, std::slice::from_ref(root))?;
            let name = name.first().map_or("a CA", |facts| &facts.subject);
            return Err(bad(format!("it has no list of {name}; add one, an empty one if nobody is revoked")));
        }
    }
    Ok(lists)
}

/// Of lists of one CA with one scope the newest: verifiers take the first that they find, so an older one before it would
/// let those in whom only the newer one tells of.
fn newest(lists: Vec<Crl>) -> Vec<Crl> {
    let mut kept: Vec<Crl> = Vec::new();
    for list in lists {
        let same = |other: &&mut Crl| {
            list.scope.is_some() && other.scope == list.scope && other.signer == list.signer
        };
        match kept.iter_mut().find(same) {
            Some(other) if other.this_update <= list.this_update => *other = list,
            Some(_) => {}
            None => kept.push(list),
        }
    }
    kept
}

/// A serial number in hexadecimal as it is compared, however it was written: some write colons, some a sign's zeros.
pub(crate) fn serial(hex: &str) -> Box<str> {
    let digits: String = hex.chars().filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_ascii_lowercase().into()
}

/// The root that signed the list. Several may bear the same name.
fn signer(
    list: &CertificateRevocationList<'_>,
    roots: &[CertificateDer<'static>],
) -> Result<Option<CertificateDer<'static>>, String> {
    let mut is_named = false;
    for root in roots {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(root) else { continue };
        if parsed.subject().as_raw() != list.issuer().as_raw() {
            continue;
        }
        if list.verify_signature(parsed.public_key()).is_ok() {
            return Ok(Some(root.clone()));
        }
        is_named = true;
    }
    if is_named {
        return Err(format!("bears the name of {}, which did not sign it", list.issuer()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::crl::{Reason, revoke};
    use crate::pki::{Authority, files};
    use time::Duration;

    #[test]
    fn the_newest_list_of_a_ca_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, other) = (Authority::create("ca").unwrap(), Authority::create("other").unwrap());
        let roots =
            [&ca, &other].map(|ca| CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap());
        let list = |ca: &Authority, serials: &[Vec<u8>]| {
            let file = dir.path().join("ca.crl");
            let _ = std::fs::remove_file(&file);
            revoke(&file, ca, serials, Reason::Unspecified, Duration::DAY).unwrap();
            std::fs::read_to_string(file).unwrap()
        };
        let old = list(&ca, &[]);
        // Lists are of whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        let (new, others) = (list(&ca, &[vec![0x41, 1]]), list(&other, &[]));
        for text in [[&old, &new, &others].map(String::as_str), [&new, &others, &old].map(String::as_str)] {
            let lists = parse(Path::new("ca.crl"), text.concat().as_bytes(), &roots).unwrap();
            let revoked: Vec<usize> = lists.iter().map(|list| list.revoked.len()).collect();
            assert_eq!(revoked, [1, 0]);
        }
        let unknown = files::pem("CERTIFICATE", &roots[0]);
        assert!(parse(Path::new("ca.crl"), unknown.as_bytes(), &roots).is_err());
    }
}
