//! Whether an address of ours is listened on yet. Pingora opens its listeners in threads of its own and tells
//! nobody when they are open; Linux does, in `/proc/net/tcp` and `/proc/net/tcp6`.

use std::net::{IpAddr, SocketAddr};

/// Whether this host listens on the address.
pub(crate) fn is_listening(address: SocketAddr) -> bool {
    let table = match address.ip() {
        IpAddr::V4(_) => "/proc/net/tcp",
        IpAddr::V6(_) => "/proc/net/tcp6",
    };
    // Where there is no such table, nothing speaks against it.
    std::fs::read_to_string(table).map_or(true, |table| lists(&table, address))
}

/// The state LISTEN in the kernel's tables (TCP_LISTEN in include/net/tcp_states.h).
const LISTEN: &str = "0A";

fn lists(table: &str, address: SocketAddr) -> bool {
    let wanted = format!("{}:{:04X}", written(address.ip()), address.port());
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&wanted) && fields.nth(1) == Some(LISTEN)
    })
}

/// As the kernel writes an address: words of 32 bits in the host's byte order.
fn written(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    octets
        .chunks_exact(4)
        .map(|word| {
            let word: [u8; 4] = word.try_into().unwrap_or_default();
            format!("{:08X}", u32::from_ne_bytes(word))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_from_when_it_listens() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(any).unwrap();
            let address = listener.local_addr().unwrap();
            assert!(is_listening(address), "{address}");
            drop(listener);
            assert!(!is_listening(address), "{address}");
        }
    }
}
