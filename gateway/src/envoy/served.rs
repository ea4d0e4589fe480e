//! The copy of certificates, keys, CAs and lists that Envoy reads, which nobody writes but the gateway.
//!
//! What is in it was accepted; all of it changes in one moment, for it is reached by one link, whose renaming Envoy
//! watches for. `FOLDER/now` leads to `FOLDER/17`, say.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use zeroize::Zeroizing;

/// What is in files, by their names.
pub(super) type Files = BTreeMap<String, Zeroizing<String>>;

const NOW: &str = "now";

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Served {
    folder: PathBuf,
}

impl Served {
    /// That of a configuration.
    pub(super) fn of(out: &Path) -> Self {
        Self { folder: out.join("served") }
    }

    /// Whom to watch for what is renamed there.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where Envoy finds a file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(NOW).join(name)
    }

    /// Puts all of it in place at once. What is there under other names stays if it is still `named`. Whether anything
    /// has changed; Envoy is told of nothing otherwise.
    pub(super) fn put(&self, files: &Files, named: impl Fn(&str) -> bool) -> anyhow::Result<bool> {
        private(&self.folder)?;
        let now = fs::read_link(self.folder.join(NOW)).ok();
        let before = now.as_ref().map(|now| self.folder.join(now));
        let there = before.as_deref().map(names).transpose()?.unwrap_or_default();
        let next = self.next()?;
        private(&next)?;
        let mut changed = false;
        for (name, text) in files {
            let old = before.as_ref().map(|before| before.join(name));
            let same = old
                .as_ref()
                .filter(|old| fs::read(old).map(Zeroizing::new).is_ok_and(|bytes| *bytes == text.as_bytes()));
            // The same file: it keeps its time, and a key is not written again.
            if same.is_none_or(|old| fs::hard_link(old, next.join(name)).is_err()) {
                super::write(&next, name, text)?;
            }
            changed |= same.is_none();
        }
        for name in there.iter().filter(|name| !files.contains_key(*name)) {
            match (&before, named(name)) {
                (Some(before), true) => {
                    fs::hard_link(before.join(name), next.join(name)).with_context(|| name.clone())?;
                }
                (Some(_), false) => changed = true,
                (None, _) => {}
            }
        }
        if !changed {
            fs::remove_dir_all(&next).with_context(|| next.display().to_string())?;
            return Ok(false);
        }
        fs::File::open(&next)?.sync_all()?;
        let link = self.folder.join(".now");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        symlink(next.file_name().unwrap_or_default(), &link)?;
        fs::rename(&link, self.folder.join(NOW)).with_context(|| self.folder.display().to_string())?;
        // Envoy may be reading the one before.
        let kept = [now.as_deref(), next.file_name().map(Path::new), Some(Path::new(NOW))];
        for name in names(&self.folder)?.iter().filter(|name| !kept.contains(&Some(Path::new(name)))) {
            let old = self.folder.join(name);
            fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
        }
        Ok(true)
    }

    /// A folder that was never there: by a number above all that are.
    fn next(&self) -> anyhow::Result<PathBuf> {
        let numbers = names(&self.folder)?.into_iter().filter_map(|name| name.parse::<u64>().ok());
        let next = numbers.max().unwrap_or_default().wrapping_add(1);
        Ok(self.folder.join(next.to_string()))
    }
}

/// Makes a folder that its owner alone may look into.
pub(super) fn private(folder: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
        .with_context(|| folder.display().to_string())
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_changes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::of(dir.path());
        let files = |pairs: &[(&str, &str)]| -> Files {
            pairs
                .iter()
                .map(|(name, text)| ((*name).to_owned(), Zeroizing::new((*text).to_owned())))
                .collect()
        };
        let inode =
            |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(served.path(name)).unwrap());
        let mut kept = 0;
        // What is put, what is named still, whether that changes anything, what is there then, and how many folders.
        type Case<'c> = (&'c [(&'c str, &'c str)], &'c str, bool, &'c [(&'c str, &'c str)], usize);
        let cases: [Case<'_>; 6] = [
            (&[("a", "1"), ("b", "1")], "", true, &[("a", "1"), ("b", "1")], 1),
            (&[("a", "1"), ("b", "1")], "", false, &[("a", "1"), ("b", "1")], 1),
            (&[("a", "1"), ("b", "2")], "", true, &[("a", "1"), ("b", "2")], 2),
            (&[("a", "1")], "b", false, &[("a", "1"), ("b", "2")], 2),
            (&[("a", "1"), ("c", "1")], "b", true, &[("a", "1"), ("b", "2"), ("c", "1")], 2),
            (&[("a", "1"), ("c", "1")], "", true, &[("a", "1"), ("c", "1")], 2),
        ];
        for (index, (put, named, changes, there, folders)) in cases.into_iter().enumerate() {
            assert_eq!(served.put(&files(put), |name| name == named).unwrap(), changes, "{index}");
            let mut found = names(&served.folder().join(NOW)).unwrap();
            found.sort_unstable();
            assert_eq!(found, there.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{index}");
            for (name, text) in there {
                assert_eq!(fs::read_to_string(served.path(name)).unwrap(), *text, "{index}");
                assert_eq!(fs::metadata(served.path(name)).unwrap().permissions().mode() & 0o777, 0o600);
            }
            if index == 0 {
                kept = inode("a");
            }
            assert_eq!(inode("a"), kept, "what stays is not written again");
            let all = names(served.folder()).unwrap();
            assert_eq!(all.len(), folders + 1, "{index}: {all:?}");
        }
        assert_eq!(fs::metadata(served.folder()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_a_crash_left_behind_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::of(dir.path());
        fs::create_dir_all(served.folder().join("7")).unwrap();
        fs::write(served.folder().join("7/a"), "half").unwrap();
        symlink("nowhere", served.folder().join(".now")).unwrap();
        let files = Files::from([("a".to_owned(), Zeroizing::new("whole".to_owned()))]);
        assert!(served.put(&files, |_| false).unwrap());
        assert_eq!(fs::read_to_string(served.path("a")).unwrap(), "whole");
        assert_eq!(names(served.folder()).unwrap().len(), 2);
    }
}
