//! Kafka: the bus of a fleet.
//!
//! Owns the way over the wire: Avro out and in, an idempotent producer whose batches are answered when every
//! message is on all in-sync replicas, and readers whose offsets follow what had its effect. A broker that is
//! away is waited for; nothing is lost, for what was not answered is published again.

mod config;
mod context;
mod message;
mod producer;
mod reader;
mod subscription;
#[cfg(test)]
pub(crate) mod tests;
pub mod topics;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureRecord, Producer as _};
use tokio::time::sleep;

pub use config::{KafkaConfig, KafkaTls, Mechanism, Sasl};

use self::context::{Ear, Voice};
use self::producer::Producer;
use self::subscription::GroupSubscription;
use super::avro::{Codec, Registry};
use super::{Bus, BusError, Message, Subscription, Topic, Visit};
use crate::txn::UnixMs;

/// Topics in a Kafka cluster.
pub struct KafkaBus {
    config: KafkaConfig,
    producer: Producer,
    codec: Arc<Codec>,
    voice: Voice,
    closed: Arc<AtomicBool>,
    /// One for each reader. They end with it, or when the bus closes.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How long a question about the cluster may take.
const ASK_WITHIN: Duration = Duration::from_secs(3);

impl std::fmt::Debug for KafkaBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaBus").field("brokers", &self.config.brokers).finish_non_exhaustive()
    }
}

impl KafkaBus {
    /// Opens it. Brokers that are away are no error here: they are found as soon as they are back.
    ///
    /// # Errors
    /// What is wrong with the configuration, or a file or password that cannot be read.
    pub async fn open(config: KafkaConfig) -> anyhow::Result<KafkaBus> {
        let registry =
            config.schema_registry.as_ref().map(Registry::new).transpose().context("schema_registry")?;
        let ear = Ear::default();
        let voice = ear.voice.clone();
        let producer = Producer::open(&config, ear)?;
        let bus = KafkaBus {
            config,
            producer,
            codec: Arc::new(Codec::new(registry)),
            voice,
            closed: Arc::default(),
            threads: Mutex::default(),
        };
        for topic in Topic::ALL {
            if let Err(error) = bus.schema_id(topic).await {
                tracing::warn!(%error, "schemas are not registered yet; trying again with the first event");
                break;
            }
        }
        Ok(bus)
    }

    fn topic(&self, topic: Topic) -> String {
        format!("{}{}", self.config.prefix, topic.name())
    }

    /// Confluent's usual naming: the subject of a topic's values.
    async fn schema_id(&self, topic: Topic) -> Result<u32, BusError> {
        let subject = format!("{}-value", self.topic(topic));
        self.codec.id(topic, &subject).await.map_err(|error| BusError::Engine(error.to_string()))
    }

    fn open_still(&self) -> Result<(), BusError> {
        if self.closed.load(Ordering::Acquire) { Err(BusError::Closed) } else { Ok(()) }
    }

    fn keep(&self, thread: JoinHandle<()>) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
    }

    async fn bytes(&self, message: &Message) -> Result<Vec<u8>, BusError> {
        if let Some(wire) = message.payload.wire() {
            return Ok(wire.to_vec());
        }
        let id = self.schema_id(message.topic).await?;
        let json = message.payload.event().unwrap_or_default();
        self.codec.encode(id, json).map_err(|what| {
            BusError::Engine(format!("event {} of ours does not fit its schema: {what}", message.event_id))
        })
    }

    /// Puts one message into librdkafka's queue; waits for room.
    async fn queue(&self, message: &Message) -> Result<DeliveryFuture, BusError> {
        let (topic, bytes) = (self.topic(message.topic), self.bytes(message).await?);
        let mut record = FutureRecord::to(&topic).payload(&bytes).headers(message::headers(message));
        // No key is no key, and not an empty one.
        if !message.key.is_empty() {
            record = record.key(message.key.as_str());
        }
        let (asked, producer) = (Instant::now(), self.producer.current()?);
        loop {
            match producer.send_result(record) {
                Ok(delivered) => return Ok(delivered),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if asked.elapsed() > Duration::from_millis(self.config.delivery_timeout_ms) {
                        return Err(BusError::Overloaded);
                    }
                    record = back;
                    sleep(Duration::from_millis(5)).await;
                }
                Err((error, _)) => return Err(engine(&error)),
            }
        }
    }
}

