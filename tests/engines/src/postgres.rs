//! A PostgreSQL of one's own: version 15 or newer, durable as by default, on a free port of loopback.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::User;

use crate::{Program, Signal, ports};

/// The account under which Debian's packages run it, and the name of the superuser of the cluster.
const ACCOUNT: &str = "postgres";
const OLDEST: u32 = 15;
const DEBIAN: &str = "/usr/lib/postgresql";
const MAX_CONNECTIONS: u32 = 200;
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// Whoever drops it waits so long for it to let go of its shared memory.
const CRASHES_WITHIN: Duration = Duration::from_secs(5);

/// A cluster with its server running, unless it has been stopped.
#[derive(Debug)]
pub struct Postgres {
    binaries: PathBuf,
    data: PathBuf,
    log: PathBuf,
    address: SocketAddr,
    server: Option<Program>,
    /// Where the data lies when its user can't reach the caller's folder.
    _elsewhere: Option<tempfile::TempDir>,
}

impl Postgres {
    /// Makes a cluster in `dir` and starts it. Nothing that makes it durable is switched off.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or does not start: with its last words.
    pub async fn start(dir: &Path) -> anyhow::Result<Postgres> {
        let binaries = binaries()?;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let log = dir.join("postgres.log");
        let (data, elsewhere) = place_for_data(dir)?;
        let initdb: Vec<OsString> = vec![
            "--pgdata".into(),
            data.clone().into(),
            "--username".into(),
            ACCOUNT.into(),
            "--auth=trust".into(),
            "--encoding=UTF8".into(),
            "--no-locale".into(),
            // The files of the empty cluster alone; what is committed later is synced as ever.
            "--no-sync".into(),
        ];
        Program::run("initdb", &binaries.join("initdb"), initdb, Some(ACCOUNT), &log).await?;
        let address = ports::v4()?;
        let mut postgres = Postgres { binaries, data, log, address, server: None, _elsewhere: elsewhere };
        postgres.resume().await?;
        Ok(postgres)
    }

