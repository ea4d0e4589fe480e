//! What an upstream's response header must be before any of it is used, and what of it is for the upstream's connection
//! alone.

use http::{HeaderMap, StatusCode, header};
use pingora::http::ResponseHeader;

use crate::upstream::HOP;

/// Fields that `Connection` cannot name away: they say where the body ends.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// Why a response cannot be passed on. A cache or a client behind us might read it in another way than we do.
pub(crate) fn defect(status: StatusCode, fields: &HeaderMap) -> Option<&'static str> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() || length.is_some_and(|length| length.as_bytes().contains(&b',')) {
        return Some("more than one Content-Length");
    }
    let is_framed = fields.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0'));
    match status {
        StatusCode::SWITCHING_PROTOCOLS => Some("101 without an upgrade that was asked for"),
        // RFC 9110, sections 8.6 and 15.3.5.
        StatusCode::NO_CONTENT if is_framed => Some("204 with a body"),
        status if status.is_informational() && is_framed => Some("1xx with a body"),
        _ => None,
    }
}

/// Removes the fields that `Connection` names, `Keep-Alive` and its like. What frames the body stays, if it is to.
pub(crate) fn strip_hop_by_hop(response: &mut ResponseHeader, framing: Framing) {
    for name in named_by_connection(&response.headers) {
        response.remove_header(&name);
    }
    let kept = |name: &str| framing == Framing::Stays && FRAMING.contains(&name);
    for name in HOP.iter().filter(|name| !kept(name)) {
        response.remove_header(*name);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Stays,
    Goes,
}

/// Names that `Connection` has, in lower case, without those of the framing.
pub(crate) fn named_by_connection(fields: &HeaderMap) -> Vec<String> {
    let values = fields.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    names.filter(|name| !name.is_empty() && !FRAMING.contains(&name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut header = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            header.append_header(*name, *value).unwrap();
        }
        header
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_passed_on() {
        let chunked = ("transfer-encoding", "chunked");
        for (status, fields, expected) in [
            (200, &[("content-length", "5")][..], None),
            (200, &[("content-length", "5"), ("content-length", "5")], Some("more than one Content-Length")),
            (200, &[("content-length", "5, 5")], Some("more than one Content-Length")),
            (200, &[chunked], None),
            (204, &[], None),
            (204, &[("content-length", "0")], None),
            (204, &[("content-length", "5")], Some("204 with a body")),
            (204, &[chunked], Some("204 with a body")),
            (304, &[("content-length", "5")], None),
            (103, &[], None),
            (103, &[("content-length", "5")], Some("1xx with a body")),
            (101, &[("upgrade", "websocket")], Some("101 without an upgrade that was asked for")),
        ] {
            let header = header(status, fields);
            assert_eq!(defect(header.status, &header.headers), expected, "{status} {fields:?}");
        }
    }

    #[test]
    fn fields_of_the_connection_stay_there() {
        let fields = [
            ("connection", "keep-alive, X-Internal"),
            ("connection", "x-other ,content-length"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("x-internal", "1"),
            ("x-other", "2"),
            ("x-kept", "3"),
            ("content-length", "5"),
        ];
        for (framing, expected) in
            [(Framing::Stays, &["content-length", "x-kept"][..]), (Framing::Goes, &["x-kept"])]
        {
            let mut header = header(200, &fields);
            strip_hop_by_hop(&mut header, framing);
            let mut names: Vec<&str> = header.headers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, expected);
        }
    }
}
