//! The gateway and Envoy side by side: one module for each subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod compressed;
mod differences;
mod envoy_log;
mod explained;
mod flags;
mod framing;
mod in_process;
mod issued_elsewhere;
mod issuer_days;
mod keys;
mod ordinary_clients;
mod outages;
mod policies;
mod revoked;
mod tenants;
mod upstreams;
