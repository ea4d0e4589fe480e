//! Flags are evaluated as the official provider for Rust evaluates them: both say the same, but where that is meant.

use std::sync::Arc;

use filters::flags::{Flags, Reason};
use flagd_evaluation_engine::{FlagParser, Operator};
use open_feature::{EvaluationContext, EvaluationContextFieldValue, StructValue};
use proptest::prelude::*;
use serde_json::{Value, json};

const VARIANTS: [&str; 6] = ["on", "off", "true", "false", "1", "2"];

/// The variant that ours says, and that the provider says; `None` for an error, "" for the default. Whatever the
/// provider says is a variant, if it can be the name of one: both must say the same then.
fn both(targeting: &Value, user: &str) -> (Option<String>, Option<String>) {
    let flag = json!({ "state": "ENABLED", "variants": { "on": "" }, "defaultVariant": "on", "targeting": targeting });
    let evaluators = json!({ "is_alice": { "==": [{ "var": "user" }, "alice"] } });
    let mut text = json!({ "flags": { "a-flag": flag }, "$evaluators": evaluators });
    let card = StructValue::default().with_field("of", user).with_field("kind", "rupay").with_field("f", 0.1);
    let context = EvaluationContext::default()
        .with_targeting_key(user)
        .with_custom_field("user", user)
        .with_custom_field("n", 7_i64)
        .with_custom_field("f", 2.5_f64)
        .with_custom_field("yes", true)
        .with_custom_field("empty", "")
        .with_custom_field("card", EvaluationContextFieldValue::Struct(Arc::new(card)));
    let flag = FlagParser::parse_string(&text.to_string()).unwrap().flags.remove("a-flag").unwrap();
    let theirs = Operator::new().apply("a-flag", &flag.get_targeting(), &context);
    let more = theirs.iter().flatten().map(String::as_str);
    let variants: serde_json::Map<String, Value> =
        VARIANTS.into_iter().chain(more).map(|name| (name.to_owned(), json!(""))).collect();
    text["flags"]["a-flag"]["variants"] = variants.into();
    let Ok(flags) = Flags::read(&text.to_string()) else { return (None, None) };
    let facts = json!({
        "targetingKey": user, "user": user, "n": 7, "f": 2.5, "yes": true, "empty": "",
        "card": { "of": user, "kind": "rupay", "f": 0.1 },
        "$flagd": { "flagKey": "a-flag", "timestamp": 1_800_000_000 },
    });
    let said = flags.evaluate("a-flag", &facts);
    let ours = match said.reason {
        Reason::Error(_) => None,
        Reason::Default => Some(String::new()),
        Reason::Static | Reason::TargetingMatch | Reason::Disabled => {
            said.variant.map(|name| name.to_string())
        }
    };
    (ours, theirs.ok().map(Option::unwrap_or_default))
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
        json!({ "fractional": [{ "var": "f" }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "/": [{ "var": "n" }, 300] }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "/": [{ "var": "n" }, 16777216] }, ["on", 1], ["off", 1], ["true", 1]] }),
        json!({ "fractional": [{ "var": "card" }, ["on", 1], ["off", 1], ["true", 1], ["false", 1], ["1", 1], ["2", 1]] }),
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

