//! Mistakes in a policy, told so that they can be mended: line, column, what is wrong, what to write.

use std::fmt;

use super::At;
use super::syntax::Location;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// 1-based; 0 when the mistake is of the whole document.
    pub line: u64,
    /// 1-based; 0 when the mistake is of the whole document.
    pub column: u64,
    pub message: String,
}

impl Mistake {
    pub(super) fn at(location: Location, message: impl Into<String>) -> Self {
        Self { line: location.line, column: location.column, message: message.into() }
    }

    /// What a parser says, as it says it.
    pub(super) fn of_syntax(location: Location, text: &str) -> Self {
        // The position is told apart from the text; the text would repeat it.
        let text = text.split(" at line ").next().unwrap_or_default().trim_end_matches(',');
        let text = text.split(" --> ").next().unwrap_or_default();
        Self::at(location, Self::told(text))
    }

    /// What a parser says, and what was probably meant.
    pub(crate) fn told(text: &str) -> String {
        match meant(text) {
            Some(name) => format!("{text}; did you mean `{name}`?"),
            None => text.to_owned(),
        }
    }

    /// A mistake in a value of the document.
    pub fn of<T>(value: &At<T>, message: impl Into<String>) -> Self {
        Self::at(value.location, message)
    }

    /// A mistake of the whole document.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { line: 0, column: 0, message: message.into() }
    }
}

impl Mistake {
    /// The mistake as compilers tell theirs: `FILE:LINE:COLUMN: what is wrong`. On one line, whatever the policy's writer
    /// has put into what is quoted.
    pub fn in_file(&self, file: &str) -> String {
        let told = match self.line {
            0 => format!("{file}: {}", self.message),
            line => format!("{file}:{line}:{}: {}", self.column, self.message),
        };
        let mut line = String::with_capacity(told.len());
        for letter in told.chars() {
            match letter.is_control() {
                true => line.extend(letter.escape_default()),
                false => line.push(letter),
            }
        }
        line
    }
}

/// The name that the writer most likely meant, from "unknown field `x`, expected one of a, b".
fn meant(text: &str) -> Option<&str> {
    let (_, unknown) = text.split_once("unknown field ").or_else(|| text.split_once("unknown variant "))?;
    let (unknown, known) = unknown.split_once(", expected ")?;
    let known = known.strip_prefix("one of ").unwrap_or(known);
    nearest(
        unknown.trim_matches('`'),
        known.split([',', '`']).map(str::trim).filter(|name| !name.is_empty() && *name != "or"),
    )
}

/// The known name nearest to a misspelt one, when one is near enough to be meant.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len().max(name.len()))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Tells of a name that nothing bears.
pub(crate) fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; known: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// Why the settings of a filter cannot be used; the policy adds where they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub(super) filter: &'static str,
    pub(super) message: String,
}

impl Unusable {
    pub fn new(message: impl Into<String>) -> Self {
        Self { filter: "", message: message.into() }
    }

    pub(crate) fn of(self, filter: &'static str) -> Self {
        Self { filter, ..self }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.filter, self.message)
    }
}
