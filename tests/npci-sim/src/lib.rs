//! The payment network and its banks, for development and tests.
//!
//! It fronts like the network (mutual TLS, signatures, nonces, immediate acknowledgement, callbacks later) and
//! settles in double-entry books that can be read at the admin address. It misbehaves on demand ([`fault`]),
//! but its ledger always tells what happened. Everything is in memory.

pub mod admin;
pub mod bank;
pub mod calls;
pub mod config;
pub mod fault;
pub mod front;
pub mod ledger;
pub mod network;
pub mod pin;
pub mod service;
pub mod settlement;
pub mod sim;
