//! What is counted and timed.

use std::sync::Arc;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::{breaker::State, codec::Api};

/// The process's own figures; each proxy has its own registry, so that tests can run many.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    calls: HistogramVec,
    breakers: IntGaugeVec,
    in_flight: IntGaugeVec,
    callbacks: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// Only if two figures had one name.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let seconds =
            vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0];
        let calls =
            HistogramOpts::new("npci_call_duration_seconds", "Calls to the network by api and outcome");
        let metrics = Metrics {
            registry: Registry::new(),
            calls: HistogramVec::new(calls.buckets(seconds), &["api", "outcome"])?,
            breakers: IntGaugeVec::new(
                Opts::new("npci_breaker_state", "Circuit breaker: 0 closed, 1 half open, 2 open"),
                &["api"],
            )?,
            in_flight: IntGaugeVec::new(Opts::new("npci_calls_in_flight", "Calls under way"), &["api"])?,
            callbacks: IntCounterVec::new(
                Opts::new("npci_callbacks_total", "Callbacks by verdict"),
                &["verdict"],
            )?,
        };
        metrics.registry.register(Box::new(metrics.calls.clone()))?;
        metrics.registry.register(Box::new(metrics.breakers.clone()))?;
        metrics.registry.register(Box::new(metrics.in_flight.clone()))?;
        metrics.registry.register(Box::new(metrics.callbacks.clone()))?;
        for api in Api::ALL {
            metrics.breaker(api, State::Closed { failures: 0 });
        }
        Ok(metrics)
    }

    /// Tells of certificates too.
    pub fn tell_of(&self, watch: &Arc<certs::Watch>) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(logging::Metrics::new()?))?;
        self.registry.register(Box::new(certs::metrics::Metrics::new(Arc::clone(watch))?))
    }

    pub fn call(&self, api: Api, outcome: &str, seconds: f64) {
        self.calls.with_label_values(&[api.name(), outcome]).observe(seconds);
    }

    pub fn breaker(&self, api: Api, state: State) {
        let value = match state {
            State::Closed { .. } => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        };
        self.breakers.with_label_values(&[api.name()]).set(value);
    }

    pub fn in_flight(&self, api: Api, calls: usize) {
        self.in_flight.with_label_values(&[api.name()]).set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    pub fn callback(&self, verdict: &str) {
        self.callbacks.with_label_values(&[verdict]).inc();
    }

    /// Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8(text).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}
