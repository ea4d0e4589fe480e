//! How a shared secret is written where its reference leads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;

/// How the bytes of a secret are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As they are: the key is what is written, less one trailing line break.
    #[default]
    Raw,
    /// Two hexadecimal digits a byte.
    Hex,
    /// RFC 4648 section 4, padded.
    Base64,
}

impl Encoding {
    /// The bytes. Spaces and line breaks around text do not count.
    pub(super) fn decode(self, written: Vec<u8>) -> Result<Vec<u8>, String> {
        let text = written.trim_ascii();
        match self {
            Self::Raw => Ok(written),
            Self::Hex => hex(text).ok_or_else(|| "it is not pairs of hexadecimal digits".to_owned()),
            Self::Base64 => STANDARD.decode(text).map_err(|_| "it is not padded base64".to_owned()),
        }
    }
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    };
    text.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        for (encoding, written, expected) in [
            (Encoding::Raw, "ab\n", Some(b"ab\n".as_slice())),
            (Encoding::Hex, " 61fF\n", Some(&[0x61, 0xff])),
            (Encoding::Hex, "61f", None),
            (Encoding::Hex, "zz", None),
            (Encoding::Base64, "YWI=\n", Some(b"ab")),
            (Encoding::Base64, "YWI", None),
        ] {
            let decoded = encoding.decode(written.as_bytes().to_vec()).ok();
            assert_eq!(decoded.as_deref(), expected, "{encoding:?} {written:?}");
        }
    }
}
