//! Clients that send prepared bytes over kept connections as fast as they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
