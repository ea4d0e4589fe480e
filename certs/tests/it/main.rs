//! The command `certs` and the live files behind it: one module for each subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod command;
mod fake;
mod handshakes;
mod operations;
mod pki;
mod rotation;
mod serving;
