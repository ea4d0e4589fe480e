//! The keys and values of a YAML text, and the bytes that each occupies.

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, StructureStyle};
use serde_path_to_error::Segment;

/// A key, a value or an item.
pub(super) struct Node {
    /// Bytes of the text, quotes and brackets included, an anchor or a tag not.
    pub(super) span: Range<usize>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// `is_block`: introduced by `|` or `>`, which are not part of the span.
    Scalar {
        text: String,
        is_block: bool,
    },
    Alias,
    List {
        is_flow: bool,
        items: Vec<Node>,
    },
    Map {
        is_flow: bool,
        entries: Vec<Entry>,
    },
}

pub(super) struct Entry {
    pub(super) key: Node,
    pub(super) value: Node,
}

impl Entry {
    /// The key's text, if it is one.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.key.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::Alias | Kind::List { .. } | Kind::Map { .. } => None,
        }
    }

    /// The bytes of key and value. A `:` with nothing behind it is part of them.
    pub(super) fn span(&self, text: &str) -> Range<usize> {
        let start = self.key.span.start;
        if !self.value.span.is_empty() {
            return start..self.value.span.end;
        }
        let after = text.get(self.key.span.end..).unwrap_or_default();
        let blanks = after.len() - after.trim_start().len();
        let colon = usize::from(after.trim_start().starts_with(':'));
        start..self.key.span.end + if colon == 1 { blanks + 1 } else { 0 }
    }
}

/// A list or a map that is not closed yet.
struct Open {
    start: usize,
    is_map: bool,
    is_flow: bool,
    nodes: Vec<Node>,
}

impl Open {
    fn close(self, end: usize) -> Node {
        let Self { start, is_map, is_flow, nodes } = self;
        // A block ends with its last item; the parser says where the next token begins.
        let last = nodes.last().map_or(start, |last| last.span.end);
        let span = start..if is_flow { end } else { last.max(start) };
        if !is_map {
            return Node { span, kind: Kind::List { is_flow, items: nodes } };
        }
        let mut entries = Vec::with_capacity(nodes.len() / 2);
        let mut nodes = nodes.into_iter();
        while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
            entries.push(Entry { key, value });
        }
        Node { span, kind: Kind::Map { is_flow, entries } }
    }
}

impl Node {
    /// The tree of a text with one document. `None`: it is not YAML.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut parser = Parser::new_from_str(text);
        let mut open: Vec<Open> = Vec::new();
        while let Some(event) = parser.next_event() {
            let (event, span) = event.ok()?;
            let bytes = span.byte_range()?;
            let node = match event {
                Event::Scalar(value, style, ..) => {
                    let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                    Node { span: bytes, kind: Kind::Scalar { text: value.into_owned(), is_block } }
                }
                Event::Alias(_) => Node { span: bytes, kind: Kind::Alias },
                Event::SequenceStart(style, ..) | Event::MappingStart(style, ..) => {
                    let is_map = matches!(event, Event::MappingStart(..));
                    let is_flow = matches!(style, StructureStyle::Flow);
                    open.push(Open { start: bytes.start, is_map, is_flow, nodes: Vec::new() });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => open.pop()?.close(bytes.end),
                _ => continue,
            };
            match open.last_mut() {
                Some(above) => above.nodes.push(node),
                None => return Some(node),
            }
        }
        None
    }

