//! Files of certificates and keys, replaced whole: a reader sees the old one or the new one, never half of either.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use zeroize::Zeroizing;

use super::Issued;
use crate::CertError;
use crate::file::FORBIDDEN_OF_KEYS;

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
        self.must_be_ours()?;
        let key = Prepared::new(&self.key, &issued.key_pem, Readable::ByOwner)?;
        let certificate = Prepared::new(&self.certificate, &issued.certificate_pem, Readable::ByAll)?;
        for path in [&self.certificate, &self.key] {
            keep(path)?;
        }
        key.put()?;
        certificate.put()
    }

    /// # Errors
    /// [`CertError::FilledByOthers`] for links, which a rename would cut.
    pub fn must_be_ours(&self) -> Result<(), CertError> {
        match [&self.certificate, &self.key].into_iter().find(|path| path.is_symlink()) {
            Some(path) => Err(CertError::FilledByOthers { path: path.clone() }),
            None => Ok(()),
        }
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
            texts.push(Prepared::new(path, &Zeroizing::new(text), readable)?);
        }
        for prepared in &texts {
            keep(prepared.path)?;
        }
        texts.into_iter().try_for_each(Prepared::put)
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
/// not even for a moment, readable by others. It is on the disk when this returns. What is there already leaves its
/// owner, group and mode to it, unless a key's mode let others read.
///
/// # Errors
/// [`CertError::Unwritable`], [`CertError::NotOwned`].
pub fn write(path: &Path, text: &str, readable: Readable) -> Result<(), CertError> {
    Prepared::new(path, text, readable)?.put()
}

/// A file that lies ready beside the one that it replaces; gone when dropped.
struct Prepared<'a> {
    path: &'a Path,
    partial: PathBuf,
}

impl<'a> Prepared<'a> {
    fn new(path: &'a Path, text: &str, readable: Readable) -> Result<Prepared<'a>, CertError> {
        let unwritable = |source| CertError::Unwritable { path: path.into(), source };
        let partial = with_ending(path, ".new");
        match std::fs::remove_file(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(unwritable(e)),
            _ => {}
        }
        let mode = match readable {
            Readable::ByAll => 0o644,
            Readable::ByOwner => 0o600,
        };
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&partial).map_err(unwritable)?;
        let prepared = Prepared { path, partial };
        file.write_all(text.as_bytes()).map_err(unwritable)?;
        if let Ok(before) = std::fs::metadata(path) {
            let (user, group) = (before.uid(), before.gid());
            let mine = file.metadata().map_err(unwritable)?;
            if (mine.uid(), mine.gid()) != (user, group) {
                std::os::unix::fs::fchown(&file, Some(user), Some(group))
                    .map_err(|source| CertError::NotOwned { path: path.into(), user, group, source })?;
            }
            let before = before.mode() & 0o777;
            let is_loose = readable == Readable::ByOwner && before & FORBIDDEN_OF_KEYS != 0;
            let mode = if is_loose { mode } else { before };
            file.set_permissions(Permissions::from_mode(mode)).map_err(unwritable)?;
        }
        file.sync_all().map_err(unwritable)?;
        Ok(prepared)
    }

    fn put(self) -> Result<(), CertError> {
        std::fs::rename(&self.partial, self.path)
            .map_err(|source| CertError::Unwritable { path: self.path.into(), source })
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // After it was put in place, nothing is there.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// One PEM section (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    // Of a key nothing may stay behind, here or where a text that grows has been.
    let base64 = Zeroizing::new(STANDARD.encode(der));
    let mut text = String::with_capacity(base64.len() + base64.len() / 64 + 2 * label.len() + 40);
    text += "-----BEGIN ";
    text += label;
    text += "-----\n";
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text += line;
        text.push('\n');
        rest = after;
    }
    text += "-----END ";
    text += label;
    text += "-----\n";
    text
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

    #[test]
    fn what_is_replaced_keeps_its_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create("ca").unwrap();
        let issue = || ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap();
        let [certificate, key] = issue().write(dir.path(), "svc").unwrap();
        let pair = Pair::beside(&certificate);
        let mut owner = {
            let meta = std::fs::metadata(&key).unwrap();
            (meta.uid(), meta.gid())
        };
        if nix::unistd::geteuid().is_root() {
            owner = (65_534, 65_533);
            std::os::unix::fs::chown(&key, Some(owner.0), Some(owner.1)).unwrap();
        }
        let stat = |path: &Path| {
            let meta = std::fs::metadata(path).unwrap();
            ((meta.uid(), meta.gid()), meta.mode() & 0o777)
        };
        // A key that others may read does not stay so.
        for (mode, expected) in [(0o440, 0o440), (0o400, 0o400), (0o600, 0o600), (0o644, 0o600)] {
            std::fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
            std::fs::set_permissions(&certificate, Permissions::from_mode(0o640)).unwrap();
            pair.replace(&issue()).unwrap();
            assert_eq!((stat(&key), stat(&certificate).1), ((owner, expected), 0o640));
            pair.restore().unwrap();
            assert_eq!((stat(&key), stat(&certificate).1), ((owner, expected), 0o640));
        }
    }

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
