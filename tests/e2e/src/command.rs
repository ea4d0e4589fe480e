//! The command `certs`, run as its users do.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use stack::Binaries;

/// What the command said, and its exit status.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub json: Value,
    pub stderr: String,
}

/// Runs `certs --json` in a folder.
///
/// # Errors
/// When it cannot be run.
pub async fn certs<S: AsRef<OsStr>>(
    binaries: &Binaries,
    folder: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> anyhow::Result<Said> {
    let mut command = tokio::process::Command::new(binaries.folder().join("certs"));
    let output = command.arg("--json").args(arguments).current_dir(folder).output().await?;
    Ok(Said {
        status: output.status.code().context("certs was killed")?,
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Said {
    /// The problem with an exit status that is not 0.
    ///
    /// # Errors
    /// When it is not 0: with all that was said.
    pub fn fine(self) -> anyhow::Result<Value> {
        anyhow::ensure!(self.status == 0, "{}: {:#}\n{}", self.status, self.json, self.stderr);
        Ok(self.json)
    }
}
