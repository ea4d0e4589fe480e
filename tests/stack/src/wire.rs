//! A TCP connection that can go bad: a proxy in front of the instances of a service or of an engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// How a wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Everything passes.
    Up,
    /// Every chunk comes this much later.
    Slow(Duration),
    /// What is open is dropped; what is new is refused.
    Cut,
}

/// Listens on one address and passes each connection on to whichever target accepts. It ends with this value.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    line: watch::Sender<Line>,
    listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

const CHUNK: usize = 16 * 1024;
/// A port that was let go of may be in use for a moment by connections that still end.
const REBIND_EVERY: Duration = Duration::from_millis(20);
const SWITCHES_WITHIN: Duration = Duration::from_secs(5);

impl Wire {
    /// Starts one on a free port of loopback.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(targets: Vec<SocketAddr>) -> anyhow::Result<Wire> {
        let address = engines::ports::v4()?;
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let (line, lines) = watch::channel(Line::Up);
        let (listens, listening) = watch::channel(true);
        let task = tokio::spawn(serve(listener, targets.into(), lines, listens));
        Ok(Wire { address, line, listening, task })
    }

    /// Where clients connect in place of the targets.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it is; in effect when this returns.
    ///
    /// # Errors
    /// When its port cannot be taken again after a cut.
    pub async fn set(&self, line: Line) -> anyhow::Result<()> {
        self.line.send_replace(line);
        let mut listening = self.listening.clone();
        let switched = listening.wait_for(|listens| *listens == (line != Line::Cut));
        let switched = tokio::time::timeout(SWITCHES_WITHIN, switched).await;
        switched.with_context(|| format!("the wire on {} is not {line:?} yet", self.address))??;
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    targets: Arc<[SocketAddr]>,
    mut lines: watch::Receiver<Line>,
    listens: watch::Sender<bool>,
) {
    let Ok(address) = listener.local_addr() else { return };
    let mut listener = Some(listener);
    let turn = Arc::new(AtomicUsize::new(0));
    // Dropped with this task, its connections end.
    let mut connections = JoinSet::new();
    loop {
        if *lines.borrow_and_update() == Line::Cut {
            listener = None;
            connections.shutdown().await;
            listens.send_replace(false);
            if lines.wait_for(|line| *line != Line::Cut).await.is_err() {
                return;
            }
        }
        let open = match listener.take() {
            Some(open) => open,
            None => rebind(address).await,
        };
        listens.send_replace(true);
        tokio::select! {
            changed = lines.changed() => if changed.is_err() { return },
            accepted = open.accept() => if let Ok((client, _)) = accepted {
                connections.spawn(carry(client, targets.clone(), turn.clone(), lines.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
        listener = Some(open);
    }
}

/// [`Wire::set`] bounds how long anybody waits for this.
async fn rebind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => sleep(REBIND_EVERY).await,
        }
    }
}

/// Nobody accepts: the client's connection ends without a byte.
async fn carry(
    mut client: TcpStream,
    targets: Arc<[SocketAddr]>,
    turn: Arc<AtomicUsize>,
    lines: watch::Receiver<Line>,
) {
    let first = turn.fetch_add(1, Ordering::Relaxed);
    for step in 0..targets.len() {
        let Some(target) = targets.get(first.wrapping_add(step) % targets.len()) else { return };
        let Ok(mut server) = TcpStream::connect(target).await else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        // Either side's end of stream is passed on, and the connection lives until both have ended; a connection
        // that breaks ends both.
        let both = async {
            tokio::try_join!(copy(from_client, to_server, &lines), copy(from_server, to_client, &lines))
        };
        let _ = both.await;
        return;
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    lines: &watch::Receiver<Line>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        let came = Instant::now();
        let line = *lines.borrow();
        if let Line::Slow(by) = line {
            tokio::time::sleep_until(came + by).await;
        }
        let Some(bytes) = chunk.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every byte with its name.
    async fn named(name: u8) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind(engines::ports::v4()?).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    while stream.read_u8().await.is_ok() && stream.write_u8(name).await.is_ok() {}
                });
            }
        });
        Ok((address, task))
    }

    async fn asked(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_u8(b'?').await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn it_finds_who_accepts_is_cut_and_comes_back_on_its_port() {
        let ((a, task_a), (b, _task_b)) = (named(b'a').await.unwrap(), named(b'b').await.unwrap());
        let wire = Wire::start(vec![a, b]).await.unwrap();
        let mut first = TcpStream::connect(wire.address()).await.unwrap();
        let mut second = TcpStream::connect(wire.address()).await.unwrap();
        assert_eq!((asked(&mut first).await.unwrap(), asked(&mut second).await.unwrap()), (b'a', b'b'));

        task_a.abort();
        assert!(task_a.await.unwrap_err().is_cancelled());
        for _ in 0..2 {
            let mut third = TcpStream::connect(wire.address()).await.unwrap();
            assert_eq!(asked(&mut third).await.unwrap(), b'b', "only b accepts");
        }

        wire.set(Line::Cut).await.unwrap();
        assert!(asked(&mut second).await.is_err(), "what was open is dropped");
        assert!(TcpStream::connect(wire.address()).await.is_err(), "what is new is refused");

        let late = Duration::from_millis(60);
        wire.set(Line::Slow(late)).await.unwrap();
        let mut fourth = TcpStream::connect(wire.address()).await.unwrap();
        let began = Instant::now();
        assert_eq!(asked(&mut fourth).await.unwrap(), b'b');
        assert!(began.elapsed() >= 2 * late, "there and back");
        wire.set(Line::Up).await.unwrap();
        let began = Instant::now();
        assert_eq!(asked(&mut fourth).await.unwrap(), b'b');
        assert!(began.elapsed() < late, "the open connection is quick again");
    }
}
