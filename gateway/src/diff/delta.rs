//! Where two values differ, whatever they are settings of.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::networks::Networks;

/// One place where two values differ.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Delta {
    pub(super) path: Vec<Step>,
    /// `None`: it is not there before.
    pub(super) before: Option<Value>,
    /// `None`: it is gone.
    pub(super) after: Option<Value>,
    /// What the entry of a list in which the place lies says besides, in the value after.
    pub(super) beside: Vec<(String, Value)>,
}

/// One step on the way to a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A field that the policy's reference names.
    Field(String),
    /// An entry of a list or a map, by the name that its writer gave it.
    Entry(String),
}

impl Step {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Field(text) | Self::Entry(text) => text,
        }
    }
}

/// Fields that, when they are not written, say what another one beside them does.
const STAND_FOR: [(&str, &str); 1] = [("burst", "requests")];

/// What an entry of a list is known by.
const NAMES: [&str; 3] = ["name", "id", "upstream"];

/// The differences, in the order of the fields. Lists are sets: their order means nothing, and of
/// networks not how they are written. `null` is absent.
pub(super) fn deltas(before: &Value, after: &Value) -> Vec<Delta> {
    let mut found = Vec::new();
    walk(&mut Vec::new(), Some(before), Some(after), &[], &mut found);
    found
}

/// The differences of two maps whose keys are names that their writer gave.
pub(super) fn deltas_of_entries(before: &Value, after: &Value) -> Vec<Delta> {
    let empty = Map::new();
    let entries = |value: &Value| value.as_object().unwrap_or(&empty).clone();
    let mut found = Vec::new();
    members(&mut Vec::new(), (&entries(before), &entries(after)), Step::Entry, &[], &mut found);
    found
}

fn walk(
    path: &mut Vec<Step>,
    before: Option<&Value>,
    after: Option<&Value>,
    beside: &[(String, Value)],
    found: &mut Vec<Delta>,
) {
    let there = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
    let (before, after) = (there(before), there(after));
    match (&before, &after) {
        (None, None) => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            members(path, (old, new), Step::Field, beside, found);
        }
        (Some(Value::Array(old)), Some(Value::Array(new)))
            if let (Some(old), Some(new)) = (named(old), named(new)) =>
        {
            members(path, (&old, &new), Step::Entry, beside, found);
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if same_entries(old, new) => {}
        (Some(old), Some(new)) if old == new => {}
        (Some(_) | None, Some(_) | None) => {
            found.push(Delta { path: path.clone(), before, after, beside: beside.to_vec() });
        }
    }
}

fn members(
    path: &mut Vec<Step>,
    (old, new): (&Map<String, Value>, &Map<String, Value>),
    step: fn(String) -> Step,
    beside: &[(String, Value)],
    found: &mut Vec<Delta>,
) {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let step = step(key.clone());
        let beside = match (&step, old.get(key), new.get(key)) {
            (Step::Entry(_), Some(old), Some(new)) => same_scalars(old, new),
            (Step::Entry(_) | Step::Field(_), ..) => beside.to_vec(),
        };
        let (before, after) = match step {
            Step::Field(_) => (said(old, new, key), said(new, old, key)),
            Step::Entry(_) => (old.get(key), new.get(key)),
        };
        path.push(step);
        walk(path, before, after, &beside, found);
        path.pop();
    }
}

/// What a field says, though only the other side has it written.
fn said<'v>(fields: &'v Map<String, Value>, others: &Map<String, Value>, key: &str) -> Option<&'v Value> {
    let written = |fields: &Map<String, Value>| fields.get(key).is_some_and(|value| !value.is_null());
    let stands_for = STAND_FOR.iter().find(|(field, _)| *field == key && written(others));
    match stands_for {
        Some((_, other)) if !written(fields) => fields.get(*other),
        Some(_) | None => fields.get(key),
    }
}

/// What two values of one entry have in common, which tells a reader which entry it is.
fn same_scalars(old: &Value, new: &Value) -> Vec<(String, Value)> {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return Vec::new() };
    let scalar = |value: &Value| value.is_string() || value.is_number();
    let same = new.iter().filter(|(key, value)| {
        scalar(value) && old.get(*key) == Some(value) && !NAMES.contains(&key.as_str())
    });
    same.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A list of things with names, by name; `None` when it is none, or when a name is there twice.
