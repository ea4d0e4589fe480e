//! A reader that shares a topic's partitions with the others of its group.
//!
//! A thread fetches, and goes on talking to the group however long messages take. Offsets are stored once messages
//! have had their effect; librdkafka commits what is stored every half second, when a partition goes to another
//! reader, and at the end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::sleep;

use super::context::Ear;
use super::message::Fetched;
use super::{KafkaBus, engine};
use crate::bus::avro::Codec;
use crate::bus::{BusError, Delivery, Place, Subscription, Topic};

/// Fetched and not yet asked for.
const BUFFERED: usize = 1024;
const POLL: Duration = Duration::from_millis(100);
/// A full buffer is waited for this long before fetching is paused, which throws away what was fetched ahead.
const WAIT_BEFORE_PAUSE: Duration = Duration::from_secs(1);
const REGISTRY_AGAIN: Duration = Duration::from_secs(1);

/// Which partitions are ours, and since which assignment: one that went and came back is another one.
#[derive(Debug, Default)]
struct Owned {
    assignments: u64,
    since: HashMap<i32, u64>,
}

/// A consumer's ear: hears what it is given and what is taken from it. A watcher is given nothing and owns nothing.
#[derive(Debug, Default)]
pub(super) struct GroupEar {
    ear: Ear,
    owned: Mutex<Owned>,
}

impl ClientContext for GroupEar {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.ear.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.ear.error(error, reason);
    }
}

impl ConsumerContext for GroupEar {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        match rebalance {
            Rebalance::Assign(partitions) => {
                owned.assignments += 1;
                let assignment = owned.assignments;
                for element in partitions.elements() {
                    owned.since.insert(element.partition(), assignment);
                }
            }
            Rebalance::Revoke(partitions) => {
                for element in partitions.elements() {
                    owned.since.remove(&element.partition());
                }
            }
            Rebalance::Error(error) => {
                tracing::warn!(%error, "the group's partitions could not be shared out; giving all back");
                owned.since.clear();
            }
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Nothing new to commit is said like this.
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset) {
                self.ear.voice.warn("offsets not committed; their messages may come again", &error);
            }
        }
    }
}

impl GroupEar {
    fn owned_since(&self, partition: i32) -> Option<u64> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).since.get(&partition).copied()
    }
}

/// A message, and the assignment under which it was fetched.
type Held = (Fetched, Option<u64>);

/// A member of a group, or a watcher that reads every partition by itself.
pub(super) struct GroupSubscription {
    topic: Topic,
    name: String,
    consumer: Arc<BaseConsumer<GroupEar>>,
    fetched: mpsc::Receiver<Held>,
    codec: Arc<Codec>,
    /// Taken from the channel: kept here, so that a `next` that is dropped half-way loses nothing.
    taken: VecDeque<Held>,
    read: Vec<Delivery>,
    /// Of each partition: the assignment that the last given messages belong to.
    given: HashMap<i32, Option<u64>>,
}

impl std::fmt::Debug for GroupSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupSubscription").field("topic", &self.name).finish_non_exhaustive()
    }
}

impl GroupSubscription {
    /// Joins a group and reads what it is given of a topic.
    pub(super) fn join(
        bus: &KafkaBus,
        group: &str,
        topic: Topic,
    ) -> Result<(GroupSubscription, JoinHandle<()>), BusError> {
        // A group for each topic: a reader that comes or goes moves partitions of its own topic alone.
        let config = bus.config.consumer(&format!("{group}.{}", topic.name()));
        let mut config = config.map_err(|error| BusError::Engine(error.to_string()))?;
        config.set("enable.auto.commit", "true").set("auto.commit.interval.ms", "500");
        let ear = GroupEar { ear: Ear { voice: bus.voice.clone() }, owned: Mutex::default() };
        let consumer: BaseConsumer<GroupEar> = config.create_with_context(ear).map_err(|e| engine(&e))?;
        consumer.subscribe(&[&bus.topic(topic)]).map_err(|e| engine(&e))?;
        GroupSubscription::fetch(bus, consumer, topic)
    }

    /// Reads with a consumer that knows what to read.
    pub(super) fn fetch(
        bus: &KafkaBus,
        consumer: BaseConsumer<GroupEar>,
        topic: Topic,
    ) -> Result<(GroupSubscription, JoinHandle<()>), BusError> {
        let consumer = Arc::new(consumer);
        let (to, fetched) = mpsc::channel(BUFFERED);
        let fetcher = Fetcher { consumer: consumer.clone(), to, closed: bus.closed.clone() };
        let thread =
            std::thread::Builder::new().name("kafka fetcher".to_owned()).spawn(move || fetcher.run());
        let thread = thread.map_err(|error| BusError::Engine(error.to_string()))?;
        let subscription = GroupSubscription {
            topic,
            name: bus.topic(topic),
            consumer,
            fetched,
            codec: bus.codec.clone(),
            taken: VecDeque::new(),
            read: Vec::new(),
            given: HashMap::new(),
        };
        Ok((subscription, thread))
    }
}

