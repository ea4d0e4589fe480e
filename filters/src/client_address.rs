//! The client's address, as far as trusted proxies in front of the edge tell it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::filter::{Refusal, Request};

/// Walks `X-Forwarded-For` from the nearest hop to the first that is no trusted proxy. What a client wrote itself lies
/// further left and is never reached.
///
/// # Errors
/// When a trusted proxy passed on something that is no address.
pub(crate) fn client_address(request: &Request<'_>, trusted: &[IpNet]) -> Result<IpAddr, Refusal> {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let mut client = request.peer.to_canonical();
    let fields: Vec<&[u8]> = request.headers.all("x-forwarded-for").collect();
    let hops = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
    for hop in hops {
        if !is_trusted(&client) {
            break;
        }
        client = std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())).ok_or_else(|| {
            let detail =
                "X-Forwarded-For must be a comma-separated list of IP addresses, with or without ports.";
            Refusal::new(400, "forwarded_for_invalid", detail)
        })?;
    }
    Ok(client)
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:51234`, `2001:db8::1`, `[2001:db8::1]:443`.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok();
    let ip = text.parse::<IpAddr>().ok();
    let ip = ip.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    ip.or_else(|| bracketed().map(IpAddr::V6)).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_ports() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:51234", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[::ffff:192.0.2.1]:443", Some("192.0.2.1")),
            ("", None),
            ("unknown", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:65536", None),
            ("[192.0.2.1]", None),
            ("192.0.2.1 192.0.2.2", None),
        ] {
            assert_eq!(address(text), expected.map(|ip| ip.parse().unwrap()), "{text:?}");
        }
    }
}
