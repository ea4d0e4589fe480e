//! An upstream that does what a test tells it: it answers, keeps requests waiting, hangs up, opens a WebSocket, or does
//! not listen at all.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use engines::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The path of probes.
pub const HEALTH_PATH: &str = "/health";

const MOST_HEADER_BYTES: usize = 64 * 1024;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// An answer with that status, the last one of its connection.
    Answer(u16),
    /// An answer after which the connection stays open.
    StayOpen,
    /// The connection is closed without an answer.
    HangUp,
    /// The WebSocket that is asked for is opened, and says again what it is told.
    OpenWebSocket,
    /// Nothing, until something else is told; then that.
    Wait,
}

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Taken {
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// Its connection had carried another one before.
    pub on_old: bool,
}

impl Taken {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_slice())
    }
}

/// What becomes of requests, and which have come.
#[derive(Debug)]
pub struct Script(watch::Sender<Told>);

#[derive(Debug)]
struct Told {
    /// Grows each time that something is told.
    version: u64,
    next: VecDeque<Act>,
    then: Act,
    waiting: usize,
    taken: Vec<Taken>,
}

impl Default for Script {
    fn default() -> Self {
        let next = VecDeque::new();
        Self(watch::Sender::new(Told {
            version: 0,
            next,
            then: Act::Answer(200),
            waiting: 0,
            taken: Vec::new(),
        }))
    }
}

impl Script {
    /// Tells what becomes of those that wait and of the next ones, one each, and then of all others. What has come before
    /// is forgotten.
    pub fn tell(&self, next: &[Act], then: Act) {
        self.0.send_modify(|told| {
            *told = Told {
                version: told.version + 1,
                next: next.iter().copied().collect(),
                then,
                waiting: 0,
                taken: Vec::new(),
            };
        });
    }

    /// Those that came since something was told.
    pub fn taken(&self) -> Vec<Taken> {
        self.0.borrow().taken.clone()
    }

    /// How many of them wait.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }

    async fn act(&self, taken: Taken) -> Act {
        // Of none of this is anybody told who waits.
        self.0.send_if_modified(|told| {
            told.taken.push(taken);
            false
        });
        let mut watched = self.0.subscribe();
        loop {
            let (mut act, mut version) = (Act::Wait, 0);
            self.0.send_if_modified(|told| {
                act = told.next.pop_front().unwrap_or(told.then);
                told.waiting += usize::from(act == Act::Wait);
                version = told.version;
                false
            });
            if act != Act::Wait || watched.wait_for(|told| told.version != version).await.is_err() {
                return act;
            }
        }
    }
}

/// A running upstream. It takes one request after the other on a connection, and says its name in each answer.
#[derive(Debug)]
pub struct Scripted {
    pub address: SocketAddr,
    pub requests: Arc<Script>,
    /// Requests to [`HEALTH_PATH`].
    pub probes: Arc<Script>,
    name: &'static str,
    tls: Arc<rustls::ServerConfig>,
    broken: Arc<AtomicUsize>,
    listens: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Starts one that answers.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(name: &'static str, tls: Arc<rustls::ServerConfig>) -> anyhow::Result<Self> {
        let (requests, probes) = Default::default();
        let mut started = Self {
            address: ports::v4()?,
            requests,
            probes,
            name,
            tls,
            broken: Arc::default(),
            listens: None,
        };
        started.listen().await?;
        Ok(started)
    }

    /// Listens again.
    ///
    /// # Errors
    /// When another process has taken its port.
    pub async fn listen(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let (name, broken) = (self.name, Arc::clone(&self.broken));
        let (requests, probes) = (Arc::clone(&self.requests), Arc::clone(&self.probes));
        self.listens = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let one_less = |left: usize| left.checked_sub(1);
                if broken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                    continue;
                }
                let (acceptor, requests, probes) =
                    (acceptor.clone(), Arc::clone(&requests), Arc::clone(&probes));
                connections.spawn(async move {
                    let stream = acceptor.accept(stream).await?;
                    serve(name, stream, &requests, &probes).await
                });
                while connections.try_join_next().is_some() {}
            }
        }));
        Ok(())
    }

    /// Refuses connections from now on, and drops those that it has.
    pub async fn stop(&mut self) {
        if let Some(listens) = self.listens.take() {
            listens.abort();
            let _ = listens.await;
        }
    }

    /// So many of the next connections are closed before they stand.
    pub fn breaks(&self, connections: usize) {
        self.broken.store(connections, Ordering::Relaxed);
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(listens) = &self.listens {
            listens.abort();
        }
    }
}

async fn serve(
    name: &str,
    mut stream: TlsStream<TcpStream>,
    requests: &Script,
    probes: &Script,
) -> anyhow::Result<()> {
    let mut on_old = false;
    loop {
        let taken = take(&mut stream, on_old).await?;
        let is_probe = taken.target == HEALTH_PATH;
        let asks = taken.field("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));
        let act = if is_probe { probes } else { requests }.act(taken).await;
        let (status, stays) = match act {
            Act::Answer(status) => (status, false),
            Act::StayOpen => (200, true),
            Act::OpenWebSocket if asks => {
                let opens =
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                stream.write_all(opens.as_bytes()).await?;
                stream.flush().await?;
                let (mut hears, mut says) = tokio::io::split(stream);
                tokio::io::copy(&mut hears, &mut says).await?;
                return Ok(());
            }
            Act::OpenWebSocket => (500, false),
            Act::HangUp | Act::Wait => return Ok(stream.shutdown().await?),
        };
        let body = format!("{{\"upstream\":\"{name}\"}}");
        let ends = if stays { "" } else { "connection: close\r\n" };
        let answer = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{ends}\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if !stays {
            stream.shutdown().await?;
            // Closed with something unread it would be reset, and the answer lost.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        on_old = true;
    }
}

async fn take(stream: &mut TlsStream<TcpStream>, on_old: bool) -> anyhow::Result<Taken> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < MOST_HEADER_BYTES, "a header without end");
        head.push(stream.read_u8().await?);
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let first = String::from_utf8(lines.next().unwrap_or_default().to_vec())?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().context("no method")?, words.next().context("no target")?);
    let field = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    };
    let fields = lines.filter_map(field).collect();
    let mut taken = Taken { method, target, fields, body: Vec::new(), on_old };
    if let Some(length) = taken.field("content-length") {
        let mut body = vec![0; std::str::from_utf8(length)?.parse()?];
        stream.read_exact(&mut body).await?;
        taken.body = body;
    }
    Ok(taken)
}