#[async_trait]
impl Subscription for GroupSubscription {
    async fn next(&mut self, limit: u32) -> Result<Vec<Delivery>, BusError> {
        let limit = limit as usize;
        loop {
            while self.read.len() < limit {
                let Some((fetched, since)) = self.taken.front() else { break };
                // Another reader has its partition, and will be given it.
                if self.consumer.context().owned_since(fetched.place.partition) != *since {
                    self.taken.pop_front();
                    continue;
                }
                match fetched.read(self.topic, &self.codec).await {
                    Ok(delivery) => {
                        self.given.insert(delivery.place.partition, *since);
                        self.read.push(delivery);
                        self.taken.pop_front();
                    }
                    Err(error) => {
                        self.consumer
                            .context()
                            .ear
                            .voice
                            .warn("an event cannot be read yet; waiting", &error);
                        sleep(REGISTRY_AGAIN).await;
                    }
                }
            }
            if !self.read.is_empty() {
                return Ok(std::mem::take(&mut self.read));
            }
            let mut some = Vec::new();
            if self.fetched.recv_many(&mut some, limit).await == 0 {
                return Err(BusError::Closed);
            }
            self.taken.extend(some);
        }
    }

    async fn done(&mut self, handled: &[Place]) -> Result<(), BusError> {
        let mut last: HashMap<i32, i64> = HashMap::new();
        for place in handled {
            let offset = last.entry(place.partition).or_insert(place.offset);
            *offset = place.offset.max(*offset);
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in last {
            let since = self.consumer.context().owned_since(partition);
            if since.is_some() && self.given.get(&partition) == Some(&since) {
                let next = Offset::Offset(offset + 1);
                offsets.add_partition_offset(&self.name, partition, next).map_err(|error| engine(&error))?;
            }
        }
        if offsets.count() == 0 {
            return Ok(());
        }
        match self.consumer.store_offsets(&offsets) {
            Ok(()) => Ok(()),
            // Taken away between the look above and this: they come again, to whoever has it now.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => Ok(()),
            Err(error) => Err(engine(&error)),
        }
    }
}

/// The thread of a subscription. It ends when the subscription is dropped or the bus closes, and leaves the group.
struct Fetcher {
    consumer: Arc<BaseConsumer<GroupEar>>,
    to: mpsc::Sender<Held>,
    closed: Arc<AtomicBool>,
}

impl Fetcher {
    fn run(self) {
        let mut waiting = VecDeque::new();
        while !self.is_over() {
            self.poll(POLL, &mut waiting);
            let (full_since, mut paused) = (Instant::now(), false);
            while self.is_full(&mut waiting) && !self.is_over() {
                if full_since.elapsed() < WAIT_BEFORE_PAUSE {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                // Again each time: what is assigned meanwhile is not paused yet.
                paused |= self.each_partition(|partitions| self.consumer.pause(partitions));
                self.poll(POLL, &mut waiting);
            }
            if paused {
                self.each_partition(|partitions| self.consumer.resume(partitions));
            }
        }
        // Whoever drops the consumer last leaves the group and commits; mostly that is here.
    }

    fn is_over(&self) -> bool {
        self.to.is_closed() || self.closed.load(Ordering::Acquire)
    }

    fn poll(&self, within: Duration, waiting: &mut VecDeque<Held>) {
        match self.consumer.poll(within) {
            None => {}
            Some(Ok(message)) => {
                let fetched = Fetched::of(&message);
                let since = self.consumer.context().owned_since(fetched.place.partition);
                waiting.push_back((fetched, since));
            }
            // Everything that was there has been read.
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => {
                self.consumer.context().ear.voice.warn("not consuming; waiting for the broker", &error);
                // Some errors come back at once.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Hands over what is waiting; whether some of it still is.
    fn is_full(&self, waiting: &mut VecDeque<Held>) -> bool {
        while let Some(held) = waiting.pop_front() {
            match self.to.try_send(held) {
                Ok(()) => {}
                Err(TrySendError::Full(held)) => {
                    waiting.push_front(held);
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        false
    }

    fn each_partition(&self, what: impl FnOnce(&TopicPartitionList) -> KafkaResult<()>) -> bool {
        match self.consumer.assignment().and_then(|partitions| what(&partitions)) {
            Ok(()) => true,
            Err(error) => {
                self.consumer.context().ear.voice.warn("fetching could not be paused or resumed", &error);
                false
            }
        }
    }
}
