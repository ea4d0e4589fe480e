//! Free ports of loopback.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::bail;

/// Below the range from which the kernel takes ports for outgoing connections (32768 on Linux): a service that
/// is killed finds its port free when it comes back.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// Ports handed out by this process, so that what it starts side by side does not meet.
static TAKEN: LazyLock<Mutex<HashSet<SocketAddr>>> = LazyLock::new(Mutex::default);

/// An address of `ip` that nobody listens on, and that this process gives out once.
///
/// Another process may still take it before its service listens; then that service says so and ends.
fn free(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    for _ in 0..1000 {
        let address = SocketAddr::new(ip, rand::random_range(RANGE));
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.contains(&address) && TcpListener::bind(address).is_ok() {
            taken.insert(address);
            return Ok(address);
        }
    }
    bail!("no free port of {ip} between {} and {}", RANGE.start, RANGE.end)
}

/// A free port of 127.0.0.1.
///
/// # Errors
/// When there is none.
pub fn v4() -> anyhow::Result<SocketAddr> {
    free(Ipv4Addr::LOCALHOST.into())
}

/// A free port of ::1.
///
/// # Errors
/// When there is none, or no IPv6.
pub fn v6() -> anyhow::Result<SocketAddr> {
    free(Ipv6Addr::LOCALHOST.into())
}
