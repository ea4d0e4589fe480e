//! Free ports of loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// `N` free ports of an address. They are free at the same time, so no two are the same.
fn free<const N: usize>(ip: IpAddr) -> anyhow::Result<[SocketAddr; N]> {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind((ip, 0))).collect::<Result<_, _>>()?;
    let mut places = [SocketAddr::new(ip, 0); N];
    for (place, listener) in places.iter_mut().zip(&listeners) {
        *place = listener.local_addr()?;
    }
    Ok(places)
}

/// Free ports of 127.0.0.1.
///
/// # Errors
/// When there are none.
pub fn v4<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    free(Ipv4Addr::LOCALHOST.into())
}

/// A free port of ::1.
///
/// # Errors
/// When there is none, or no IPv6.
pub fn v6() -> anyhow::Result<SocketAddr> {
    Ok(free::<1>(Ipv6Addr::LOCALHOST.into())?[0])
}
