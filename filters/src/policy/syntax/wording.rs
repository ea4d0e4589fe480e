//! What is wrong with a text, in words for who wrote it. The reader's own are for who programs it.

use serde_path_to_error::Segment;
use serde_saphyr::Error;

use super::super::mistake::{none_of, unknown_field};

pub(super) const UNKNOWN_ANCHOR: &str = "it refers to an anchor (`&name`) that is not above it";

/// What is wrong in a place to which that path leads.
pub(super) fn of(error: &Error, path: &[Segment]) -> String {
    let belongs = |what: &str| format!("{}{what}", place(path));
    match error {
        Error::Eof { .. } => "the policy is empty, or ends too early".to_owned(),
        Error::MultipleDocuments { .. } => {
            "a policy is one YAML document: leave out `---` and what follows".to_owned()
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` is written twice in one place: leave one out")
        }
        Error::DuplicateMappingKey { key: None, .. } => {
            "a key is written twice in one place: leave one out".to_owned()
        }
        Error::SerdeMissingField { field, .. } => format!("{} needs `{field}`", whose(path)),
        Error::SerdeUnknownField { field, expected, .. } => unknown_field(field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => belongs(&none_of(variant, expected)),
        Error::Unexpected { expected: "mapping start", .. } => belongs(SETTINGS),
        Error::Unexpected { expected: "sequence start", .. } => belongs(LIST),
        Error::Unexpected { expected: "string scalar" | "scalar", .. }
        | Error::NullIntoString { .. }
        | Error::TaggedScalarCannotDeserializeIntoString { .. } => belongs(TEXT),
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. }
        | Error::ExpectedStringKeyForExternallyTaggedEnum { .. }
        | Error::UnexpectedValueForUnitEnumVariant { .. } => belongs("one word belongs here"),
        Error::InvalidBooleanStrict { .. } => belongs(BOOLEAN),
        Error::InvalidScalar { ty, .. } => belongs(match *ty {
            "boolean" => BOOLEAN,
            "u32" => "a whole number from 0 to 4294967295 belongs here",
            _ => "a whole number, 0 or more, belongs here",
        }),
        // Binary, which has a tag.
        Error::SerdeInvalidType { expected, .. } if expected.contains("span-aware") => NO_TAGS.to_owned(),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            belongs(&format!("{expected} belongs here"))
        }
        // What is wrong where it is referred to.
        Error::AliasError { error, .. } => of(error, path),
        Error::Budget { .. } | Error::RecursiveReferencesRequireWeakTypes { .. } => NESTED.to_owned(),
        Error::MergeValueNotMapOrSeqOfMaps { .. } => {
            "`<<` is followed by settings, or by a list of them".to_owned()
        }
        Error::NonFiniteFloat { .. } => belongs("a number that ends belongs here"),
        Error::UnknownAnchor { .. } => UNKNOWN_ANCHOR.to_owned(),
        Error::UnsupportedTag { .. }
        | Error::TaggedEnumMismatch { .. }
        | Error::InvalidBinaryBase64 { .. } => NO_TAGS.to_owned(),
        // Of our own types, and of some of the standard library's.
        Error::Message { msg, .. } => belongs(match msg.as_str() {
            "invalid socket address syntax" => {
                "an IP address and a port belong here, \"127.0.0.1:8443\" or \"[::1]:8443\" say"
            }
            "invalid IP address syntax" => "an IP address or a network belongs here, \"10.0.0.0/8\" say",
            untagged if untagged.starts_with("data did not match any variant") => {
                "a text, a number, true or false belongs here, or a list of them"
            }
            own => return own.to_owned(),
        }),
        other => not_yaml(&other.to_string()),
    }
}

const SETTINGS: &str = "settings belong here, a line `name: value` for each, or `{ name: value }`";
const LIST: &str = "a list belongs here, a line `- item` for each, or `[item]`";
const NO_TAGS: &str = "a policy has no tags (`!name`): leave it out";
const NESTED: &str = "it is too large, nested too deeply, or refers to itself too often";
const TEXT: &str = "a text belongs here";
const BOOLEAN: &str = "true or false belongs here";

/// What keeps a text from being YAML at all.
fn not_yaml(text: &str) -> String {
    // The place is told apart from the text, which would repeat it.
    let text = text.split(" at line ").next().unwrap_or_default().trim_end_matches(',');
    let text = text.split(" --> ").next().unwrap_or_default();
    // What people do most; the rest is as good as it gets.
    let meant = [
        ("found a tab", "YAML is indented with spaces, and a tab is none"),
        ("tabs disallowed", "YAML is indented with spaces, and a tab is none"),
        ("recursion limit", NESTED),
        ("unexpected EOF", "a bracket or a brace is not closed"),
        ("simple key expected", "a `:` is missing behind a key"),
        (
            "mapping values are not allowed",
            "a `:` stands where no key can be: the line above lacks its own, or a text with a `:` lacks its quotes",
        ),
        ("did not find expected key", "this line is indented neither as those above it nor deeper"),
    ];
    let meant = meant.into_iter().find(|(theirs, _)| text.contains(theirs));
    if let Some((_, ours)) = meant {
        return ours.to_owned();
    }
    format!("this is not YAML: {text}")
}

/// Whose value it is, in front of what belongs there.
fn place(path: &[Segment]) -> String {
    match path {
        [.., Segment::Map { key }] => format!("`{key}`: "),
        [.., Segment::Map { key }, Segment::Seq { .. }] => format!("an item of `{key}`: "),
        _ => String::new(),
    }
}

/// What lacks something.
fn whose(path: &[Segment]) -> String {
    let mut told = String::new();
    for segment in path {
        match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !told.is_empty() {
                    told.push('.');
                }
                told.push_str(key);
            }
            Segment::Seq { index } => told.push_str(&format!("[{index}]")),
            Segment::Unknown => {}
        }
    }
    if told.is_empty() { "a policy".to_owned() } else { format!("`{told}`") }
}
