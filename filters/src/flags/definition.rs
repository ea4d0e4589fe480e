//! flagd's file format: <https://flagd.dev/schema/v0/flags.json>.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::logic::{Evaluators, Rule};
use super::{Flag, Flags, State};
use crate::policy::{reworded, unknown_field};
use crate::shape::unambiguous_json;

/// The file. What begins with `$` but is not here is for other tools.
#[derive(Deserialize)]
struct Written {
    flags: Map<String, Value>,
    #[serde(rename = "$evaluators", default)]
    evaluators: Map<String, Value>,
    #[serde(default, rename = "metadata")]
    _metadata: Map<String, Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenFlag {
    state: State,
    variants: BTreeMap<String, Value>,
    #[serde(default)]
    default_variant: Option<String>,
    #[serde(default)]
    targeting: Option<Value>,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
    /// For people.
    #[serde(default, rename = "$comment")]
    _comment: Option<Value>,
}

/// Deeper than any rule that people write; the nesting of `$ref` included.
pub(super) const MOST_DEPTH: usize = 40;
/// Of the whole file: a rule's operators lie two levels apart.
const MOST_LEVELS: usize = 100;
const MOST_VARIANTS: usize = 64;
const MOST_NAME: usize = 128;

pub(super) fn read(text: &str) -> Result<Flags, Vec<String>> {
    if text.len() > Flags::MOST_BYTES {
        return Err(vec![format!("a file of flags is at most {} bytes", Flags::MOST_BYTES)]);
    }
    let parsed: Written = serde_json::from_str(text).map_err(|why| {
        let (told, line, column) = (reworded(&why.to_string()), why.line(), why.column());
        vec![if line > 0 { format!("{told} (line {line}, column {column})") } else { told }]
    })?;
    if !unambiguous_json(text.as_bytes(), MOST_LEVELS) {
        return Err(vec![
            "a name is written twice in one object, or objects lie too deep in each other".to_owned(),
        ]);
    }
    let mut mistakes: Vec<String> = parsed
        .others
        .keys()
        .filter(|name| !name.starts_with('$'))
        .map(|name| unknown_field(name, &["flags", "$evaluators", "metadata"]))
        .collect();
    if parsed.flags.len() > Flags::MOST {
        mistakes.push(format!("there are more than {} flags", Flags::MOST));
    }
    let mut evaluators = Evaluators::new(&parsed.evaluators);
    let mut by_key = BTreeMap::new();
    for (key, written) in parsed.flags {
        match flag(&key, written, &mut evaluators) {
            Ok(flag) => drop(by_key.insert(Arc::from(key), flag)),
            Err(why) => mistakes.push(format!("flag `{key}`: {why}")),
        }
    }
    if mistakes.is_empty() { Ok(Flags { by_key }) } else { Err(mistakes) }
}

fn flag(key: &str, written: Value, evaluators: &mut Evaluators<'_>) -> Result<Flag, String> {
    let written: WrittenFlag = serde_json::from_value(written).map_err(|why| reworded(&why.to_string()))?;
    if !is_name(key) {
        return Err(NAME.to_owned());
    }
    let WrittenFlag { state, variants, default_variant, targeting, metadata, _comment } = written;
    if variants.is_empty() || variants.len() > MOST_VARIANTS {
        return Err(format!("it has one to {MOST_VARIANTS} `variants`"));
    }
    if let Some(name) = variants.keys().find(|name| !is_name(name)) {
        return Err(format!("variant `{name}`: {NAME}"));
    }
    let mut kinds = variants.values().map(kind);
    let first = kinds.next();
    if kinds.any(|kind| Some(kind) != first) || first == Some(None) {
        return Err("its `variants` are all booleans, all strings, all numbers or all objects".to_owned());
    }
    let variants: BTreeMap<Arc<str>, Value> =
        variants.into_iter().map(|(name, value)| (Arc::from(name), value)).collect();
    let default = match default_variant {
        None => None,
        Some(name) => match variants.get_key_value(name.as_str()) {
            Some((name, _)) => Some(Arc::clone(name)),
            None => {
                let known = variants.keys().map(|name| &**name);
                return Err(crate::policy::unknown("variant", &name, known));
            }
        },
    };
    let targeting = match targeting {
        None | Some(Value::Null) => None,
        Some(Value::Object(rule)) if rule.is_empty() => None,
        Some(rule) => Some(Rule::read(&rule, evaluators).map_err(|why| format!("targeting: {why}"))?),
    };
    Ok(Flag { state, variants, default, targeting, metadata })
}

/// Names go into header fields, metrics and logs.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"',;=\\`{}".contains(&byte);
    (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(plain)
}

const NAME: &str = "a name is 1 to 128 visible characters, and none of \" ' , ; = \\ ` { }";

fn kind(value: &Value) -> Option<&'static str> {
    match value {
        Value::Bool(_) => Some("boolean"),
        Value::String(_) => Some("string"),
        Value::Number(_) => Some("number"),
        Value::Object(_) => Some("object"),
        Value::Null | Value::Array(_) => None,
    }
}
