//! References to what must not be written into a policy: keys, certificates, secrets.

use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where to find a secret, a key or a certificate: `file:PATH` (relative to the policy's folder) or
/// `env:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    File(PathBuf),
    Env(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error(
        "keys, certificates and secrets are references: write `file:PATH` or `env:NAME`, never the thing itself"
    )]
    Inline,
    #[error("the reference names nothing after `{0}`")]
    Empty(&'static str),
}

impl std::str::FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() {
                Err(ReferenceError::Empty("file:"))
            } else {
                Ok(Self::File(path.into()))
            };
        }
        if let Some(name) = text.strip_prefix("env:") {
            return if name.is_empty() {
                Err(ReferenceError::Empty("env:"))
            } else {
                Ok(Self::Env(name.into()))
            };
        }
        Err(ReferenceError::Inline)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Reference {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reference".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(file|env):.+$",
            "description": "`file:PATH`, relative to the policy's folder, or `env:NAME`."
        })
    }
}

/// The schema of a [`Reference`] to what is followed while the edge runs, and so must be a file.
pub(super) enum FileReference {}

impl JsonSchema for FileReference {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FileReference".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^file:.+$",
            "description": "`file:PATH`, relative to the policy's folder. It is followed, so it cannot be `env:`."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, expected) in [
            ("file:pki/edge.pem", Ok(Reference::File("pki/edge.pem".into()))),
            ("env:HMAC", Ok(Reference::Env("HMAC".into()))),
            ("file:", Err(ReferenceError::Empty("file:"))),
            ("env:", Err(ReferenceError::Empty("env:"))),
            ("s3cr3t", Err(ReferenceError::Inline)),
        ] {
            assert_eq!(text.parse::<Reference>(), expected, "{text}");
        }
    }
}
