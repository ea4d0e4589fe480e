//! A Redis that keeps everything in memory and evicts nothing; Sentinels and a Cluster of such servers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Program, Signal, ports};

const READY_WITHIN: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// A Redis on a loopback port of its own; it ends with this value.
#[derive(Debug)]
pub struct Redis {
    dir: PathBuf,
    address: std::net::SocketAddr,
    /// Arguments of the server, besides those that every server has.
    more: Vec<String>,
    running: Option<Program>,
}

impl Redis {
    /// Starts one with its log in `dir`.
    ///
    /// # Errors
    /// When `redis-server` is not installed or does not start.
    pub async fn start(dir: &Path) -> anyhow::Result<Redis> {
        Self::start_with(dir, &[]).await
    }

    /// Starts one with more arguments. With `--tls-cert-file` it speaks TLS only.
    ///
    /// # Errors
    /// As of [`Redis::start`].
    pub async fn start_with(dir: &Path, more: &[&str]) -> anyhow::Result<Redis> {
        std::fs::create_dir_all(dir)?;
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        let mut redis = Redis { dir: dir.to_owned(), address: ports::v4()?, more, running: None };
        redis.resume().await?;
        Ok(redis)
    }

    /// Starts a Sentinel that watches `primary` under the name `name`, and fails it over once `quorum` Sentinels miss it.
    ///
    /// # Errors
    /// As of [`Redis::start`].
    pub async fn sentinel(dir: &Path, name: &str, primary: &Redis, quorum: u8) -> anyhow::Result<Redis> {
        std::fs::create_dir_all(dir)?;
        // A Sentinel writes its configuration anew.
        let file = dir.join("sentinel.conf");
        let (ip, port) = (primary.address.ip(), primary.address.port());
        let lines = [
            format!("sentinel monitor {name} {ip} {port} {quorum}"),
            format!("sentinel down-after-milliseconds {name} 500"),
            format!("sentinel failover-timeout {name} 5000"),
            String::new(),
        ];
        std::fs::write(&file, lines.join("\n"))?;
        let more = vec![file.display().to_string(), "--sentinel".to_owned()];
        let mut sentinel = Redis { dir: dir.to_owned(), address: ports::v4()?, more, running: None };
        sentinel.resume().await?;
        Ok(sentinel)
    }

    /// Starts a Cluster: three primaries, and a replica of each.
    ///
    /// # Errors
    /// As of [`Redis::start`], or when the nodes do not join.
    pub async fn cluster(dir: &Path) -> anyhow::Result<Vec<Redis>> {
        let mut nodes = Vec::new();
        for number in 0..6 {
            let dir = dir.join(format!("node-{number}"));
            let more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--cluster-port"];
            let bus = ports::v4()?.port().to_string();
            let more: Vec<&str> = more.into_iter().chain([&*bus]).collect();
            nodes.push(Redis::start_with(&dir, &more).await?);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        let create = ["--cluster", "create", "--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned);
        let all: Vec<String> = create.into_iter().chain(addresses).collect();
        let made = tokio::process::Command::new("redis-cli").args(&all).output();
        let made = tokio::time::timeout(READY_WITHIN, made).await??;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        // Replicas join after the primaries: until then a failover has nobody to promote.
        for _ in 0..400 {
            let mut ready = 0;
            for node in &nodes {
                let state: String = node.ask(&["CLUSTER", "INFO"]).await?;
                let info: String = node.ask(&["INFO", "replication"]).await?;
                let follows = info.contains("master_link_status:up") || info.contains("connected_slaves:1");
                ready += usize::from(follows && state.contains("cluster_state:ok"));
            }
            if ready == nodes.len() {
                return Ok(nodes);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        anyhow::bail!("the replicas of the Cluster do not join")
    }

    /// Runs a command on this server, as the default user without a password.
    ///
    /// # Errors
    /// When it does not answer, or answers with an error.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> anyhow::Result<T> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let (name, arguments) = command.split_first().context("no command")?;
        Ok(redis::cmd(name).arg(arguments).query_async(&mut connection).await?)
    }

    /// Starts it again on its port, with nothing in it.
    ///
    /// # Errors
    /// As of [`Redis::start`].
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let port = self.address.port().to_string();
        let has_tls = self.more.iter().any(|argument| argument == "--tls-cert-file");
        let is_sentinel = self.more.iter().any(|argument| argument == "--sentinel");
        let place = match has_tls {
            false => ["--port", &*port, "--bind", "127.0.0.1"].to_vec(),
            true => ["--port", "0", "--tls-port", &*port, "--bind", "127.0.0.1"].to_vec(),
        };
        let kept = match is_sentinel {
            false => {
                let memory = ["--maxmemory-policy", "noeviction", "--save", "", "--appendonly", "no"];
                // A replica is sent everything at once.
                &[&memory[..], &["--repl-diskless-sync-delay", "0"]].concat()[..]
            }
            true => &[],
        };
        // A replica writes what it is sent into its folder.
        let folder = self.dir.display().to_string();
        let place = place.into_iter().chain(["--dir", &*folder]);
        // A configuration file is named first.
        let arguments: Vec<&str> =
            self.more.iter().map(String::as_str).chain(place).chain(kept.iter().copied()).collect();
        // Of an earlier start; it would be read.
        let _ = std::fs::remove_file(self.dir.join("dump.rdb"));
        let log = self.dir.join("redis.log");
        let program = Path::new("redis-server");
        let mut running = Program::start("redis-server", program, arguments, None, &log)?;
        let address = self.address;
        let is_ready = async || match has_tls {
            true => TcpStream::connect(address).await.is_ok(),
            false => ping(address).await.is_ok_and(|answered| answered),
        };
        running.ready(READY_WITHIN, is_ready).await?;
        self.running = Some(running);
        Ok(())
    }

    /// When the leases end under which places are taken, soonest first, and what time it is for whoever ends them: both
    /// in microseconds, by the clock of this Redis.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn leases(&self) -> anyhow::Result<(Vec<u64>, u64)> {
        const TAKEN: &str = "local taken = {} \
            for _, place in ipairs(redis.call('KEYS', '*#*')) do taken[#taken + 1] = redis.call('GET', place) end \
            return { redis.call('TIME'), taken }";
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let asked = redis::cmd("EVAL").arg(TAKEN).arg(0).to_owned();
        let ((s, us), mut ends): ((u64, u64), Vec<u64>) = asked.query_async(&mut connection).await?;
        let now_us = s * 1_000_000 + us;
        ends.retain(|end| *end > now_us);
        ends.sort_unstable();
        Ok((ends, now_us))
    }

    /// The server's process; none while it is stopped.
    pub fn id(&self) -> Option<u32> {
        self.running.as_ref().map(Program::id)
    }

    /// Ends it; what was in it is lost.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.running.take() {
            Some(running) => running.end(Signal::SIGTERM, GRACE).await,
            None => Ok(()),
        }
    }

    /// Holds it in the middle of whatever it does: it listens and says nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Where clients find its first database.
    pub fn url(&self) -> String {
        url(self.address)
    }
}

/// How a client names the first database of a server that it reaches at `address`.
pub fn url(address: std::net::SocketAddr) -> String {
    format!("redis://{address}/0")
}

async fn ping(address: std::net::SocketAddr) -> anyhow::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    // One that asks for a password is ready too.
    Ok(&answer == b"+PONG" || &answer == b"-NOAU")
}
