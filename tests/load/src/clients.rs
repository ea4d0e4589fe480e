//! Clients that send prepared bytes over kept connections as fast as they are answered, and what a process costs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use parity::mint::AUTHORITY;
use parity::wire::parse;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections that stay open between rounds.
#[derive(Debug)]
pub(crate) struct Clients {
    streams: Vec<TlsStream<TcpStream>>,
}

impl Clients {
    pub(crate) async fn connect(
        to: SocketAddr,
        tls: &Arc<rustls::ClientConfig>,
        count: usize,
    ) -> anyhow::Result<Self> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(AUTHORITY)?;
            streams.push(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?);
        }
        Ok(Self { streams })
    }

    /// Sends `count` requests, the number of each given to `make`; every answer must be 200.
    pub(crate) async fn send(
        &mut self,
        count: usize,
        make: Arc<dyn Fn(usize) -> Vec<u8> + Send + Sync>,
    ) -> anyhow::Result<()> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for mut stream in self.streams.drain(..) {
            let (next, make) = (Arc::clone(&next), Arc::clone(&make));
            tasks.spawn(async move {
                let mut read = Vec::with_capacity(16 * 1024);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(stream);
                    }
                    stream.write_all(&make(number)).await?;
                    stream.flush().await?;
                    read.clear();
                    let answer = loop {
                        if let Some(answer) = parse(&read)? {
                            break answer;
                        }
                        let mut chunk = [0; 16 * 1024];
                        let length = stream.read(&mut chunk).await?;
                        anyhow::ensure!(length > 0, "the edge closed a connection");
                        read.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    };
                    let body = String::from_utf8_lossy(&answer.body);
                    anyhow::ensure!(answer.status == 200, "{} {body}", answer.status);
                }
            });
        }
        while let Some(stream) = tasks.join_next().await {
            self.streams.push(stream??);
        }
        Ok(())
    }
}

/// CPU time that a process has used, nanoseconds, all its threads together.
pub(crate) fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(sum)
}

/// CPU time that this process, `other` and the children of both have used, also those that have ended, in
/// microseconds; to a hundredth of a second.
pub(crate) fn cpu_with_children_us(other: u32) -> anyhow::Result<u64> {
    let roots = [std::process::id(), other];
    let mut ticks = 0;
    for process in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(process?.path().join("stat")) else { continue };
        let (Some(id), Some((_, rest))) = (stat.split(' ').next(), stat.rsplit_once(')')) else { continue };
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let parent = fields.get(1).copied().unwrap_or(0);
        let root = roots.iter().any(|root| root.to_string() == id);
        if root || roots.iter().any(|root| u64::from(*root) == parent) {
            // User and system time; of a root also those of children that it has waited for (proc(5)).
            ticks += fields.iter().skip(11).take(if root { 4 } else { 2 }).sum::<u64>();
        }
    }
    Ok(ticks * 10_000)
}

/// Memory of a process that is resident, bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
