//! Files of certificates and keys, replaced whole: a reader sees the old one or the new one, never half of either.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Issued;
use crate::CertError;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    ByAll,
    /// Mode 0600.
    ByOwner,
}

/// A certificate's file and its key's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    /// The key is beside its certificate, with the ending `key`.
    pub fn beside(certificate: &Path) -> Pair {
        Pair { certificate: certificate.into(), key: certificate.with_extension("key") }
    }

    /// Puts a new pair in place and keeps the old one beside it, with `.previous` at the end of both names.
    ///
    /// # Errors
    /// [`CertError::FilledByOthers`] for links, which a rename would cut; [`CertError::Unwritable`].
    pub fn replace(&self, issued: &Issued) -> Result<(), CertError> {
        for path in [&self.certificate, &self.key] {
            if path.is_symlink() {
                return Err(CertError::FilledByOthers { path: path.clone() });
            }
        }
        for path in [&self.certificate, &self.key] {
            keep(path)?;
        }
        write(&self.key, &issued.key_pem, Readable::ByOwner)?;
        write(&self.certificate, &issued.certificate_pem, Readable::ByAll)
    }

    /// Puts the pair back that was there before; the one that is there now becomes the previous one.
    ///
    /// # Errors
    /// [`CertError::Unreadable`] when there is none, [`CertError::Unwritable`].
    pub fn restore(&self) -> Result<(), CertError> {
        let pairs = [(&self.key, Readable::ByOwner), (&self.certificate, Readable::ByAll)];
        let mut texts = Vec::new();
        for (path, readable) in pairs {
            let previous = previous(path);
            let text = std::fs::read_to_string(&previous);
            let text = text.map_err(|source| CertError::Unreadable { path: previous, source })?;
            texts.push((path, zeroize::Zeroizing::new(text), readable));
        }
        for (path, ..) in &texts {
            keep(path)?;
        }
        texts.iter().try_for_each(|(path, text, readable)| write(path, text, *readable))
    }
}

/// Where [`Pair::replace`] keeps what was there before.
pub fn previous(path: &Path) -> PathBuf {
    with_ending(path, ".previous")
}

/// A second name for what is there now, if anything is.
fn keep(path: &Path) -> Result<(), CertError> {
    let unwritable = |source| CertError::Unwritable { path: path.into(), source };
    let (kept, partial) = (previous(path), with_ending(path, ".previous.new"));
    let _ = std::fs::remove_file(&partial);
    match std::fs::hard_link(path, &partial) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(unwritable)?,
    }
    std::fs::rename(&partial, kept).map_err(unwritable)
}

/// Writes a file in place of another, through a temporary name: a reader never sees half a file, and a key is never,
/// not even for a moment, readable by others. It is on the disk when this returns.
///
/// # Errors
/// [`CertError::Unwritable`].
pub fn write(path: &Path, text: &str, readable: Readable) -> Result<(), CertError> {
    let unwritable = |source| CertError::Unwritable { path: path.into(), source };
    let partial = with_ending(path, ".new");
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
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)?;
    std::fs::rename(&partial, path).map_err(unwritable)
}

/// One PEM section (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text += line;
        text.push('\n');
        rest = after;
    }
    text + "-----END " + label + "-----\n"
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;
    use crate::pki::{Authority, Leaf};

    #[test]
    fn a_pair_is_replaced_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create("ca").unwrap();
        let issue = || ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let [certificate, _] = issue().write(dir.path(), "svc").unwrap();
        let pair = Pair::beside(&certificate);
        let serial = || Identity::load(&pair.certificate, &pair.key).unwrap().facts().serial_hex.clone();
        let first = serial();
        pair.replace(&issue()).unwrap();
        let second = serial();
        assert_ne!(first, second);
        for expected in [&first, &second, &first] {
            pair.restore().unwrap();
            assert_eq!(serial(), *expected);
        }
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 4, "the pair and the one before it, and nothing half-written");
    }

    #[cfg(unix)]
    #[test]
    fn what_others_fill_is_left_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create("ca").unwrap();
        let issued = ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let [certificate, key] = issued.write(dir.path(), "real").unwrap();
        for (link, to) in [("tls.crt", certificate), ("tls.key", key)] {
            std::os::unix::fs::symlink(to, dir.path().join(link)).unwrap();
        }
        let pair = Pair { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
        assert!(matches!(pair.replace(&issued), Err(CertError::FilledByOthers { .. })));
        assert!(pair.certificate.is_symlink() && pair.key.is_symlink());
    }
}
