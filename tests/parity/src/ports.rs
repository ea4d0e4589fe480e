//! Free ports of loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections (32768 on Linux), so that a port
/// that is free stays free until its process listens.
const FIRST: u16 = 12_000;
const LAST: u16 = 31_999;

/// The port after the one given out last.
static NEXT: AtomicU16 = AtomicU16::new(FIRST);

/// A port of `ip` that nobody listens on, and that this process gives out once.
fn free(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        anyhow::ensure!((FIRST..=LAST).contains(&port), "no free port between {FIRST} and {LAST}");
        let address = SocketAddr::new(ip, port);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
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
