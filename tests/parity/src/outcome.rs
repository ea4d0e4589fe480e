//! What became of a request, in the same terms whoever decided it.

use std::collections::BTreeMap;
use std::fmt;

/// Fields of one name may come several times; bytes are told as text with escapes.
pub type FieldMap = BTreeMap<String, Vec<String>>;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As a case writes it.
    pub verdict: String,
    /// What the upstream was sent, if anything.
    pub upstream: Option<FieldMap>,
    /// Which upstream.
    pub served_by: Option<String>,
    pub answer: FieldMap,
    /// Things that the state remembers after it.
    pub entries: Option<usize>,
}

/// Fields that say where a message is and when, not what was decided.
const UPSTREAM_TRANSPORT: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "te"];
const ANSWER_TRANSPORT: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];

/// Fields by name, without those of transport; of random ones their shape.
pub fn upstream_fields<'f>(fields: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> FieldMap {
    collect(fields, &UPSTREAM_TRANSPORT)
}

/// As [`upstream_fields`], of an answer.
pub fn answer_fields<'f>(fields: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> FieldMap {
    collect(fields, &ANSWER_TRANSPORT)
}

fn collect<'f>(fields: impl IntoIterator<Item = (&'f str, &'f [u8])>, transport: &[&str]) -> FieldMap {
    let mut map = FieldMap::new();
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        if transport.contains(&name.as_str()) {
            continue;
        }
        let value = told(value);
        let shown = match name.as_str() {
            "x-request-id" => shape_of_id(&value).to_owned(),
            "traceparent" => shape_of_trace(&value),
            _ => value,
        };
        map.entry(name).or_default().push(shown);
    }
    map
}

fn told(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        Ok(_) | Err(_) => value.escape_ascii().to_string(),
    }
}

fn shape_of_id(value: &str) -> &str {
    let bytes = value.as_bytes();
    let hyphens = [8, 13, 18, 23];
    let well = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match hyphens.contains(&at) {
            true => *byte == b'-',
            false => byte.is_ascii_hexdigit(),
        })
        && bytes[14] == b'4';
    if well { "(a UUID)" } else { value }
}

/// Of a trace that somebody else began, the trace remains; the span is ours.
fn shape_of_trace(value: &str) -> String {
    match value.split('-').collect::<Vec<_>>()[..] {
        ["00", trace, span, flags] if trace.len() == 32 && span.len() == 16 => {
            let known = trace.starts_with("0af7651916cd43dd");
            format!("00-{}-(a span)-{flags}", if known { trace } else { "(a trace)" })
        }
        _ => value.to_owned(),
    }
}

impl Outcome {
    /// How `self` differs from what it should be like; empty when it does not.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut all = Vec::new();
        let mut told = |what: &str, here: &dyn fmt::Debug, there: &dyn fmt::Debug| {
            all.push(format!("{what}: {here:?}, not {there:?}"));
        };
        if self.verdict != other.verdict {
            told("verdict", &self.verdict, &other.verdict);
            return all;
        }
        if self.served_by != other.served_by {
            told("upstream", &self.served_by, &other.served_by);
        }
        if self.entries != other.entries {
            told("things remembered", &self.entries, &other.entries);
        }
        let none = FieldMap::new();
        let maps = [
            (
                "field to the upstream",
                self.upstream.as_ref().unwrap_or(&none),
                other.upstream.as_ref().unwrap_or(&none),
            ),
            ("field of the answer", &self.answer, &other.answer),
        ];
        for (what, here, there) in maps {
            let names: std::collections::BTreeSet<_> = here.keys().chain(there.keys()).collect();
            for name in names {
                if here.get(name) != there.get(name) {
                    told(&format!("{what} `{name}`"), &here.get(name), &there.get(name));
                }
            }
        }
        all
    }
}
