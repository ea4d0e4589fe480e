//! A Redis that keeps everything in memory and evicts nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
    running: Option<Program>,
}

impl Redis {
    /// Starts one with its log in `dir`.
    ///
    /// # Errors
    /// When `redis-server` is not installed or does not start.
    pub async fn start(dir: &Path) -> anyhow::Result<Redis> {
        std::fs::create_dir_all(dir)?;
        let mut redis = Redis { dir: dir.to_owned(), address: ports::v4()?, running: None };
        redis.resume().await?;
        Ok(redis)
    }

    /// Starts it again on its port, with nothing in it.
    ///
    /// # Errors
    /// As of [`Redis::start`].
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let port = self.address.port().to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--maxmemory-policy", "noeviction"];
        let nothing_kept = ["--save", "", "--appendonly", "no"];
        let arguments = arguments.into_iter().chain(nothing_kept);
        let log = self.dir.join("redis.log");
        let program = Path::new("redis-server");
        let mut running = Program::start("redis-server", program, arguments, None, &log)?;
        let address = self.address;
        running.ready(READY_WITHIN, async || ping(address).await.is_ok_and(|answered| answered)).await?;
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
    Ok(&answer == b"+PONG")
}
