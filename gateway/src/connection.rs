//! A client's connection: whose certificate it has shown, for how long it has been without a request, why it ends.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use filters::certificate::Certificate;
use pingora::listeners::TlsAccept;
use pingora::protocols::Digest;
use pingora::protocols::tls::TlsRef;
use tokio::sync::Notify;

use crate::exchange::Cut;
use crate::framing::Messages;

/// What is known of a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) clock: Clock,
    /// The client's certificate, read once.
    certificate: Option<Arc<Certificate>>,
    pub(crate) messages: Arc<Messages>,
    /// Why it ends, when it is the edge that ends it.
    pub(crate) cut: Arc<OnceLock<Cut>>,
}

impl Connection {
    fn new(certificate: Option<Arc<Certificate>>) -> Self {
        Self { clock: Clock::start(), certificate, messages: Arc::default(), cut: Arc::default() }
    }

    /// The connection of a request.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<&Self> {
        digest?.ssl_digest.as_ref()?.extension.get()
    }

    pub(crate) fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.clone()
    }
}

/// Gives every connection what its requests find in its digest.
pub(crate) struct Handshakes;

#[async_trait]
impl TlsAccept for Handshakes {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        // The verifier has accepted it, or the handshake would not be complete.
        let certificate = tls.peer_certificate_der().map(|der| Arc::new(Certificate::new(der)));
        Some(Arc::new(Connection::new(certificate)))
    }
}

/// For how long a connection has been without a request. A client that sends its header byte by byte never
/// gets to be one with a request, however long it takes.
#[derive(Debug)]
pub(crate) struct Clock {
    waiting: Mutex<Waiting>,
    /// It is to end sooner than whoever waits for that knows.
    hastened: Notify,
}

#[derive(Debug)]
struct Waiting {
    /// Being answered now.
    requests: u32,
    since: Instant,
    first: bool,
    /// When it ends, whatever it does.
    ends_at: Option<Instant>,
}

impl Clock {
    fn start() -> Self {
        let waiting = Waiting { requests: 0, since: Instant::now(), first: true, ends_at: None };
        Self { waiting: Mutex::new(waiting), hastened: Notify::new() }
    }

    /// The connection must not be there any longer than this.
    pub(crate) fn ends_within(&self, time: Duration) {
        self.waiting().ends_at = Some(Instant::now() + time);
        self.hastened.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's header has arrived whole.
    pub(crate) fn request_begins(&self) {
        let mut waiting = self.waiting();
        waiting.requests += 1;
        waiting.first = false;
    }

    /// A request has been answered.
    pub(crate) fn request_ends(&self) {
        let mut waiting = self.waiting();
        waiting.requests = waiting.requests.saturating_sub(1);
        waiting.ends_at = None;
        waiting.since = Instant::now();
    }

    /// Waits until the connection has been without its first request, or without another one, for too long.
    pub(crate) async fn ran_out(&self, first: Duration, idle: Duration) {
        loop {
            let left = {
                let waiting = self.waiting();
                let limit = if waiting.first { first } else { idle };
                let left = match waiting.requests {
                    0 => limit.saturating_sub(waiting.since.elapsed()),
                    _ => limit,
                };
                let end = waiting.ends_at.map(|at| at.saturating_duration_since(Instant::now()));
                end.map_or(left, |end| end.min(left))
            };
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.hastened.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Whoever waits for it learns of an end that was set while he waited.
    #[tokio::test]
    async fn a_connection_can_be_given_an_end() {
        let clock = Arc::new(Clock::start());
        clock.request_begins();
        let waiting = Arc::clone(&clock);
        let hour = Duration::from_secs(3_600);
        let ran_out = tokio::spawn(async move { waiting.ran_out(hour, hour).await });
        tokio::task::yield_now().await;
        clock.ends_within(Duration::from_millis(1));
        timeout(Duration::from_secs(60), ran_out).await.unwrap().unwrap();
    }
}
