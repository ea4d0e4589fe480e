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

use super::{Bus, BusError, Delivery, Message, Topic};
use crate::metrics::Metrics;
use crate::txn::UnixMs;

/// Does what a message asks for, and its inbox row, in one transaction.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// A stop drops it at any of its awaits, and the message comes again: what must not be cut in two runs in a
    /// task of its own.
    async fn handle(&self, message: &Message) -> Result<(), HandlerError>;
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

/// Headers of a message that is on its second way.
pub mod header {
    pub const GROUP: &str = "x-group";
    pub const ORIGIN: &str = "x-origin-topic";
    pub const ROUND: &str = "x-round";
    pub const NOT_BEFORE: &str = "x-not-before";
    pub const REASON: &str = "x-reason";
}

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
            let Some(last) = deliveries.last().cloned() else { continue };
            let mut by_key: HashMap<String, Vec<Delivery>> = HashMap::new();
            for delivery in deliveries {
                by_key.entry(delivery.message.key.clone()).or_default().push(delivery);
            }
            let mut keys = JoinSet::new();
            for deliveries in by_key.into_values() {
                let consumer = self.clone();
                keys.spawn(async move {
                    for delivery in deliveries {
                        consumer.take(delivery.message).await?;
                    }
                    Ok::<(), BusError>(())
                });
            }
            while let Some(ended) = keys.join_next().await {
                // A panic in a handler is a broken round: nothing is marked done, all of it comes again.
                ended.map_err(|error| BusError::Engine(error.to_string()))??;
            }
            subscription.done(&last).await?;
        }
    }

    /// Returns once the message has had its effect or is safe in another topic.
    async fn take(&self, message: Message) -> Result<(), BusError> {
        if message.topic == Topic::RetryDelayed {
            if message.header(header::GROUP) != Some(self.group) {
                return Ok(());
            }
            let not_before = message.header(header::NOT_BEFORE).and_then(|at| at.parse().ok()).map(UnixMs);
            sleep(Duration::from_millis(UnixMs::now().until(not_before.unwrap_or_default()))).await;
        }
        let mut tries = 0;
        let error = loop {
            match self.handler.handle(&message).await {
                Ok(()) => {
                    self.count(&message, "handled");
                    return Ok(());
                }
                Err(HandlerError::Unavailable(reason)) => {
                    tracing::debug!(group = self.group, reason, "waiting");
                    sleep(Duration::from_millis(200)).await;
                }
                Err(error @ HandlerError::Poison(_)) => break error,
                Err(error @ HandlerError::Failed(_)) => {
                    tries += 1;
                    if tries > self.retry.quick {
                        break error;
                    }
                    self.count(&message, "retried");
                    sleep(Duration::from_millis(self.retry.quick_base_ms << (tries - 1).min(10))).await;
                }
            }
        };
        self.pass_on(message, &error).await
    }

    async fn pass_on(&self, message: Message, error: &HandlerError) -> Result<(), BusError> {
        let round: u32 = message.header(header::ROUND).and_then(|round| round.parse().ok()).unwrap_or(0);
        let dead = round >= self.retry.delayed || matches!(error, HandlerError::Poison(_));
        let origin = message.header(header::ORIGIN).unwrap_or(message.topic.name()).to_owned();
        self.count(&message, if dead { "dead" } else { "delayed" });
        tracing::error!(group = self.group, key = message.key, origin, round, dead, %error, "message not handled");
        let not_before = UnixMs::now().plus(self.retry.delay_ms).0;
        let next = Message {
            topic: if dead { Topic::DeadLetter } else { Topic::RetryDelayed },
            headers: vec![
                (header::GROUP.to_owned(), self.group.to_owned()),
                (header::ORIGIN.to_owned(), origin),
                (header::ROUND.to_owned(), (round + 1).to_string()),
                (header::NOT_BEFORE.to_owned(), not_before.to_string()),
                (header::REASON.to_owned(), error.to_string()),
            ],
            ..message
        };
        self.bus.publish(vec![next]).await
    }

    fn count(&self, message: &Message, result: &str) {
        self.metrics.consumed.with_label_values(&[message.topic.name(), result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::bus::{LocalBus, Retention, contract};

    /// Fails by the payload's word: `"pass"`, `"poison"`, or so many times.
    #[derive(Default)]
    struct Scripted {
        seen: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Handler for Scripted {
        async fn handle(&self, message: &Message) -> Result<(), HandlerError> {
            let mut seen = self.seen.lock().unwrap();
            seen.push(message.event_id.clone());
            let tries = seen.iter().filter(|id| **id == message.event_id).count();
            match message.payload.as_str() {
                "pass" => Ok(()),
                "poison" => Err(HandlerError::Poison("unreadable".into())),
                "outage" if tries < 3 => Err(HandlerError::Unavailable("store".into())),
                "outage" => Ok(()),
                fails if tries > fails.parse().unwrap() => Ok(()),
                _ => Err(HandlerError::Failed("not yet".into())),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn three_quick_tries_then_later_then_dead_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let bus: Arc<dyn Bus> =
            Arc::new(LocalBus::open(&dir.path().join("bus.db"), Retention::default()).await.unwrap());
        let handler = Arc::new(Scripted::default());
        let consumer = Consumer {
            bus: bus.clone(),
            group: "test",
            handler: handler.clone(),
            retry: Retry { quick: 3, quick_base_ms: 1, delayed: 2, delay_ms: 20, batch: 10 },
            metrics: Arc::new(Metrics::new().unwrap()),
        };
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(consumer.run(Topic::Initiated, stopped));
        let cases = [
            ("a", "pass", 1),
            ("b", "poison", 1),
            ("c", "outage", 3),
            // One try and three quick ones a round.
            ("d", "3", 4),
            ("e", "5", 6),
            ("f", "1000", 12),
        ];
        let messages = cases.iter().map(|(key, payload, _)| Message {
            payload: (*payload).into(),
            ..contract::message(Topic::Initiated, key, 0)
        });
        bus.publish(messages.collect()).await.unwrap();

        let mut dead = bus.subscribe("reader", Topic::DeadLetter).await.unwrap();
        let mut letters = Vec::new();
        while letters.len() < 2 {
            letters
                .extend(tokio::time::timeout(Duration::from_secs(10), dead.next(10)).await.unwrap().unwrap());
        }
        assert_eq!(letters[0].message.key, "b");
        assert_eq!(letters[1].message.key, "f");
        assert_eq!(letters[1].message.header(header::REASON), Some("failed: not yet"));
        assert_eq!(letters[1].message.header(header::ORIGIN), Some("upi.transaction.initiated"));
        assert_eq!(letters[1].message.payload, "1000");
        // The one behind the outage is the last to be done.
        for _ in 0..100 {
            if handler.seen.lock().unwrap().iter().filter(|id| *id == "c-0").count() == 3 {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let seen = handler.seen.lock().unwrap().clone();
        for (key, payload, tries) in cases {
            let id = format!("{key}-0");
            assert_eq!(seen.iter().filter(|seen| **seen == id).count(), tries, "{key} {payload}");
        }
        stop.send(true).unwrap();
        running.await.unwrap();
    }
}
