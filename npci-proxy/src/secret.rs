//! Keys by reference: the configuration says where a key is, never what it is.

use std::{fmt, path::Path};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use certs::file::Content;
use serde::Deserialize;
use zeroize::Zeroizing;

/// `file:<path>` or `env:<NAME>`. What is found there is the key in hex (64 digits or more) or in
/// base64 (standard, or URL-safe without padding), white space around it ignored, at least 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SecretRef {
    File(std::path::PathBuf),
    Env(String),
}

/// The bytes of a key. Never printed; wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("a key is written as file:<path> or env:<NAME>, never inline")]
    Reference,
    #[error(transparent)]
    File(#[from] certs::CertError),
    #[error("the environment has no readable variable {0}")]
    Env(String),
    #[error("the key at {0} is neither hex nor base64")]
    Encoding(String),
    #[error("the key at {0} has fewer than 32 bytes")]
    TooShort(String),
}

impl TryFrom<String> for SecretRef {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            _ => Err(SecretError::Reference),
        }
    }
}

impl SecretRef {
    /// Reads the key. A relative path is seen from `folder`.
    pub fn load(&self, folder: &Path) -> Result<Secret, SecretError> {
        match self {
            SecretRef::File(path) => {
                let path = folder.join(path);
                let name = path.display().to_string();
                Secret::decode(&certs::file::read(&path, Content::Secret)?, &name)
            }
            SecretRef::Env(name) => {
                let text = Zeroizing::new(std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?);
                Secret::decode(text.as_bytes(), name)
            }
        }
    }
}

impl Secret {
    /// A key that nobody else has.
    pub fn random() -> Secret {
        Secret(Zeroizing::new([*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat()))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn decode(text: &[u8], place: &str) -> Result<Secret, SecretError> {
        let text = text.trim_ascii();
        let bytes = hex(text)
            .or_else(|| STANDARD.decode(text).ok().map(Zeroizing::new))
            .or_else(|| URL_SAFE_NO_PAD.decode(text).ok().map(Zeroizing::new))
            .ok_or_else(|| SecretError::Encoding(place.to_owned()))?;
        if bytes.len() < 32 {
            return Err(SecretError::TooShort(place.to_owned()));
        }
        Ok(Secret(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if text.len() < 64 || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    // Grown at once: a vector that grows leaves what it held behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.chunks_exact(2) {
        let [high, low] = pair else { return None };
        bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_encodings() {
        for (text, valid) in [
            ("file:a", true),
            ("env:A", true),
            ("file:", false),
            ("env:", false),
            ("sekret", false),
            ("x:y", false),
        ] {
            assert_eq!(SecretRef::try_from(text.to_owned()).is_ok(), valid, "{text}");
        }
        let key = [0xab; 32];
        for text in [
            "ab".repeat(32),
            format!(" {}\n", "AB".repeat(32)),
            STANDARD.encode(key),
            URL_SAFE_NO_PAD.encode(key),
        ] {
            assert_eq!(Secret::decode(text.as_bytes(), "here").unwrap().bytes(), key, "{text}");
        }
        for text in ["", "abcd", "not a key at all, is it", &STANDARD.encode([1; 31])] {
            let error = Secret::decode(text.as_bytes(), "here").unwrap_err().to_string();
            assert!(error.contains("here") && (text.is_empty() || !error.contains(text)), "{error}");
        }
    }
}
