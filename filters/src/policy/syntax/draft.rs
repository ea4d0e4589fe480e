//! A policy's text in which what is wrong is replaced, so that the rest can be read. Positions in it lead back to the
//! text as it was written.

use std::ops::Range;

use super::super::Mistake;
use super::position;
use super::tree::{Kind, Node};

pub(crate) struct Draft {
    pub(super) text: String,
    /// For each byte, and for the end: the byte of the written text that it comes from or stands before.
    origin: Vec<usize>,
    /// For each byte: it was not written.
    made: Vec<bool>,
}

impl Draft {
    pub(super) fn of(written: &str) -> Self {
        Self {
            text: written.to_owned(),
            origin: (0..=written.len()).collect(),
            made: vec![false; written.len()],
        }
    }

    pub(super) fn tree(&self) -> Option<Node> {
        Node::of(&self.text)
    }

    /// Whether nothing of the bytes there was written.
    pub(super) fn is_made(&self, span: &Range<usize>) -> bool {
        let made = self.made.get(span.start..span.end.max(span.start + 1)).unwrap_or_default();
        !made.is_empty() && made.iter().all(|made| *made)
    }

    /// The mistake where it stands in the written text. `None`: it is in what was not written.
    pub(crate) fn settled(&self, written: &str, mistake: Mistake) -> Option<Mistake> {
        let made = mistake.line > 0 && {
            let offset = position::offset(&self.text, mistake.line, mistake.column)?;
            self.is_made(&(offset..offset + 1))
        };
        (!made).then(|| self.placed(written, mistake))
    }

    /// The mistake where it stands in the written text, or where what was not written was added.
    pub(super) fn placed(&self, written: &str, mistake: Mistake) -> Mistake {
        let offset = position::offset(&self.text, mistake.line, mistake.column);
        let Some(origin) = offset.and_then(|offset| self.origin.get(offset)) else { return mistake };
        let (line, column) = position::line_and_column(written, *origin);
        Mistake { line, column, ..mistake }
    }

    /// Puts a value in the place of another.
    pub(super) fn replace(&mut self, tree: &Node, node: &Node, value: &str) {
        let is_block = match node.kind {
            Kind::Scalar { is_block, .. } => is_block,
            Kind::Alias => false,
            Kind::List { is_flow, .. } | Kind::Map { is_flow, .. } => !is_flow,
        };
        match tree.entry_of(node) {
            // A block may begin where nothing else can: in the column of its key.
            Some(entry) if is_block || node.span.is_empty() => {
                let end = entry.span(&self.text).end;
                self.splice(entry.key.span.end..end, &format!(": {value}"), true);
            }
            _ => self.splice(node.span.clone(), value, true),
        }
    }

    /// Takes an entry out of a map.
    pub(super) fn remove(&mut self, tree: &Node, map: &Node, position: usize) -> Option<()> {
        let Kind::Map { is_flow, entries } = &map.kind else { return None };
        if entries.len() == 1 && !is_flow {
            self.replace(tree, map, "{}");
            return Some(());
        }
        let mut span = entries.get(position)?.span(&self.text);
        if *is_flow {
            let end = entries.get(position + 1).map_or(map.span.end, |next| next.key.span.start);
            let after = self.text.get(span.end..end)?;
            span.end += after.find(',').map_or(0, |comma| comma + 1);
        }
        self.splice(span, "", true);
        Some(())
    }

    /// Gives a key another name.
    pub(super) fn rename(&mut self, key: &Node, name: &str) {
        // Quoted as JSON has it, where no blank need follow the `:`.
        self.splice(key.span.clone(), &format!("\"{name}\""), false);
    }

    /// Adds an entry to a map.
    pub(super) fn insert(&mut self, map: &Node, key: &str, value: &str) -> Option<()> {
        let Kind::Map { is_flow, entries } = &map.kind else { return None };
        if *is_flow {
            let start = map.span.start + 1;
            self.splice(start..start, &format!(" {key}: {value}, "), true);
            return Some(());
        }
        // At its end: the map's place is where it begins.
        let (_, column) = position::line_and_column(&self.text, entries.first()?.key.span.start);
        let indent = " ".repeat(usize::try_from(column).ok()?.saturating_sub(1));
        let end = entries.last()?.span(&self.text).end;
        let entry = match self.text.get(..end)?.ends_with('\n') {
            true => format!("{indent}{key}: {value}\n"),
            false => format!("\n{indent}{key}: {value}"),
        };
        self.splice(end..end, &entry, true);
        Some(())
    }

    fn splice(&mut self, span: Range<usize>, by: &str, is_made: bool) {
        let Some(replaced) = self.text.get(span.clone()) else { return };
        // A block scalar ends with its line.
        let line_end = if replaced.ends_with('\n') && !by.ends_with('\n') { "\n" } else { "" };
        let by = format!("{by}{line_end}");
        let origin = self.origin.get(span.start).copied().unwrap_or_default();
        self.text.replace_range(span.clone(), &by);
        self.origin.splice(span.clone(), std::iter::repeat_n(origin, by.len()));
        self.made.splice(span, std::iter::repeat_n(is_made, by.len()));
    }
}

