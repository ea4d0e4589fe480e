//! Active health checks: every address is asked now and then, over the same mutual TLS as requests.

use std::sync::Arc;
use std::time::Duration;

use filters::policy::Health;
use prometheus::IntGaugeVec;
use tokio::task::JoinSet;

use super::Upstream;

/// Probes every address of the upstream until the process ends.
pub(crate) async fn keep_probing(name: String, upstream: Arc<Upstream>, healthy: IntGaugeVec) {
    let Some(health) = upstream.health.clone() else { return };
    let mut tasks = JoinSet::new();
    for position in 0..upstream.addresses.len() {
        let (name, upstream, health, healthy) =
            (name.clone(), Arc::clone(&upstream), health.clone(), healthy.clone());
        tasks.spawn(async move { probe_address(&name, &upstream, position, &health, &healthy).await });
    }
    while tasks.join_next().await.is_some() {}
}

async fn probe_address(
    name: &str,
    upstream: &Upstream,
    position: usize,
    health: &Health,
    healthy: &IntGaugeVec,
) {
    let Some(address) = upstream.addresses.get(position) else { return };
    let told = address.at.to_string();
    healthy.with_label_values(&[name, &told]).set(i64::from(address.fitness.is_healthy()));
    loop {
        let url = format!("https://{}{}", address.authority, health.path);
        let timeout = Duration::from_millis(health.timeout_ms);
        let answer = address.way.current().client.get(url).timeout(timeout).send().await;
        let serves = answer.is_ok_and(|answer| answer.status() == http::StatusCode::OK);
        if let Some(changed) = address.fitness.probed(serves, health) {
            tracing::warn!(upstream = name, address = told, healthy = changed, "health has changed");
            healthy.with_label_values(&[name, &told]).set(i64::from(changed));
        }
        // Spread, so that a fleet does not ask in step.
        tokio::time::sleep(Duration::from_millis(health.interval_ms).mul_f64(rand::random_range(0.9..1.1)))
            .await;
    }
}
