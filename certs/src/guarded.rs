use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use crate::Guest;

/// A connection that is cut off, whoever holds it and whatever happens on it, when its client is expelled. That goes on
/// for as long as it is open, also after it has become a WebSocket.
pub(crate) struct Guarded {
    stream: TlsStream<TcpStream>,
    guard: Option<JoinHandle<()>>,
}

impl Guarded {
    /// # Errors
    /// Of the operating system: no file descriptor is left.
    pub(crate) fn new(stream: TlsStream<TcpStream>, mut guest: Guest) -> io::Result<Guarded> {
        if !guest.is_known() {
            return Ok(Guarded { stream, guard: None });
        }
        // A descriptor of its own: the stream belongs to whoever reads and writes it.
        let socket = std::net::TcpStream::from(stream.get_ref().0.as_fd().try_clone_to_owned()?);
        let guard = tokio::spawn(async move {
            guest.expelled().await;
            // An error: it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        });
        Ok(Guarded { stream, guard: Some(guard) })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.abort();
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
