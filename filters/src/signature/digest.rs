//! `Content-Digest` (RFC 9530): the digest of the body exactly as it is sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use crate::crypto;

/// The longest field that is read, in bytes; room for every registered algorithm at once.
pub const FIELD_MAX: usize = 1024;

/// The field value for this body: `sha-256=:…:`.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(crypto::sha256(body)))
}

/// Checks the `Content-Digest` of a message, of all its lines together (RFC 9651 section 4.2), against the whole body.
///
/// Algorithms that are not known are passed over, as RFC 9530 section 2 asks, but one that is must be there,
/// and every one that is must match. The old algorithms (`md5`, `sha`, `unixsum`, …) count as not known
/// (section 5: they must not be used in adversarial settings).
pub fn verify<'l>(lines: impl IntoIterator<Item = &'l [u8]>, body: &[u8]) -> Result<(), DigestError> {
    let mut field = Vec::new();
    for (at, line) in lines.into_iter().enumerate() {
        if at > 0 {
            field.extend_from_slice(b", ");
        }
        field.extend_from_slice(line);
        if field.len() > FIELD_MAX {
            return Err(DigestError::TooLong);
        }
    }
    let digests: Dictionary = Parser::new(&field).parse().map_err(|_| DigestError::Malformed)?;
    let mut known = false;
    for (algorithm, entry) in &digests {
        let expected = match algorithm.as_str() {
            "sha-256" => crypto::sha256(body).to_vec(),
            "sha-512" => crypto::sha512(body).to_vec(),
            _ => continue,
        };
        let ListEntry::Item(item) = entry else { return Err(DigestError::Malformed) };
        let BareItem::ByteSequence(digest) = &item.bare_item else { return Err(DigestError::Malformed) };
        if !crypto::equal(&expected, digest) {
            return Err(DigestError::Mismatch);
        }
        known = true;
    }
    match known {
        true => Ok(()),
        false => Err(DigestError::NoKnownAlgorithm),
    }
}

/// Why a digest does not vouch for a body; the sender's fault, and the same again if sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("the field is longer than {FIELD_MAX} bytes")]
    TooLong,
    #[error("the field is not a dictionary of byte sequences")]
    Malformed,
    #[error("neither sha-256 nor sha-512 is there")]
    NoKnownAlgorithm,
    #[error("the body is not the one that was digested")]
    Mismatch,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 9530 appendix A and section 2, RFC 9421 appendix B.2.
    #[test]
    fn published_digests() {
        let hello = b"{\"hello\": \"world\"}";
        let line = b"{\"hello\": \"world\"}\n";
        let cases: &[(&str, &[u8], Result<(), DigestError>)] = &[
            ("sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:", hello, Ok(())),
            ("sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:", line, Ok(())),
            (
                "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:",
                line,
                Ok(()),
            ),
            (
                "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
                hello,
                Ok(()),
            ),
            (
                "sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:",
                b"{\"message\": \"good dog\"}",
                Ok(()),
            ),
            ("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", b"", Ok(())),
        ];
        for (value, body, expected) in cases {
            assert_eq!(verify([value.as_bytes()], body), *expected, "{value}");
        }
        assert_eq!(content_digest(hello), cases[0].0);
    }

    #[test]
    fn refused_digests() {
        let right = content_digest(b"body");
        let cases: &[(String, DigestError)] = &[
            (String::new(), DigestError::NoKnownAlgorithm),
            ("md5=:AAAAAAAAAAAAAAAAAAAAAA==:".into(), DigestError::NoKnownAlgorithm),
            ("sha-256".into(), DigestError::Malformed),
            ("sha-256=\"X48E\"".into(), DigestError::Malformed),
            ("sha-256=(:AAAA:)".into(), DigestError::Malformed),
            ("SHA-256=:AAAA:".into(), DigestError::Malformed),
            ("sha-256=::".into(), DigestError::Mismatch),
            ("sha-256=:AAAA:".into(), DigestError::Mismatch),
            (format!("{right}, sha-512=:AAAA:"), DigestError::Mismatch),
            (format!("{right},"), DigestError::Malformed),
            (format!("{right}{}", ",a".repeat(FIELD_MAX)), DigestError::TooLong),
        ];
        for (value, expected) in cases {
            assert_eq!(verify([value.as_bytes()], b"body"), Err(*expected), "{value}");
        }
        assert_eq!(
            verify([format!("md5=:AAAA:, {right}").as_bytes()], b"body"),
            Ok(()),
            "one unknown is passed over"
        );
    }

    #[test]
    fn lines_are_combined() {
        let (sha256, wrong) = (content_digest(b"body"), content_digest(b"other"));
        let long = "x".repeat(FIELD_MAX);
        for (lines, expected) in [
            (["md5=:AAAA:", &sha256], Ok(())),
            ([&sha256, "later=:AAAA:"], Ok(())),
            ([&sha256, "sha-512=:AAAA:"], Err(DigestError::Mismatch)),
            // The last of two members of one name is the value (RFC 9651 section 4.2.2).
            ([&wrong, &sha256], Ok(())),
            ([&sha256, &wrong], Err(DigestError::Mismatch)),
            (["md5=:AAAA:", ""], Err(DigestError::Malformed)),
            ([&sha256, &long], Err(DigestError::TooLong)),
        ] {
            assert_eq!(verify(lines.map(str::as_bytes), b"body"), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn a_digest_holds_for_its_body_only(body in proptest::collection::vec(any::<u8>(), 1..200), at in any::<usize>()) {
            let value = content_digest(&body);
            prop_assert_eq!(verify([value.as_bytes()], &body), Ok(()));
            let mut other = body.clone();
            let at = at % (body.len() * 8);
            other[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(verify([value.as_bytes()], &other), Err(DigestError::Mismatch));
        }

        #[test]
        fn no_field_panics(value in proptest::collection::vec(any::<u8>(), 0..200), text in "[a-z0-9=:,;() \"-]{0,80}") {
            let _ = verify([value.as_slice()], b"body");
            let _ = verify([text.as_bytes()], b"body");
        }
    }
}
