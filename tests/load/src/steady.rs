//! Payments through the edge at a steady rate.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stack::{Payment, Stack};
use tokio::task::JoinSet;

use crate::say;
use crate::store::share;

/// Sends payments on time, whether or not earlier ones were answered, and gives how long each took from when it was
/// due until it was answered; `None` for one that was not accepted.
pub(crate) async fn send(
    stack: &Arc<Stack>,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Vec<Option<Duration>>> {
    let interval = Duration::from_secs(1) / rate;
    let began = tokio::time::Instant::now();
    let mut sent = JoinSet::new();
    for number in 0..rate * seconds {
        let due = began + interval * number;
        let stack = Arc::clone(stack);
        sent.spawn(async move {
            tokio::time::sleep_until(due).await;
            let user = stack.users().get(number as usize % 2).context("two users")?;
            let to = stack.users().get((number as usize + 1) % 2).context("two users")?;
            let request = stack.payment(user, &Payment::new(&user.vpa, &to.vpa, "1.00"))?;
            let response = request.send(stack.http()).await;
            let took = due.elapsed();
            let accepted = matches!(&response, Ok(response) if response.status().as_u16() == 200);
            anyhow::Ok(accepted.then_some(took))
        });
    }
    let mut latencies = Vec::new();
    while let Some(latency) = sent.join_next().await {
        latencies.push(latency??);
    }
    Ok(latencies)
}

pub(crate) fn report(latencies: &[Option<Duration>], rate: u32, seconds: u32) -> anyhow::Result<()> {
    let mut accepted: Vec<Duration> = latencies.iter().flatten().copied().collect();
    accepted.sort();
    let at = |part: f64| share(&accepted, part);
    say(&format!(
        "send at {rate}/s for {seconds} s: {} accepted, {} not; p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}, slowest {:?}",
        accepted.len(),
        latencies.len() - accepted.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0),
    ))
}
