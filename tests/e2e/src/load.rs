//! A steady load of one request, over connections that stay open and over new ones all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::Facts;
use rustls::ClientConfig;
use stack::{Payment, Stack};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pay;

/// Requests a second that are aimed for; a machine that has others to serve reaches less.
pub const PER_S: u32 = 500;
/// Connections that are opened at the start, and stay open unless the server closes them after an answer that says so.
const KEPT: usize = 20;
/// Tasks that open a connection for each request.
const FRESH: usize = 4;
/// Of all, by each of the latter.
const FRESH_PER_S: u32 = 10;

/// What is asked, and of whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub port: u16,
    pub tls: Arc<ClientConfig>,
    /// HTTP/1.1, as it goes over the wire.
    pub request: String,
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    tasks: JoinSet<anyhow::Result<()>>,
    seen: Arc<Seen>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicU64,
    closed: AtomicU64,
    shown: Mutex<Vec<Shown>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    pub answered: u64,
    pub per_s: f64,
    /// Connections that were to stay, and which the server closed after an answer that said so.
    pub closed: u64,
    pub shown: Vec<Shown>,
}

/// What a new connection was shown.
#[derive(Clone, Debug)]
pub struct Shown {
    pub begun: Instant,
    /// The end of its handshake.
    pub at: Instant,
    pub serial_hex: String,
}

impl Shown {
    /// Whether all of it lies between two moments.
    pub fn is_within(&self, from: Instant, until: Option<Instant>) -> bool {
        self.begun > from && until.is_none_or(|until| self.at < until)
    }
}

impl Load {
    /// Begins `per_s` requests a second, all of which must be answered with 200. Each new connection looks up
    /// `target`, the others have that of the beginning.
    pub async fn start(
        per_s: u32,
        target: impl Fn() -> anyhow::Result<Target> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let (mut tasks, seen, target) = (JoinSet::new(), Arc::<Seen>::default(), Arc::new(target));
        let began = Instant::now();
        let pause = Duration::from_secs(1) * KEPT as u32 / (per_s - FRESH as u32 * FRESH_PER_S);
        for _ in 0..KEPT {
            let target = target()?;
            let mut connection = target.connect().await?;
            let seen = Arc::clone(&seen);
            tasks.spawn(async move {
                let mut ticks = tokio::time::interval(pause);
                while !seen.stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let asked = ask(&mut connection, &target.request).await;
                    let after = asked.with_context(|| {
                        format!("after {} ms, on a connection that is kept", began.elapsed().as_millis())
                    })?;
                    if after == After::Closes {
                        seen.closed.fetch_add(1, Ordering::Relaxed);
                        connection = target.connect().await.context("in a connection's place")?;
                    }
                    seen.answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        for _ in 0..FRESH {
            let (target, seen) = (Arc::clone(&target), Arc::clone(&seen));
            tasks.spawn(async move {
                let mut ticks = tokio::time::interval(Duration::from_secs(1) / FRESH_PER_S);
                while !seen.stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let (begun, target) = (Instant::now(), target()?);
                    let mut connection = target.connect().await.context("a new connection")?;
                    let shown =
                        Shown { begun, at: Instant::now(), serial_hex: shown(&connection)?.serial_hex };
                    seen.shown.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
                    let asked = ask(&mut connection, &target.request).await;
                    asked.with_context(|| {
                        format!("after {} ms, on a new connection", began.elapsed().as_millis())
                    })?;
                    seen.answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Ok(Self { tasks, seen, began })
    }

    /// The same, of one question after a payment: through the edge to the core and its store.
    pub async fn of_questions(stack: &Stack) -> anyhow::Result<Self> {
        let alice = stack.alice()?;
        let (id, _) = pay(stack, alice, &Payment::new("alice@torana", "bob@torana", "1.00")).await?;
        let request = format!(
            "GET /v1/transactions/{id} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
            alice.token
        );
        let trust = certs::Trust::load(&stack.dir().join("pki/edge-ca.pem"))?;
        let port = stack.edge_url().rsplit(':').next().context("a port")?.parse()?;
        Self::start(PER_S, move || {
            // Of its own for each connection: none is resumed, all are shown a certificate.
            let tls = Arc::new(certs::client_config(&trust, None, certs::Versions::Tls12And13)?);
            Ok(Target { port, tls, request: request.clone() })
        })
        .await
    }

    /// Milliseconds since it began, as failures are told.
    pub fn ms(&self) -> u128 {
        self.began.elapsed().as_millis()
    }

    /// When a new connection was first shown a certificate, if it was.
    pub fn first_shown(&self, serial_hex: &str) -> Option<Instant> {
        let shown = self.seen.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().find(|shown| shown.serial_hex == serial_hex).map(|shown| shown.at)
    }

    /// How many connections have begun since then and were shown a certificate.
    pub fn connected_since(&self, since: Instant) -> usize {
        let shown = self.seen.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().filter(|shown| shown.is_within(since, None)).count()
    }

    /// # Errors
    /// A request that has failed, or a connection that has broken.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.tasks.try_join_next() {
            None => Ok(()),
            Some(ended) => ended?.context("a task of the load has ended early"),
        }
    }

    /// # Errors
    /// The first request that failed, or connection that broke.
    pub async fn stop(mut self) -> anyhow::Result<Outcome> {
        self.seen.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        let answered = self.seen.answered.load(Ordering::Relaxed);
        let shown = std::mem::take(&mut *self.seen.shown.lock().unwrap_or_else(PoisonError::into_inner));
        let closed = self.seen.closed.load(Ordering::Relaxed);
        Ok(Outcome { answered, per_s: answered as f64 / self.began.elapsed().as_secs_f64(), closed, shown })
    }
}

impl Target {
    /// A new connection, its handshake done.
    pub async fn connect(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        self.connect_to("localhost").await
    }

    /// One that asks for a name.
    pub async fn connect_to(&self, name: &'static str) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        Ok(connector.connect(name.try_into()?, stream).await?)
    }
}

/// The certificate that the server has shown.
pub fn shown(connection: &TlsStream<TcpStream>) -> anyhow::Result<Facts> {
    let chain = connection.get_ref().1.peer_certificates().context("it has shown no certificate")?;
    let leaf = chain.first().context("it has shown no certificate")?;
    Facts::from_der(leaf).map_err(anyhow::Error::msg)
}

/// What the server does with a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Stays,
    /// It has said so.
    Closes,
}

/// One request, answered with 200, and its body read to the end.
pub async fn ask(connection: &mut TlsStream<TcpStream>, request: &str) -> anyhow::Result<After> {
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        anyhow::ensure!(connection.read_buf(&mut answer).await? > 0, "closed before the answer's end");
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "{text}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        if body.len() >= length.context("an answer without a length")?? {
            let closes = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
            return Ok(if closes { After::Closes } else { After::Stays });
        }
    }
}
