//! How every consumer consumes: keys side by side, each key in order, and never a message lost.
//!
//! A message that fails is tried again three times at once, then goes to `upi.transaction.retry.delayed`, and
//! in the end to `upi.transaction.dlq` with the reason. An outage is no failure of the message: it waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Bus, BusError, Delivery, Message, Place, Topic};
use crate::metrics::Metrics;
use crate::store::record::Envelope;
use crate::txn::{UnixMs, mask_vpas};

/// Does what a message asks for, and its inbox row, in one transaction.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// A stop drops it at any of its awaits, and the message comes again: what must not be cut in two runs in a
    /// task of its own.
    async fn handle(&self, delivery: &Delivery) -> Result<(), HandlerError>;
}

/// What a message says.
///
/// # Errors
/// [`HandlerError::Poison`]: it is no event.
pub fn event(message: &Message) -> Result<Envelope, HandlerError> {
    let json = message.payload.event().map_err(|why| HandlerError::Poison(why.to_owned()))?;
    // The parser quotes what it does not like.
    serde_json::from_str(json).map_err(|error| HandlerError::Poison(mask_vpas(&error.to_string())))
}

/// Why a message had no effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandlerError {
    /// Something it needs is away (the store, mostly): the message waits, and those behind it.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It may pass later.
    #[error("failed: {0}")]
    Failed(String),
    /// It will never pass: nobody can read it.
    #[error("poison: {0}")]
    Poison(String),
}

/// How often a message is tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Tries one right after the other, the waits doubling from `quick_base_ms`.
    pub quick: u32,
    pub quick_base_ms: u64,
    /// Then this many rounds through the delayed topic, `delay_ms` apart.
    pub delayed: u32,
    pub delay_ms: u64,
    /// Messages read at a time.
    pub batch: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { quick: 3, quick_base_ms: 50, delayed: 5, delay_ms: 30_000, batch: 256 }
    }
}

/// Headers of a message that is on its second way. Others that it has are kept.
pub mod header {
    pub const GROUP: &str = "x-group";
    /// Where it was first read.
    pub const ORIGIN: &str = "x-origin-topic";
    pub const ORIGIN_PARTITION: &str = "x-origin-partition";
    pub const ORIGIN_OFFSET: &str = "x-origin-offset";
    pub const ROUND: &str = "x-round";
    /// How often it was handled in vain, all rounds together.
    pub const ATTEMPTS: &str = "x-attempts";
    pub const NOT_BEFORE: &str = "x-not-before";
    pub const REASON: &str = "x-reason";
    /// RFC 3339.
    pub const FAILED_AT: &str = "x-failed-at";

    /// Written anew each time.
    pub(in crate::bus) const OF_THIS_ROUND: [&str; 9] =
        [GROUP, ORIGIN, ORIGIN_PARTITION, ORIGIN_OFFSET, ROUND, ATTEMPTS, NOT_BEFORE, REASON, FAILED_AT];
}

/// A reason says what went wrong; it is no place for whole documents.
const REASON_CHARS: usize = 500;

/// A consumer group's loop over one topic.
#[derive(Clone)]
pub struct Consumer {
    pub bus: Arc<dyn Bus>,
    pub group: &'static str,
    pub handler: Arc<dyn Handler>,
    pub retry: Retry,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Consumes `topic` and this group's share of the delayed topic until `stop` turns true.
    pub async fn run(self, topic: Topic, stop: watch::Receiver<bool>) {
        tokio::join!(self.follow(topic, stop.clone()), self.follow(Topic::RetryDelayed, stop));
    }

