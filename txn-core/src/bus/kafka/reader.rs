//! Readers that belong to no group: everything from now on, or everything that is there.

use std::collections::HashMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::message::Fetched;
use super::subscription::{GroupEar, GroupSubscription};
use super::{ASK_WITHIN, KafkaBus, blocking, engine};
use crate::bus::{BusError, Topic, Visit};

/// Fetched ahead of what looks at it.
const BUFFERED: usize = 256;
/// A scan to which no broker gives anything for so long is given up.
const SILENT_FOR: Duration = Duration::from_secs(15);

/// Whether it is said each time that a partition has been read to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Said,
    Unsaid,
}

/// From the oldest and the newest offset of a partition, where to begin.
type Begin = fn(i64, i64) -> i64;

pub(super) async fn watch(
    bus: &KafkaBus,
    topic: Topic,
) -> Result<(GroupSubscription, JoinHandle<()>), BusError> {
    let (consumer, _) = everywhere(bus, topic, Ends::Unsaid, |_, newest| newest).await?;
    GroupSubscription::fetch(bus, consumer, topic)
}

pub(super) async fn scan(bus: &KafkaBus, topic: Topic, visit: &mut Visit<'_>) -> Result<(), BusError> {
    let (consumer, ends) = everywhere(bus, topic, Ends::Said, |oldest, _| oldest).await?;
    let (to, mut fetched) = mpsc::channel(BUFFERED);
    let fetching = tokio::spawn(blocking(move || fetch_until(&consumer, ends, &to)));
    while let Some(message) = fetched.recv().await {
        let delivery = message.read(topic, &bus.codec).await;
        if visit(delivery.map_err(|error| BusError::Engine(error.to_string()))?).is_break() {
            break;
        }
    }
    drop(fetched);
    fetching.await.unwrap_or_else(|error| Err(BusError::Engine(error.to_string())))
}

/// A consumer of every partition, and where each ends now.
async fn everywhere(
    bus: &KafkaBus,
    topic: Topic,
    said: Ends,
    begin: Begin,
) -> Result<(BaseConsumer<GroupEar>, HashMap<i32, i64>), BusError> {
    // The name is needed and never used: nothing joins a group or commits here.
    let config = bus.config.consumer("no-group");
    let mut config = config.map_err(|error| BusError::Engine(error.to_string()))?;
    config.set("enable.auto.commit", "false").set("enable.partition.eof", (said == Ends::Said).to_string());
    let name = bus.topic(topic);
    blocking(move || {
        let consumer: BaseConsumer<GroupEar> =
            config.create_with_context(GroupEar::default()).map_err(|error| engine(&error))?;
        let metadata = consumer.fetch_metadata(Some(&name), ASK_WITHIN).map_err(|error| engine(&error))?;
        let partitions = metadata.topics().iter().find(|known| known.name() == name);
        let partitions = partitions.map(|known| known.partitions()).unwrap_or_default();
        if partitions.is_empty() {
            return Err(BusError::Engine(format!("there is no topic {name}: `txn-core topics` makes it")));
        }
        let (mut places, mut ends) = (TopicPartitionList::new(), HashMap::new());
        for partition in partitions {
            let id = partition.id();
            let (oldest, newest) =
                asked(|| consumer.fetch_watermarks(&name, id, ASK_WITHIN)).map_err(|error| engine(&error))?;
            let from = Offset::Offset(begin(oldest, newest));
            places.add_partition_offset(&name, id, from).map_err(|error| engine(&error))?;
            if oldest < newest {
                ends.insert(id, newest);
            }
        }
        consumer.assign(&places).map_err(|error| engine(&error))?;
        Ok((consumer, ends))
    })
    .await
}

/// Asks until there is an answer: a partition that has just been made or moved has no leader for a moment.
fn asked<T>(question: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let began = Instant::now();
    loop {
        match question() {
            Err(_) if began.elapsed() < ASK_WITHIN => std::thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}

/// Sends on what lies before `ends`.
fn fetch_until(
    consumer: &BaseConsumer<GroupEar>,
    mut ends: HashMap<i32, i64>,
    to: &mpsc::Sender<Fetched>,
) -> Result<(), BusError> {
    let mut heard = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            None if heard.elapsed() < SILENT_FOR => {}
            None => return Err(BusError::Engine("kafka: no broker answers".to_owned())),
            Some(Ok(message)) => {
                let fetched = Fetched::of(&message);
                heard = Instant::now();
                let (place, end) = (fetched.place, ends.get(&fetched.place.partition).copied());
                if end.is_some_and(|end| place.offset < end) && to.blocking_send(fetched).is_err() {
                    return Ok(());
                }
                if end.is_none_or(|end| place.offset + 1 >= end) {
                    ends.remove(&place.partition);
                }
            }
            // What is left before the end is no message: a mark of Kafka's own.
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
            Some(Err(error)) if heard.elapsed() < SILENT_FOR => {
                tracing::debug!(%error, "not fetched yet");
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(Err(error)) => return Err(engine(&error)),
        }
    }
    Ok(())
}
