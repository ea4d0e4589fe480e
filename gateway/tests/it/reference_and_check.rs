//! The reference and `check` say the same: which fields are required, what their defaults are, and which references may be
//! of the environment.

use std::collections::{BTreeMap, BTreeSet};

use filters::policy::{Policy, Secret};
use gateway::check::{Format, Options, run};
use serde_json::Value;

use crate::reference::{Field, Step, examples, objects, title};

/// What the policy means, or why it cannot be read.
fn read(policy: &Value) -> Result<String, String> {
    let read = Policy::read(&policy.to_string(), &|_| Ok(Secret::LATER));
    read.map(|policy| policy.compiled().unwrap()).map_err(|mistakes| {
        mistakes.iter().map(|mistake| mistake.message.clone()).collect::<Vec<_>>().join("\n")
    })
}

/// Every object at a place of the document, to be changed in turn.
fn each_at(value: &mut Value, place: &[Step], change: &mut dyn FnMut(&mut serde_json::Map<String, Value>)) {
    let Some((step, rest)) = place.split_first() else {
        return value.as_object_mut().into_iter().for_each(change);
    };
    match (step, value) {
        (Step::Field(name), value) => {
            value.get_mut(name).into_iter().for_each(|inner| each_at(inner, rest, change));
        }
        (Step::Entries, Value::Array(entries)) => {
            entries.iter_mut().for_each(|entry| each_at(entry, rest, change));
        }
        (Step::Names, Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| each_at(entry, rest, change));
        }
        (Step::Entries | Step::Names, _) => {}
    }
}

/// Calls back with each example, place and field that is written there.
fn each_field(mut found: impl FnMut(&str, &Value, &[Step], &Field)) {
    let examples = examples();
    for object in objects() {
        for field in &object.fields {
            for place in &object.places {
                for (name, policy) in &examples {
                    let mut is_written = false;
                    each_at(&mut policy.clone(), place, &mut |object| {
                        is_written |= object.contains_key(&field.name);
                    });
                    if is_written {
                        found(name, policy, place, field);
                    }
                }
            }
        }
    }
}

fn changed(policy: &Value, place: &[Step], field: &Field, to: Option<&Value>) -> Value {
    let mut policy = policy.clone();
    each_at(&mut policy, place, &mut |object| match to {
        Some(value) => drop(object.insert(field.name.clone(), value.clone())),
        None => drop(object.remove(&field.name)),
    });
    policy
}

#[test]
fn defaults_are_what_a_policy_means_without_the_field() {
    let mut compared: BTreeMap<&str, usize> = BTreeMap::new();
    each_field(|example, policy, place, field| {
        let at = format!("{example}: {} {}", title(place), field.name);
        let without = read(&changed(policy, place, field, None));
        match field.default.as_str() {
            "required" => {
                assert!(without.is_err(), "{at}: required, and read without it");
                *compared.entry("required").or_default() += 1;
            }
            "absent" => {}
            default => {
                let default: Value =
                    serde_json::from_str(&filters::policy::as_json(default.trim_matches('`')).unwrap())
                        .unwrap();
                let with = read(&changed(policy, place, field, Some(&default)));
                assert_eq!(with, without, "{at}: {default}");
                *compared.entry("default").or_default() += 1;
            }
        }
    });
    assert!(compared["required"] > 50 && compared["default"] > 100, "{compared:?}");
}

#[test]
fn references_may_be_of_the_environment_where_the_page_says_so() {
    const FILES: [&str; 2] = ["must be a file, so that", "must be a `file:`"];
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.yaml");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = BTreeSet::new();
    each_field(|example, policy, place, field| {
        if !["reference", "file"].contains(&field.kind.as_str()) {
            return;
        }
        let of_environment = Value::String("env:TORANA_NO_SUCH_VARIABLE".to_owned());
        let policy = changed(policy, place, field, Some(&of_environment));
        std::fs::write(&file, policy.to_string()).unwrap();
        let options = Options {
            policy: file.clone(),
            deny_warnings: false,
            accept: None,
            without_files: false,
            format: Format::Json,
        };
        let told = run(&options, false).text;
        let must_be_file = told.lines().any(|line| FILES.iter().any(|words| line.contains(words)));
        if must_be_file != (field.kind == "file") {
            wrong.insert(format!("{example}: {} {}, which is a {}", title(place), field.name, field.kind));
        }
        *seen.entry(field.kind.clone()).or_default() += 1;
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen["reference"] >= 5 && seen["file"] >= 15, "{seen:?}");
}
