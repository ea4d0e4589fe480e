//! The whole stack over the wire: one module for each subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod crash;
mod edge;
mod envoy_rotation;
mod events;
mod house;
mod logs;
mod network;
mod network_door;
mod payment;
mod refusals;
mod rotation;
mod security_page;
mod tls;
