//! Reading a document with every mistake in how it is written, not the first one alone.
//!
//! The library that reads stops at the first mistake. Here the mistake is noted, what is wrong is replaced in a draft
//! of the text, and the draft is read again. What the rest means is judged in two drafts that differ in their
//! replacements: what both say does not come from a replacement.

use std::collections::BTreeMap;

use serde_path_to_error::Segment;
use serde_saphyr::Error;

use super::super::mistake::nearest;
use super::super::{Document, Mistake};
use super::draft::Draft;
use super::tree::{Kind, Node};
use super::wording::UNKNOWN_ANCHOR;
use super::written::Written;
use super::yaml::{Wrong, parse};
use super::{position, suggestion};

/// Mistakes after which reading ends: one more than `check` prints, so that it can say that there are more.
const MOST_MISTAKES: usize = 101;
/// Bytes that are read over and over, for a text of any size.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// A text with mistakes in how it is written.
pub(crate) struct Unreadable {
    /// At least one.
    pub(crate) mistakes: Vec<Mistake>,
    /// What the rest says, in two drafts; none if it cannot be read.
    pub(crate) readings: Vec<Reading>,
}

/// A document, and the draft that it was read from.
pub(crate) struct Reading {
    pub(crate) document: Document,
    pub(crate) draft: Draft,
}

/// Reads a document. What is read from a draft with replacements is never answered as the document.
pub(crate) fn read(text: &str) -> Result<Document, Unreadable> {
    let mut first = Attempt::new(text, false);
    let replaced = match first.pass() {
        Ok(document) => return Ok(document),
        Err(replaced) => replaced,
    };
    let first_reading = replaced.and_then(|()| first.read());
    let mut mistakes = first.mistakes;
    let mut readings = Vec::new();
    if let Some(first) = first_reading
        && let Some(second) = Attempt::new(text, true).read()
    {
        readings.extend([first, second]);
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    Err(Unreadable { mistakes, readings })
}

struct Attempt<'t> {
    written: &'t str,
    draft: Draft,
    /// The replacements of each place.
    tried: BTreeMap<String, Vec<String>>,
    is_second: bool,
    is_yaml: bool,
    mistakes: Vec<Mistake>,
}

/// A replacement that leaves the place empty.
const GONE: &str = "";
/// What stands in for a value of any kind, in both readings.
const ANY: [[&str; 12]; 2] = [
    [
        "a",
        "{}",
        "\"127.0.0.1:1\"",
        "\"file:stands-in\"",
        "\"10.0.0.0/8\"",
        "\"/a\"",
        "\"2026-01-01T00:00:00Z\"",
        "\"+05:30\"",
        "1",
        "[]",
        "false",
        "off",
    ],
    [
        "b",
        "{}",
        "\"127.0.0.2:2\"",
        "\"env:STANDS_IN\"",
        "\"172.16.0.0/12\"",
        "\"/b\"",
        "\"2027-01-01T00:00:00Z\"",
        "\"+02:00\"",
        "2",
        "[b]",
        "true",
        "off",
    ],
];

impl<'t> Attempt<'t> {
    fn new(written: &'t str, is_second: bool) -> Self {
        Self {
            written,
            draft: Draft::of(written),
            tried: BTreeMap::new(),
            is_second,
            is_yaml: false,
            mistakes: Vec::new(),
        }
    }

    /// Replaces what is wrong until the rest can be read.
    fn read(&mut self) -> Option<Reading> {
        let passes = (MOST_BYTES / self.written.len().max(1)).clamp(64, 4 * MOST_MISTAKES);
        for _ in 0..passes {
            if self.mistakes.len() >= MOST_MISTAKES {
                break;
            }
            match self.pass() {
                Ok(document) => {
                    let draft = std::mem::replace(&mut self.draft, Draft::of(""));
                    return Some(Reading { document, draft });
                }
                Err(Some(())) => {}
                Err(None) => break,
            }
        }
        None
    }

