//! Whole policies: their mistakes, warnings, bounds and flags.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod bounds;
mod flags;
mod mistakes;
mod streaming;
mod upstreams;
mod warnings;
