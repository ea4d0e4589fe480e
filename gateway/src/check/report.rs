//! Errors and warnings as `gateway check` prints them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use filters::policy::{Mistake, Spots, without_mark};
use serde_json::json;

use crate::load;

/// Errors and warnings that are printed. Reading ends soon after, so nobody knows how many there are beyond.
const MOST: usize = 100;

/// An error or a warning.
pub(super) struct Diagnostic<'f> {
    pub(super) severity: Severity,
    pub(super) file: &'f Path,
    pub(super) mistake: Mistake,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Error,
    Warning,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// For programs: every error and warning.
pub(super) fn json(found: &[Diagnostic<'_>]) -> String {
    let objects: Vec<_> = found
        .iter()
        .map(|Diagnostic { severity, file, mistake }| {
            let Mistake { line, column, message } = mistake;
            json!({
                "severity": severity.name(),
                "file": file.to_string_lossy(),
                "line": line,
                "column": column,
                "message": message,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(objects))
}

/// For people: `error: FILE:LINE:COLUMN: MESSAGE`, then the line of the file with the place underlined.
pub(super) fn text(found: &[Diagnostic<'_>], has_colour: bool) -> String {
    // What was read is read again: the file may have changed since, and then a line is missing at worst.
    let mut texts: BTreeMap<&Path, String> = BTreeMap::new();
    for one in found {
        texts.entry(one.file).or_insert_with(|| load::text(one.file).unwrap_or_default());
    }
    let sources: BTreeMap<&Path, Source<'_>> =
        texts.iter().map(|(file, text)| (*file, Source::of(without_mark(text)))).collect();
    let renderer = if has_colour { Renderer::styled() } else { Renderer::plain() };
    let mut printed = String::new();
    for one in found.iter().take(MOST) {
        let title = one.mistake.in_file(&one.file.to_string_lossy());
        let level = match one.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(title));
        if let Some((line, text, columns)) =
            sources.get(one.file).and_then(|source| source.line(&one.mistake))
        {
            let snippet = Snippet::source(text).line_start(line);
            group = group.element(snippet.annotation(AnnotationKind::Primary.span(columns)));
        }
        let _ = writeln!(printed, "{}\n", renderer.render(&[group]));
    }
    if found.len() > MOST {
        let _ = writeln!(printed, "and more\n");
    }
    printed
}

/// How many there are, and where; nothing if there is none.
pub(super) fn count(found: &[Diagnostic<'_>]) -> String {
    let mut parts = Vec::new();
    for severity in [Severity::Error, Severity::Warning] {
        let number = found.iter().filter(|one| one.severity == severity).count();
        match number {
            0 => {}
            1 => parts.push(format!("1 {}", severity.name())),
            _ if number > MOST => parts.push(format!("more than {MOST} {}s", severity.name())),
            _ => parts.push(format!("{number} {}s", severity.name())),
        }
    }
    let mut files: Vec<String> = found.iter().map(|one| one.file.display().to_string()).collect();
    files.dedup();
    match parts.is_empty() {
        true => String::new(),
        false => format!("{} in {}\n", parts.join(", "), files.join(" and ")),
    }
}

/// A text, its lines, and what to underline in them.
struct Source<'t> {
    text: &'t str,
    spots: Spots<'t>,
}

impl<'t> Source<'t> {
    fn of(text: &'t str) -> Self {
        Self { text, spots: Spots::of(text) }
    }

    /// The number and the text of a mistake's line, and the bytes of it to underline.
    fn line(&self, mistake: &Mistake) -> Option<(usize, &'t str, std::ops::Range<usize>)> {
        let spot = self.spots.at(mistake.line, mistake.column)?;
        let (before, after) = self.text.split_at_checked(spot.start)?;
        let start = before.rfind(['\n', '\r']).map_or(0, |end| end + 1);
        let end = after.find(['\n', '\r']).map_or(self.text.len(), |end| spot.start + end);
        let line = self.text.get(start..end)?;
        Some((usize::try_from(mistake.line).ok()?, line, spot.start - start..spot.end - start))
    }
}
