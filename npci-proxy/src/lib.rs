//! The only door to and from the payment network.
//!
//! Inside, txn-core calls three operations over mutual TLS ([`inside`]). Outside, each becomes one signed
//! call whose answer is believed only if the network signed it for that call ([`network`]); the network's
//! callbacks come in through mutual TLS, digest, signature, freshness and nonce, and are acknowledged only
//! once txn-core has made them durable ([`callback`]). The rules (breaker, budget, peak hours, freshness)
//! are pure and take the time as an argument.
//!
//! This crate never sends a call twice, never says that something was not sent when it may have been, and
//! never logs a whole VPA, a credential block or a key.

pub mod admin;
pub mod breaker;
pub mod budget;
pub mod callback;
pub mod clock;
pub mod codec;
pub mod config;
pub mod core;
pub mod expiring;
pub mod freshness;
pub mod inside;
pub mod keys;
pub mod metrics;
pub mod network;
pub mod peak_hours;
pub mod peer;
pub mod pinned;
pub mod problem;
pub mod process;
pub mod seal;
pub mod secret;
pub mod service;
pub mod wire;
