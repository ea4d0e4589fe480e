//! Services as child processes.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

/// How long a service may take to finish what is in flight after SIGTERM.
const GRACE: Duration = Duration::from_secs(12);
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(25);
const LOG_LINES_QUOTED: usize = 15;

/// What runs as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    NpciSim,
    TxnCore,
    NpciProxy,
    /// The state service, which Envoy's workers share.
    State,
    Edge,
}

/// Who is the edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Edge {
    /// `gateway serve`.
    #[default]
    Gateway,
    /// Envoy with the module, and `gateway state` beside it.
    Envoy,
}

impl Service {
    /// What a stack consists of, in the order in which it starts.
    pub fn of(edge: Edge) -> &'static [Service] {
        const ENVOY: [Service; 5] =
            [Service::NpciSim, Service::TxnCore, Service::NpciProxy, Service::State, Service::Edge];
        const GATEWAY: [Service; 4] = [Service::NpciSim, Service::TxnCore, Service::NpciProxy, Service::Edge];
        match edge {
            Edge::Gateway => &GATEWAY,
            Edge::Envoy => &ENVOY,
        }
    }

    /// The name in logs and for people, and of its configuration.
    pub fn name(self) -> &'static str {
        match self {
            Service::NpciSim => "npci-sim",
            Service::TxnCore => "txn-core",
            Service::NpciProxy => "npci-proxy",
            Service::State => "state",
            Service::Edge => "edge",
        }
    }
}

/// A command line.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

/// A child process that does not outlive this value.
#[derive(Debug)]
pub(crate) struct Process {
    service: Service,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the service; its output is appended to the log.
    pub(crate) fn start(service: Service, command: &CommandLine, log: &Path) -> anyhow::Result<Process> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let CommandLine { program, arguments } = command;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Process { service, child, log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and SIGKILL for a process that is still there [`GRACE`] later.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if !self.is_running() {
                return;
            }
            sleep(POLL).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended on its own; not yet waited for, its id is nobody else's.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// `Ok` while it runs; when it has ended, its status and the end of its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; {}", self.service.name(), self.last_words()),
        }
    }

    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES_QUOTED)..).unwrap_or_default();
        let mut quoted = format!("the last lines of {}:", self.log.display());
        for line in tail {
            let _ = write!(quoted, "\n  {line}");
        }
        quoted
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `url`, the service's readiness, answers 200; `check` is asked in between whether its process lives.
///
/// # Errors
/// When the process ends, or is not ready in time: with what it said last.
pub(crate) async fn ready(
    service: Service,
    http: &reqwest::Client,
    url: &str,
    check: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut last = String::from("no answer");
    while started.elapsed() < READY_WITHIN {
        check()?;
        match http.get(url).timeout(Duration::from_secs(1)).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => last = format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()),
            Err(_) => {}
        }
        sleep(POLL).await;
    }
    bail!("{} is not ready after {} s: {url} says {last}", service.name(), READY_WITHIN.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A service that does what the script says.
    fn start(dir: &Path, script: &str) -> Process {
        let program = dir.join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = CommandLine { program, arguments: Vec::new() };
        Process::start(Service::Edge, &command, &dir.join("log")).unwrap()
    }

    fn is_there(pid: u32) -> bool {
        kill(Pid::from_raw(pid.try_into().unwrap()), None).is_ok()
    }

    #[test]
    fn a_panic_leaves_no_process_behind() {
        let dir = tempfile::tempdir().unwrap();
        let process = start(dir.path(), "exec sleep 60");
        let pid = process.id();
        assert!(is_there(pid));
        let panicked = std::thread::spawn(move || {
            let _process = process;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(!is_there(pid));
    }

    #[tokio::test]
    async fn a_process_is_asked_to_stop_before_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let process =
            start(dir.path(), "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
        let pid = process.id();
        let log = dir.path().join("log");
        while !std::fs::read_to_string(&log).unwrap().contains("up") {
            sleep(POLL).await;
        }
        process.stop().await;
        assert!(!is_there(pid));
        assert!(std::fs::read_to_string(&log).unwrap().contains("bye"));
    }

    #[tokio::test]
    async fn one_that_dies_early_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let process = std::sync::Mutex::new(start(dir.path(), "echo the port is taken; exit 3"));
        certs::install_crypto_provider();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let check = || process.lock().unwrap().check();
        let error =
            ready(Service::Edge, &http, "http://127.0.0.1:9/readiness", check).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("the port is taken"), "{error}");
    }
}
