//! Revocation lists (RFC 5280 section 5), as whoever checks certificates sees them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Deserialize;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

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
}

/// The lists of a file: PEM, one for each CA, or a single one in DER as CAs publish it. Each root must have one, and
/// whatever a root's name is on must be signed by it: a missing list would make everybody of that CA unknown.
pub(crate) fn parse(
    path: &Path,
    bytes: &[u8],
    roots: &[CertificateDer<'static>],
) -> Result<Vec<Crl>, CertError> {
    let bad = |reason: String| CertError::BadCrl { path: path.into(), reason };
    let ders = if bytes.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(bytes.to_vec())]
    } else {
        let all = CertificateRevocationListDer::pem_slice_iter(bytes);
        all.collect::<Result<Vec<_>, _>>().map_err(|e| inspect::bad_pem(path, &e))?
    };
    let lists = ders.into_iter().enumerate().map(|(index, der)| {
        let told = |why: String| bad(format!("list {} {why}", index + 1));
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| told(format!("cannot be parsed ({error})")))?;
        if !rest.is_empty() {
            return Err(told(format!("is followed by {} bytes", rest.len())));
        }
        let signer = signer(&list, roots).map_err(told)?;
        let (this_update, next_update) =
            (list.last_update().to_datetime(), list.next_update().map(|at| at.to_datetime()));
        let revoked = list.iter_revoked_certificates().map(|one| serial(&inspect::hex(one.raw_serial())));
        let revoked = Arc::new(revoked.collect());
        Ok(Crl { this_update, next_update, revoked, signer, der })
    });
    let lists = lists.collect::<Result<Vec<_>, _>>()?;
    for root in roots {
        if lists.iter().all(|list| list.signer.as_ref() != Some(root)) {
            let name = inspect::facts_of(path, std::slice::from_ref(root))?;
            let name = name.first().map_or("a CA", |facts| &facts.subject);
            return Err(bad(format!("it has no list of {name}; add one, an empty one if nobody is revoked")));
        }
    }
    Ok(lists)
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
