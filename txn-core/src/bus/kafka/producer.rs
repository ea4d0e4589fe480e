//! The idempotent producer, and another one when Kafka has given it up for good.

use std::sync::{Mutex, PoisonError};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{FutureProducer, Producer as _};

use super::context::Ear;
use super::topics::LETTER_MAX_BYTES;
use super::{BusError, KafkaConfig, engine};

pub(super) struct Producer {
    client: ClientConfig,
    ear: Ear,
    current: Mutex<FutureProducer<Ear>>,
}

impl Producer {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A password that cannot be read, or a setting that librdkafka does not take.
    pub(super) fn open(config: &KafkaConfig, ear: Ear) -> anyhow::Result<Producer> {
        let mut client = config.client()?;
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", config.delivery_timeout_ms.to_string())
            .set("queue.buffering.max.messages", config.queue_messages.to_string())
            // A batch is handed over at once; there is nothing to wait for.
            .set("linger.ms", "1")
            .set("compression.type", "lz4")
            // Where Java's clients put the same key.
            .set("partitioner", "murmur2_random")
            // A dead letter carries headers besides what it was.
            .set("message.max.bytes", LETTER_MAX_BYTES.to_string());
        let current = Mutex::new(made(&client, &ear)?);
        Ok(Producer { client, ear, current })
    }

    /// One that works as far as is known. A producer whose sequence and the broker's do not fit together any more
    /// (records were lost that had been acknowledged) fails for ever; whatever it was given and did not deliver is
    /// an error to whoever gave it, and is published again.
    ///
    /// # Errors
    /// [`BusError::Engine`] when no other can be made.
    pub(super) fn current(&self) -> Result<FutureProducer<Ear>, BusError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((code, why)) = current.client().fatal_error() {
            tracing::error!(%code, why, "kafka has given this producer up; going on with another");
            *current = made(&self.client, &self.ear).map_err(|error| engine(&error))?;
        }
        Ok(current.clone())
    }
}

fn made(client: &ClientConfig, ear: &Ear) -> KafkaResult<FutureProducer<Ear>> {
    client.create_with_context(ear.clone())
}
