//! What the gateway counts.

use std::sync::Arc;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::state::State;

/// The gateway's metrics. Labels are the policy's own names and standard codes: their number is bounded.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) duration: HistogramVec,
    pub(crate) refusals: IntCounterVec,
    pub(crate) would_refuse: IntCounterVec,
    pub(crate) flags: IntCounterVec,
    pub(crate) uncounted: IntCounter,
    pub(crate) in_flight: IntGauge,
    pub(crate) state_entries: IntGauge,
    pub(crate) state_batches: IntCounterVec,
    pub(crate) redis_up: IntGauge,
    pub(crate) redis_impaired: IntGaugeVec,
    pub(crate) redis_seconds: Histogram,
    pub(crate) redis_batches: IntCounterVec,
    pub(crate) headers_dropped: IntCounter,
    pub(crate) ejections: IntCounterVec,
    pub(crate) repeats: IntCounter,
    pub(crate) healthy: IntGaugeVec,
    pub(crate) copies: IntCounterVec,
    pub(crate) jwks_fetches: IntCounterVec,
    pub(crate) jwks_keys: IntGaugeVec,
    pub(crate) policy_reloads: IntCounterVec,
    pub(crate) policy_refused: IntGauge,
    pub(crate) experiments: IntCounterVec,
    pub(crate) policy_since: Gauge,
    pub(crate) introspections: IntCounterVec,
    pub(crate) revocations: IntGauge,
    pub(crate) revocations_age_seconds: Gauge,
    pub(crate) revocation_pulls: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("gateway_requests_total", "Requests answered, by route and status"),
                &["route", "method", "status"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "gateway_request_duration_seconds",
                    "From the request's header to the end of its answer",
                )
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
                &["route"],
            )?,
            refusals: IntCounterVec::new(
                Opts::new("gateway_refusals_total", "Requests refused by the edge, by filter and code"),
                &["filter", "code"],
            )?,
            would_refuse: IntCounterVec::new(
                Opts::new(
                    "gateway_would_refuse_total",
                    "Requests that a limit with `mode: shadow` would have refused, by filter and limit",
                ),
                &["filter", "limit"],
            )?,
            flags: IntCounterVec::new(
                Opts::new(
                    "gateway_flag_evaluations_total",
                    "Requests that a feature flag was asked about, by what it said and OpenFeature's reason",
                ),
                &["flag", "variant", "reason"],
            )?,
            uncounted: IntCounter::new(
                "gateway_uncounted_total",
                "Requests that are in no tenant's usage, or that a limit in shadow did not count: the shared state was \
                 away or full",
            )?,
            in_flight: IntGauge::new("gateway_requests_in_flight", "Requests being answered")?,
            state_entries: IntGauge::new("gateway_state_entries", "Nonces and limits remembered in memory")?,
            state_batches: IntCounterVec::new(
                Opts::new(
                    "gateway_state_batches_total",
                    "Batches that the state service was sent, by outcome",
                ),
                &["outcome"],
            )?,
            redis_up: IntGauge::new(
                "gateway_redis_up",
                "1 while the shared state in Redis answers, if there is one",
            )?,
            redis_impaired: IntGaugeVec::new(
                Opts::new(
                    "gateway_redis_impaired",
                    "1 while nonces are refused because Redis is unavailable, is full or has an eviction policy",
                ),
                &["cause"],
            )?,
            redis_seconds: Histogram::with_opts(
                HistogramOpts::new("gateway_redis_duration_seconds", "Batches that Redis was sent")
                    .buckets(vec![0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5]),
            )?,
            redis_batches: IntCounterVec::new(
                Opts::new("gateway_redis_batches_total", "Batches for Redis, by outcome"),
                &["outcome"],
            )?,
            headers_dropped: IntCounter::new(
                "gateway_unfinished_headers_dropped_total",
                "Connections that were closed because unfinished headers held too much memory",
            )?,
            ejections: IntCounterVec::new(
                Opts::new(
                    "gateway_ejections_total",
                    "Times that an upstream's address was left out for a while",
                ),
                &["upstream", "address"],
            )?,
            repeats: IntCounter::new(
                "gateway_repeats_total",
                "Requests sent again after their connection broke",
            )?,
            healthy: IntGaugeVec::new(
                Opts::new("gateway_upstream_healthy", "1 while probes find that the address serves"),
                &["upstream", "address"],
            )?,
            copies: IntCounterVec::new(
                Opts::new("gateway_mirrored_total", "Copies of requests to mirrors, by outcome"),
                &["outcome"],
            )?,
            jwks_fetches: IntCounterVec::new(
                Opts::new("gateway_jwks_fetches_total", "Fetches of issuers' keys, by outcome"),
                &["issuer", "outcome"],
            )?,
            jwks_keys: IntGaugeVec::new(
                Opts::new("gateway_jwks_keys", "Keys held of an issuer"),
                &["issuer"],
            )?,
            policy_reloads: IntCounterVec::new(
                Opts::new("gateway_policy_reloads_total", "Policies that were to take over, by outcome"),
                &["outcome"],
            )?,
            experiments: IntCounterVec::new(
                Opts::new(
                    "gateway_experiment_requests_total",
                    "Requests of experiments, by variant and status",
                ),
                &["experiment", "variant", "status"],
            )?,
            policy_refused: IntGauge::new(
                "gateway_policy_refused",
                "1 while the policy file as it is now is refused, and the policy before it serves",
            )?,
            policy_since: Gauge::new(
                "gateway_policy_since_timestamp_seconds",
                "When the policy that serves now took over, Unix time",
            )?,
            introspections: IntCounterVec::new(
                Opts::new("gateway_introspections_total", "Tokens that issuers were asked about, by outcome"),
                &["issuer", "outcome"],
            )?,
            revocations: IntGauge::new("gateway_revocations", "Tokens, sessions, devices and users revoked")?,
            revocations_age_seconds: Gauge::new(
                "gateway_revocations_age_seconds",
                "Since the list of what is revoked was last known to be whole; -1: it never was",
            )?,
            revocation_pulls: IntCounterVec::new(
                Opts::new(
                    "gateway_revocation_pulls_total",
                    "Times that the list of what is revoked was asked for, of Redis or by Envoy's workers, by outcome",
                ),
                &["outcome"],
            )?,
            registry,
        };
        for collector in [
            Box::new(metrics.requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(metrics.duration.clone()),
            Box::new(metrics.refusals.clone()),
            Box::new(metrics.would_refuse.clone()),
            Box::new(metrics.flags.clone()),
            Box::new(metrics.uncounted.clone()),
            Box::new(metrics.in_flight.clone()),
            Box::new(metrics.state_entries.clone()),
            Box::new(metrics.state_batches.clone()),
            Box::new(metrics.redis_seconds.clone()),
            Box::new(metrics.redis_batches.clone()),
            Box::new(metrics.headers_dropped.clone()),
            Box::new(metrics.ejections.clone()),
            Box::new(metrics.repeats.clone()),
            Box::new(metrics.healthy.clone()),
            Box::new(metrics.copies.clone()),
            Box::new(metrics.jwks_fetches.clone()),
            Box::new(metrics.jwks_keys.clone()),
            Box::new(metrics.policy_reloads.clone()),
            Box::new(metrics.policy_refused.clone()),
            Box::new(metrics.experiments.clone()),
            Box::new(metrics.policy_since.clone()),
            Box::new(metrics.introspections.clone()),
            Box::new(metrics.revocations.clone()),
            Box::new(metrics.revocations_age_seconds.clone()),
            Box::new(metrics.revocation_pulls.clone()),
        ] {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// Tells how a Redis fares, for there is one: without, 0 would be an alarm for ever.
    pub(crate) fn has_redis(&self) {
        // It is told once, whoever asks for it.
        let _ = self.registry.register(Box::new(self.redis_up.clone()));
        let _ = self.registry.register(Box::new(self.redis_impaired.clone()));
    }

    /// Tells what is revoked.
    pub(crate) fn tell_revocations(&self, state: &State) {
        self.revocations.set(i64::try_from(state.revoked().list().len()).unwrap_or(i64::MAX));
        self.revocations_age_seconds.set(state.revocations_age_s().unwrap_or(-1.0));
    }

    /// Whether what Envoy is handed is what was accepted last; told by who hands it.
    pub(crate) fn envoy_handed(&self) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::new(
            "gateway_envoy_handed",
            "1 while Envoy has been handed all that was accepted for it",
        )?;
        self.registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    /// Tells of certificates too, of all watches that there are when it is asked.
    pub(crate) fn tell_of(
        &self,
        watches: impl Fn() -> Vec<Arc<certs::Watch>> + Send + Sync + 'static,
    ) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(logging::Metrics::new()?))?;
        self.registry.register(Box::new(certs::metrics::Metrics::of(watches)?))
    }

    /// The Prometheus text format, version 0.0.4.
    pub(crate) fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
