//! The payment network and its banks, for development and tests.

pub mod fault;
pub mod ledger;
pub mod pin;
