//! The payment core: API, state machine, store, outbox, bus, orchestrator and timers of one payment edge.

pub mod codes;
pub mod metrics;
pub mod store;
pub mod txn;
