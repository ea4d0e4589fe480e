//! The JSON Schema of the policy document, from which editors complete it; `gateway/policy.schema.json` has it as a file.
//!
//! It refuses nothing that `check` takes. What only `check` can know, names that must exist elsewhere say, it lets pass.

use filters::policy::Document;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::{Map, Value};

/// The schema, as the file has it but for the line break at its end.
pub fn text() -> String {
    serde_json::to_string_pretty(&document()).unwrap_or_default()
}

/// The schema of a whole policy, draft 2020-12.
pub fn document() -> Schema {
    let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(without_null));
    settings.into_generator().into_root_schema_for::<Document>()
}

/// Many a field may be left out, and none left empty: for Serde's `Option` both are one, for `check` they are not.
fn without_null(schema: &mut Schema) {
    let Some(node) = schema.as_object_mut() else { return };
    match node.get_mut("default") {
        Some(Value::Null) => drop(node.remove("default")),
        Some(Value::Object(fields)) => fields.retain(|_, value| !value.is_null()),
        Some(_) | None => {}
    }
    if let Some(Value::Array(kinds)) = node.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if kinds.len() == 1 {
            let only = kinds.remove(0);
            node.insert("type".to_owned(), only);
        }
    }
    if let Some(only) = only_but_null(node) {
        node.remove("anyOf");
        for (name, value) in only {
            node.entry(name).or_insert(value);
        }
    }
}

/// The one schema that a value is by when it is not `null`. What is said beside it counts before what it says itself.
fn only_but_null(node: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    let any = node.get_mut("anyOf")?.as_array_mut()?;
    any.retain(|one| one["type"] != "null");
    match any.as_mut_slice() {
        [Value::Object(only)] => Some(std::mem::take(only)),
        [..] => None,
    }
}
