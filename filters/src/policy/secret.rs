//! How a shared secret is written where its reference leads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What a reference to a secret leads to. Wiped from memory when dropped; never printed.
pub struct Secret(Option<Zeroizing<Vec<u8>>>);

impl Secret {
    /// The data plane will be told it while it runs.
    pub const LATER: Self = Self(None);

    /// As it is written.
    pub fn new(written: Zeroizing<Vec<u8>>) -> Self {
        Self(Some(written))
    }

    pub(super) fn written(self) -> Option<Zeroizing<Vec<u8>>> {
        self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(written: Vec<u8>) -> Self {
        Self::new(Zeroizing::new(written))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How the bytes of a secret are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    pub(super) fn decode(self, written: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, String> {
        let text = written.trim_ascii();
        match self {
            Self::Raw => Ok(written),
            Self::Hex => hex(text).ok_or_else(|| "it is not pairs of hexadecimal digits".to_owned()),
            Self::Base64 => {
                STANDARD.decode(text).map(Zeroizing::new).map_err(|_| "it is not padded base64".to_owned())
            }
        }
    }
}

fn hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    };
    // Grown at once: a vector that grows leaves what it held behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len().div_ceil(2)));
    for digits in text.chunks(2) {
        bytes.push(pair(digits)?);
    }
    Some(bytes)
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
            let decoded = encoding.decode(Zeroizing::new(written.as_bytes().to_vec())).ok();
            assert_eq!(decoded.as_ref().map(|bytes| bytes.as_slice()), expected, "{encoding:?} {written:?}");
        }
    }
}
