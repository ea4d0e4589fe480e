//! What the edge keeps of one request from its header to the end of its answer, and what is told of it then.
//!
//! However an exchange ends, it is counted and logged once, and gives back what it held: at its end, or, when whatever
//! carries it is dropped with its connection, as it is dropped itself.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use filters::admission::Admission;
use filters::filter::LimitName;
use filters::policy::WebSocket;
use filters::upstream::UpstreamFields;
use http::header::HOST;
use pingora::http::RequestHeader;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::access_log;
use crate::edge::Edge;
use crate::flags;
use crate::message::target;
use crate::upstream::deadline::Deadline;
use crate::upstream::failure::Cause;
use crate::upstream::{Repeat, Tried, Upstream};

#[derive(Debug)]
pub(crate) struct Exchange {
    /// Decides on it, from its beginning to its end.
    pub(crate) edge: Arc<Edge>,
    pub(crate) started: Instant,
    /// What was asked; `None` until the header is read, and once it is told of.
    pub(crate) asked: Option<Asked>,
    /// Of the answer that the client is sent, 0 until it is.
    pub(crate) status: u16,
    /// Why its connection ends, if that ends before it.
    pub(crate) cut: Arc<OnceLock<Cut>>,
    /// Set as soon as the header is read.
    pub(crate) admission: Option<Admission>,
    /// The code of a refusal and the filter that decided it.
    pub(crate) refusal: Option<(&'static str, &'static str)>,
    /// The limit that refused it.
    pub(crate) limit: Option<Box<LimitName>>,
    /// Nothing at the edge has refused it.
    pub(crate) admitted: bool,
    /// What becomes of its fields, once it is admitted.
    pub(crate) fields: UpstreamFields,
    /// Who serves it, chosen once.
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// Until when its whole answer must be there; set when the upstream is first turned to.
    pub(crate) deadline: Option<Deadline>,
    /// How much of its body was forwarded as it arrived; `None`: the whole body was read first.
    pub(crate) streamed: Option<Streamed>,
    /// The address that was tried last.
    pub(crate) address: Option<Tried>,
    /// The bounds of the WebSocket that it asks for.
    pub(crate) websocket: Option<WebSocket>,
    /// The body of a request that is to be copied.
    pub(crate) copy: Option<Bytes>,
    /// Our place in the upstream's bulkhead.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Connections for it that could not be made.
    pub(crate) unconnected: u32,
    /// Why the last of them could not.
    pub(crate) upstream_failure: Option<Cause>,
    /// Its repeats.
    pub(crate) repeats: Vec<Repeat>,
    /// Counted until dropped.
    pub(crate) _in_flight: InFlight,
}

/// How much of a body was forwarded as it arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streamed {
    /// Bytes that the route allows.
    pub(crate) most: usize,
    sent: usize,
}

impl Streamed {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, sent: 0 }
    }

    /// The body is sent from its beginning, on a connection that has just been made.
    pub(crate) fn restart(&mut self) {
        self.sent = 0;
    }

    /// Notes that so many bytes more are to be forwarded; tells whether the route allows them.
    #[must_use]
    pub(crate) fn may_forward(&mut self, bytes: usize) -> bool {
        self.sent = self.sent.saturating_add(bytes);
        self.sent <= self.most
    }
}

/// What a request asked, as far as it is told.
#[derive(Debug)]
pub(crate) struct Asked {
    method: &'static str,
    /// With addresses masked.
    path: String,
}

impl Asked {
    pub(crate) fn by(header: &RequestHeader) -> Self {
        // Only the methods of HTTP itself are labels: a client can invent others without end.
        let method = match header.method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            "PATCH" => "PATCH",
            _ => "other",
        };
        Self { method, path: access_log::told(target(header).0).into_owned() }
    }
}

/// What cut an exchange off before its whole answer was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client went away.
    ClientGone,
    /// The upstream broke off what it had begun.
    UpstreamBroke,
    /// The client's certificate does not count any more.
    ClientRevoked,
    /// The token that opened it does not count any more.
    TokenRevoked,
    /// The token that opened it has expired.
    TokenExpired,
    /// It took all the time that it may.
    TimeOver,
    /// The body was larger than the route allows.
    BodyTooLarge,
    /// Another policy's listener took over, and it was not done when its time ran out.
    ListenerChanged,
    /// The edge could not go on with it.
    EdgeFailed,
    /// The edge dropped it: it was told to stop, say.
    EdgeStopped,
}

impl Cut {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::UpstreamBroke => "upstream_broke",
            Self::ClientRevoked => "client_revoked",
            Self::TokenRevoked => "token_revoked",
            Self::TokenExpired => "token_expired",
            Self::TimeOver => "time_over",
            Self::BodyTooLarge => "body_too_large",
            Self::ListenerChanged => "listener_changed",
            Self::EdgeFailed => "edge_failed",
            Self::EdgeStopped => "edge_stopped",
        }
    }
}

impl Exchange {
    /// It has ended, with its whole answer when nothing cut it off: counts and logs it, and gives back what it held. Does
    /// nothing when that was done. Who waits for what is given can know that the shared state was told.
    pub(crate) fn end(&mut self, cut: Option<Cut>) -> Option<JoinHandle<()>> {
        let Asked { method, path } = self.asked.take()?;
        let elapsed = self.started.elapsed();
        let edge = Arc::clone(&self.edge);
        let (metrics, route, status) = (edge.metrics(), edge.route(self), self.status.to_string());
        metrics.requests.with_label_values(&[route.unwrap_or("none"), method, &status]).inc();
        metrics.duration.with_label_values(&[route.unwrap_or("none")]).observe(elapsed.as_secs_f64());
        if let Some(admission) = &self.admission {
            flags::count(admission.context(), &metrics.flags);
        }
        let admission = self.admission.as_ref().filter(|_| self.admitted);
        if let Some((experiment, variant)) = admission.and_then(|admission| admission.variant(&edge.policy)) {
            metrics.experiments.with_label_values(&[experiment, variant, &status]).inc();
        }
        let held = self.admission.as_mut().map(Admission::leaves).unwrap_or_default();
        let told = edge.standing.state.give_back(held);
        access_log::write(self, edge.route(self), (method, &path), cut, elapsed.as_secs_f64() * 1_000.0);
        told
    }

    /// Whether the upstream has had all the time that its route gives it.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.as_ref().is_some_and(Deadline::is_over)
    }

    /// Whether the connections of its upstream carry many requests at once.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.upstream.as_ref().is_some_and(|upstream| upstream.settings.protocol.value.multiplexes())
    }

    /// Makes of the client's header the one that the upstream gets.
    pub(crate) fn dress(&self, header: &mut RequestHeader) -> pingora::Result<()> {
        for name in &self.fields.remove {
            header.remove_header(name);
        }
        for (name, value) in &self.fields.set {
            header.insert_header(name.clone().into_owned(), value.as_str())?;
        }
        // HTTP/2 names the host in the target, which is about to change.
        if !header.headers.contains_key(HOST)
            && let Some(authority) = header.uri.authority().map(ToString::to_string)
        {
            header.insert_header(HOST, authority)?;
        }
        if let Some(path) = &self.fields.path {
            let (_, query) = target(header);
            let target = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
            header.set_raw_path(target.as_bytes())?;
        }
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let cut = self.cut.get().copied().unwrap_or(Cut::EdgeStopped);
        // Nobody is left to wait for it.
        drop(self.end(Some(cut)));
    }
}

/// Counts a request for as long as it lives, however it ends.
#[derive(Debug)]
pub(crate) struct InFlight(IntGauge);

impl InFlight {
    pub(crate) fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
