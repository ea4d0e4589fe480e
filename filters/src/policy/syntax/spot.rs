//! What to underline in a text for a mistake at a line and a column.

use std::ops::Range;

use super::position;
use super::tree::Node;

/// The keys and values of a text, to be underlined.
pub struct Spots<'t> {
    text: &'t str,
    tree: Option<Node>,
}

impl std::fmt::Debug for Spots<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spots(..)")
    }
}

impl<'t> Spots<'t> {
    /// A text that need not be YAML.
    pub fn of(text: &'t str) -> Self {
        Self { text, tree: Node::of(text) }
    }

    /// The bytes of the key or the value that begins at a line and a column, both from 1, as far as it stands on that
    /// line. If none begins there, of the word there. `None`: the text has no such place.
    pub fn at(&self, line: u64, column: u64) -> Option<Range<usize>> {
        let start = position::offset(self.text, line, column)?;
        let rest = self.text.get(start..)?;
        let line_end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        let end = self.end_of_node(start).unwrap_or_else(|| start + word(rest));
        let on_line = rest.get(..end.saturating_sub(start).min(line_end)).unwrap_or_default();
        let shown = on_line.trim_end();
        Some(start..start + if shown.is_empty() { on_line.len() } else { shown.len() })
    }

    fn end_of_node(&self, start: usize) -> Option<usize> {
        let tree = self.tree.as_ref()?;
        let key = tree.map_with_key_at(start).and_then(|(map, position)| map.entries().get(position));
        let span = match key {
            Some(entry) => &entry.key.span,
            None => &tree.starting_at(start)?.span,
        };
        Some(span.end)
    }
}

/// The length of a word, or of the one character that is there.
fn word(text: &str) -> usize {
    let ends =
        |letter: char| letter.is_whitespace() || matches!(letter, ',' | ':' | '{' | '}' | '[' | ']' | '#');
    match text.find(ends) {
        Some(0) => text.chars().next().map_or(0, char::len_utf8),
        Some(end) => end,
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_there_is_underlined() {
        for (text, line, column, expected) in [
            ("ab: cd\n", 1, 1, Some("ab")),
            ("ab: cd # e\n", 1, 5, Some("cd")),
            ("ab: 'c d' # e\n", 1, 5, Some("'c d'")),
            ("ab: { c: [1, 2] } # e\n", 1, 5, Some("{ c: [1, 2] }")),
            ("ab: { c: [1, 2],\n d: 1 }\n", 1, 5, Some("{ c: [1, 2],")),
            ("- ab: 1\n  cd: 2\n", 1, 3, Some("ab")),
            ("- - 1\n  - 2\n", 1, 3, Some("- 1")),
            ("ab: |\n  c\n  d\n", 2, 3, Some("c")),
            ("ab: \"c\n  d\"\n", 1, 5, Some("\"c")),
            ("ab: *cd\n", 1, 5, Some("*cd")),
            ("é: [支, x]\r\ny: z\r\n", 1, 8, Some("x")),
            ("é: [支, x]\r\ny: z\r\n", 2, 4, Some("z")),
            // Not YAML.
            ("ab: @cd, e\n", 1, 5, Some("@cd")),
            ("ab: [\n\tc\n", 2, 1, Some("\t")),
            ("ab: [", 1, 6, Some("")),
            ("ab: [", 2, 1, None),
        ] {
            let found = Spots::of(text).at(line, column).map(|span| &text[span]);
            assert_eq!(found, expected, "{text:?} {line}:{column}");
        }
    }
}
