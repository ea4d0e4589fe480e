//! Figures for `/metrics`, in prometheus' text format.

use std::sync::Arc;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::store::Applied;
use crate::txn::{Effect, EventType, Ignored, TxnId};

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By `result`: new, replayed, refused code.
    pub sends: IntCounterVec,
    /// By `event` and `result` (public status, or why it was ignored).
    pub events: IntCounterVec,
    /// Payments contradicted by the network: look at them.
    pub conflicts: IntCounter,
    /// Payments whose status checks brought no end.
    pub unresolved: IntCounter,
    /// By `call` and `result`.
    pub network_calls: IntCounterVec,
    pub commit_seconds: Histogram,
    pub commit_batch: Histogram,
    pub published: IntCounter,
    /// By `topic` and `result`: handled, retried, delayed, dead.
    pub consumed: IntCounterVec,
    pub outbox: IntGauge,
    pub timers: IntGauge,
    pub flagged: IntGauge,
}

impl Metrics {
    /// # Errors
    /// Only if two figures had one name.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        Ok(Metrics {
            sends: counters("txn_sends_total", "Payment requests by result", &["result"])?,
            events: counters("txn_events_total", "Events by name and result", &["event", "result"])?,
            conflicts: counter("txn_conflicts_total", "The network contradicted a state that stands")?,
            unresolved: counter("txn_unresolved_total", "Status checks exhausted without an end")?,
            network_calls: counters(
                "txn_network_calls_total",
                "Calls to the network proxy",
                &["call", "result"],
            )?,
            commit_seconds: histogram(
                "txn_commit_seconds",
                "One transaction of the store",
                &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0],
            )?,
            commit_batch: histogram(
                "txn_commit_batch",
                "Requests in one transaction",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0],
            )?,
            published: counter("txn_outbox_published_total", "Events put on the bus")?,
            consumed: counters(
                "txn_bus_consumed_total",
                "Messages taken from the bus",
                &["topic", "result"],
            )?,
            outbox: gauge("txn_outbox_unpublished", "Events waiting for the bus")?,
            timers: gauge("txn_timers", "Timers set")?,
            flagged: gauge("txn_flagged", "Payments waiting for reconciliation")?,
            registry,
        })
    }

    /// Tells of certificates too.
    ///
    /// # Errors
    /// Only if two figures had one name.
    pub fn tell_of(&self, watch: &Arc<certs::Watch>) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(logging::Metrics::new()?))?;
        self.registry.register(Box::new(certs::metrics::Metrics::new(Arc::clone(watch))?))
    }

    /// Counts what became of an event, and says aloud what somebody has to look at.
    pub fn applied(&self, txn_id: TxnId, event: &str, applied: &Applied) {
        let result = match applied {
            Applied::Stepped { txn, effects, .. } => {
                if effects.contains(&Effect::Publish(EventType::TransactionUnresolved)) {
                    self.unresolved.inc();
                    tracing::warn!(%txn_id, "status checks exhausted; waits for reconciliation");
                }
                tracing::info!(%txn_id, event, state = txn.state.name(), status = txn.state.status().name(), "step");
                txn.state.status().name()
            }
            Applied::Ignored { why: Ignored::Conflict, txn } => {
                self.conflicts.inc();
                tracing::error!(%txn_id, event, state = txn.state.name(), "the network contradicts the state that stands");
                Ignored::Conflict.name()
            }
            Applied::Ignored { why, .. } => why.name(),
            Applied::SeenBefore => "seen_before",
            Applied::UnknownTxn => "unknown_transaction",
        };
        self.events.with_label_values(&[event, result]).inc();
    }

    /// The text that a scraper reads.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}