fn named(list: &[Value]) -> Option<Map<String, Value>> {
    let name = |entry: &Value| {
        let name = NAMES.iter().find_map(|name| entry.get(name)?.as_str());
        name.map(str::to_owned)
    };
    let by_name: Map<String, Value> =
        list.iter().map(|entry| Some((name(entry)?, entry.clone()))).collect::<Option<_>>()?;
    (by_name.len() == list.len()).then_some(by_name)
}

fn same_entries(old: &[Value], new: &[Value]) -> bool {
    match (Networks::of(old), Networks::of(new)) {
        (Some(old), Some(new)) => old == new,
        (Some(_) | None, Some(_) | None) => as_set(old) == as_set(new),
    }
}

pub(super) fn as_set(list: &[Value]) -> BTreeSet<String> {
    list.iter().map(Value::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::needless_pass_by_value, reason = "literals")]
    fn places_that_differ() {
        fn check(before: Value, after: Value, expected: &[(&str, Value, Value)]) {
            let found: Vec<(String, Value, Value)> = deltas(&before, &after)
                .into_iter()
                .map(|delta| {
                    let path: Vec<&str> = delta.path.iter().map(Step::text).collect();
                    (path.join("."), delta.before.unwrap_or_default(), delta.after.unwrap_or_default())
                })
                .collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(path, old, new)| ((*path).to_owned(), old.clone(), new.clone()))
                .collect();
            assert_eq!(found, expected, "{before} {after}");
        }
        let null = Value::Null;
        check(json!({"a": 1, "b": null}), json!({"a": 1}), &[]);
        check(json!({"a": 1}), json!({"a": 2}), &[("a", json!(1), json!(2))]);
        check(json!({"a": {"b": 1}}), json!({"a": {}}), &[("a.b", json!(1), null.clone())]);
        check(json!({"a": ["x", "y"]}), json!({"a": ["y", "x"]}), &[]);
        check(json!({"a": ["x"]}), json!({"a": ["y"]}), &[("a", json!(["x"]), json!(["y"]))]);
        check(
            json!({"a": [{"name": "x", "n": 1}, {"name": "y", "n": 1}]}),
            json!({"a": [{"name": "y", "n": 2}]}),
            &[("a.x", json!({"name": "x", "n": 1}), null.clone()), ("a.y.n", json!(1), json!(2))],
        );
        // Of two entries with one name nobody can say which is which.
        check(
            json!([{"name": "x", "n": 1}, {"name": "x", "n": 2}]),
            json!([{"name": "x", "n": 1}]),
            &[("", json!([{"name": "x", "n": 1}, {"name": "x", "n": 2}]), json!([{"name": "x", "n": 1}]))],
        );
        check(
            json!({"a": ["10.1.2.3/8", "10.0.0.0/9", "192.0.2.0/25", "192.0.2.128/25"]}),
            json!({"a": ["192.0.2.0/24", "10.0.0.0/8"]}),
            &[],
        );
        check(json!({"a": []}), json!({"a": ["nobody"]}), &[("a", json!([]), json!(["nobody"]))]);
        check(json!([{"dns": "a"}]), json!([]), &[("", json!([{"dns": "a"}]), json!([]))]);
        // A burst that is not written is as many as `requests`.
        let limit = |requests: u32, burst: Option<u32>| json!({"requests": requests, "burst": burst});
        check(limit(9, None), limit(9, Some(5)), &[("burst", json!(9), json!(5))]);
        check(limit(9, Some(5)), limit(9, None), &[("burst", json!(5), json!(9))]);
        check(limit(9, None), limit(9, Some(9)), &[]);
        check(limit(9, None), limit(4, None), &[("requests", json!(9), json!(4))]);
        check(
            limit(9, None),
            limit(4, Some(12)),
            &[("burst", json!(9), json!(12)), ("requests", json!(9), json!(4))],
        );
        check(json!({"requests": 9}), json!({"burst": 9, "requests": 9}), &[]);
    }
}