    /// What a key or a position leads to.
    pub(super) fn below(&self, segment: &Segment) -> Option<&Self> {
        match (&self.kind, segment) {
            (Kind::Map { .. }, Segment::Map { key } | Segment::Enum { variant: key }) => {
                self.entry(key).map(|entry| &entry.value)
            }
            (Kind::List { items, .. }, Segment::Seq { index }) => items.get(*index),
            (_, _) => None,
        }
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.name() == Some(name))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        if let Kind::Map { entries, .. } = &self.kind { entries } else { &[] }
    }

    /// What a path leads to.
    pub(super) fn find(&self, path: &[Segment]) -> Option<&Self> {
        path.iter().try_fold(self, |node, segment| node.below(segment))
    }

    /// A path without the parts that are none of the document's, but of what finds its places: unless it has such a key.
    pub(super) fn own(&self, path: Vec<Segment>) -> Vec<Segment> {
        const OF_SPANNED: [&str; 3] = ["value", "referenced", "defined"];
        let mut node = Some(self);
        let is_own = |segment: &Segment| match (node.and_then(|node| node.below(segment)), segment) {
            (Some(below), _) => {
                node = Some(below);
                true
            }
            (None, Segment::Map { key }) => !OF_SPANNED.contains(&key.as_str()),
            (None, _) => true,
        };
        path.into_iter().filter(is_own).collect()
    }

    /// The byte where the last key or item of the path begins that there is.
    pub(super) fn place(&self, path: &[Segment]) -> Option<usize> {
        let (mut node, mut place) = (self, None);
        for segment in path {
            let Some(next) = node.below(segment) else { break };
            let key = match segment {
                Segment::Map { key } | Segment::Enum { variant: key } => node.entry(key),
                Segment::Seq { .. } | Segment::Unknown => None,
            };
            place = Some(key.map_or(next.span.start, |entry| entry.key.span.start));
            node = next;
        }
        place
    }

    /// The map with a key that begins at that byte, and the position of the key's entry.
    pub(super) fn map_with_key_at(&self, start: usize) -> Option<(&Self, usize)> {
        let mut next = vec![self];
        while let Some(node) = next.pop() {
            let entries = node.entries();
            if let Some(position) = entries.iter().position(|entry| entry.key.span.start == start) {
                return Some((node, position));
            }
            next.extend(node.children());
        }
        None
    }

    /// The entry whose value is that node of this tree.
    pub(super) fn entry_of(&self, value: &Self) -> Option<&Entry> {
        let mut next = vec![self];
        while let Some(node) = next.pop() {
            if let Some(entry) =
                node.entries().iter().find(|entry| std::ptr::eq(&raw const entry.value, value))
            {
                return Some(entry);
            }
            next.extend(node.children());
        }
        None
    }

    /// The value or item that begins at that byte: of several the outermost.
    pub(super) fn starting_at(&self, start: usize) -> Option<&Self> {
        let mut next = vec![self];
        while let Some(node) = next.pop() {
            if node.span.start == start && !node.span.is_empty() {
                return Some(node);
            }
            next.extend(node.children());
        }
        None
    }

    /// Values and items, without keys.
    pub(super) fn children(&self) -> impl Iterator<Item = &Self> {
        let items = if let Kind::List { items, .. } = &self.kind { items.as_slice() } else { &[] };
        items.iter().chain(self.entries().iter().map(|entry| &entry.value))
    }
}

impl Drop for Node {
    /// Without recursion: a text may be nested deeper than the stack.
    fn drop(&mut self) {
        let mut nodes = take_children(self);
        while let Some(mut node) = nodes.pop() {
            nodes.extend(take_children(&mut node));
        }
    }
}

fn take_children(node: &mut Node) -> Vec<Node> {
    match &mut node.kind {
        Kind::Scalar { .. } | Kind::Alias => Vec::new(),
        Kind::List { items, .. } => std::mem::take(items),
        Kind::Map { entries, .. } => {
            std::mem::take(entries).into_iter().flat_map(|entry| [entry.key, entry.value]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(node: &Node, text: &str, all: &mut Vec<String>) {
        all.push(text[node.span.clone()].to_owned());
        for entry in node.entries() {
            all.push(text[entry.span(text)].to_owned());
        }
        node.children().for_each(|child| spans(child, text, all));
    }

    #[test]
    fn spans_are_exact() {
        for (text, expected) in [
            ("a: 1", &["a: 1", "a: 1", "1"][..]),
            (
                "a: {b: 'x', c: [1, 2]} # end\n",
                &[
                    "a: {b: 'x', c: [1, 2]}",
                    "a: {b: 'x', c: [1, 2]}",
                    "{b: 'x', c: [1, 2]}",
                    "b: 'x'",
                    "c: [1, 2]",
                    "'x'",
                    "[1, 2]",
                    "1",
                    "2",
                ],
            ),
            (
                "- a: é\n  b: &x y\n# no\n- *x\n",
                &["- a: é\n  b: &x y\n# no\n- *x", "a: é\n  b: &x y", "a: é", "b: &x y", "é", "y", "*x"],
            ),
            ("a:\nb : \n", &["a:\nb ", "a:", "b :", "", ""]),
        ] {
            let mut all = Vec::new();
            spans(&Node::of(text).unwrap(), text, &mut all);
            assert_eq!(all, expected, "{text}");
        }
        assert!(Node::of("").is_none());
        assert!(Node::of("a: [").is_none());
    }
}
