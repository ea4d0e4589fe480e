//! The gateway over the wire, its commands, and its generated pages: one module for each subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod admin;
mod check;
mod check_messages;
mod cut_off;
mod deadline;
mod diff;
mod envoy;
mod envoy_sync;
mod every_message;
mod explain;
mod extended_connect;
mod flags;
mod forward;
mod logged;
mod reference;
mod reference_and_check;
mod reload;
mod revoke;
mod rotation;
mod routing;
mod running;
mod schema;
mod shared_redis;
mod state;
mod state_policies;
mod streaming;
mod tenants;
mod upstreams;
mod websocket;
