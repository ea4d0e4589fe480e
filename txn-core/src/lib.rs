//! The payment core: API, state machine, store, outbox, bus, orchestrator and timers of one payment edge.

pub mod admin;
pub mod api;
pub mod audit;
pub mod bus;
pub mod codes;
pub mod config;
pub mod metrics;
pub mod network;
pub mod notify;
pub mod orchestrator;
pub mod relay;
pub mod roles;
pub mod secret;
pub mod server;
pub(crate) mod sqlite;
pub mod store;
pub mod timers;
pub mod txn;
