//! `gateway/POLICY.md` is what the policy's JSON Schema says, with an example of each field.
//!
//! The examples are whole policies, in `gateway/policies/`, each of which must be read without a mistake. A field that is
//! in none of them fails here: add it to the one that it fits, or a policy of its own, and write the page anew with
//! `UPDATE=1 cargo test -p gateway reference`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use filters::policy::{Policy, Secret, as_json};
use serde_json::Value;

#[test]
fn the_page_is_what_the_schema_says_and_every_field_has_an_example() {
    let examples = examples();
    let objects = objects();
    let mut missing = Vec::new();
    let mut page = String::from(HEAD);
    for (name, _) in &examples {
        let _ = writeln!(page, "- [`{name}`](policies/{name})");
    }
    for object in &objects {
        object.write(&mut page, &examples, &mut missing);
    }
    assert!(
        missing.is_empty(),
        "without an example: {}\nWrite each into a policy in gateway/policies/ where somebody would use it; then\n\
         UPDATE=1 cargo test -p gateway reference",
        missing.join(", ")
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("POLICY.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page).unwrap();
    } else {
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(page == written, "gateway/POLICY.md is stale: UPDATE=1 cargo test -p gateway reference");
    }
}

/// Every example is a policy that could serve, and that nobody would need to look at twice for what it says by mistake.
#[test]
fn every_example_is_a_good_policy() {
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let read = Policy::read(&text, &|_| Ok(Secret::LATER));
        let file = path.display().to_string();
        let policy = read.unwrap_or_else(|mistakes| {
            panic!("{}", mistakes.iter().map(|mistake| mistake.in_file(&file)).collect::<Vec<_>>().join("\n"))
        });
        let meant = ["does without", "anybody may call it", "is more specific"];
        let warnings = policy.warnings().iter().map(|warning| warning.in_file(&file));
        let other: Vec<String> =
            warnings.filter(|told| !meant.iter().any(|meant| told.contains(meant))).collect();
        assert!(other.is_empty(), "{other:#?}");
    }
}

const HEAD: &str = "\
# The policy file

What each field of a policy means, which value it has when it is not written, and an example of it. Written from the
JSON Schema (`gateway schema`, which editors complete from); the examples are from these policies, which tests read:

";

