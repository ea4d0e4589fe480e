//! Reading YAML: what is written and where, then what it says.

use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use serde_saphyr::{Error, Spanned};

use super::super::{At, Document, Mistake};
use super::written::Written;
use super::{Location, duration, wording};

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

/// Reads a document.
pub(crate) fn read(text: &str) -> Result<Document, Vec<Mistake>> {
    // Without a path: whatever is wrong here is wrong wherever it stands.
    let written: Written = parse(text).map_err(|wrong| vec![Wrong { path: Vec::new(), ..wrong }.told()])?;
    let nothing = written.nothing();
    if !nothing.is_empty() {
        return Err(nothing);
    }
    parse(text).map_err(|mut wrong| {
        wrong.path = written.own(wrong.path);
        let mut told = wrong.told();
        if let Error::InvalidScalar { .. } = wrong.error.without_snippet() {
            told.message
                .push_str(&duration::meant(text, &wrong.path, told.line, told.column).unwrap_or_default());
        }
        if let Error::SerdeMissingField { .. } = wrong.error.without_snippet() {
            // The library tells how far it had come.
            let Location { line, column } = written.place(&wrong.path);
            (told.line, told.column) = (line, column);
        }
        vec![told]
    })
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
struct Wrong {
    error: Box<Error>,
    /// The keys and positions that lead there.
    path: Vec<Segment>,
}

impl Wrong {
    fn told(&self) -> Mistake {
        let error = self.error.without_snippet();
        let location = error.location().map_or(Location::UNKNOWN, Location::from);
        Mistake::at(location, wording::of(error, &self.path))
    }
}

/// `off`, `no` and the like are words, as in YAML 1.2: what a document means must not depend on whether its reader
/// expects a text.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Wrong> {
    let mut path = Vec::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().iter().cloned().collect();
            error.into_inner()
        })
    });
    read.map_err(|error| Wrong { error: Box::new(error), path })
}
