//! A child process that writes into one log and does not outlive its value.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::time::sleep;

pub use nix::sys::signal::Signal;

const POLL: Duration = Duration::from_millis(20);
const LOG_LINES_QUOTED: usize = 15;

/// A running process.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `program`, as `user` if one is named and we are root; its output is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        user: Option<&str>,
        log: &Path,
    ) -> anyhow::Result<Program> {
        Program::spawn(name, &mut command(program, arguments, user), log)
    }

    /// Starts a command; its output is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Program> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Program { name, child, log: log.to_owned() })
    }

    /// Runs `program` to its end, as [`Program::start`] starts it.
    ///
    /// # Errors
    /// When it cannot be started or does not succeed: its last words.
    pub async fn run<A: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        user: Option<&str>,
        log: &Path,
    ) -> anyhow::Result<()> {
        let mut program = Program::start(name, program, arguments, user, log)?;
        loop {
            match program.child.try_wait()? {
                None => sleep(POLL).await,
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{name} ended with {status}; {}", program.last_words()),
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. A process that has ended on its own gets none.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Not yet waited for, its id is nobody else's.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Sends `signal` and waits until the process has ended; kills it when it has not within `grace`.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn end(mut self, signal: Signal, grace: Duration) -> anyhow::Result<()> {
        self.signal(signal);
        let asked = Instant::now();
        while asked.elapsed() < grace {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            sleep(POLL).await;
        }
        // Dropped, it is killed.
        Ok(())
    }

    /// `Ok` while it runs.
    ///
    /// # Errors
    /// When it has ended: its status and its last words.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; {}", self.name, self.last_words()),
        }
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the process ends, or is not ready `within`: with its last words.
    pub async fn ready(&mut self, within: Duration, ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < within {
            self.check()?;
            if ready().await {
                return Ok(());
            }
            sleep(POLL).await;
        }
        bail!("{} is not ready after {} s; {}", self.name, within.as_secs(), self.last_words())
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        // A device, such as /dev/full, may never end.
        let is_file = std::fs::metadata(&self.log).is_ok_and(|log| log.is_file());
        let text =
            if is_file { std::fs::read_to_string(&self.log).unwrap_or_default() } else { String::new() };
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES_QUOTED)..).unwrap_or_default();
        let mut quoted = format!("the last lines of {}:", self.log.display());
        for line in tail {
            let _ = write!(quoted, "\n  {line}");
        }
        quoted
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, as `user` if we may choose: some engines refuse to run as root.
fn command<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    user: Option<&str>,
) -> Command {
    let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) else {
        let mut command = Command::new(program);
        command.args(arguments);
        return command;
    };
    let mut command = Command::new("setpriv");
    let flag = |name: &str| OsString::from(format!("--{name}={user}"));
    command.args([flag("reuid"), flag("regid")]).arg("--init-groups").arg("--").arg(program).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(dir: &Path, script: &str) -> Program {
        Program::start("sh", Path::new("/bin/sh"), ["-c", script], None, &dir.join("log")).unwrap()
    }

    #[tokio::test]
    async fn one_that_ends_early_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = start(dir.path(), "echo no room; exit 3");
        let error = program.ready(Duration::from_secs(10), async || false).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
    }

    #[test]
    fn a_panic_leaves_no_process_behind() {
        let dir = tempfile::tempdir().unwrap();
        let program = start(dir.path(), "exec sleep 60");
        let id = i32::try_from(program.id()).unwrap();
        assert!(kill(Pid::from_raw(id), None).is_ok());
        let panicked = std::thread::spawn(move || {
            let _program = program;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(kill(Pid::from_raw(id), None).is_err());
    }

    #[tokio::test]
    async fn one_is_asked_to_end_before_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut program =
            start(dir.path(), "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
        let log = dir.path().join("log");
        let up = async || std::fs::read_to_string(&log).unwrap().contains("up");
        program.ready(Duration::from_secs(10), up).await.unwrap();
        program.end(Signal::SIGTERM, Duration::from_secs(10)).await.unwrap();
        assert!(std::fs::read_to_string(&log).unwrap().contains("bye"));
    }

    #[tokio::test]
    async fn one_that_does_not_heed_a_signal_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = start(dir.path(), "trap '' TERM; echo up; while :; do sleep 0.05; done");
        let (id, log) = (i32::try_from(program.id()).unwrap(), dir.path().join("log"));
        let up = async || std::fs::read_to_string(&log).unwrap().contains("up");
        program.ready(Duration::from_secs(10), up).await.unwrap();
        program.end(Signal::SIGTERM, Duration::from_millis(100)).await.unwrap();
        assert!(kill(Pid::from_raw(id), None).is_err());
    }
}