#[cfg(test)]
mod tests {
    use serde_path_to_error::Segment;

    use super::*;

    fn path(steps: &[&str]) -> Vec<Segment> {
        let segment = |step: &&str| match step.parse() {
            Ok(index) => Segment::Seq { index },
            Err(_) => Segment::Map { key: (*step).to_owned() },
        };
        steps.iter().map(segment).collect()
    }

    fn replaced(text: &str, steps: &[&str]) -> Draft {
        let mut draft = Draft::of(text);
        let tree = draft.tree().unwrap();
        draft.replace(&tree, tree.find(&path(steps)).unwrap(), "V");
        draft
    }

    #[test]
    fn values_are_replaced_wherever_they_stand() {
        for (text, steps, expected) in [
            ("a: 1 # x\nb: 2\n", &["a"][..], "a: V # x\nb: 2\n"),
            ("a:\n  b: 1\n  c: 2\nd: 3\n", &["a"], "a: V\nd: 3\n"),
            ("a:\n- 1\n- 2\nd: 3\n", &["a"], "a: V\nd: 3\n"),
            ("a:\n- b: 1\n  c: 2\n- d\n", &["a", "0"], "a:\n- V\n- d\n"),
            ("a: |\n  x\n  y\nb: 1\n", &["a"], "a: V\nb: 1\n"),
            ("a: { b: [1, 2], c: 3 }\n", &["a", "b", "1"], "a: { b: [1, V], c: 3 }\n"),
            ("a:\nb: 1\n", &["a"], "a: V\nb: 1\n"),
            ("{ \"a\":, b: 1 }", &["a"], "{ \"a\": V, b: 1 }"),
            ("a: *x\n", &["a"], "a: V\n"),
        ] {
            // An alias without its anchor is no YAML.
            let anchored = format!("x: &x 1\n{text}");
            let (text, expected) = match text.contains('*') {
                true => (anchored.as_str(), format!("x: &x 1\n{expected}")),
                false => (text, expected.to_owned()),
            };
            assert_eq!(replaced(text, steps).text, expected, "{text}");
        }
    }

    #[test]
    fn entries_are_removed_and_added() {
        for (text, steps, position, removed, added) in [
            ("a: 1\nb: 2\n", &[][..], 0, "\nb: 2\n", "a: 1\nb: 2\nk: V\n"),
            ("- a: 1\n  b: 2\n", &["0"], 0, "- \n  b: 2\n", "- a: 1\n  b: 2\n  k: V\n"),
            ("x: { a: 1, b: 2 }\n", &["x"], 0, "x: {  b: 2 }\n", "x: { k: V,  a: 1, b: 2 }\n"),
            ("x: { a: 1, b: 2 }\n", &["x"], 1, "x: { a: 1,  }\n", "x: { k: V,  a: 1, b: 2 }\n"),
            ("x:\n  a: 1\ny: 2\n", &["x"], 0, "x: {}\ny: 2\n", "x:\n  a: 1\n  k: V\ny: 2\n"),
            ("x: { a:, b: 2 }\n", &["x"], 0, "x: {  b: 2 }\n", "x: { k: V,  a:, b: 2 }\n"),
            ("a: 1\nb: |\n  x\n", &[], 1, "a: 1\n\n", "a: 1\nb: |\n  x\nk: V\n"),
        ] {
            let (path, mut draft) = (path(steps), Draft::of(text));
            let tree = draft.tree().unwrap();
            draft.remove(&tree, tree.find(&path).unwrap(), position).unwrap();
            assert_eq!(draft.text, removed, "{text}");
            let mut draft = Draft::of(text);
            draft.insert(tree.find(&path).unwrap(), "k", "V").unwrap();
            assert_eq!(draft.text, added, "{text}");
            assert!(Node::of(removed).is_some() && Node::of(added).is_some(), "{text}");
        }
    }

    #[test]
    fn positions_lead_back() {
        let text = "a:\n  b: 1\nc: é x\nd: 2\n";
        let mut draft = replaced(text, &["a"]);
        draft.insert(&draft.tree().unwrap(), "k", "V").unwrap();
        assert_eq!(draft.text, "a: V\nc: é x\nd: 2\nk: V\n");
        let at = |line, column| {
            let mistake = Mistake { line, column, message: String::new() };
            draft.settled(text, mistake).map(|settled| (settled.line, settled.column))
        };
        assert_eq!(at(1, 1), Some((1, 1)), "a");
        assert_eq!(at(1, 4), None, "its value is made");
        assert_eq!(at(4, 1), None, "k is made");
        assert_eq!(at(2, 6), Some((3, 6)), "x");
        assert_eq!(at(3, 4), Some((4, 4)), "2");
    }
}