/// What Envoy's module gets means what was written, to the letter, and can be compiled once more.
#[test]
fn what_is_compiled_means_the_same() {
    let numbers = [("name: ", "name: 7 # "), ("version: \"2\"", "version: 1.10")];
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let with_numbers = numbers.iter().fold(text.clone(), |text, (from, to)| text.replacen(from, to, 1));
        for text in [text, with_numbers] {
            let policy = Policy::read(&text, &|_| Ok(Secret::LATER)).unwrap();
            let compiled = policy.compiled().unwrap();
            let again = Policy::read(&compiled, &|_| Ok(Secret::LATER)).unwrap();
            assert_eq!(again.compiled().unwrap(), compiled);
            let written: Value = serde_json::from_str(&compiled).unwrap();
            let texts = |route: &Value| {
                ["name", "version"].iter().all(|field| route[field].is_null() || route[field].is_string())
            };
            assert!(written["routes"].as_array().unwrap().iter().all(texts), "{compiled}");
        }
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Names and values of the examples.
pub(super) fn examples() -> Vec<(String, Value)> {
    let read = |path: PathBuf| {
        let json = as_json(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_str(&json).unwrap())
    };
    files().into_iter().map(read).collect()
}

/// An object of the document: where it is, and what fields it has.
pub(super) struct Object {
    /// `upstreams.NAME.health`; several where the same object is in several places.
    pub(super) places: Vec<Vec<Step>>,
    /// Those of them that are not within an object that itself is in several.
    told: Vec<Vec<Step>>,
    about: String,
    pub(super) fields: Vec<Field>,
}

pub(super) struct Field {
    pub(super) name: String,
    /// `list of numbers`.
    pub(super) kind: String,
    /// `required`, `absent`, or a value between backticks.
    pub(super) default: String,
    about: String,
    /// The place of the object that it holds.
    leads_to: Option<Vec<Step>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Entries,
    Names,
}

pub(super) fn title(place: &[Step]) -> String {
    let mut title = String::new();
    for step in place {
        match step {
            Step::Field(name) if title.is_empty() => title.push_str(name),
            Step::Field(name) => {
                let _ = write!(title, ".{name}");
            }
            Step::Entries => title.push_str("[]"),
            Step::Names => title.push_str(".NAME"),
        }
    }
    if title.is_empty() { "The document".to_owned() } else { format!("`{title}`") }
}

/// As GitHub makes it of a heading.
fn anchor(place: &[Step]) -> String {
    let kept = |c: &char| c.is_ascii_alphanumeric() || "-_ ".contains(*c);
    title(place).to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Every object that the schema names, in the order of the document.
pub(super) fn objects() -> Vec<Object> {
    let schema = gateway::schema::document().to_value();
    let mut objects: Vec<(String, Object)> = Vec::new();
    let mut open = VecDeque::from([(String::new(), Vec::new(), false)]);
    while let Some((definition, place, within)) = open.pop_front() {
        let node = if definition.is_empty() { &schema } else { &schema["$defs"][&definition] };
        let mut fields = Vec::new();
        let mut inner = Vec::new();
        for (name, written) in node["properties"].as_object().into_iter().flatten() {
            let mut place = place.clone();
            place.push(Step::Field(name.clone()));
            let (kind, about, object) = kind(&schema, written, &mut place);
            let required =
                node["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name));
            if let Some(object) = &object {
                inner.push((object.clone(), place.clone()));
            }
            fields.push(Field {
                name: name.clone(),
                kind,
                default: default(written, required),
                about,
                leads_to: object.map(|_| place),
            });
        }
        let known = objects.iter_mut().find(|(known, _)| *known == definition);
        // Depth first: what an object holds follows it.
        for (name, place) in inner.into_iter().rev() {
            open.push_front((name, place, known.is_some()));
        }
        match known {
            Some((_, known)) => {
                known.told.extend((!within).then(|| place.clone()));
                known.places.push(place);
            }
            None => {
                let about = text(node, "description");
                objects.push((definition, Object { places: vec![place], told: Vec::new(), about, fields }));
            }
        }
    }
    objects.into_iter().map(|(_, object)| object).collect()
}

fn text(node: &Value, name: &str) -> String {
    node[name].as_str().unwrap_or_default().replace('\n', " ")
}

fn definition<'s>(schema: &'s Value, node: &'s Value) -> Option<(&'s str, &'s Value)> {
    let name = node["$ref"].as_str()?.strip_prefix("#/$defs/")?;
    Some((name, &schema["$defs"][name]))
}

/// What may stand there, what is said of it, and the definition of the object that it holds. Goes on with the place.
fn kind(schema: &Value, node: &Value, place: &mut Vec<Step>) -> (String, String, Option<String>) {
    let said = text(node, "description");
    // What may be absent is said by its default.
    let there: Vec<&Value> =
        node["anyOf"].as_array().into_iter().flatten().filter(|other| other["type"] != "null").collect();
    if let [only] = there.as_slice() {
        let (kind, about, object) = kind(schema, only, place);
        return (kind, both(&said, &about, object.is_some()), object);
    }
    if there.len() > 1 {
        // One of them or a list, a word or an object: two objects would need a place each.
        let kinds: Vec<_> = there.iter().map(|other| kind(schema, other, &mut place.clone())).collect();
        let mut objects: Vec<_> = kinds.iter().filter_map(|(.., object)| object.clone()).collect();
        let names: Vec<String> = kinds.into_iter().map(|(kind, ..)| kind).collect();
        let object = objects.pop();
        assert!(objects.is_empty(), "{}: one of several objects", title(place));
        return (names.join(" or "), said, object);
    }
    if let Some((name, defined)) = definition(schema, node) {
        if defined["properties"].is_object() {
            let of_object = text(defined, "description");
            let first = of_object.split_inclusive(". ").next().unwrap_or_default().trim().to_owned();
            return ("object".to_owned(), if said.is_empty() { first } else { said }, Some(name.to_owned()));
        }
        let (kind, about, object) = kind(schema, defined, place);
        return (kind, both(&said, &about, object.is_some()), object);
    }
    if let Some(values) = node["oneOf"].as_array() {
        let names: Vec<String> = values.iter().map(|value| format!("`{}`", name_of(value))).collect();
        let meanings =
            values.iter().map(|value| format!("`{}`: {}", name_of(value), text(value, "description")));
        let about = meanings.collect::<Vec<_>>().join(" ");
        return (names.join(" or "), both(&said, &about, false), None);
    }
    if let Some(values) = node["enum"].as_array() {
        let names: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return (names.join(" or "), said, None);
    }
    let types = match &node["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        other => other.as_str(),
    };
    match types {
        Some("array") => {
            place.push(Step::Entries);
            let (kind, about, object) = kind(schema, &node["items"], place);
            (format!("list of {}", several(&kind)), both(&said, &about, object.is_some()), object)
        }
        Some("object") if node["additionalProperties"].is_object() => {
            place.push(Step::Names);
            let (kind, about, object) = kind(schema, &node["additionalProperties"], place);
            (format!("{} by name", several(&kind)), both(&said, &about, object.is_some()), object)
        }
        Some("integer" | "number") => ("number".to_owned(), said, None),
        Some("boolean") => ("`true` or `false`".to_owned(), said, None),
        Some("string") => {
            let kind = match (node["pattern"].as_str(), node["format"].as_str()) {
                (Some(pattern), _) if pattern.contains("file|env") => "reference",
                (Some(pattern), _) if pattern.starts_with("^file:") => "file",
                (_, Some("date-time")) => "time",
                (_, _) => "text",
            };
            (kind.to_owned(), said, None)
        }
        other => panic!("{}: the page cannot tell what {other:?} is: {node}", title(place)),
    }
}

fn name_of(value: &Value) -> &str {
    value["const"].as_str().or_else(|| value["enum"][0].as_str()).unwrap_or_default()
}

fn several(kind: &str) -> String {
    match kind {
        "text" => "texts".to_owned(),
        kind if kind.starts_with('`') => kind.to_owned(),
        kind => format!("{kind}s"),
    }
}

/// What is said of a field, and of the type that it has; an object speaks for itself where it stands.
fn both(field: &str, of_type: &str, object: bool) -> String {
    match (field.is_empty(), of_type.is_empty() || object) {
        (false, false) if of_type.starts_with(field) => of_type.to_owned(),
        (false, false) => format!("{field} {of_type}"),
        (true, _) => of_type.to_owned(),
        (false, true) => field.to_owned(),
    }
}

fn default(node: &Value, required: bool) -> String {
    match (&node["default"], required) {
        (_, true) => "required".to_owned(),
        (Value::Null, false) => "absent".to_owned(),
        (Value::Object(fields), false) if fields.values().all(Value::is_null) => "`{}`".to_owned(),
        (value, false) => format!("`{}`", flow(value)),
    }
}

impl Object {
    fn write(&self, page: &mut String, examples: &[(String, Value)], missing: &mut Vec<String>) {
        let first = &self.places[0];
        let depth = if first.is_empty() { "##" } else { "###" };
        let _ = write!(page, "\n{depth} {}\n\n", title(first));
        if !self.about.is_empty() {
            let _ = write!(page, "{}\n\n", self.about);
        }
        if !self.told.is_empty() {
            let others: Vec<String> = self.told.iter().map(|place| title(place)).collect();
            let _ = write!(page, "Also at {}.\n\n", others.join(", "));
        }
        page.push_str("| field | what it is | type | default | example |\n|---|---|---|---|---|\n");
        for field in &self.fields {
            let kind = match &field.leads_to {
                Some(place) => format!("[{}](#{})", field.kind, anchor(place)),
                None => field.kind.clone(),
            };
            let example = self.example(&field.name, examples).unwrap_or_else(|| {
                missing.push(title(&[first.as_slice(), &[Step::Field(field.name.clone())]].concat()));
                String::new()
            });
            let place = title(&[first.as_slice(), &[Step::Field(field.name.clone())]].concat());
            assert!(!field.about.is_empty(), "{place}: say in a doc comment what it is");
            assert!(
                example != "below" || field.leads_to.is_some(),
                "{place}: its examples are too long for a table"
            );
            let cells =
                [format!("`{}`", field.name), field.about.clone(), kind, field.default.clone(), example];
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
    }

    /// The shortest value that a policy gives the field, wherever the object may be.
    fn example(&self, field: &str, examples: &[(String, Value)]) -> Option<String> {
        let mut found = BTreeSet::new();
        for (_, policy) in examples {
            for place in &self.places {
                for object in at(policy, place) {
                    found.extend(object.get(field).map(|value| (flow(value).len(), flow(value))));
                }
            }
        }
        // The longest that fits a line tells more than `{}`.
        let fitting = found.iter().rev().find(|(length, _)| *length <= MOST_OF_AN_EXAMPLE);
        let (length, text) = fitting.or_else(|| found.first())?;
        // What is longer is an object, whose fields have examples of their own.
        Some(if *length <= MOST_OF_AN_EXAMPLE { format!("`{text}`") } else { "below".to_owned() })
    }
}

/// Characters of an example in a line of the table.
const MOST_OF_AN_EXAMPLE: usize = 66;

fn at<'v>(value: &'v Value, place: &[Step]) -> Vec<&'v Value> {
    let Some((step, rest)) = place.split_first() else { return vec![value] };
    let inner: Vec<&Value> = match (step, value) {
        (Step::Field(name), value) => value.get(name).into_iter().collect(),
        (Step::Entries, Value::Array(entries)) => entries.iter().collect(),
        (Step::Names, Value::Object(entries)) => entries.values().collect(),
        (Step::Entries | Step::Names, _) => Vec::new(),
    };
    inner.into_iter().flat_map(|inner| at(inner, rest)).collect()
}

/// A value on one line of YAML.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() || text.contains([':', '"', '{', '[', ',', '#', '*']) => {
            format!("\"{text}\"")
        }
        Value::String(text) => text.clone(),
        Value::Array(entries) => format!("[{}]", entries.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let fields: BTreeMap<&String, &Value> =
                fields.iter().filter(|(_, value)| !value.is_null()).collect();
            let fields: Vec<String> =
                fields.into_iter().map(|(name, value)| format!("{name}: {}", flow(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