    /// The document, or whether what is wrong could be replaced.
    fn pass(&mut self) -> Result<Document, Option<()>> {
        let text = self.draft.text.clone();
        let read = self.yaml(&text).and_then(|()| {
            parse(&text).map_err(|mut wrong| {
                let Some(tree) = self.draft.tree() else { return (None, wrong.told()) };
                wrong.path = tree.own(std::mem::take(&mut wrong.path));
                (self.not_a_document(&wrong, &tree), wrong.told())
            })
        });
        read.map_err(|(replaced, mistake)| {
            // What ends the reading is reported, unless a replacement is at fault: its anchor may have gone with it.
            let is_made = || {
                mistake.message == UNKNOWN_ANCHOR
                    || self.offset(&mistake).is_some_and(|at| self.draft.is_made(&(at..at + 1)))
            };
            if self.mistakes.is_empty() || (replaced.is_none() && !is_made()) {
                self.note(mistake);
            }
            replaced
        })
    }

    /// Whether the text is YAML without empty values, or what was replaced.
    fn yaml(&mut self, text: &str) -> Result<(), (Option<()>, Mistake)> {
        // Replacements leave it so.
        if self.is_yaml {
            return Ok(());
        }
        let written: Written = parse(text).map_err(|wrong| (self.not_yaml(&wrong), wrong.of_no_path()))?;
        match written.nothing() {
            Some((path, mistake)) => Err((self.wrong_value(&path, mistake.clone(), None), mistake)),
            None => {
                self.is_yaml = true;
                Ok(())
            }
        }
    }

    fn not_yaml(&mut self, wrong: &Wrong) -> Option<()> {
        let is_twice = matches!(wrong.error(), Error::DuplicateMappingKey { .. });
        let mistake = wrong.of_no_path();
        if is_twice && let Some(start) = self.offset(&mistake) {
            return self.needless_key(start, mistake, None);
        }
        self.note(mistake);
        None
    }

    fn not_a_document(&mut self, wrong: &Wrong, tree: &Node) -> Option<()> {
        let mut mistake = wrong.told();
        let error = match wrong.error() {
            Error::AliasError { error, .. } => error,
            error => error,
        };
        match error {
            Error::SerdeUnknownField { field, expected, .. } => {
                let meant = nearest(field, expected.iter().copied());
                self.needless_key(self.offset(&mistake)?, mistake, meant)
            }
            Error::SerdeMissingField { field, .. } => {
                // The library tells how far it had come.
                let place = tree.place(&wrong.path);
                (mistake.line, mistake.column) =
                    place.map_or((0, 0), |place| position::line_and_column(&self.draft.text, place));
                self.missing(&wrong.path, field, mistake)
            }
            Error::InvalidScalar { .. } | Error::InvalidBooleanStrict { .. } => {
                let Mistake { line, column, .. } = mistake;
                let meant = suggestion::meant(&self.draft.text, &wrong.path, line, column);
                mistake.message.push_str(&meant.unwrap_or_default());
                self.wrong_value(&wrong.path, mistake, self.of_kind(error))
            }
            error => self.wrong_value(&wrong.path, mistake, self.of_kind(error)),
        }
    }

    /// A key that does not belong there: it gets the name that is meant, or goes.
    fn needless_key(&mut self, start: usize, mistake: Mistake, meant: Option<&str>) -> Option<()> {
        let tree = self.draft.tree()?;
        let (map, position) = tree.map_with_key_at(start)?;
        let key = &map.entries().get(position)?.key;
        if !self.draft.is_made(&key.span) {
            self.note(mistake);
        }
        match meant {
            Some(name) if map.entry(name).is_none() => {
                self.draft.rename(key, name);
                Some(())
            }
            _ => self.draft.remove(&tree, map, position),
        }
    }

    /// What may stand in for a value, likeliest first.
    fn any(&self) -> [&'static str; 12] {
        let [first, second] = ANY;
        if self.is_second { second } else { first }
    }

    fn missing(&mut self, path: &[Segment], field: &str, mistake: Mistake) -> Option<()> {
        let tree = self.draft.tree()?;
        let node = tree.find(path)?;
        let below = [path, &[Segment::Map { key: field.to_owned() }]].concat();
        let any = self.any();
        let tried = self.tried.entry(in_one(&below)).or_default();
        let is_new = tried.is_empty() && !self.draft.is_made(&node.span);
        let value = any.into_iter().find(|value| !tried.iter().any(|tried| tried == value));
        if let Some(value) = value {
            tried.push(value.to_owned());
        }
        if is_new {
            self.note(mistake.clone());
        }
        match (value, &node.kind) {
            // Nothing stands in for it.
            (None, _) => self.wrong_value(path, mistake, None),
            (Some(value), Kind::Map { .. }) => self.draft.insert(node, field, value),
            (Some(_), _) => {
                self.draft.replace(&tree, node, "{}");
                Some(())
            }
        }
    }

