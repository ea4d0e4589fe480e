//! What files of flags mean, and what is said of those that mean nothing.

use serde_json::{Value, json};

use super::*;

fn read(text: &str) -> Result<Flags, String> {
    Flags::read(text).map_err(|mistakes| mistakes.join("\n"))
}

/// One flag, whose targeting this is, with the variants `on` (the default), `off`, `true` and `1`.
fn with(targeting: &Value) -> String {
    let variants = json!({ "on": "a", "off": "b", "true": "c", "1": "d", "other": "e" });
    let flag =
        json!({ "state": "ENABLED", "variants": variants, "defaultVariant": "on", "targeting": targeting });
    json!({ "flags": { "f": flag }, "$evaluators": { "is_alice": { "==": [{ "var": "user" }, "alice"] } } })
        .to_string()
}

fn facts() -> Value {
    json!({
        "targetingKey": "alice", "user": "alice", "tenant": "acme", "scopes": ["pay", "read"], "app": "2.10.3",
        "n": 7, "nothing": null, "deep": { "list": [1, 2, 3] }, "$flagd": { "flagKey": "f", "timestamp": 1_800_000_000 },
    })
}

#[test]
fn targeting_says_which_variant() {
    for (targeting, expected) in [
        (json!(null), "on"),
        (json!({}), "on"),
        (json!("off"), "off"),
        (json!(true), "true"),
        (json!(1), "1"),
        (json!([1]), "GENERAL"),
        (json!("nowhere"), "GENERAL"),
        (json!({ "if": [false, "off"] }), "on"),
        (json!({ "if": [{ "==": [{ "var": "user" }, "alice"] }, "off", "other"] }), "off"),
        (
            json!({ "if": [{ "==": [{ "var": "user" }, "bob"] }, "off", { "$ref": "is_alice" }, "other"] }),
            "other",
        ),
        (json!({ "if": [{ "in": ["pay", { "var": "scopes" }] }, "off"] }), "off"),
        (json!({ "if": [{ "in": ["lic", { "var": "user" }] }, "off"] }), "off"),
        (json!({ "if": [{ "sem_ver": [{ "var": "app" }, ">=", "2.9"] }, "off"] }), "off"),
        (json!({ "if": [{ "sem_ver": [{ "var": "app" }, "^", "v2"] }, "off"] }), "off"),
        (json!({ "if": [{ "sem_ver": [{ "var": "app" }, "~", "2.9.0"] }, "off"] }), "on"),
        (json!({ "if": [{ "sem_ver": [{ "var": "user" }, ">=", "2.9"] }, "off"] }), "on"),
        (json!({ "if": [{ "sem_ver": ["2.1.0+b", "=", "2.1.0+a"] }, "off"] }), "off"),
        (json!({ "if": [{ "sem_ver": ["2.1.0+b", ">", "2.1.0+a"] }, "off"] }), "on"),
        (json!({ "if": [{ "sem_ver": ["2.1.0+a", "<=", "2.1"] }, "off"] }), "off"),
        (json!({ "if": [{ "starts_with": [{ "var": "user" }, "al"] }, "off"] }), "off"),
        (json!({ "if": [{ "ends_with": [{ "var": "n" }, "7"] }, "off"] }), "on"),
        (
            json!({ "if": [{ "<": [1_700_000_000, { "var": "$flagd.timestamp" }, 1_900_000_000] }, "off"] }),
            "off",
        ),
        (json!({ "if": [{ "<": [5, { "var": "n" }, 6] }, "off"] }), "on"),
        (json!({ "if": [{ "missing": ["user", "nobody"] }, "off"] }), "off"),
        (json!({ "if": [{ "missing_some": [1, ["user", "nobody"]] }, "off"] }), "on"),
        (json!({ "if": [{ "all": [{ "var": "deep.list" }, { ">": [{ "var": "" }, 0] }] }, "off"] }), "off"),
        (json!({ "if": [{ "some": [{ "var": "deep.list" }, { ">": [{ "var": "" }, 3] }] }, "off"] }), "on"),
        (json!({ "if": [{ "none": [{ "var": "nothing" }, true] }, "off"] }), "off"),
        (
            json!({ "cat": [{ "-": [{ "reduce": [
            { "map": [{ "var": "deep.list" }, { "*": [{ "var": "" }, 2] }] },
            { "+": [{ "var": "current" }, { "var": "accumulator" }] }, 0] }, 11] }] }),
            "1",
        ),
        (json!({ "substr": ["an offer", 3, 3] }), "off"),
        (json!({ "substr": ["an offer", -5, -2] }), "off"),
        (json!({ "or": [0, "", [], { "var": "x" }, "off"] }), "off"),
        (json!({ "and": ["yes", "off"] }), "off"),
        (json!({ "var": ["nobody", "off"] }), "off"),
        (json!({ "!!": "0" }), "true"),
        (json!({ "==": ["7", { "var": "n" }] }), "true"),
        (json!({ "if": [{ "===": ["7", { "var": "n" }] }, "off"] }), "on"),
        (json!({ "%": [{ "max": [3, { "var": "n" }] }, 2] }), "1"),
        (json!({ "fractional": [["off", 100], ["other", 0]] }), "off"),
        (json!({ "fractional": [{ "var": "nobody" }, ["off", 100]] }), "on"),
        (json!({ "fractional": [{ "cat": ["x", { "var": "user" }] }, ["off"], ["off"]] }), "off"),
    ] {
        let flags = read(&with(&targeting)).unwrap();
        let Evaluation { variant, reason } = flags.evaluate("f", &facts());
        let said = match reason {
            Reason::Error(code) => code.name(),
            _ => variant.as_deref().unwrap_or("nothing"),
        };
        assert_eq!(said, expected, "{targeting}");
    }
}

