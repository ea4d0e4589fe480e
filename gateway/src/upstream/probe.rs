//! Active health checks: every address is asked now and then, over the same transport as requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use filters::policy::Health;
use prometheus::IntGaugeVec;
use tokio::task::{AbortHandle, JoinSet};

use super::failure::{Cause, chain};
use super::{Address, Upstream};

/// Probes every address of the upstream, those included that are resolved later, until the future is dropped.
pub(crate) async fn keep_probing(name: String, upstream: Arc<Upstream>, healthy: IntGaugeVec) {
    let Some(health) = upstream.settings.health.clone() else { return };
    let mut changes = upstream.addresses.subscribe();
    let mut probed: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let addresses = changes.borrow_and_update().clone().unwrap_or_default();
        probed.retain(|at, task| {
            let stays = addresses.iter().any(|address| address.at == *at);
            if !stays {
                task.abort();
                // It may have no value yet.
                let _ = healthy.remove_label_values(&[&name, &at.to_string()]);
            }
            stays
        });
        for address in addresses.iter() {
            probed.entry(address.at).or_insert_with(|| {
                let (name, upstream, address) = (name.clone(), Arc::clone(&upstream), Arc::clone(address));
                let (health, healthy) = (health.clone(), healthy.clone());
                tasks.spawn(async move { probe_address(&name, &upstream, &address, &health, &healthy).await })
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn probe_address(
    name: &str,
    upstream: &Upstream,
    address: &Address,
    health: &Health,
    healthy: &IntGaugeVec,
) {
    let told = address.at.to_string();
    healthy.with_label_values(&[name, &told]).set(i64::from(address.fitness.is_healthy()));
    loop {
        let serves = match address.client(&upstream.transport.current()) {
            Some((client, origin)) => {
                let timeout = Duration::from_millis(health.timeout_ms);
                let answer = client.get(format!("{origin}{}", health.path)).timeout(timeout).send().await;
                if let Err(error) = &answer {
                    let detail = chain(error);
                    // The rest is what `health has changed` says.
                    if let Some(cause) = Cause::of_tls(&detail) {
                        upstream.failures.note(name, address.at, cause, &detail, Instant::now());
                    }
                }
                answer.is_ok_and(|answer| answer.status() == http::StatusCode::OK)
            }
            None => false,
        };
        if let Some(changed) = address.fitness.probed(serves, health) {
            tracing::warn!(upstream = name, address = told, healthy = changed, "health has changed");
            healthy.with_label_values(&[name, &told]).set(i64::from(changed));
        }
        // Spread, so that a fleet does not ask in step.
        tokio::time::sleep(Duration::from_millis(health.interval_ms).mul_f64(rand::random_range(0.9..1.1)))
            .await;
    }
}