    async fn follow(&self, topic: Topic, mut stop: watch::Receiver<bool>) {
        loop {
            let ended = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                ended = self.follow_until_it_breaks(topic) => ended,
            };
            match ended {
                Ok(()) | Err(BusError::Closed) => return,
                Err(error @ (BusError::Overloaded | BusError::Engine(_))) => {
                    tracing::warn!(group = self.group, topic = topic.name(), %error, "subscribing again");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn follow_until_it_breaks(&self, topic: Topic) -> Result<(), BusError> {
        let mut subscription = self.bus.subscribe(self.group, topic).await?;
        loop {
            let deliveries = subscription.next(self.retry.batch.max(1)).await?;
            let handled: Vec<Place> = deliveries.iter().map(|delivery| delivery.place).collect();
            let mut by_key: HashMap<String, Vec<Delivery>> = HashMap::new();
            for delivery in deliveries {
                by_key.entry(delivery.message.key.clone()).or_default().push(delivery);
            }
            let mut keys = JoinSet::new();
            for deliveries in by_key.into_values() {
                let consumer = self.clone();
                keys.spawn(async move {
                    for delivery in deliveries {
                        consumer.take(delivery).await?;
                    }
                    Ok::<(), BusError>(())
                });
            }
            while let Some(ended) = keys.join_next().await {
                // A panic in a handler is a broken round: nothing is marked done, all of it comes again.
                ended.map_err(|error| BusError::Engine(error.to_string()))??;
            }
            subscription.done(&handled).await?;
        }
    }

    /// Returns once the message has had its effect or is safe in another topic.
    async fn take(&self, delivery: Delivery) -> Result<(), BusError> {
        let message = &delivery.message;
        if message.topic == Topic::RetryDelayed {
            if message.header(header::GROUP) != Some(self.group) {
                return Ok(());
            }
            let not_before = message.header(header::NOT_BEFORE).and_then(|at| at.parse().ok()).map(UnixMs);
            sleep(Duration::from_millis(UnixMs::now().until(not_before.unwrap_or_default()))).await;
        }
        let mut tries = 0;
        let error = loop {
            match self.handler.handle(&delivery).await {
                Ok(()) => {
                    self.count(message, "handled");
                    return Ok(());
                }
                Err(HandlerError::Unavailable(reason)) => {
                    tracing::debug!(group = self.group, reason, "waiting");
                    sleep(Duration::from_millis(200)).await;
                }
                Err(error @ HandlerError::Poison(_)) => {
                    tries += 1;
                    break error;
                }
                Err(error @ HandlerError::Failed(_)) => {
                    tries += 1;
                    if tries > self.retry.quick {
                        break error;
                    }
                    self.count(message, "retried");
                    sleep(Duration::from_millis(self.retry.quick_base_ms << (tries - 1).min(10))).await;
                }
            }
        };
        self.pass_on(delivery, tries, &error).await
    }

    async fn pass_on(&self, delivery: Delivery, tries: u32, error: &HandlerError) -> Result<(), BusError> {
        let Delivery { place, message } = delivery;
        let number = |name: &str| message.header(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
        let first = |name: &str, now: &dyn std::fmt::Display| {
            message.header(name).map_or_else(|| now.to_string(), str::to_owned)
        };
        let (round, now) = (number(header::ROUND), UnixMs::now());
        let dead = round >= self.retry.delayed || matches!(error, HandlerError::Poison(_));
        let reason: String = mask_vpas(&error.to_string()).chars().take(REASON_CHARS).collect();
        let origin = first(header::ORIGIN, &message.topic.name());
        self.count(&message, if dead { "dead" } else { "delayed" });
        tracing::error!(
            group = self.group,
            key = message.key,
            origin,
            round,
            dead,
            reason,
            "message not handled"
        );
        let new = [
            (header::GROUP, self.group.to_owned()),
            (header::ORIGIN_PARTITION, first(header::ORIGIN_PARTITION, &place.partition)),
            (header::ORIGIN_OFFSET, first(header::ORIGIN_OFFSET, &place.offset)),
            (header::ORIGIN, origin),
            (header::ROUND, (round + 1).to_string()),
            (header::ATTEMPTS, (number(header::ATTEMPTS) + tries).to_string()),
            (header::NOT_BEFORE, now.plus(self.retry.delay_ms).0.to_string()),
            (header::REASON, reason),
            (header::FAILED_AT, now.to_string()),
        ];
        let kept = message.headers.iter().filter(|(name, _)| !header::OF_THIS_ROUND.contains(&name.as_str()));
        let new = new.into_iter().map(|(name, value)| (name.to_owned(), value));
        let headers = kept.cloned().chain(new).collect();
        let topic = if dead { Topic::DeadLetter } else { Topic::RetryDelayed };
        self.bus.publish(vec![Message { topic, headers, ..message }]).await
    }

    fn count(&self, message: &Message, result: &str) {
        self.metrics.consumed.with_label_values(&[message.topic.name(), result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{LocalBus, Retention, contract};

    #[tokio::test(flavor = "multi_thread")]
    async fn three_quick_tries_then_later_then_dead_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let bus = LocalBus::open(&dir.path().join("bus.db"), Retention::default()).await.unwrap();
        contract::retries(Arc::new(bus)).await;
    }
}