#[test]
fn every_flag_says_why() {
    let text = json!({
        "$schema": "https://flagd.dev/schema/v0/flags.json", "metadata": { "flagSetId": "edge" },
        "flags": {
            "static": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" },
            "bare": { "state": "ENABLED", "variants": { "on": true } },
            "dark": { "state": "DISABLED", "variants": { "on": true }, "defaultVariant": "on", "targeting": "on" },
            "some": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
                "targeting": { "if": [{ "==": [{ "var": "user" }, "alice"] }, "on"] }, "metadata": { "owner": "payments" } },
            "wrong": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on", "targeting": "offf" },
        },
    });
    let flags = read(&text.to_string()).unwrap();
    for (flag, user, variant, reason) in [
        ("static", "alice", Some("off"), "STATIC"),
        ("bare", "alice", None, "STATIC"),
        ("dark", "alice", None, "DISABLED"),
        ("some", "alice", Some("on"), "TARGETING_MATCH"),
        ("some", "bob", Some("off"), "DEFAULT"),
        ("wrong", "alice", None, "ERROR"),
        ("nowhere", "alice", None, "ERROR"),
    ] {
        let said = flags.evaluate(flag, &json!({ "user": user }));
        assert_eq!((said.variant.as_deref(), said.reason.name()), (variant, reason), "{flag} {user}");
    }
}

