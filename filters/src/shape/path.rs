//! Paths that every reader understands the same way.

/// Whether a path has one meaning only. Refused are: what is not absolute, empty and dot segments, matrix
/// parameters, backslashes, and every percent-encoding of a character that needs none or that some servers
/// decode before they route (RFC 3986 sections 2.3, 3.3 and 6.2.2). Nothing our routes name needs one.
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

    proptest! {
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
