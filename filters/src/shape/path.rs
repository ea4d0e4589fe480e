//! Paths that every reader understands the same way.

use std::borrow::Cow;

/// The path with its percent-encodings decoded, exactly once. `None`: another reader could understand it otherwise.
///
/// Only characters that could be sent as they are may be encoded: `encodeURIComponent` makes `%40` of the `@` in a VPA.
/// Dots stay refused, because some servers decode them before they resolve dot segments (RFC 3986 section 6.2.2), and so
/// do `%2F`, `%00` and `%25`, none of which stands for such a character.
pub fn decode(path: &str) -> Option<Cow<'_, str>> {
    let decoded = match path.contains('%') {
        true => Cow::Owned(decode_once(path)?),
        false => Cow::Borrowed(path),
    };
    unambiguous(&decoded).then_some(decoded)
}

fn decode_once(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut decoded = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).ok().filter(|byte| is_hex && plain(*byte) && *byte != b'.')?;
        decoded.push(char::from(byte));
        decoded.push_str(rest);
    }
    Some(decoded)
}

/// Whether a path without encodings has one meaning only. Refused are: what is not absolute, empty and dot segments, matrix
/// parameters, backslashes, and every character that needs an encoding (RFC 3986 sections 2.3 and 3.3).
pub fn unambiguous(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    if rest.is_empty() {
        return true;
    }
    rest.split('/').all(|segment| !segment.is_empty() && segment != "." && segment != "..")
        && path.bytes().all(|byte| byte == b'/' || plain(byte))
}

/// Unreserved characters, and the sub-delimiters that have no meaning in a path of ours.
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'@' | b':' | b'+' | b',' | b'=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tricks_are_ambiguous() {
        for (path, expected) in [
            ("/", true),
            ("/v1/transactions/send", true),
            ("/v1/transactions/TOR0190f", true),
            ("/v1/vpa/alice@torana", true),
            ("", false),
            ("v1", false),
            ("*", false),
            ("//v1", false),
            ("/v1//send", false),
            ("/v1/send/", false),
            ("/v1/./send", false),
            ("/v1/../admin", false),
            ("/v1/%2e%2e/admin", false),
            ("/v1/%2E/admin", false),
            ("/v1%2fsend", false),
            ("/v1/a%00", false),
            ("/v1/send;a=b", false),
            ("/v1/..;/admin", false),
            ("/v1\\send", false),
            ("/v1/send#x", false),
            ("/v1/send\u{e9}", false),
            ("/v1/se nd", false),
            ("/v1/send\n", false),
        ] {
            assert_eq!(unambiguous(path), expected, "{path:?}");
        }
    }

    #[test]
    fn encodings_are_decoded_once() {
        for (path, expected) in [
            ("/v1/vpa/alice@torana", Some("/v1/vpa/alice@torana")),
            ("/v1/vpa/alice%40torana", Some("/v1/vpa/alice@torana")),
            ("/v1/a%3ab%3Ac%2B%2c%3D%7e", Some("/v1/a:b:c+,=~")),
            ("/v1/%61dmin", Some("/v1/admin")),
            ("/v1/%2e%2e/admin", None),
            ("/v1/%2E/admin", None),
            ("/v1/alice%2ebob%40torana", None),
            ("/v1%2fsend", None),
            ("/v1%5Csend", None),
            ("/v1/a%00", None),
            ("/v1/a%0d%0a", None),
            ("/v1/a%20b", None),
            ("/v1/a%3Fb", None),
            ("/v1/a%23b", None),
            ("/v1/a%3Bb", None),
            ("/v1/alice%2540torana", None),
            ("/v1/alice%u0040torana", None),
            ("/v1/%C3%A9", None),
            ("/v1/%c0%af", None),
            ("/v1/a%", None),
            ("/v1/a%4", None),
            ("/v1/a%4g", None),
            ("/v1/a%+4", None),
            ("/v1/%\u{e9}", None),
            ("%2Fv1", None),
        ] {
            assert_eq!(decode(path).as_deref(), expected, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_decoded_has_no_encoding_left(path in "/[a-c%./@0-9A-F]{0,12}") {
            if let Some(decoded) = decode(&path) {
                prop_assert!(unambiguous(&decoded));
                prop_assert_eq!(decode(&decoded), Some(Cow::Borrowed(&*decoded)));
                prop_assert_eq!(decoded.matches('/').count(), path.matches('/').count());
                prop_assert_eq!(decoded.matches('.').count(), path.matches('.').count());
            }
        }


        #[test]
        fn what_passes_has_no_second_reading(path in "\\PC{0,40}") {
            if unambiguous(&path) {
                prop_assert!(path.starts_with('/') && path.is_ascii());
                prop_assert!(!path.contains("//") && !path.contains("/.") || path.contains("/.")
                    && path.split('/').all(|s| s != "." && s != ".."));
                prop_assert!(!path.contains(['%', ';', '\\', '?', '#']));
            }
        }
    }
}