#[test]
fn what_cannot_be_meant_is_told() {
    let flag = |text: &str| format!(r#"{{ "flags": {{ "f": {text} }} }}"#);
    let targeting = |text: &str| {
        flag(&format!(r#"{{ "state": "ENABLED", "variants": {{ "on": true }}, "targeting": {text} }}"#))
    };
    let deep = format!("{}true{}", r#"{"!":["#.repeat(45), "]}".repeat(45));
    for (text, expected) in [
        ("{".to_owned(), "it ends too early (line 1, column 1)"),
        ("{}".to_owned(), "it needs `flags`"),
        ("[]".to_owned(), "an object belongs here (line 1, column 0)"),
        (r#"{ "flags": 1 }"#.to_owned(), "an object belongs here (line 1, column 12)"),
        (r#"{ "flags": {} } x"#.to_owned(), "this is not JSON: trailing characters (line 1, column 17)"),
        (flag("1"), "flag `f`: an object belongs here"),
        (flag(r#"{ "state": 1 }"#), "flag `f`: a text belongs here"),
        (flag(r#"{ "state": "ENABLED", "variants": {}, "defaultVariant": 1 }"#), "flag `f`: a text belongs here"),
        (r#"{ "flags": {}, "flag": {} }"#.to_owned(), "unknown field `flag`; did you mean `flags`?"),
        (
            r#"{ "flags": {}, "x": {} }"#.to_owned(),
            "unknown field `x`; known: flags, $evaluators, metadata",
        ),
        (r#"{ "flags": { "f": {}, "f": {} } }"#.to_owned(), "a name is written twice in one object, or objects lie too deep in each other"),
        (flag("{}"), "flag `f`: it needs `state`"),
        (
            flag(r#"{ "state": "ON", "variants": { "on": true } }"#),
            "flag `f`: `ON` is none of ENABLED",
        ),
        (flag(r#"{ "state": "ENABLED", "variants": {} }"#), "flag `f`: it has one to 64 `variants`"),
        (
            flag(r#"{ "state": "ENABLED", "variants": { "on": true, "off": "no" } }"#),
            "its `variants` are all booleans, all strings, all numbers or all objects",
        ),
        (flag(r#"{ "state": "ENABLED", "variants": { "on": null } }"#), "all booleans, all strings"),
        (
            flag(r#"{ "state": "ENABLED", "variants": { "a b": true } }"#),
            "variant `a b`: a name is 1 to 128 visible",
        ),
        (
            r#"{ "flags": { "": { "state": "ENABLED", "variants": { "on": true } } } }"#.to_owned(),
            "a name is 1 to 128",
        ),
        (
            flag(r#"{ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "no" }"#),
            "flag `f`: there is no variant `no`; known: on",
        ),
        (
            flag(r#"{ "state": "ENABLED", "variants": { "on": true }, "defaultVaraint": "on" }"#),
            "did you mean `defaultVariant`?",
        ),
        (targeting(r#"{ "iff": [] }"#), "flag `f`: targeting: there is no operator `iff`"),
        (
            targeting(r#"{ "starts_wiht": [] }"#),
            "there is no operator `starts_wiht`; did you mean `starts_with`?",
        ),
        (targeting(r#"{ "$ref": "x" }"#), "there is no evaluator `x`"),
        (targeting(r#"{ "$ref": 1 }"#), "`$ref` is the name of an evaluator"),
        (targeting(&deep), "at most 40 lie in each other"),
        (
            // Each refers to the one before it twice.
            json!({
                "$evaluators": (0..20).map(|number| match number {
                    0 => ("0".to_owned(), json!("on")),
                    _ => (number.to_string(), json!({ "or": [{ "$ref": (number - 1).to_string() }, { "$ref": (number - 1).to_string() }] })),
                }).collect::<serde_json::Map<_, _>>(),
                "flags": { "f": { "state": "ENABLED", "variants": { "on": true }, "targeting": { "$ref": "19" } } },
            })
            .to_string(),
            "a rule has at most 2000 parts, of which at most 40 lie in each other",
        ),
        (
            r#"{ "$evaluators": { "a": { "$ref": "b" }, "b": { "!": [{ "$ref": "a" }] } }, "flags": { "f": {
                "state": "ENABLED", "variants": { "on": true }, "targeting": { "$ref": "a" } } } }"#
                .to_owned(),
            "the evaluator `a` refers to itself",
        ),
    ] {
        let told = read(&text).err().unwrap_or_default();
        assert!(told.contains(expected), "{text}: {told}");
    }
    let many: serde_json::Map<String, Value> = (0..=Flags::MOST)
        .map(|number| (number.to_string(), json!({ "state": "ENABLED", "variants": { "on": true } })))
        .collect();
    assert!(
        read(&json!({ "flags": many }).to_string()).unwrap_err().contains("there are more than 1000 flags")
    );
    assert!(
        read(&" ".repeat(Flags::MOST_BYTES + 1))
            .unwrap_err()
            .contains("a file of flags is at most 1048576 bytes")
    );
}

#[test]
fn senders_are_shared_out_by_weight_and_stay_where_they_are() {
    for (rule, expected) in [
        (json!({ "fractional": [["on", 50], ["off", 50]] }), 500),
        (json!({ "fractional": [["on", 1], ["off", 9]] }), 100),
        (
            json!({ "fractional": [{ "cat": ["salt", { "var": "targetingKey" }] }, ["on", 3], ["off", 1]] }),
            750,
        ),
    ] {
        let flags = read(&with(&rule)).unwrap();
        let said = |number: u32| {
            let facts = json!({ "targetingKey": format!("half-{number}"), "$flagd": { "flagKey": "f" } });
            flags.evaluate("f", &facts)
        };
        let on = (0..1_000).filter(|number| said(*number).variant.as_deref() == Some("on")).count();
        assert!(on.abs_diff(expected) < 45, "{rule}: {on}");
        assert_eq!(said(7), said(7));
    }
}

#[test]
fn a_rule_that_would_take_too_long_says_nothing() {
    let list = |count: usize| vec![1; count];
    let accumulator = json!({ "var": "accumulator" });
    let long = "x".repeat(100_000);
    for rule in [
        json!({ "map": [list(200), { "map": [list(200), { "+": [{ "var": "" }, 1] }] }] }),
        json!({ "all": [list(200), { "all": [list(200), true] }] }),
        // What is small in the file, and large when it is evaluated.
        json!({ "reduce": [list(24), { "cat": [accumulator, accumulator] }, "x"] }),
        json!({ "reduce": [list(24), { "merge": [accumulator, accumulator] }, [1]] }),
        json!({ "reduce": [list(1_000), { "merge": [accumulator, [1]] }, []] }),
        json!({ "map": [list(1_000), long] }),
        json!({ "map": [list(1_000), [long, { "var": "n" }]] }),
        json!({ "filter": [{ "map": [list(30), { "cat": [long, 1] }] }, true] }),
        // What takes long and makes nothing.
        json!({ "map": [list(1_000), { "in": ["y", long] }] }),
        json!({ "map": [list(1_000), { "in": [2, list(900)] }] }),
        json!({ "map": [list(1_000), { "==": [long, long] }] }),
        // What is too deep to walk through.
        json!({ "reduce": [list(1_000), [accumulator], 1] }),
        json!({ "reduce": [list(1_000), { "var": "" }, 1] }),
        json!({ "reduce": [list(1_000), { "map": [[accumulator], { "var": "" }] }, 1] }),
    ] {
        // Whatever it says, it would be a variant.
        let flags = read(&with(&json!({ "if": [{ "!!": [rule] }, "off", "other"] }))).unwrap();
        assert_eq!(flags.evaluate("f", &facts()), Evaluation::error(ErrorCode::General), "{rule:.200}");
    }
    // What people write is far from that.
    let users: Vec<String> = (0..1_500).map(|number| format!("a-user-of-some-name-{number}")).collect();
    let flags =
        read(&with(&json!({ "if": [{ "in": [{ "var": "user" }, users] }, "off", "other"] }))).unwrap();
    assert_eq!(flags.evaluate("f", &facts()).variant.as_deref(), Some("other"));
}

/// However many rules refer to it.
#[test]
fn an_evaluator_is_there_once() {
    let flag = json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": { "$ref": "a" } });
    let all: serde_json::Map<String, Value> = (0..100).map(|key| (key.to_string(), flag.clone())).collect();
    let a = json!({ "if": [{ "in": [{ "var": "user" }, ["alice", "bob"]] }, { "$ref": "b" }] });
    let flags = read(&json!({ "$evaluators": { "a": a, "b": "on" }, "flags": all }).to_string()).unwrap();
    let Some(logic::Rule::Shared(evaluator)) = &flags.get("7").unwrap().targeting else {
        panic!("it is not shared")
    };
    assert_eq!(std::sync::Arc::strong_count(evaluator), 100);
    assert_eq!(flags.evaluate("7", &facts()).variant.as_deref(), Some("on"));
}

#[test]
fn what_has_changed_is_told() {
    let flag = |text: Value| read(&json!({ "flags": { "f": text } }).to_string()).unwrap();
    let one = flag(json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": { "!": [1] } }));
    for (other, expected) in [
        (json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": { "!": [1] } }), &[][..]),
        (json!({ "state": "DISABLED", "variants": { "on": true }, "targeting": { "!": [1] } }), &["state"]),
        (
            json!({ "state": "ENABLED", "variants": { "on": false }, "defaultVariant": "on" }),
            &["variants", "defaultVariant", "targeting"],
        ),
    ] {
        let told = one.get("f").unwrap().changed(flag(other.clone()).get("f").unwrap());
        assert_eq!(told, expected, "{other}");
    }
}
