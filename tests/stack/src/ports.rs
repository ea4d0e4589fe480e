use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex};

use anyhow::bail;

/// Below the range from which the kernel takes ports for outgoing connections (32768 on Linux):
/// a service that is killed finds its port free when it comes back.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// Ports handed out by this process, so that stacks started side by side do not meet.
static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A loopback port that nobody listens on, and that this process gives to nobody else.
///
/// Another process may still take it before its service listens; then that service says so and ends.
pub(crate) fn free() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = rand::random_range(RANGE);
        let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    bail!("no free loopback port between {} and {}", RANGE.start, RANGE.end)
}
