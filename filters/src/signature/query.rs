//! One parameter of a query, for `@query-param` (RFC 9421 section 2.2.8).

/// The value of the parameter of that encoded name, decoded as a form and percent-encoded again, so that
/// `+` and `%20` are one value.
pub(super) fn parameter(query: &str, name: &str) -> Result<String, NotOne> {
    let mut found = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if encode(&decode(key)) != name {
            continue;
        }
        if found.replace(value).is_some() {
            return Err(NotOne::Repeated);
        }
    }
    let value = decode(found.ok_or(NotOne::Absent)?);
    match std::str::from_utf8(&value) {
        Ok(_) => Ok(encode(&value)),
        // Replacing what is not UTF-8, as browsers do, would make different queries look the same.
        Err(_) => Err(NotOne::Malformed),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOne {
    Absent,
    Repeated,
    Malformed,
}

/// Decodes `application/x-www-form-urlencoded`; a `%` that starts no escape stands for itself.
fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        rest = match (escaped, first) {
            (Some((high, low)), _) => {
                out.push(high << 4 | low);
                after.get(2..).unwrap_or_default()
            }
            (None, b'+') => {
                out.push(b' ');
                after
            }
            (None, other) => {
                out.push(*other);
                after
            }
        };
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Percent-encodes all that is not a letter, a digit or one of `*-._`.
fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for b in bytes {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => out.push(char::from(*b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of RFC 9421 section 2.2.8, and what must not be signed.
    #[test]
    fn parameters() {
        let one = "param=value&foo=bar&baz=batman&qux=";
        let two = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something";
        let cases: &[(&str, &str, Result<&str, NotOne>)] = &[
            (one, "baz", Ok("batman")),
            (one, "qux", Ok("")),
            (one, "param", Ok("value")),
            (one, "PARAM", Err(NotOne::Absent)),
            (two, "var", Ok("this%20is%20a%20big%0Amultiline%20value")),
            (two, "bar", Ok("with%20plus%20whitespace")),
            (two, "fa%C3%A7ade%22%3A%20", Ok("something")),
            ("a=1&a=2", "a", Err(NotOne::Repeated)),
            ("a=1&%61=2", "a", Err(NotOne::Repeated)),
            ("a", "a", Ok("")),
            ("", "", Err(NotOne::Absent)),
            ("a=100%", "a", Ok("100%25")),
            ("a=%zz", "a", Ok("%25zz")),
            ("a=%ff", "a", Err(NotOne::Malformed)),
        ];
        for (query, name, expected) in cases {
            assert_eq!(parameter(query, name).as_deref(), expected.as_ref().copied(), "{query} {name}");
        }
    }

    proptest! {
        #[test]
        fn encoding_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&bytes)), bytes);
            let _ = parameter(&text, "a");
        }
    }
}
