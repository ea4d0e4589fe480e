//! Reading YAML: values with the place where each is written.

use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use serde_saphyr::{Error, Spanned};

use super::super::{At, Mistake};
use super::{Location, wording};

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

/// YAML as JSON, with what it has beyond that resolved.
///
/// # Errors
/// When it is none.
pub fn as_json(text: &str) -> Result<String, Mistake> {
    let read = parse::<serde_json::Value>(text);
    read.map(|value| value.to_string()).map_err(|wrong| wrong.told())
}

/// What a text cannot be read for.
pub(super) struct Wrong {
    error: Box<Error>,
    /// The keys and positions that lead there.
    pub(super) path: Vec<Segment>,
}

impl Wrong {
    pub(super) fn told(&self) -> Mistake {
        self.told_of(&self.path)
    }

    /// What is wrong before any field is looked at: it needs no path.
    pub(super) fn of_no_path(&self) -> Mistake {
        self.told_of(&[])
    }

    fn told_of(&self, path: &[Segment]) -> Mistake {
        let error = self.error();
        let location = error.location().map_or(Location::UNKNOWN, Location::from);
        Mistake::at(location, wording::of(error, path))
    }

    /// The library's own error.
    pub(super) fn error(&self) -> &Error {
        self.error.without_snippet()
    }
}

/// `off`, `no` and the like are words, as in YAML 1.2: what a document means must not depend on whether its reader
/// expects a text.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

pub(super) fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Wrong> {
    let mut path = Vec::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().iter().cloned().collect();
            error.into_inner()
        })
    });
    read.map_err(|error| Wrong { error: Box::new(error), path })
}
