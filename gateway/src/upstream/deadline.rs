//! The time that an upstream has for its whole answer.
//!
//! Pingora bounds each read and each write, so an upstream that sends a byte now and then could take as long as it likes.
//! Here its connection is shut once its time is over, whatever it is doing: that is the end of the answer for whoever
//! reads it. What had arrived by then may still be passed on, so a client that is slow to take it is bounded by its own
//! listener's timeout beyond that.
//!
//! Pingora owns the sockets, and tells their numbers. What a number stands for is known here from the moment that its
//! connection is made until just before it is closed, by a descriptor of our own: no other connection is ever shut.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pingora::upstreams::peer::{HttpPeer, Tracer, Tracing};
use pingora::{Error, ErrorType};
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;

/// Stands for no limit: longer than any request lasts.
const NO_LIMIT: Duration = Duration::from_secs(365 * 86_400);

/// Until when an upstream's whole answer must be there; nothing is shut once dropped.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    silence: Option<Silence>,
    shuts: Option<AbortHandle>,
}

/// How long neither side may send a byte, and when one did last.
#[derive(Clone, Debug)]
struct Silence {
    most: Duration,
    last: Arc<Mutex<Instant>>,
}

impl Silence {
    fn ends_at(&self) -> Instant {
        *lock(&self.last) + self.most
    }
}

impl Deadline {
    /// `total` for the whole answer, none if that is zero; `idle` without a byte in either direction.
    pub(crate) fn new(total: Duration, idle: Option<Duration>) -> Self {
        let now = Instant::now();
        let total = if total.is_zero() { NO_LIMIT } else { total };
        let silence = idle.map(|most| Silence { most, last: Arc::new(Mutex::new(now)) });
        Self { at: now + total, silence, shuts: None }
    }

    /// Zero once it is over.
    pub(crate) fn left(&self) -> Duration {
        ends_at(self.at, self.silence.as_ref()).saturating_duration_since(Instant::now())
    }

    /// Zero once it is over, whatever was said meanwhile.
    pub(crate) fn total_left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The client or the upstream has sent something.
    pub(crate) fn heard(&self) {
        if let Some(silence) = &self.silence {
            *lock(&silence.last) = Instant::now();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// From now on it is that connection which is shut when the time is over.
    pub(crate) fn shuts(&mut self, socket: Arc<TcpStream>) {
        self.is_met();
        let (at, silence) = (self.at, self.silence.clone());
        let shuts = tokio::spawn(async move {
            loop {
                let ends_at = ends_at(at, silence.as_ref());
                if ends_at <= Instant::now() {
                    break;
                }
                tokio::time::sleep_until(ends_at.into()).await;
            }
            // It fails when the upstream has closed it, which is as good.
            let _ = socket.shutdown(Shutdown::Both);
        });
        self.shuts = Some(shuts.abort_handle());
    }

    /// The answer is whole, and its connection is the next request's.
    pub(crate) fn is_met(&mut self) {
        if let Some(shuts) = self.shuts.take() {
            shuts.abort();
        }
    }
}

fn ends_at(total: Instant, silence: Option<&Silence>) -> Instant {
    silence.map_or(total, |silence| silence.ends_at().min(total))
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.is_met();
    }
}

/// The sockets of connections to upstreams, by number, while they are open.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<HashMap<RawFd, Arc<TcpStream>>>);

impl Sockets {
    /// Lets a connection that is made to that peer be known.
    pub(crate) fn know(self: &Arc<Self>, peer: &mut HttpPeer) {
        let socket = Socket { all: Arc::clone(self), own: Arc::default() };
        let made = Arc::clone(&socket.own);
        peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |socket| duplicate(socket, &made)));
        peer.options.tracer = Some(Tracer(Box::new(socket)));
    }

    pub(crate) fn get(&self, number: RawFd) -> Option<Arc<TcpStream>> {
        lock(&self.0).get(&number).cloned()
    }
}

/// A socket that has been made, with its number; `None` before.
type Own = Mutex<Option<(RawFd, Arc<TcpStream>)>>;

fn duplicate(socket: &TcpSocket, own: &Own) -> pingora::Result<()> {
    let duplicate = socket.as_fd().try_clone_to_owned().map_err(|error| {
        Error::because(ErrorType::ConnectError, "no file descriptor for another connection", error)
    })?;
    *lock(own) = Some((socket.as_raw_fd(), Arc::new(TcpStream::from(duplicate))));
    Ok(())
}

/// One connection, of which Pingora tells when it is made and when it is about to be closed.
#[derive(Clone, Debug)]
struct Socket {
    all: Arc<Sockets>,
    own: Arc<Own>,
}

impl Tracing for Socket {
    fn on_connected(&self) {
        if let Some((number, socket)) = &*lock(&self.own) {
            lock(&self.all.0).insert(*number, Arc::clone(socket));
        }
    }

    fn on_disconnected(&self) {
        if let Some((number, _)) = lock(&self.own).take() {
            lock(&self.all.0).remove(&number);
        }
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
