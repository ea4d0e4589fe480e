//! One file of the trail.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

/// Events of a file that are known to be in it, the newest ones. What comes again comes soon: after a crash, after
/// a partition has moved, after the relay has published twice.
const KNOWN: usize = 50_000;
/// How much of the end of a file is read for them.
const TAIL_BYTES: u64 = 32 * 1024 * 1024;

/// Open for appending.
#[derive(Debug)]
pub(super) struct DayFile {
    file: File,
    len: u64,
    known: HashSet<u128>,
    oldest_first: VecDeque<u128>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Id {
    event_id: Uuid,
}

impl DayFile {
    /// Appends what is not in the file yet, and waits until it is on the disk.
    pub(super) fn append<'a>(
        open: &mut HashMap<PathBuf, DayFile>,
        folder: &Path,
        name: &Path,
        lines: impl Iterator<Item = (u128, &'a str)>,
    ) -> io::Result<()> {
        let there = open.get(name).map(|file| file.file.metadata().map(|now| now.len() == file.len));
        if !matches!(there, Some(Ok(true))) {
            // Somebody else wrote meanwhile: the partition was away.
            open.insert(name.to_owned(), DayFile::open(folder, name)?);
        }
        let Some(file) = open.get_mut(name) else { return Ok(()) };
        let mut text = String::new();
        for (id, line) in lines {
            if file.learn(id) {
                text += line;
                text.push('\n');
            }
        }
        file.file.write_all(text.as_bytes())?;
        file.len += text.len() as u64;
        file.file.sync_data()
    }

    fn open(folder: &Path, name: &Path) -> io::Result<DayFile> {
        let path = folder.join(name);
        let day = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(day)?;
        let is_new = !path.exists();
        let mut file = File::options().create(true).read(true).append(true).open(&path)?;
        if is_new {
            // The names on the way to it have to survive too.
            for folder in day.ancestors().take_while(|above| above.starts_with(folder)) {
                File::open(folder)?.sync_all()?;
            }
        }
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        (&file).take(TAIL_BYTES).read_to_end(&mut tail)?;
        let mut this = DayFile { file, len, known: HashSet::new(), oldest_first: VecDeque::new() };
        for line in tail.split(|byte| *byte == b'\n') {
            if let Ok(Id { event_id }) = serde_json::from_slice(line) {
                this.learn(event_id.as_u128());
            }
        }
        if tail.last().is_some_and(|last| *last != b'\n') {
            // A crash cut the last line off: it was answered to nobody, and the next one begins anew.
            this.file.write_all(b"\n")?;
            this.len += 1;
        }
        Ok(this)
    }

    /// Whether it was not known.
    fn learn(&mut self, id: u128) -> bool {
        if !self.known.insert(id) {
            return false;
        }
        self.oldest_first.push_back(id);
        if self.oldest_first.len() > KNOWN
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}
