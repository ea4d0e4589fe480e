//! Flags are evaluated as the official provider for Rust evaluates them: whatever the rule, both say the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use filters::flags::{Flags, Reason};
use flagd_evaluation_engine::{FlagParser, Operator};
use open_feature::EvaluationContext;
use proptest::prelude::*;
use serde_json::{Value, json};

const VARIANTS: [&str; 6] = ["on", "off", "true", "false", "1", "2"];

/// The variant that ours says, and that the provider says; `None` for an error, "" for the default.
fn both(targeting: &Value, user: &str) -> (Option<String>, Option<String>) {
    let variants: serde_json::Map<String, Value> =
        VARIANTS.iter().map(|name| ((*name).to_owned(), json!(name))).collect();
    let text = json!({
        "flags": { "a-flag": { "state": "ENABLED", "variants": variants, "defaultVariant": "on", "targeting": targeting } },
        "$evaluators": { "is_alice": { "==": [{ "var": "user" }, "alice"] } },
    })
    .to_string();
    let facts = json!({
        "targetingKey": user, "user": user, "n": 7, "f": 2.5, "yes": true,
        "$flagd": { "flagKey": "a-flag", "timestamp": 1_800_000_000 },
    });
    let said = Flags::read(&text).unwrap().evaluate("a-flag", &facts);
    let ours = match said.reason {
        Reason::Error(_) => None,
        Reason::Default => Some(String::new()),
        Reason::Static | Reason::TargetingMatch | Reason::Disabled => {
            said.variant.map(|name| name.to_string())
        }
    };
    let context = EvaluationContext::default()
        .with_targeting_key(user)
        .with_custom_field("user", user)
        .with_custom_field("n", 7_i64)
        .with_custom_field("f", 2.5_f64)
        .with_custom_field("yes", true);
    let flag = FlagParser::parse_string(&text).unwrap().flags.remove("a-flag").unwrap();
    let theirs = Operator::new().apply("a-flag", &flag.get_targeting(), &context).unwrap();
    let theirs = match theirs {
        None => Some(String::new()),
        Some(name) => VARIANTS.contains(&name.as_str()).then_some(name),
    };
    (ours, theirs)
}

#[test]
fn rules_of_the_documentation_are_evaluated_alike() {
    for rule in [
        json!({ "if": [{ "ends_with": [{ "var": "user" }, "ice"] }, "off", "on"] }),
        json!({ "if": [{ "$ref": "is_alice" }, "off"] }),
        json!({ "fractional": [["on", 50], ["off", 50]] }),
        json!({ "fractional": [["on", 25], ["off", 25], ["true", 25], ["1", 25]] }),
        json!({ "fractional": [["on"], ["off"], ["true"]] }),
        json!({ "fractional": [{ "var": "user" }, ["on", 1], ["off", 999]] }),
        json!({ "fractional": [{ "cat": [{ "var": "$flagd.flagKey" }, { "var": "user" }] }, ["on", 1], ["off", 1]] }),
        json!({ "fractional": [{ "var": "n" }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "-": [{ "var": "n" }, 700] }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "var": "yes" }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "var": "nobody" }, ["on", 1], ["off", 1]] }),
        json!({ "fractional": [["on", -1], ["off", 0]] }),
        json!({ "fractional": [["on", 1.5], ["off", 2]] }),
        json!({ "if": [{ "sem_ver": ["2.1.0", ">", "2.0.9"] }, "off"] }),
        json!({ "if": [{ "sem_ver": ["2.1.0-rc.1", ">=", "2.1.0"] }, "off"] }),
        json!({ "if": [{ "sem_ver": ["2.1.0", "~", "2.1.9"] }, "off"] }),
        json!({ "if": [{ "sem_ver": ["x", ">", "2.0.9"] }, "off"] }),
        json!({ "if": [{ "<=": [1, { "var": "n" }, 7] }, "off"] }),
        json!({ "if": [{ "in": [{ "var": "user" }, ["alice", "bob"]] }, "off"] }),
    ] {
        for user in
            ["alice", "bob", "u-1", "u-2", "u-3", "ünïcödé", "a-user-whose-name-is-longer-than-twenty-four"]
        {
            let (ours, theirs) = both(&rule, user);
            assert_eq!(ours, theirs, "{rule} {user}");
        }
    }
}

fn rules() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        prop::sample::select(&VARIANTS[..]).prop_map(Value::from),
        prop::sample::select(&["user", "n", "yes", "nobody"][..]).prop_map(|name| json!({ "var": name })),
        (-3_i64..9).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(&["alice", "7", "", "2.1.0"][..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        let of = |names: &'static [&'static str], count: std::ops::Range<usize>| {
            (prop::sample::select(names), prop::collection::vec(inner.clone(), count))
                .prop_map(|(name, arguments)| json!({ name: arguments }))
        };
        prop_oneof![
            of(&["if", "and", "or"], 1..4),
            of(&["===", "!==", "in", "starts_with", "ends_with"], 2..3),
            of(&["!", "!!"], 1..2),
            of(&["cat"], 1..4),
            (prop::sample::select(&["<", "<=", ">", ">=", "==", "!="][..]), -3_i64..9)
                .prop_map(|(name, number)| json!({ name: [{ "var": "n" }, number] })),
            (inner.clone(), 0_u32..9, 0_u32..9)
                .prop_map(|(by, one, other)| json!({ "fractional": [by, ["on", one], ["off", other]] })),
            (0_u32..9, 0_u32..9).prop_map(|(one, other)| json!({ "fractional": [["1", one], ["2", other]] })),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_rule_is_evaluated_alike(rule in rules(), user in "[a-z]{0,30}") {
        // A rule that is a bare value is a name, and none but text is one to the provider.
        let rule = json!({ "if": [true, rule] });
        let (ours, theirs) = both(&rule, &user);
        prop_assert_eq!(ours, theirs, "{}", rule);
    }

    /// Whatever the file, it is read or refused.
    #[test]
    fn no_file_is_too_strange(text in ".{0,200}") {
        let _ = Flags::read(&text);
        let flag = json!({ "flags": { "f": { "state": "ENABLED", "variants": { "on": 1 }, "targeting": text } } });
        let _ = Flags::read(&flag.to_string());
    }
}