/// Where the provider departs from jsonlogic.com or semver.org, or makes something of what is not there. The README names
/// these.
#[test]
fn they_differ_on_purpose() {
    let is = |rule: Value, text: &str| json!({ "===": [rule, text] });
    for (rule, ours, theirs) in [
        // No number is worth none, and has no place before or behind another.
        (json!({ "+": [{ "var": "nobody" }, 1] }), Some(""), Some("1")),
        (json!({ "*": [true, 2] }), Some(""), Some("2")),
        (json!({ "-": ["x", 1] }), Some(""), None),
        (json!({ "/": [1, 0] }), Some(""), None),
        (json!({ "max": [true, 0] }), Some("1"), None),
        (json!({ "<": ["x", 1] }), Some("false"), None),
        (json!({ "==": ["x", 1] }), Some("false"), None),
        (json!({ "==": [[1], 1] }), Some("false"), None),
        // Nothing is nothing else.
        (json!({ "==": [{ "var": "nobody" }, 0] }), Some("false"), Some("true")),
        (is(joined(&json!({ "merge": [[1], { "var": "nobody" }] })), "|1|"), Some("true"), Some("false")),
        (is(joined(&json!({ "missing": ["empty"] })), "|empty"), Some("true"), Some("false")),
        // What is no list has no elements.
        (json!({ "some": [{ "var": "card" }, true] }), Some("false"), Some("true")),
        (is(joined(&json!({ "map": ["x", 1] })), ""), Some("true"), Some("false")),
        // A list is written with commas.
        (is(json!({ "cat": [[1, 2]] }), "1,2"), Some("true"), Some("false")),
        // Of the versions.
        (json!({ "sem_ver": ["2.1.0+b", "=", "2.1.0+a"] }), Some("true"), Some("false")),
        (json!({ "sem_ver": ["v2.1", ">=", "2.0.0"] }), Some("true"), Some("")),
    ] {
        let (mine, provided) = both(&json!({ "if": [true, rule] }), "alice");
        assert_eq!((mine.as_deref(), provided.as_deref()), (ours, theirs), "{rule}");
    }
}

/// One of these operators, with as many of these.
fn call(
    names: &'static [&'static str],
    arguments: &BoxedStrategy<Value>,
    count: std::ops::Range<usize>,
) -> BoxedStrategy<Value> {
    (prop::sample::select(names), prop::collection::vec(arguments.clone(), count))
        .prop_map(|(name, arguments)| json!({ name: arguments }))
        .boxed()
}

/// One of these operators of a list, and what it does with each element, which is a number.
fn over(
    names: &'static [&'static str],
    lists: &BoxedStrategy<Value>,
    of_each: &BoxedStrategy<Value>,
) -> BoxedStrategy<Value> {
    (prop::sample::select(names), lists.clone(), of_each.clone())
        .prop_map(|(name, list, rule)| json!({ name: [list, rule] }))
        .boxed()
}

const FACTS: [&str; 2] = ["n", "f"];
const ELEMENT: [&str; 1] = [""];
const COMPARES: [&str; 8] = ["<", "<=", ">", ">=", "==", "!=", "===", "!=="];

/// Numbers, of the facts or of an element.
fn numbers(names: &'static [&'static str]) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        (-9_i64..99).prop_map(Value::from),
        prop::sample::select(names).prop_map(|name| json!({ "var": name })),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        let inner = inner.boxed();
        prop_oneof![
            call(&["+", "max", "min"], &inner, 2..4),
            call(&["-"], &inner, 1..3),
            // No number is beyond 2^53.
            (inner.clone(), -3_i64..9).prop_map(|(number, by)| json!({ "*": [number, by] })),
            // Nothing is rounded: in which order fractions are summed up is seen in their last digit.
            (prop::sample::select(&["/", "%"][..]), inner, prop::sample::select(&[1, 2, 4, 8][..]))
                .prop_map(|(name, number, by)| json!({ name: [number, by] })),
        ]
    })
    .boxed()
}

/// Lists of numbers.
fn lists() -> BoxedStrategy<Value> {
    let leaf = prop::collection::vec(numbers(&FACTS), 0..4).prop_map(Value::from);
    leaf.prop_recursive(3, 12, 3, |inner| {
        let inner = inner.boxed();
        let test = call(&COMPARES, &numbers(&ELEMENT), 2..3);
        prop_oneof![
            over(&["map"], &inner, &numbers(&ELEMENT)),
            over(&["filter"], &inner, &test),
            call(&["merge"], &prop_oneof![inner, numbers(&FACTS)].boxed(), 1..4),
        ]
    })
    .boxed()
}

