//! Authorities and queries that every reader understands the same way.

use std::net::Ipv6Addr;

/// Whether it is a host, with or without a port, and nothing else (RFC 3986 section 3.2).
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => (None, port),
            Some(_) | None => return false,
        },
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (host, port) = text.split_at(end);
            (Some(host), port)
        }
    };
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    let is_port = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok();
    host.is_none_or(is_name) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Whether a query has only characters that a browser sends as they are, and whole percent-encodings, none of them of NUL.
pub(crate) fn is_query(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>".contains(&byte);
    let mut parts = text.split('%');
    let is_first_plain = parts.next().is_none_or(|part| part.bytes().all(is_plain));
    is_first_plain
        && parts.all(|part| match part.split_at_checked(2) {
            Some(("00", _)) | None => false,
            Some((digits, rest)) => {
                digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && rest.bytes().all(is_plain)
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, expected) in [
            ("edge.test", true),
            ("edge.test:443", true),
            ("192.0.2.1:8443", true),
            ("[2001:db8::1]", true),
            ("[::1]:443", true),
            ("edge_1.test", true),
            ("", false),
            (":443", false),
            ("edge.test:", false),
            ("edge.test:0x1", false),
            ("edge.test:65536", false),
            ("a:1:2", false),
            ("[::1", false),
            ("[::1]443", false),
            ("[edge]", false),
            ("a\"b", false),
            ("a\\b", false),
            ("<script>", false),
            ("user@edge.test", false),
            ("edge.test/x", false),
            ("edge.test,other.test", false),
            ("edge test", false),
        ] {
            assert_eq!(is_authority(text), expected, "{text:?}");
        }
    }

    #[test]
    fn queries() {
        for (text, expected) in [
            ("", true),
            ("a=1&b=2", true),
            ("filter[state]=x&y={z}|'^`", true),
            ("next=%2Fv1%3Fa%3D1", true),
            ("vpa=alice%40torana", true),
            ("a=%25", true),
            ("a=%00", false),
            ("a=%", false),
            ("a=%4", false),
            ("a=%zz", false),
            ("a=%+1", false),
            ("a b", false),
            ("a\tb", false),
            ("a#b", false),
            ("a=\"b\"", false),
            ("a=<b>", false),
            ("a=é", false),
        ] {
            assert_eq!(is_query(text), expected, "{text:?}");
        }
    }
}
