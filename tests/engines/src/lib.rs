//! The engines of a fleet, started on free loopback ports with their data in a folder of the caller's, and
//! ended with the value that stands for them. `tests/run install` brings the programs.
//!
//! For tests and for the development stack only: no password, no replica, no care for what is already there.

mod clock;
mod kafka;
pub mod ports;
mod postgres;
mod program;
mod redis;

pub use clock::next_second;
pub use kafka::{Guard, Kafka};
pub use postgres::{Postgres, url as postgres_url};
pub use program::{Program, Signal};
pub use redis::{Redis, url as redis_url};
