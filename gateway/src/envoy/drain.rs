//! Has an Envoy drain before it is stopped: `gateway drain-envoy`, for a preStop hook.
//!
//! Envoy itself ends at once on SIGTERM, with whatever is in flight.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::load;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Envoy counts what its workers do in per-thread buffers, and shows it after at most this long.
const STATS_SETTLE: Duration = Duration::from_millis(300);

/// How long each phase may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From failing readiness until the listeners close.
    pub delay: Duration,
    /// For requests in flight to finish after that.
    pub limit: Duration,
}

/// Fails Envoy's readiness, waits, closes its listeners, and waits until no request is in flight. Responses carry
/// `Connection: close` or the connection gets GOAWAY meanwhile. Returns how many requests were still in flight at
/// the end of the limit.
///
/// # Errors
/// When the policy has mistakes, or Envoy's admin address does not answer.
pub fn drain(policy: &Path, timing: Timing) -> anyhow::Result<u64> {
    let read = load::read_without_secrets(policy)
        .map_err(|mistakes| anyhow::anyhow!(load::told(&mistakes, policy)))?;
    let admin = format!("http://{}", read.policy.document().admin.address);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(drain_at(&admin, timing))
}

async fn drain_at(admin: &str, timing: Timing) -> anyhow::Result<u64> {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    let post = async |path: &str| -> anyhow::Result<()> {
        let url = format!("{admin}{path}");
        let answer =
            client.post(&url).send().await.with_context(|| format!("no answer from Envoy at {url}"))?;
        ensure!(answer.status().is_success(), "{url} answered {}", answer.status());
        Ok(())
    };
    post("/healthcheck/fail").await?;
    tokio::time::sleep(timing.delay).await;
    post("/drain_listeners").await?;
    tokio::time::sleep(STATS_SETTLE).await;
    let closed = Instant::now();
    loop {
        let url = format!("{admin}/stats?format=json&filter=downstream_rq_active");
        let stats: Stats = client.get(&url).send().await?.json().await?;
        let active = stats.in_flight();
        if active == 0 || closed.elapsed() >= timing.limit {
            return Ok(active);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[derive(Deserialize)]
struct Stats {
    stats: Vec<Stat>,
}

#[derive(Deserialize)]
struct Stat {
    name: Option<String>,
    value: Option<u64>,
}

impl Stats {
    /// Requests in flight at all listeners but the admin address, whose one request asks for this.
    fn in_flight(&self) -> u64 {
        let of_listener = |name: &str| {
            name.starts_with("http.")
                && name.ends_with(".downstream_rq_active")
                && !name.starts_with("http.admin.")
        };
        let listeners = self.stats.iter().filter(|stat| stat.name.as_deref().is_some_and(of_listener));
        listeners.filter_map(|stat| stat.value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_of_listeners_are_in_flight() {
        let text = r#"{"stats": [
            {"name": "http.public.downstream_rq_active", "value": 3},
            {"name": "http.partners.downstream_rq_active", "value": 2},
            {"name": "http.admin.downstream_rq_active", "value": 1},
            {"name": "listener.127.0.0.1_443.http.public.downstream_rq_active_total", "value": 9},
            {"histograms": {}}
        ]}"#;
        let stats: Stats = serde_json::from_str(text).unwrap();
        assert_eq!(stats.in_flight(), 5);
    }
}
