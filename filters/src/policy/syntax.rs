//! How a document is read: YAML with the place of everything in it natively, JSON in a WASM module.
//!
//! A module gets its policy compiled, from a file that was read and checked natively, so it needs no places to
//! tell mistakes by; and a YAML reader would more than double its size.

#[cfg(not(target_family = "wasm"))]
mod backend {
    use serde::{Deserialize, Deserializer};
    use serde_saphyr::Spanned;

    use super::super::{At, Document, Mistake};
    use super::Location;

    impl From<serde_saphyr::Location> for Location {
        fn from(location: serde_saphyr::Location) -> Self {
            Self { line: location.line(), column: location.column() }
        }
    }

    impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Spanned::deserialize(deserializer)
                .map(|Spanned { value, referenced, .. }| Self { value, location: referenced.into() })
        }
    }

    /// `off`, `no` and the like are words, as in YAML 1.2: what a document means must not depend on whether its reader
    /// expects a text.
    fn options() -> serde_saphyr::Options {
        serde_saphyr::options! { strict_booleans: true }
    }

    /// Reads a document.
    pub(crate) fn read(text: &str) -> Result<Document, Mistake> {
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
            let error = error.without_snippet();
            let location = error.location().map_or(Location::UNKNOWN, Location::from);
            Mistake::of_syntax(location, &error.to_string())
        })
    }

    /// The document as JSON, with what YAML has beyond it resolved.
    pub(crate) fn compile(text: &str) -> Result<String, Mistake> {
        let value: serde_json::Value = serde_saphyr::from_str_with_options(text, options())
            .map_err(|error| Mistake::of_syntax(Location::UNKNOWN, &error.without_snippet().to_string()))?;
        Ok(value.to_string())
    }
}

#[cfg(target_family = "wasm")]
mod backend {
    use serde::{Deserialize, Deserializer};

    use super::super::{At, Document, Mistake};
    use super::Location;

    impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            T::deserialize(deserializer).map(Self::nowhere)
        }
    }

    /// Reads a document.
    pub(crate) fn read(text: &str) -> Result<Document, Mistake> {
        serde_json::from_str(text).map_err(|error| Mistake::of_syntax(Location::UNKNOWN, &error.to_string()))
    }
}

#[cfg(not(target_family = "wasm"))]
pub(super) use backend::compile;
pub(super) use backend::read;

/// A place in a file, 1-based; 0: no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Location {
    pub(super) const UNKNOWN: Self = Self { line: 0, column: 0 };
}
