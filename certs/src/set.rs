//! A set of files that belong together, and what is made of them: accepted as a whole or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::file::{self, Content, Stamp};
use crate::report::{Failure, Reloads};
use crate::{CertError, Live, Versioned};

/// Every so many looks the files are read even if nothing shows: a network file system may tell old news of them, and a
/// certificate that was not valid yet may be so by now.
const LOOKS_TO_A_FULL_READ: u32 = 20;

/// What a set of files amounts to.
pub trait Subject: Send + Sync + 'static {
    /// For the log: what is in use from now on. Nothing secret.
    fn summary(&self) -> String;

    /// What is left of it by now, if that is another than before: parts of it have expired, or are valid at last, without
    /// a file having changed.
    fn aged(&self, _now: OffsetDateTime) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Until when it is good, by kind: `certificate`, `ca`, `crl`, `key`.
    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)> {
        Vec::new()
    }
}

/// A file as it was read.
#[derive(Debug)]
pub struct Bytes {
    pub path: PathBuf,
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Bytes {
    /// For [`CertError`]s and the parsers beside them.
    pub(crate) fn named(&self) -> (&Path, &[u8]) {
        (&self.path, &self.bytes)
    }
}

/// A watched set of files: what was last accepted of it, and how that went. Clones are handles of the same set.
pub struct Set<T>(Arc<Inner<T>>);

type Accept<T> = Box<dyn Fn(&[Bytes], Option<&T>, OffsetDateTime) -> Result<T, CertError> + Send + Sync>;

struct Inner<T> {
    name: String,
    files: Vec<(PathBuf, Content)>,
    accept: Accept<T>,
    live: Live<T>,
    seen: Mutex<Seen>,
}

/// What is known of the files.
struct Seen {
    stamps: Vec<Option<Stamp>>,
    looks: u32,
    accepted: Digest,
    /// What a file that was written in place would amount to, if that is all of it.
    perhaps: Option<Digest>,
    refused: Option<Refused>,
    last_reload: OffsetDateTime,
    last_failure: Option<Failure>,
    failures: BTreeMap<&'static str, u64>,
}

/// Files that cannot be used. They are told of when they are still the same at the next look: in between, somebody may
/// have been writing.
struct Refused {
    digest: Digest,
    told: bool,
}

type Digest = [u8; 32];

impl<T: Subject> Set<T> {
    /// Reads the files for the first time.
    ///
    /// `accept` gets them in their order, and what is in use, if anything is.
    pub(crate) fn load(
        name: String,
        files: Vec<(PathBuf, Content)>,
        accept: impl Fn(&[Bytes], Option<&T>, OffsetDateTime) -> Result<T, CertError> + Send + Sync + 'static,
    ) -> Result<Set<T>, CertError> {
        let files: Vec<_> = files
            .into_iter()
            .map(|(path, content)| (std::path::absolute(&path).unwrap_or(path), content))
            .collect();
        let stamps = stamps(&files);
        let now = OffsetDateTime::now_utc();
        let (digest, bytes) = read(&files);
        let value = accept(&bytes?, None, now)?;
        let seen = Seen {
            stamps,
            looks: 0,
            accepted: digest,
            perhaps: None,
            refused: None,
            last_reload: now,
            last_failure: None,
            failures: BTreeMap::new(),
        };
        let (accept, live) = (Box::new(accept) as Accept<T>, Live::from(value));
        Ok(Set(Arc::new(Inner { name, files, accept, live, seen: Mutex::new(seen) })))
    }

    /// The name in metrics.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Absolute; in the order that they were given.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.files.iter().map(|(path, _)| path.as_path())
    }