    /// Starts the server that was stopped or killed, on the same port and data. One that runs is left alone.
    ///
    /// # Errors
    /// When it does not start: with its last words.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        let settings = [
            format!("listen_addresses={}", self.address.ip()),
            format!("port={}", self.address.port()),
            "unix_socket_directories=".to_owned(),
            format!("max_connections={MAX_CONNECTIONS}"),
            "log_checkpoints=off".to_owned(),
        ];
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.data.clone().into()];
        for setting in settings {
            arguments.extend(["-c".into(), setting.into()]);
        }
        let program = self.binaries.join("postgres");
        let mut server = Program::start("postgres", &program, arguments, Some(ACCOUNT), &self.log)?;
        let status = self.data.join("postmaster.pid");
        let id = server.id().to_string();
        // The server writes there how it stands, on the last line, under its process id on the first.
        let ready = async || {
            std::fs::read_to_string(&status)
                .is_ok_and(|text| text.lines().next() == Some(&id) && text.trim_end().ends_with("\nready"))
        };
        server.ready(READY_WITHIN, ready).await?;
        self.server = Some(server);
        Ok(())
    }

    /// Where a client connects.
    pub fn url(&self, database: &str) -> String {
        url(self.address, database)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process whose children serve the connections; none while it is stopped.
    pub fn id(&self) -> Option<u32> {
        self.server.as_ref().map(Program::id)
    }

    /// Where its programs are: `psql`, `pgbench` and the rest.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When it is there already, or the server is not.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let arguments = ["-h", &host, "-p", &port, "-U", ACCOUNT, "--no-password", name];
        Program::run("createdb", &self.binaries.join("createdb"), arguments, None, &self.log).await
    }

    /// What `psql` answers to one statement: a line a row, `|` between columns, no headings.
    ///
    /// # Errors
    /// When the server is not there or does not like the statement: with what it said.
    pub async fn query(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let arguments = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", sql];
        let psql = tokio::process::Command::new(self.binaries.join("psql")).args(arguments).output().await;
        let answered = psql.context("psql")?;
        ensure!(answered.status.success(), "psql: {}", String::from_utf8_lossy(&answered.stderr));
        Ok(String::from_utf8(answered.stdout)?)
    }

    /// Stops it as an operator does for a restart: connections are cut, what they had not committed is undone.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGINT).await
    }

    /// Ends it as a crash does: nothing is tidied up, and the next start recovers from the log.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGQUIT).await
    }

    async fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        match self.server.take() {
            Some(server) => server.end(signal, STOPS_WITHIN).await,
            None => Ok(()),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // Killed outright it would leave a piece of shared memory behind.
        server.signal(Signal::SIGQUIT);
        let asked = Instant::now();
        while server.check().is_ok() && asked.elapsed() < CRASHES_WITHIN {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How a database is named to a client that reaches its server at `address`.
pub fn url(address: SocketAddr, database: &str) -> String {
    format!("postgres://{ACCOUNT}@{address}/{database}?sslmode=disable")
}

/// The newest installed version's programs.
fn binaries() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(version, bin)| *version >= OLDEST && bin.join("postgres").exists())
        .max();
    if let Some((_, bin)) = newest {
        return Ok(bin);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(bin) = std::env::split_paths(&path).find(|bin| bin.join("postgres").exists()) else {
        bail!("PostgreSQL is not installed: neither in {DEBIAN} nor on PATH; `tests/run install` brings it");
    };
    let said = std::process::Command::new(bin.join("postgres")).arg("--version").output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    ensure!(version >= Some(OLDEST), "{} is {said}; at least {OLDEST} is needed", bin.display());
    Ok(bin)
}

/// A folder for the data: the caller's own, or another if we have to become [`ACCOUNT`] and it can't go there.
fn place_for_data(dir: &Path) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if !nix::unistd::geteuid().is_root() {
        return Ok((dir.join("postgres"), None));
    }
    let account = User::from_name(ACCOUNT)?.with_context(|| format!("there is no user {ACCOUNT}"))?;
    // The caller's folder is for us alone if it is a temporary one; what lies in it keeps its own rights.
    let mode = std::fs::metadata(dir)?.permissions().mode();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o011))?;
    let absolute = dir.canonicalize()?;
    let reachable = absolute
        .ancestors()
        .all(|folder| std::fs::metadata(folder).is_ok_and(|facts| facts.permissions().mode() & 0o001 != 0));
    let (data, elsewhere) = if reachable {
        (absolute.join("postgres"), None)
    } else {
        let elsewhere = tempfile::Builder::new().prefix("torana-postgres-").tempdir()?;
        std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o711))?;
        (elsewhere.path().join("postgres"), Some(elsewhere))
    };
    std::fs::create_dir_all(&data)?;
    std::os::unix::fs::chown(&data, Some(account.uid.as_raw()), Some(account.gid.as_raw()))?;
    Ok((data, elsewhere))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sql(postgres: &Postgres, dir: &Path, sql: &str) -> anyhow::Result<String> {
        let log = dir.join("psql.log");
        let psql = postgres.binaries().join("psql");
        let url = postgres.url("payments");
        let before = std::fs::read_to_string(&log).unwrap_or_default().len();
        Program::run("psql", &psql, ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql], None, &log)
            .await?;
        Ok(std::fs::read_to_string(&log)?[before..].trim().to_owned())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_is_durable_and_comes_back_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut postgres = Postgres::start(dir.path()).await.unwrap();
        postgres.create_database("payments").await.unwrap();
        assert!(postgres.create_database("payments").await.is_err(), "it is there already");
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            assert_eq!(sql(&postgres, dir.path(), &format!("SHOW {setting}")).await.unwrap(), "on");
        }
        let address = postgres.address();
        sql(&postgres, dir.path(), "CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
        postgres.stop().await.unwrap();
        assert!(sql(&postgres, dir.path(), "SELECT 1").await.is_err(), "it is stopped");
        postgres.resume().await.unwrap();
        sql(&postgres, dir.path(), "INSERT INTO t VALUES (2)").await.unwrap();
        postgres.kill().await.unwrap();
        postgres.resume().await.unwrap();
        assert_eq!(sql(&postgres, dir.path(), "SELECT sum(n) FROM t").await.unwrap(), "3");
        assert_eq!(postgres.address(), address);
    }
}
