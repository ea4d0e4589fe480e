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
    /// The mistake as compilers tell theirs: `FILE:LINE:COLUMN: what is wrong`, on one line.
    pub fn in_file(&self, file: &str) -> String {
        let file = on_one_line(file);
        match self.line {
            0 => format!("{file}: {}", self.on_one_line()),
            line => format!("{file}:{line}:{}: {}", self.column, self.on_one_line()),
        }
    }

    /// What is wrong, on one line, whatever the policy's writer has put into what is quoted.
    pub fn on_one_line(&self) -> String {
        on_one_line(&self.message)
    }
}

fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

/// What a reader of JSON says, in words for who wrote it.
pub(crate) fn reworded(text: &str) -> String {
    let names = |known: &str| {
        let known = known.strip_prefix("one of ").unwrap_or(known);
        let known = known.split([',', '`']).map(str::trim).filter(|name| !name.is_empty() && *name != "or");
        known.map(str::to_owned).collect::<Vec<String>>()
    };
    // The place is another one where what is read is part of something else.
    let text = text.split(" at line ").next().unwrap_or_default();
    if let Some(field) = text.strip_prefix("missing field ") {
        return format!("it needs {field}");
    }
    let Some((what, expected)) = text.split_once(", expected ") else {
        return match text.starts_with("EOF while parsing") {
            true => "it ends too early".to_owned(),
            false => format!("this is not JSON: {text}"),
        };
    };
    let known = names(expected);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    if let Some(field) = what.strip_prefix("unknown field ") {
        unknown_field(field.trim_matches('`'), &known)
    } else if let Some(word) = what.strip_prefix("unknown variant ") {
        none_of(word.trim_matches('`'), &known)
    } else if what.starts_with("invalid type: ") || what.starts_with("invalid value: ") {
        let expected = match expected {
            "a map" => "an object",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            "a string" | "string or map" => "a text",
            of_ours if of_ours.starts_with("struct ") => "an object",
            other => other,
        };
        format!("{expected} belongs here")
    } else {
        text.to_owned()
    }
}

/// Tells of a field that there is not.
pub(crate) fn unknown_field(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown field `{name}`; did you mean `{near}`?"),
        None => format!("unknown field `{name}`; known: {}", known.join(", ")),
    }
}

/// Tells of a word that there is not.
pub(super) fn none_of(word: &str, known: &[&str]) -> String {
    let meant = nearest(word, known.iter().copied());
    let meant = meant.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    format!("`{word}` is none of {}{meant}", known.join(", "))
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
pub(crate) fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let known: Vec<&str> = known.collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None if known.is_empty() => format!("there is no {what} `{name}`, nor any other"),
        None => format!("there is no {what} `{name}`; known: {}", known.join(", ")),
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