    pub fn reloads(&self) -> Reloads {
        let seen = self.seen();
        Reloads {
            last_reload: seen.last_reload,
            last_failure: seen.last_failure.clone(),
            reload_failures: seen.failures.values().sum(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A set, whatever is in it.
pub(crate) trait Watched: Send + Sync {
    fn name(&self) -> &str;
    /// Looks at the files, and uses them if they have changed for the better.
    fn look(&self, now: OffsetDateTime);
    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)>;
    fn last_reload(&self) -> OffsetDateTime;
    /// Whether the files as they are now are not in use.
    fn is_refused(&self) -> bool;
    /// By reason.
    fn failures(&self) -> BTreeMap<&'static str, u64>;
}

impl<T: Subject> Watched for Set<T> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn look(&self, now: OffsetDateTime) {
        let Inner { name, files, accept, live, .. } = &*self.0;
        if let Some(left) = live.current().aged(now) {
            tracing::warn!(
                set = name,
                now = left.summary(),
                "parts of it have expired, or are valid only now"
            );
            live.set(left);
        }
        let before = stamps(files);
        {
            let mut seen = self.seen();
            seen.looks = seen.looks.wrapping_add(1);
            let waits = seen.perhaps.is_some() || seen.refused.as_ref().is_some_and(|refused| !refused.told);
            if seen.stamps == before && !waits && !seen.looks.is_multiple_of(LOOKS_TO_A_FULL_READ) {
                return;
            }
        }
        let (digest, bytes) = read(files);
        if stamps(files) != before {
            // Somebody is at it: what was read may be of two sets.
            return;
        }
        let mut seen = self.seen();
        let seen_before = std::mem::replace(&mut seen.stamps, before);
        let is_in_place =
            seen.stamps.iter().zip(&seen_before).any(|(now, before)| Stamp::is_written_in_place(now, before));
        let is_all = !is_in_place || seen.perhaps == Some(digest);
        seen.perhaps = None;
        if bytes.is_ok() && digest == seen.accepted {
            (seen.refused, seen.last_failure) = (None, None);
            return;
        }
        match bytes.and_then(|bytes| accept(&bytes, Some(&live.current()), now)) {
            // Half a list of CAs, or of what they have revoked, is a list too: so it is looked at once more. What is put
            // in place by a rename is whole.
            Ok(_) if !is_all => seen.perhaps = Some(digest),
            Ok(value) => {
                let summary = value.summary();
                live.set(value);
                (seen.accepted, seen.refused, seen.last_failure) = (digest, None, None);
                seen.last_reload = now;
                tracing::info!(set = name, now = summary, "new files are in use");
            }
            Err(error) => match &mut seen.refused {
                Some(refused) if refused.digest == digest && refused.told => {}
                Some(refused) if refused.digest == digest => {
                    refused.told = true;
                    let reason = error.to_string();
                    tracing::error!(set = name, reason, "new files are refused; the old ones stay in use");
                    seen.last_failure = Some(Failure { at: now, reason });
                    *seen.failures.entry(error.kind()).or_default() += 1;
                }
                _ => seen.refused = Some(Refused { digest, told: false }),
            },
        }
    }

    fn expiries(&self) -> Vec<(&'static str, OffsetDateTime)> {
        self.current().expiries()
    }

    fn last_reload(&self) -> OffsetDateTime {
        self.seen().last_reload
    }

    fn is_refused(&self) -> bool {
        self.seen().last_failure.is_some()
    }

    fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.seen().failures.clone()
    }
}

/// All files, and a digest of them or of why they cannot be read.
fn read(files: &[(PathBuf, Content)]) -> (Digest, Result<Vec<Bytes>, CertError>) {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut all = Vec::new();
    for (path, content) in files {
        match file::read(path, *content) {
            Ok(bytes) => {
                digest.update(&(bytes.len() as u64).to_be_bytes());
                digest.update(&bytes);
                all.push(Bytes { path: path.clone(), bytes });
            }
            Err(error) => {
                digest.update(error.to_string().as_bytes());
                return (finish(digest), Err(error));
            }
        }
    }
    (finish(digest), Ok(all))
}

fn finish(digest: ring::digest::Context) -> Digest {
    let mut bytes = Digest::default();
    bytes.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

fn stamps(files: &[(PathBuf, Content)]) -> Vec<Option<Stamp>> {
    files.iter().map(|(path, _)| Stamp::of(path)).collect()
}

impl<T> Deref for Set<T> {
    type Target = Live<T>;

    fn deref(&self) -> &Live<T> {
        &self.0.live
    }
}

impl<T> Versioned for Set<T> {
    fn generations(&self) -> watch::Receiver<u64> {
        self.0.live.generations()
    }
}

impl<T> Clone for Set<T> {
    fn clone(&self) -> Set<T> {
        Set(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Set<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = self.0.live.generation();
        f.debug_struct("Set")
            .field("name", &self.0.name)
            .field("generation", &generation)
            .finish_non_exhaustive()
    }
}
