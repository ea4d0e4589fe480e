//! Reading of certificates, keys and lists: bounded, never from what is no file, and never a key that others may read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::CertError;
use crate::inspect::Holds;
use crate::pki::files::{Readable, write};

/// A bundle of all the CAs that a browser knows has a quarter of that.
pub const MOST_BYTES: u64 = 1024 * 1024;
/// Of a revocation list: room for some 400,000 serials.
pub const MOST_BYTES_OF_A_LIST: u64 = 16 * 1024 * 1024;

/// What may be done with a key by anybody but its owner: read it, by its group.
pub(crate) const FORBIDDEN_OF_KEYS: u32 = 0o027;

/// Who may know what is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Public,
    /// A revocation list, which may be larger than the rest.
    List,
    /// A shared secret: a file that others may read, or its group may write, is refused.
    Secret,
    /// A private key. Refused as a secret is, unless it holds certificates alone: then the wrong file is named, and its
    /// mode is not what is wrong.
    Key,
}

/// Reads a file whole. The memory is wiped when dropped.
///
/// # Errors
/// [`CertError::Unreadable`], [`CertError::NotAFile`] (a folder, a pipe, a device), [`CertError::TooLarge`],
/// [`CertError::LooseKey`].
pub fn read(path: &Path, content: Content) -> Result<Zeroizing<Vec<u8>>, CertError> {
    let unreadable = |source| CertError::Unreadable { path: path.into(), source };
    // Opening a pipe would wait for somebody who writes; so would reading one.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(CertError::NotAFile { path: path.into() });
    }
    let is_loose = meta.mode() & FORBIDDEN_OF_KEYS != 0;
    let loose = || CertError::LooseKey { path: path.into(), mode: meta.mode() & 0o777 };
    if content == Content::Secret && is_loose {
        return Err(loose());
    }
    let length = meta.len();
    let most = match content {
        Content::List => MOST_BYTES_OF_A_LIST,
        Content::Public | Content::Secret | Content::Key => MOST_BYTES,
    };
    // All of it at once: a vector that grows leaves copies of a key behind.
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length.min(most)).unwrap_or_default() + 1]);
    let read = if length > most { None } else { fill(file, &mut bytes).map_err(unreadable)? };
    let Some(read) = read else {
        return Err(CertError::TooLarge { path: path.into(), most_bytes: most });
    };
    bytes.truncate(read);
    if content == Content::Key && is_loose && Holds::of(&bytes) != Holds::Certificates {
        return Err(loose());
    }
    Ok(bytes)
}

/// Writes what only this user may read, in place of what is there, whole.
///
/// # Errors
/// [`CertError::Unwritable`].
pub fn write_secret(path: &Path, text: &str) -> Result<(), CertError> {
    write(path, text, Readable::ByOwner)
}

/// How much there was; `None` if it did not end within `bytes`.
fn fill(mut file: File, bytes: &mut [u8]) -> std::io::Result<Option<usize>> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => return Ok(Some(filled)),
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// By what a change of a file shows without reading it, links followed. Not the access time, which reading changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mode: u32,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamp {
    /// `None` for what cannot be looked at, a file that is not there for one.
    pub(crate) fn of(path: &Path) -> Option<Stamp> {
        std::fs::metadata(path).ok().map(|meta| Stamp::from(&meta))
    }

    /// Whether it is the same file, with something else in it.
    pub(crate) fn is_written_in_place(now: &Option<Stamp>, before: &Option<Stamp>) -> bool {
        match (now, before) {
            (Some(now), Some(before)) => {
                now != before && (now.device, now.inode) == (before.device, before.inode)
            }
            (None, _) | (_, None) => false,
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mode: meta.mode(),
            modified_ns: (meta.mtime(), meta.mtime_nsec()),
            changed_ns: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_files_of_a_sensible_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("good"), "text").unwrap();
        std::fs::write(at("full"), vec![b'x'; MOST_BYTES as usize]).unwrap();
        File::create(at("zeros")).unwrap().set_len(1 << 30).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        assert_eq!(&read(&at("good"), Content::Public).unwrap()[..], b"text");
        assert_eq!(read(&at("full"), Content::Public).unwrap().len() as u64, MOST_BYTES);
        for (name, kind) in [
            ("zeros", "too_large"),
            ("folder", "not_a_file"),
            ("pipe", "not_a_file"),
            ("missing", "unreadable"),
            // Endless, and of no size.
            ("/dev/zero", "not_a_file"),
        ] {
            let error = read(&at(name), Content::Public).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error}");
        }
    }

    #[test]
    fn a_key_is_for_its_owner_and_at_most_read_by_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("a.key");
        write_secret(&key, "key").unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        for (mode, fine) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o640, true),
            (0o644, false),
            (0o604, false),
            (0o660, false),
            (0o601, false),
        ] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let outcome = read(&key, Content::Secret);
            assert_eq!(outcome.is_ok(), fine, "{mode:o}");
            if let Err(error) = outcome {
                let text = error.to_string();
                assert_eq!(error.kind(), "loose_key", "{mode:o}");
                assert!(text.contains(&format!("{mode:o}")) && text.contains("defaultMode: 0440"), "{text}");
            }
            assert!(read(&key, Content::Public).is_ok());
        }
    }
}
