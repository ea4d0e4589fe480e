//! npci-proxy against npci-sim, over the wire.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod callbacks;
mod calls;
mod front;
mod logs;
mod world;