    /// A value that does not belong there. `fit` is one that may.
    fn wrong_value(&mut self, path: &[Segment], mistake: Mistake, fit: Option<String>) -> Option<()> {
        let tree = self.draft.tree()?;
        let start = self.offset(&mistake);
        // Of a merge the path says where it is used, and the place where it is written.
        let node = tree.find(path).or_else(|| tree.starting_at(start?));
        let Some(node) = node else {
            self.note(mistake);
            return None;
        };
        let any = self.any().map(str::to_owned);
        let tried = self.tried.entry(in_one(path)).or_default();
        let is_new = tried.is_empty() && !self.draft.is_made(&node.span);
        let map = path.split_last().and_then(|(last, above)| {
            let (Segment::Map { key }, Some(map)) = (last, tree.find(above)) else { return None };
            let position = map.entries().iter().position(|entry| entry.name() == Some(key))?;
            Some((map, position))
        });
        let is_tried = |value: &String| tried.contains(value);
        let value = fit.into_iter().chain(any).find(|value| !is_tried(value));
        // The second reading does without it if it can.
        let goes = (self.is_second || value.is_none()) && !is_tried(&GONE.to_owned());
        let value = if goes && map.is_some() { Some(GONE.to_owned()) } else { value };
        if let Some(value) = &value {
            tried.push(value.clone());
        }
        if is_new {
            self.note(mistake.clone());
        }
        match (value.as_deref(), map, path.split_last()) {
            (Some(GONE), Some((map, position)), _) => self.draft.remove(&tree, map, position),
            (Some(value), _, _) => {
                self.draft.replace(&tree, node, value);
                Some(())
            }
            // Nothing stands in for it: it goes with what it is part of.
            (None, _, Some((_, above))) => self.wrong_value(above, mistake, None),
            (None, _, None) => None,
        }
    }

    /// What stands in for a value of the kind that belongs there.
    fn of_kind(&self, error: &Error) -> Option<String> {
        let one_of = |[first, second]: [&str; 2]| if self.is_second { second } else { first }.to_owned();
        match error {
            Error::Unexpected { expected: "mapping start", .. } => Some("{}".to_owned()),
            Error::Unexpected { expected: "sequence start", .. } => Some(one_of(["[a]", "[b]"])),
            Error::Unexpected { expected: "string scalar", .. } | Error::NullIntoString { .. } => {
                Some(one_of(["a", "b"]))
            }
            Error::SerdeUnknownVariant { expected, .. } => {
                let variants = [expected.first()?, expected.last()?];
                Some(one_of(variants.map(|variant| *variant)))
            }
            Error::InvalidBooleanStrict { .. } => Some(one_of(["false", "true"])),
            Error::InvalidScalar { .. } => Some(one_of(["1", "2"])),
            Error::Message { msg, .. } => {
                let [first, second] = &ANY;
                let fitting = |what: &str| first.iter().zip(second).find(|(first, _)| first.contains(what));
                let what = match msg.as_str() {
                    "invalid socket address syntax" => "127.0.0.1:",
                    "invalid IP address syntax" => "10.0.0.0/8",
                    own if own.contains("is not an upstream's address") => "127.0.0.1:",
                    own if own.contains("`file:PATH`") => "file:",
                    own if own.contains("RFC 3339") => "T00:00:00Z",
                    _ => return None,
                };
                fitting(what).map(|(first, second)| one_of([first, second]))
            }
            _ => None,
        }
    }

    fn note(&mut self, mistake: Mistake) {
        let mistake = self.draft.placed(self.written, mistake);
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    fn offset(&self, mistake: &Mistake) -> Option<usize> {
        position::offset(&self.draft.text, mistake.line, mistake.column)
    }
}

/// A path as one text.
fn in_one(path: &[Segment]) -> String {
    let steps = path.iter().map(|segment| match segment {
        Segment::Map { key } | Segment::Enum { variant: key } => format!("/{key}"),
        Segment::Seq { index } => format!("/{index}"),
        Segment::Unknown => "/?".to_owned(),
    });
    steps.collect()
}
