//! How a document is read: YAML with the place of everything in it natively, JSON in a WASM module.
//!
//! A module gets its policy compiled, from a file that was read and checked natively, so it needs no places to
//! tell mistakes by; and a YAML reader would more than double its size.

#[cfg(not(target_family = "wasm"))]
mod draft;
#[cfg(target_family = "wasm")]
mod json;
#[cfg(not(target_family = "wasm"))]
mod position;
#[cfg(not(target_family = "wasm"))]
mod recovery;
#[cfg(not(target_family = "wasm"))]
mod spot;
#[cfg(not(target_family = "wasm"))]
mod suggestion;
#[cfg(not(target_family = "wasm"))]
mod tree;
#[cfg(not(target_family = "wasm"))]
mod wording;
#[cfg(not(target_family = "wasm"))]
mod written;
#[cfg(not(target_family = "wasm"))]
mod yaml;

#[cfg(target_family = "wasm")]
pub(super) use json::read;
#[cfg(not(target_family = "wasm"))]
pub(super) use recovery::{Reading, Unreadable, read};
#[cfg(not(target_family = "wasm"))]
pub use spot::Spots;
#[cfg(not(target_family = "wasm"))]
pub use yaml::as_json;

/// A place in a file, 1-based; 0: no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Location {
    pub(super) const UNKNOWN: Self = Self { line: 0, column: 0 };
}

/// A text without the byte order mark that some editors put in front of it. Columns do not count it.
#[cfg(not(target_family = "wasm"))]
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