#[async_trait]
impl Bus for KafkaBus {
    /// In waves, no key twice in one: what comes after a message that failed is not sent, or it would stand before
    /// it in the topic once that is published again.
    async fn publish(&self, messages: Vec<Message>) -> Result<(), BusError> {
        self.open_still()?;
        let mut waiting: Vec<&Message> = messages.iter().collect();
        while !waiting.is_empty() {
            let mut keys = HashSet::new();
            let (wave, later): (Vec<&Message>, Vec<&Message>) =
                waiting.into_iter().partition(|message| keys.insert((message.topic, message.key.as_str())));
            let mut deliveries = Vec::with_capacity(wave.len());
            let mut result = Ok(());
            for message in wave {
                match self.queue(message).await {
                    Ok(delivery) => deliveries.push(delivery),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            for delivery in deliveries {
                match delivery.await {
                    Ok(Ok(_)) => {}
                    Ok(Err((error, _))) => result = Err(engine(&error)),
                    Err(_) => result = Err(BusError::Closed),
                }
            }
            result?;
            waiting = later;
        }
        Ok(())
    }

    async fn subscribe(&self, group: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, BusError> {
        self.open_still()?;
        let (subscription, thread) = GroupSubscription::join(self, group, topic)?;
        self.keep(thread);
        Ok(Box::new(subscription))
    }

    async fn watch(&self, topic: Topic) -> Result<Box<dyn Subscription>, BusError> {
        self.open_still()?;
        let (subscription, thread) = reader::watch(self, topic).await?;
        self.keep(thread);
        Ok(Box::new(subscription))
    }

    async fn scan(&self, topic: Topic, visit: &mut Visit) -> Result<(), BusError> {
        self.open_still()?;
        reader::scan(self, topic, visit).await
    }

    /// A broker answers and knows the first topic.
    async fn ready(&self) -> Result<(), BusError> {
        self.open_still()?;
        let (producer, topic) = (self.producer.current()?, self.topic(Topic::Initiated));
        blocking(move || {
            let metadata =
                producer.client().fetch_metadata(Some(&topic), ASK_WITHIN).map_err(|e| engine(&e))?;
            match metadata.topics().iter().find(|known| known.name() == topic) {
                Some(known) if known.error().is_none() && !known.partitions().is_empty() => Ok(()),
                _ => Err(BusError::Engine(format!("there is no topic {topic}: `txn-core topics` makes it"))),
            }
        })
        .await
    }

    /// Kafka's own work.
    async fn purge(&self, _now: UnixMs) -> Result<u64, BusError> {
        Ok(0)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (producer, within) =
            (self.producer.current(), Duration::from_millis(self.config.delivery_timeout_ms));
        let closed = tokio::task::spawn_blocking(move || {
            let flushed =
                producer.and_then(|producer| producer.flush(within).map_err(|error| engine(&error)));
            if let Err(error) = flushed {
                tracing::warn!(%error, "not all that was being published is known to be there; it comes again");
            }
            for thread in threads {
                let _panicked = thread.join();
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "the bus did not close in order");
        }
    }
}

fn engine(error: &KafkaError) -> BusError {
    BusError::Engine(format!("kafka: {error}"))
}

/// Runs a call of librdkafka that waits for a broker.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, BusError> + Send + 'static,
) -> Result<T, BusError> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|error| Err(BusError::Engine(error.to_string())))
}
