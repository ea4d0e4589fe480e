//! The policy's decisions inside Envoy.
//!
//! Turns what Envoy tells of a request into calls of [`filters::admission::Admission`], and what that decides
//! into what Envoy is to do. It decides nothing itself, holds no clock and no randomness of its own, and must
//! never panic: a module that traps takes every request of its worker with it.
//!
//! [`Envoy`] is all that is asked of the data plane, so that everything but the adapter in `proxy.rs` runs, and
//! is tested, natively.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod certificate;
mod client_keys;
mod counters;
pub mod envoy;
mod feature_flags;
mod introspection;
mod keys;
mod plugin;
mod revoked;
mod stream;
mod trip;
pub mod verify;

#[cfg(target_family = "wasm")]
mod proxy;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod stream_tests;

pub use plugin::{Plugin, Unusable};
pub use stream::{Flow, Stream};
