//! `sem_ver`: versions compared as semver.org has it (flagd.dev, "Semantic Version Operation").

use std::cmp::Ordering;

use semver::Version;
use serde_json::Value;

/// Whether `left OPERATOR right`; `null` where one is no version, or the operator is none.
pub(super) fn compare(left: &Value, operator: &Value, right: &Value) -> Value {
    let (Some(left), Some(right), Value::String(operator)) = (version(left), version(right), operator) else {
        return Value::Null;
    };
    // What follows a `+` says how it was built, and counts for nothing (semver.org, item 10).
    let order = left.cmp_precedence(&right);
    Value::Bool(match operator.as_str() {
        "=" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        ">=" => order != Ordering::Less,
        "^" => left.major == right.major,
        "~" => left.major == right.major && left.minor == right.minor,
        _ => return Value::Null,
    })
}

/// `v1.2` is 1.2.0.
fn version(value: &Value) -> Option<Version> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let text = text.strip_prefix(['v', 'V']).unwrap_or(&text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at_checked(end)?;
    let padding = match core.split('.').count() {
        1 => ".0.0",
        2 => ".0",
        _ => "",
    };
    Version::parse(&format!("{core}{padding}{rest}")).ok()
}