/// The elements of a list, and something more, as one number.
fn sum(list: &Value, more: &Value) -> Value {
    json!({ "reduce": [list, { "+": [{ "var": "current" }, { "var": "accumulator" }] }, more] })
}

/// The elements of a list as one text.
fn joined(list: &Value) -> Value {
    let text = json!({ "cat": [{ "var": "accumulator" }, "|", { "var": "current" }] });
    json!({ "reduce": [list, text, ""] })
}

/// Rules that say a number, a text, a truth or nothing.
fn rules() -> BoxedStrategy<Value> {
    let names = prop::sample::select(&["user", "n", "yes", "nobody"][..]);
    let leaf = prop_oneof![
        prop::sample::select(&VARIANTS[..]).prop_map(Value::from),
        names.clone().prop_map(|name| json!({ "var": name })),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(&["alice", "7", "", "2.1.0"][..]).prop_map(Value::from),
        numbers(&FACTS),
    ];
    let test = call(&COMPARES, &numbers(&ELEMENT), 2..3);
    let texts = prop_oneof![
        Just(json!({ "var": "user" })),
        prop::sample::select(&["", "a", "alice", "b", "7", "2.1.0"][..]).prop_map(Value::from),
    ]
    .boxed();
    // But no text, for an empty one is missing to us alone.
    let there = prop::sample::select(&["n", "f", "yes", "nobody", "card.kind", "card.none"][..]);
    let version = || {
        (0_u8..3, 0_u8..3, 0_u8..3, prop::sample::select(&["", "-rc.1", "-rc.2", "-a"][..]))
            .prop_map(|(major, minor, patch, rest)| format!("{major}.{minor}.{patch}{rest}"))
    };
    let orders = prop::sample::select(&["=", "!=", "<", "<=", ">", ">=", "^", "~", "?"][..]);
    leaf.prop_recursive(4, 40, 4, move |inner| {
        let inner = inner.boxed();
        prop_oneof![
            call(&["if", "and", "or"], &inner, 1..4),
            call(&["===", "!==", "in", "starts_with", "ends_with"], &inner, 2..3),
            call(&["!", "!!"], &inner, 1..2),
            call(&["cat"], &inner, 1..4),
            call(&COMPARES, &numbers(&FACTS), 2..3),
            call(&["<", "<=", ">", ">="], &numbers(&FACTS), 3..4),
            call(&COMPARES, &texts, 2..3),
            (inner.clone(), -9_i64..9, prop::option::of(-9_i64..9)).prop_map(|(text, from, length)| {
                let arguments: Vec<Value> = [json!({ "cat": [text] }), json!(from)]
                    .into_iter()
                    .chain(length.map(Value::from))
                    .collect();
                json!({ "substr": arguments })
            }),
            (version(), orders.clone(), version())
                .prop_map(|(one, order, other)| json!({ "sem_ver": [one, order, other] })),
            over(&["all", "some", "none"], &lists(), &test),
            lists().prop_map(|list| joined(&list)),
            (lists(), numbers(&FACTS)).prop_map(|(list, more)| sum(&list, &more)),
            (numbers(&FACTS), lists()).prop_map(|(number, list)| json!({ "in": [number, list] })),
            prop::collection::vec(there.clone(), 0..4).prop_map(|names| joined(&json!({ "missing": names }))),
            (0_u8..4, prop::collection::vec(there.clone(), 0..4))
                .prop_map(|(least, names)| joined(&json!({ "missing_some": [least, names] }))),
            (inner, 0_u32..9, 0_u32..9)
                .prop_map(|(by, one, other)| json!({ "fractional": [by, ["on", one], ["off", other]] })),
            (0_u32..9, 0_u32..9).prop_map(|(one, other)| json!({ "fractional": [["1", one], ["2", other]] })),
        ]
    })
    .boxed()
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
