//! The clock of the cases: processes are told a time that stands still until the case moves it.
//!
//! A shared library in front of the C library answers for the wall clock; whatever measures how long something
//! takes asks the monotonic clock, which runs on. Needs a C compiler, as the build does.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The library, compiled.
#[derive(Clone, Debug)]
pub struct Library(PathBuf);

impl Library {
    /// Compiles it into `folder`.
    ///
    /// # Errors
    /// When there is no C compiler.
    pub fn compile(folder: &Path) -> anyhow::Result<Self> {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        std::fs::write(&source, include_str!("clock.c"))?;
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
            .args([&library, &source])
            .status()
            .context("the clock of the cases needs a C compiler, `cc`")?;
        anyhow::ensure!(status.success(), "cc: {status}");
        Ok(Self(library))
    }
}

/// One case's time.
#[derive(Debug)]
pub struct Clock {
    file: File,
    path: PathBuf,
    library: Library,
}

impl Clock {
    /// A clock kept in `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(library: &Library, path: &Path, now_ms: u64) -> anyhow::Result<Self> {
        let clock = Self { file: File::create(path)?, path: path.to_owned(), library: library.clone() };
        clock.set(now_ms)?;
        Ok(clock)
    }

    /// What time it is from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, now_ms: u64) -> anyhow::Result<()> {
        Ok(self.file.write_all_at(&(now_ms * 1_000_000).to_ne_bytes(), 0)?)
    }

    /// The variables of a process that is to live in this time.
    pub fn variables(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library.0), ("PARITY_CLOCK", &self.path)]
    }
}
