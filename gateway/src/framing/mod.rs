//! What the edge reads of a client's connection before Pingora does.
//!
//! [`Framed`] lies between TLS and Pingora. It bounds the memory of unfinished headers, ends a connection whose body has no
//! certain end, and keeps what was wrong with a header for the [`Door`](crate::door::Door), which refuses the request.

mod chunked;
mod http1;
mod http2;
mod memory;

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use filters::failure::Failure;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use self::http1::{Broken, Http1};
pub(crate) use self::http1::{Flaw, MOST_HEADER_KIB};
use self::http2::Http2;
pub(crate) use self::memory::Memory;
use self::memory::Share;

/// The response to a header that is too large to be read. The request has no ID yet.
static HEADER_TOO_LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let body = Failure::HeaderTooLarge.refusal().problem("-");
    let length = body.len();
    format!(
        "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
});

/// What is known of the messages on a connection.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    reader: Mutex<Reader>,
    /// Notified when an unfinished header has to go, with its connection.
    pub(crate) dropped: Arc<Notify>,
}

#[derive(Debug, Default)]
enum Reader {
    /// Nothing is read: it is not known yet what the connection speaks, or it is a WebSocket.
    #[default]
    Nothing,
    Http1(Http1),
    Http2(Http2),
}

impl Messages {
    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with the header of the request that has arrived.
    pub(crate) fn take_flaw(&self) -> Option<Flaw> {
        match &mut *self.reader() {
            Reader::Http1(reader) => reader.take_flaw(),
            Reader::Nothing | Reader::Http2(_) => None,
        }
    }

    /// From now on the bytes of an HTTP/1.1 connection are a WebSocket's.
    pub(crate) fn are_of_websocket(&self) {
        let mut reader = self.reader();
        if matches!(*reader, Reader::Http1(_)) {
            *reader = Reader::Nothing;
        }
    }
}

/// A client's connection, read before Pingora reads it.
#[derive(Debug)]
pub(crate) struct Framed<S> {
    stream: S,
    messages: Arc<Messages>,
    memory: Share,
    broken: Option<Broken>,
}

impl<S: IO> Framed<S> {
    pub(crate) fn new(stream: S, messages: Arc<Messages>, memory: Arc<Memory>, address: IpAddr) -> Self {
        *messages.reader() = match stream.selected_alpn_proto() {
            Some(ALPN::H2) => Reader::Http2(Http2::new()),
            _ => Reader::Http1(Http1::new()),
        };
        let memory = Share::new(memory, address, Arc::clone(&messages.dropped));
        Self { stream, messages, memory, broken: None }
    }
}

impl<S: IO> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.broken.is_some() {
            return Poll::Ready(Err(malformed()));
        }
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        let mut reader = self.messages.reader();
        let (unfinished, broken) = match &mut *reader {
            Reader::Nothing => (0, None),
            Reader::Http1(reader) => {
                let broken = reader.read(bytes).err();
                (reader.unfinished_header(), broken)
            }
            Reader::Http2(reader) => {
                reader.read(bytes);
                (reader.unfinished_header(), None)
            }
        };
        drop(reader);
        self.memory.hold(unfinished);
        self.broken = broken;
        if broken == Some(Broken::HeaderTooLarge) {
            // Pingora would read on, up to 1 MiB. No other answer is on its way: requests are not pipelined.
            let _ = Pin::new(&mut self.stream).poll_write(context, &HEADER_TOO_LARGE);
            let _ = Pin::new(&mut self.stream).poll_flush(context);
        }
        match self.broken {
            None => Poll::Ready(Ok(())),
            // Pingora gets the header, so that the request is refused.
            Some(Broken::Body { after: after @ 1.. }) => {
                buffer.set_filled(before + after);
                Poll::Ready(Ok(()))
            }
            Some(Broken::Body { after: 0 } | Broken::HeaderTooLarge) => {
                buffer.set_filled(before);
                Poll::Ready(Err(malformed()))
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed framing")
}

impl<S: IO> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl<S: IO> Shutdown for Framed<S> {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.stream).await;
    }
}

impl<S: IO> UniqueID for Framed<S> {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl<S: IO> Ssl for Framed<S> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // Pingora knows no `http/1.0`. The door asks for a newer version.
        self.stream.selected_alpn_proto().filter(|protocol| !matches!(protocol, ALPN::Custom(_)))
    }
}

impl<S: IO> GetTimingDigest for Framed<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl<S: IO> GetProxyDigest for Framed<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl<S: IO> GetSocketDigest for Framed<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

#[async_trait]
impl<S: IO> Peek for Framed<S> {}
