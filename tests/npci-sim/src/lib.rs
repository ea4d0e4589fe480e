//! The payment network and its banks, for development and tests.

pub mod config;
pub mod fault;
pub mod ledger;
pub mod network;
pub mod pin;
