//! What the edge keeps of one request from its header to the end of its answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use filters::admission::Admission;
use filters::policy::WebSocket;
use filters::upstream::UpstreamFields;
use http::header::HOST;
use pingora::http::RequestHeader;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::edge::Edge;
use crate::message::target;
use crate::upstream::{Repeat, Upstream};

#[derive(Debug)]
pub(crate) struct Exchange {
    /// Decides on it, from its beginning to its end.
    pub(crate) edge: Arc<Edge>,
    pub(crate) started: Instant,
    /// Set as soon as the header is read.
    pub(crate) admission: Option<Admission>,
    /// The code of a refusal and the filter that decided it.
    pub(crate) refusal: Option<(&'static str, &'static str)>,
    /// What becomes of its fields, once it is admitted.
    pub(crate) fields: UpstreamFields,
    /// Who serves it, chosen once.
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// The position of the address that was tried last.
    pub(crate) address: Option<usize>,
    /// The bounds of the WebSocket that it asks for.
    pub(crate) websocket: Option<WebSocket>,
    /// The body of a request that is to be copied.
    pub(crate) copy: Option<Bytes>,
    /// Our place in the upstream's bulkhead.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Connections for it that could not be made.
    pub(crate) unconnected: u32,
    /// Its repeats.
    pub(crate) repeats: Vec<Repeat>,
    /// Counted until dropped.
    pub(crate) _in_flight: InFlight,
}

impl Exchange {
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
