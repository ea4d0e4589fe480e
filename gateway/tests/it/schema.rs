//! `gateway/policy.schema.json` is what `gateway schema` prints, takes every policy that we have, and tells an editor of the
//! mistakes that a schema can tell.

use std::path::{Path, PathBuf};

use filters::FilterSet;
use filters::policy::{Policy, Secret};
use serde_json::Value;

#[test]
fn the_file_is_the_schema() {
    let path = here().join("policy.schema.json");
    let schema = gateway::schema::text() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, schema).unwrap();
    } else {
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            schema == written,
            "gateway/policy.schema.json is stale: UPDATE=1 cargo test -p gateway schema"
        );
    }
}

#[test]
fn every_policy_of_ours_is_by_the_schema() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(here().join("policies")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 1);
    files.push(here().join("../tests/stack/config/edge.yaml"));
    for file in files {
        let complaint = complaint(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(complaint, None, "{}", file.display());
    }
}

const SMALL: &str = r#"
listeners: [{ name: edge, address: "127.0.0.1:0", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }]
admin: { address: "127.0.0.1:1" }
upstreams:
  core:
    addresses: ["127.0.0.1:2"]
    tls: { server_name: core.test, ca: "file:ca.pem", certificate: "file:core.pem", key: "file:core.key" }
filters: { shape: {} }
routes:
  - { name: open, methods: [GET], path: /v1/open, upstream: core, timeout_ms: 900 }
"#;

/// Whatever the schema does not take, `check` does not either.
#[test]
fn mistakes_are_not_by_the_schema() {
    assert_eq!(complaint(SMALL), None);
    for (from, to, expected) in [
        ("shape:", "shap:", "'/filters'"),
        ("path:", "paths:", "'/routes/0'"),
        ("methods: [GET],", "", "'/routes/0'"),
        ("[GET]", "[]", "'/routes/0/methods'"),
        ("[GET]", "[get]", "'/routes/0/methods/0'"),
        ("[GET]", "[FETCH]", "'/routes/0/methods/0'"),
        ("[GET]", "GET", "'/routes/0/methods'"),
        ("timeout_ms:", "except: [shap], timeout_ms:", "'/routes/0/except/0'"),
        ("timeout_ms: 900", "timeout_ms: -1", "'/routes/0/timeout_ms'"),
        ("timeout_ms: 900", "timeout_ms: long", "'/routes/0/timeout_ms'"),
        ("shape: {}", "client_cert: { mode: maybe }", "'/filters/client_cert"),
        ("\"file:edge.key\"", "\"a key\"", "'/listeners/0/tls/key'"),
        ("admin: {", "admins: {", "''"),
        ("timeout_ms: 900", "timeout_ms:", "'/routes/0/timeout_ms'"),
        ("timeout_ms:", "filters:, timeout_ms:", "'/routes/0/filters'"),
        ("timeout_ms:", "deprecated:, timeout_ms:", "'/routes/0/deprecated'"),
        ("filters: { shape: {} }", "filters: { shape: , jwt: {} }", "'/filters/shape'"),
    ] {
        assert!(SMALL.contains(from), "the case for {to:?} changes nothing");
        let text = SMALL.replacen(from, to, 1);
        let complaint = complaint(&text).unwrap_or_default();
        assert!(complaint.contains(expected), "{to}: expected {expected} in {complaint}");
        assert!(Policy::read(&text, &|_| Ok(Secret::LATER)).is_err(), "{to}: `check` takes it");
    }
}

/// Nothing may be left empty, so no editor offers that, nor writes it as a default.
#[test]
fn nothing_is_null() {
    let schema = gateway::schema::text();
    assert!(!schema.contains("null"), "{}", schema.lines().find(|line| line.contains("null")).unwrap());
}

/// The names that an editor offers are those that `check` takes, one and all.
#[test]
fn methods_and_filters_are_those_that_check_knows() {
    let schema: Value = serde_json::from_str(&gateway::schema::text()).unwrap();
    let offered = |field: &str| {
        let names = &schema["$defs"]["Route"]["properties"][field]["items"]["enum"];
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = |text: String| {
        let mistakes = Policy::read(&text, &|_| Ok(Secret::LATER)).unwrap_err();
        mistakes.into_iter().map(|mistake| mistake.message).collect::<Vec<_>>().join("\n")
    };
    let methods = offered("methods");
    let known = told(SMALL.replace("[GET]", "[XXXXXXXX]"));
    let known = known.split_once("known: ").map(|(_, known)| known.lines().next());
    assert_eq!(known, Some(Some(methods.join(", ").as_str())));
    let filters = offered("except");
    assert_eq!(filters, FilterSet::NAMES);
    for filter in filters.iter().filter(|filter| *filter != "shape") {
        let excepted = told(SMALL.replace("timeout_ms:", &format!("except: [{filter}], timeout_ms:")));
        assert!(excepted.contains("nothing to except"), "{filter}: {excepted}");
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the schema has against a policy. What the development stack chooses is not there yet.
fn complaint(policy: &str) -> Option<String> {
    const NAME: &str = "https://torana.test/policy.schema.json";
    let mut text = policy.to_owned();
    while let Some(begin) = text.find("${") {
        let end = begin + text.get(begin..).and_then(|rest| rest.find('}')).unwrap();
        let value = if text.get(..end).is_some_and(|name| name.ends_with("port")) { "1" } else { "chosen" };
        text.replace_range(begin..=end, value);
    }
    let policy: Value = serde_saphyr::from_str(&text).unwrap();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource(NAME, serde_json::from_str(&gateway::schema::text()).unwrap()).unwrap();
    let mut schemas = boon::Schemas::new();
    let schema = compiler.compile(NAME, &mut schemas).unwrap();
    schemas.validate(&policy, schema).err().map(|why| why.to_string())
}
