//! npci-proxy against npci-sim, over the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod callbacks;
mod calls;
mod front;
mod logs;
mod world;
