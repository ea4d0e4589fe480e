//! Events on their way to whoever acts on them: one trait, an engine a file, one contract test for all.
//!
//! Delivery is at least once and in order for each key; a consumer's position is durable. Whoever consumes
//! writes an inbox row together with the effect, so that a message that comes twice acts once.

pub mod avro;
pub mod consume;
#[cfg(test)]
pub(crate) mod contract;
pub mod kafka;
pub mod letters;
mod local;
mod payload;

use std::fmt;
use std::ops::ControlFlow;

use async_trait::async_trait;

pub use kafka::KafkaBus;
pub use local::{LocalBus, Retention, migrate};
pub use payload::Payload;

use crate::txn::{EventType, UnixMs};

/// Where messages go and come from. What `publish` has answered with `Ok` survives a crash.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Makes all of them durable, in this order for each key.
    async fn publish(&self, messages: Vec<Message>) -> Result<(), BusError>;

    /// A reader of a topic, from the oldest message on the first time; readers of one group share its partitions
    /// and its position.
    async fn subscribe(&self, group: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, BusError>;

    /// Everything that is published from now on, whoever else reads it. Nothing is remembered.
    async fn watch(&self, topic: Topic) -> Result<Box<dyn Subscription>, BusError>;

    /// Shows what the topic holds now, each partition's oldest first, until `visit` has seen enough.
    async fn scan(&self, topic: Topic, visit: &mut Visit) -> Result<(), BusError>;

    /// Whether it could be published to and read from now.
    async fn ready(&self) -> Result<(), BusError>;

    /// Drops what retention no longer keeps; gives how many messages went.
    async fn purge(&self, now: UnixMs) -> Result<u64, BusError>;

    /// Stops after what it has been given; later calls are [`BusError::Closed`].
    async fn close(&self);
}

/// A reader's place in a topic.
#[async_trait]
pub trait Subscription: fmt::Debug + Send {
    /// The next messages after the last ones given, at most `limit`; waits until there is one.
    /// What was given and never marked [`done`](Subscription::done) is given again after a restart.
    async fn next(&mut self, limit: u32) -> Result<Vec<Delivery>, BusError>;

    /// These have had their effect, and so has all that was given before them of the same partitions. What is of a
    /// partition that has gone to another reader since is that reader's, and comes to it again.
    async fn done(&mut self, handled: &[Place]) -> Result<(), BusError>;
}

/// Sees one message after the other.
pub type Visit<'a> = dyn FnMut(Delivery) -> ControlFlow<()> + Send + 'a;

/// The topics of the design, all keyed by transaction id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    Initiated,
    Debited,
    /// Every end, whatever it is.
    Completed,
    Audit,
    Notification,
    RetryDelayed,
    DeadLetter,
}

/// Something to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: Topic,
    pub key: String,
    pub event_id: String,
    pub headers: Vec<(String, String)>,
    pub payload: Payload,
}

/// A message as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub place: Place,
    pub message: Message,
}

/// Where in its topic a message lies. Offsets count within a partition; the local bus has one, partition 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
}

/// Why the bus did not do it. Trying again is always safe.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    #[error("the bus is closed")]
    Closed,
    #[error("the bus has more to do than it can queue")]
    Overloaded,
    #[error("the bus's engine failed: {0}")]
    Engine(String),
}

impl Topic {
    pub const ALL: [Topic; 7] = [
        Topic::Initiated,
        Topic::Debited,
        Topic::Completed,
        Topic::Audit,
        Topic::Notification,
        Topic::RetryDelayed,
        Topic::DeadLetter,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Topic::Initiated => "upi.transaction.initiated",
            Topic::Debited => "upi.transaction.debited",
            Topic::Completed => "upi.transaction.completed",
            Topic::Audit => "upi.audit.log",
            Topic::Notification => "upi.notification.status",
            Topic::RetryDelayed => "upi.transaction.retry.delayed",
            Topic::DeadLetter => "upi.transaction.dlq",
        }
    }

    /// Partitions in a fleet: how many readers of a group can share it.
    pub fn partitions(self) -> i32 {
        match self {
            Topic::Initiated | Topic::Debited | Topic::Completed => 30,
            Topic::Audit => 10,
            Topic::Notification => 15,
            // The design names no number. What is in here waits anyway, all of one batch at once.
            Topic::RetryDelayed => 5,
            Topic::DeadLetter => 5,
        }
    }

    pub fn from_name(name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Where an event goes.
    pub fn of(event: EventType) -> &'static [Topic] {
        match event {
            EventType::TransactionInitiated => &[Topic::Initiated, Topic::Audit],
            EventType::TransactionDebited => &[Topic::Debited, Topic::Audit, Topic::Notification],
            EventType::TransactionCompleted
            | EventType::TransactionFailed
            | EventType::TransactionDeclined
            | EventType::TransactionExpired
            | EventType::TransactionDeemed
            | EventType::TransactionReversed => &[Topic::Completed, Topic::Audit, Topic::Notification],
            EventType::TransactionUnresolved | EventType::TransactionConflict => &[Topic::Audit],
        }
    }
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}
