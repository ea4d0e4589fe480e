//! WebSockets over HTTP/2 (RFC 8441). Filters and upstreams see the request in the form of HTTP/1.1, as Envoy's do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

const WEBSOCKET: &str = "websocket";
/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Turns an extended CONNECT for a WebSocket into a GET with `Upgrade`. A CONNECT for anything else stays as it is, and no
/// route serves it.
pub(crate) fn into_upgrade(header: &mut RequestHeader) -> pingora::Result<()> {
    let protocol = header.extensions.get::<Protocol>().map(Protocol::as_str);
    if header.version != Version::HTTP_2 || header.method != Method::CONNECT || protocol != Some(WEBSOCKET) {
        return Ok(());
    }
    header.set_method(Method::GET);
    header.insert_header(CONNECTION, "Upgrade")?;
    header.insert_header(UPGRADE, WEBSOCKET)?;
    header.insert_header(SEC_WEBSOCKET_KEY, STANDARD.encode(rand::random::<[u8; 16]>()))?;
    Ok(())
}

/// Whether [`into_upgrade`] made the request: clients cannot send `Upgrade` over HTTP/2 (RFC 9113 section 8.2.2).
pub(crate) fn is_extended_connect(header: &RequestHeader) -> bool {
    header.version == Version::HTTP_2 && header.headers.contains_key(UPGRADE)
}

/// Whether the upstream has proved that it read the key (RFC 6455 section 4.1). Over HTTP/2 no client can check it.
pub(crate) fn accepts_key(asked: &HeaderMap, answer: &HeaderMap) -> bool {
    let Some(key) = asked.get(SEC_WEBSOCKET_KEY) else { return false };
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID.as_bytes()].concat());
    answer
        .get(SEC_WEBSOCKET_ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == STANDARD.encode(hash).as_bytes())
}

/// Turns the upstream's 101 into the 200 that opens a WebSocket over HTTP/2 (RFC 8441 section 5).
pub(crate) fn into_ok(answer: &mut ResponseHeader) -> pingora::Result<()> {
    answer.set_status(StatusCode::OK)?;
    answer.remove_header(&CONNECTION);
    answer.remove_header(&UPGRADE);
    answer.remove_header(&SEC_WEBSOCKET_ACCEPT);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_alone_becomes_an_upgrade() {
        for (version, method, protocol, becomes) in [
            (Version::HTTP_2, Method::CONNECT, Some(WEBSOCKET), true),
            (Version::HTTP_2, Method::CONNECT, Some("connect-udp"), false),
            (Version::HTTP_2, Method::CONNECT, None, false),
            (Version::HTTP_2, Method::GET, None, false),
            (Version::HTTP_11, Method::CONNECT, Some(WEBSOCKET), false),
        ] {
            let mut header = RequestHeader::build_no_case("GET", b"/events", None).unwrap();
            header.set_version(version);
            header.set_method(method.clone());
            if let Some(protocol) = protocol {
                header.extensions_mut().insert(Protocol::from(protocol));
            }
            into_upgrade(&mut header).unwrap();
            assert_eq!(is_extended_connect(&header), becomes, "{version:?} {method} {protocol:?}");
            assert_eq!(header.method, if becomes { Method::GET } else { method });
        }
    }

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn a_key_is_accepted_by_its_hash() {
        let field = |name, value: &str| HeaderMap::from_iter([(name, value.parse().unwrap())]);
        let asked = field(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==");
        for (answer, accepted) in [
            (field(SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), true),
            (field(SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOp="), false),
            (HeaderMap::new(), false),
        ] {
            assert_eq!(accepts_key(&asked, &answer), accepted, "{answer:?}");
        }
    }
}
