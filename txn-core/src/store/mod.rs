//! Where payments live: one trait, an engine a file, one contract test for all of them.
//!
//! A payment's row, history, timer, idempotency key, inbox row and outgoing events are one transaction. An
//! engine stores what [`record`](mod@record) says and decides nothing about payments itself.

mod cells;
#[cfg(test)]
pub(crate) mod contract;
mod decide;
pub mod postgres;
pub mod record;
mod sqlite;
mod sqlite_read;
mod sqlite_rows;
#[cfg(test)]
mod sqlite_tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

pub use postgres::{PostgresConfig, PostgresStore};
pub use sqlite::{SqliteStore, migrate};
pub use writer::WriterLimits;

use crate::txn::{Effect, Event, EventType, Ignored, Txn, TxnId, UnixMs, WakeKind};

/// The durable home of payments. What a method has answered with `Ok` survives a crash.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Makes a new payment durable, or finds the one that the same key made before.
    async fn accept(&self, new: NewTxn) -> Result<Accepted, StoreError>;

    /// Applies one event to one payment, at most once for each inbox entry.
    async fn apply(&self, input: Apply) -> Result<Applied, StoreError>;

    /// A payment and its history, if it is this tenant's.
    async fn find(&self, tenant: &str, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError>;

    /// A payment whoever's it is, for operators.
    async fn inspect(&self, id: TxnId) -> Result<Option<(Txn, Vec<HistoryRow>)>, StoreError>;

    /// Takes this relay's fair share of the outbox's lanes, or keeps it for longer. Nobody else publishes from
    /// a lane before its lease has run out or it was given back.
    async fn lease_lanes(&self, relay: Uuid, lease_ms: u64) -> Result<LaneLease, StoreError>;

    /// Gives all lanes of this relay back.
    async fn return_lanes(&self, relay: Uuid) -> Result<(), StoreError>;

    /// The oldest unpublished events of the leased lanes, each payment's in order.
    async fn unpublished(&self, lease: &LaneLease, limit: u32) -> Result<Vec<OutboxRow>, StoreError>;

    /// Takes published events out of the outbox; those of lanes that are somebody else's by now stay for him.
    async fn published(&self, lease: &LaneLease, rows: &[OutboxRow]) -> Result<(), StoreError>;

    /// How long a relay may go without looking into the outbox although no bell rang: others may have written.
    fn look_every(&self) -> Duration;

    /// Claims timers of one kind that are due and gives their payments; nobody else gets them before the lease
    /// has run out.
    async fn claim_due(
        &self,
        kind: WakeKind,
        now: UnixMs,
        lease_ms: u64,
        limit: u32,
    ) -> Result<Vec<TxnId>, StoreError>;

    /// Forgets idempotency keys and inbox rows older than the two times; at most some thousand rows a call.
    /// Gives how many went.
    async fn purge(&self, idempotency_before: UnixMs, inbox_before: UnixMs) -> Result<u64, StoreError>;

    /// Makes room for the payments of the time around `now`, ahead of them.
    async fn make_room(&self, now: UnixMs) -> Result<(), StoreError>;

    /// Figures for `/metrics`.
    async fn figures(&self) -> Result<Figures, StoreError>;

    /// Rung after a commit that wrote to the outbox.
    fn outbox_bell(&self) -> Arc<Notify>;

    /// Stops the writer after what it has been given; later calls are [`StoreError::Closed`].
    async fn close(&self);
}

/// A payment to be made durable.
#[derive(Debug, Clone)]
pub struct NewTxn {
    pub txn: Txn,
    pub cred_block: Option<CredBlock>,
    pub idempotency: IdempotencyKey,
    /// SHA-256 of what the client asked for.
    pub fingerprint: [u8; 32],
    pub trace: Trace,
}

/// Encrypted by the device for the bank. Opaque to us, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct CredBlock(pub String);

impl fmt::Debug for CredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredBlock(…)")
    }
}

/// One key means one thing within a tenant and a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    pub tenant: String,
    pub route: &'static str,
    pub key: String,
}

/// Whose request it was; passed on with every message.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Trace {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    New,
    /// The same key and the same request made this payment before.
    Replayed(TxnId),
    /// The same key was used for something else.
    KeyReused,
}

/// One event for one payment.
#[derive(Debug, Clone)]
pub struct Apply {
    pub txn_id: TxnId,
    pub event: Event,
    pub at: UnixMs,
    /// Who takes it in and which message it is: the second time it has no effect.
    pub inbox: Option<(&'static str, String)>,
}

#[derive(Debug, Clone)]
pub enum Applied {
    Stepped {
        txn: Box<Txn>,
        effects: Vec<Effect>,
        /// Given out with [`Effect::Send`] and at no other time.
        cred_block: Option<CredBlock>,
    },
    Ignored {
        txn: Box<Txn>,
        why: Ignored,
    },
    /// The inbox has it already.
    SeenBefore,
    UnknownTxn,
}

/// A line of a payment's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    pub version: u32,
    pub at: UnixMs,
    pub state: crate::txn::State,
    pub event: String,
    pub reason: Option<String>,
    pub applied: bool,
}

/// An event that waits for publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    pub lane: i16,
    /// The engine's number of the transaction that wrote it, where it has one.
    pub xact: i64,
    pub position: i64,
    pub event_id: Uuid,
    pub txn_id: String,
    pub event_type: EventType,
    pub payload: String,
}

/// The lanes of the outbox that are one relay's for a while. A payment's events are all in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneLease {
    pub relay: Uuid,
    pub lanes: Vec<i16>,
    /// Until then they are nobody else's.
    pub until: Instant,
}

/// Sizes worth watching.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub outbox: i64,
    pub timers: i64,
    pub flagged: i64,
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The queue is full: try again in a moment.
    #[error("the store has more to do than it can queue")]
    Overloaded,
    #[error("the store is closed")]
    Closed,
    /// The engine is away, or went away before it had answered: whether the request is durable is unknown. Doing
    /// it again is safe: keys, inboxes and versions let nothing happen twice.
    #[error("the store's engine is away: {0}")]
    Unavailable(String),
    /// The engine failed; nothing of the request is durable unless the message says otherwise.
    #[error("the store's engine failed: {0}")]
    Engine(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut => StoreError::Overloaded,
            sqlx::Error::PoolClosed => StoreError::Closed,
            // Anything half-said on a connection is one that broke.
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => StoreError::Unavailable(error.to_string()),
            other => match other.as_database_error().and_then(sqlx::error::DatabaseError::code) {
                Some(code) if is_away(&code) => StoreError::Unavailable(other.to_string()),
                _ => StoreError::Engine(other.to_string()),
            },
        }
    }
}

/// PostgreSQL's codes of a server that is going, coming, full or a standby, and of a statement that it ended
/// because something took too long. SQLite's codes are numbers of other lengths.
fn is_away(sqlstate: &str) -> bool {
    let classes = ["08", "53", "57"];
    let codes = ["25006", "55P03"];
    sqlstate.len() == 5 && classes.iter().any(|class| sqlstate.starts_with(class))
        || codes.contains(&sqlstate)
}
