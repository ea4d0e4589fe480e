//! What the edge keeps of one request from its header to the end of its answer.

use std::sync::Arc;
use std::time::Instant;

use filters::filter::Context;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::trace::TraceContext;

#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) started: Instant,
    /// A UUID of ours: a client's own would let it forge our logs.
    pub(crate) request_id: String,
    pub(crate) trace: TraceContext,
    /// The route's name, once known.
    pub(crate) route: Option<Arc<str>>,
    /// The rule's position in the policy.
    pub(crate) rule: Option<usize>,
    /// What the filters learned.
    pub(crate) context: Option<Context>,
    /// The code of a refusal and the filter that decided it, `None` for the edge itself.
    pub(crate) refusal: Option<(&'static str, Option<&'static str>)>,
    /// Our place in the upstream's bulkhead.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Counted until dropped.
    pub(crate) _in_flight: InFlight,
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
