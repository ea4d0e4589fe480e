//! Whatever is wrong with how a policy is written is told in words for who wrote it, and on the line where it is: every
//! field of the examples has each kind of value that does not belong there, is left out, is left empty, and stands twice.

use std::collections::BTreeSet;
use std::path::Path;

use filters::policy::{Mistake, Policy, Secret, as_json};
use serde_json::{Value, json};

/// Words of the libraries that read policies.
const THEIRS: [&str; 21] = [
    "Option",
    "binary",
    "deserialize",
    "enum ",
    "expected",
    "externally",
    "f32",
    "f64",
    "from_str",
    "i64",
    "invalid",
    "mapping",
    "newtype",
    "scalar",
    "sequence",
    "serde",
    "span",
    "struct",
    "u16",
    "u32",
    "u64",
];
/// What a field never holds that holds something else.
const WRONG: [&str; 11] = [
    "\"ten\"",
    "\"\"",
    "7",
    "-1",
    "1.5",
    "99999999999999999999999999",
    "true",
    "[\"x\"]",
    "[[1]]",
    "{\"zzz\": 1}",
    "{}",
];
const MARK: &str = "\"what stands here\"";

fn mistakes(text: &str) -> Vec<Mistake> {
    Policy::read(text, &|_| Ok(Secret::LATER)).err().unwrap_or_default()
}

fn told_well(mistakes: &[Mistake], text: &str) {
    for Mistake { message, .. } in mistakes {
        let theirs = THEIRS.iter().find(|word| message.contains(*word));
        assert!(theirs.is_none(), "{theirs:?} is no word of ours: {message}\n{text}");
    }
}

/// A key, or a position, below others.
type Place = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Item(usize),
}

fn places(value: &Value, above: &Place, all: &mut Vec<Place>) {
    let mut below = |step: Step, value: &Value| {
        let place: Place = above.iter().cloned().chain([step]).collect();
        all.push(place.clone());
        places(value, &place, all);
    };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| below(Step::Key(key.clone()), value))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(item, value)| below(Step::Item(item), value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn step<'v>(value: &'v mut Value, step: &Step) -> &'v mut Value {
    match step {
        Step::Key(key) => &mut value[key.as_str()],
        Step::Item(item) => &mut value[*item],
    }
}

/// Each place that is like no other but for names of lists' items, with the document that it is in.
fn each(mut of_place: impl FnMut(&Value, &[Step])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let (mut files, mut seen): (Vec<_>, BTreeSet<Place>) = (Vec::new(), BTreeSet::new());
    files.extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let document: Value = serde_json::from_str(&as_json(&text).unwrap()).unwrap();
        let mut all = Vec::new();
        places(&document, &Vec::new(), &mut all);
        for place in all {
            let like: Place = place
                .iter()
                .map(|step| if let Step::Item(_) = step { Step::Item(0) } else { step.clone() })
                .collect();
            if seen.insert(like) {
                of_place(&document, &place);
            }
        }
    }
}

/// The document with a mark in one place, a line for each value; and the mark's line.
fn marked(document: &Value, place: &[Step]) -> (String, u64) {
    let mut document = document.clone();
    *place.iter().fold(&mut document, step) = json!(MARK.trim_matches('"'));
    let text = serde_json::to_string_pretty(&document).unwrap();
    let line = text.lines().position(|line| line.contains(MARK)).unwrap();
    (text, line as u64 + 1)
}

#[test]
fn what_does_not_belong_there() {
    // A document with a mistake is read many times, so each place gets some of the values, and each value some places.
    const VALUES_OF_A_PLACE: usize = 4;
    let mut values = WRONG.iter().cycle();
    let (mut told, mut belongs) = (0, 0);
    each(|document, place| {
        let (text, line) = marked(document, place);
        for wrong in values.by_ref().take(VALUES_OF_A_PLACE) {
            let text = text.replace(MARK, wrong);
            let mistakes = mistakes(&text);
            told_well(&mistakes, &text);
            told += mistakes.len();
            for mistake in mistakes.iter().filter(|mistake| mistake.message.ends_with("belongs here")) {
                belongs += 1;
                assert_eq!(mistake.line, line, "{}: {place:?}: {wrong}\n{text}", mistake.message);
            }
        }
    });
    assert!(told > 500 && belongs > 150, "{told} mistakes, {belongs} of what does not belong");
}

#[test]
fn what_is_left_out_left_empty_or_written_twice() {
    let (mut missing, mut empty, mut twice) = (0, 0, 0);
    each(|document, place| {
        let (text, line) = marked(document, place);
        let nothing = text.replace(MARK, "null");
        let told = mistakes(&nothing);
        assert!(told.iter().any(|told| told.line == line), "{place:?}: {told:?}\n{nothing}");
        told_well(&told, &nothing);
        empty += told.len();

        let (Some(Step::Key(key)), above) = (place.last(), &place[..place.len() - 1]) else { return };
        let again = text.replace(MARK, &format!("1, \"{key}\": 1"));
        let told = mistakes(&again);
        let expected = format!("`{key}` is written twice in one place: leave one out");
        let lines: Vec<u64> =
            told.iter().filter(|told| told.message == expected).map(|told| told.line).collect();
        assert_eq!(lines, [line], "{place:?}: {told:?}");
        twice += 1;

        let mut without = document.clone();
        above.iter().fold(&mut without, step).as_object_mut().unwrap().remove(key);
        let text = serde_json::to_string_pretty(&without).unwrap();
        let told = mistakes(&text);
        told_well(&told, &text);
        // What lacks it is pointed at, and not where reading ended.
        for told in told.iter().filter(|told| told.message.ends_with(&format!("needs `{key}`"))) {
            missing += 1;
            let (_, at) = marked(document, above);
            let is_whole = above.is_empty();
            assert!(is_whole || told.line == at, "{}: line {}, not {at}\n{text}", told.message, told.line);
        }
    });
    assert!(missing > 50 && empty > 200 && twice > 200, "{missing} missing, {empty} empty, {twice} twice");
}

#[test]
fn what_is_not_yaml_or_not_a_policy() {
    for (text, expected) in [
        ("", "the policy is empty, or ends too early"),
        ("state: { limits_when_away: [local] }\n", "`limits_when_away`: one word belongs here"),
        (
            "state: { memory: { max_entries: ten } }\n",
            "`max_entries`: a whole number, 0 or more, belongs here",
        ),
        (
            "upstreams: { u: { max_in_flight: ten } }\n",
            "`max_in_flight`: a whole number from 0 to 4294967295 belongs here",
        ),
        (
            "trusted_proxies: ten\n",
            "`trusted_proxies`: a list belongs here, a line `- item` for each, or `[item]`",
        ),
        ("default_plan: [a]\n", "`default_plan`: a text belongs here"),
        (
            "listeners: [{ tls: { client_certificates: { required: often } } }]\n",
            "`required`: true or false belongs here",
        ),
        (
            "filters: { jwt: { claims: { kyc: { a: 1 } } } }\n",
            "`kyc`: a text, a number, true or false belongs here, or a list of them",
        ),
        ("hello", "settings belong here, a line `name: value` for each, or `{ name: value }`"),
        ("- a\n- b", "settings belong here, a line `name: value` for each, or `{ name: value }`"),
        ("routes: []\n---\nroutes: []\n", "a policy is one YAML document: leave out `---` and what follows"),
        ("routes:\n\t- name: a\n", "YAML is indented with spaces, and a tab is none"),
        ("routes: \"abc\n", "this is not YAML: unclosed quote"),
        ("routes: @foo\n", "this is not YAML: unexpected character: `@'"),
        (
            "routes\nfilters: {}\n",
            "a `:` stands where no key can be: the line above lacks its own, or a text with a `:` lacks its quotes",
        ),
        ("filters: {}\nroutes\n", "a `:` is missing behind a key"),
        ("routes:\n  - name: a\n path: /\n", "this line is indented neither as those above it nor deeper"),
        ("routes: &x [*x]\n", "it is too large, nested too deeply, or refers to itself too often"),
        ("admin: { <<: 1 }\n", "`<<` is followed by settings, or by a list of them"),
        ("x: &x [1]\nroutes: [a,,b\n", "a bracket or a brace is not closed"),
        ("routes: .inf\n", "a number that ends belongs here"),
        ("routes: *x\n", "it refers to an anchor (`&name`) that is not above it"),
        ("routes: !!binary aGVsbG8=\n", "a policy has no tags (`!name`): leave it out"),
        ("? [a]\n: 1\n? [a]\n: 2\n", "a text belongs here"),
        ("routes: []\nroutes: []\n", "`routes` is written twice in one place: leave one out"),
        (&"[".repeat(5_000), "it is too large, nested too deeply, or refers to itself too often"),
        ("routes: []\n", "a policy needs `listeners`"),
        ("listeners: [{ name: a }]\n", "`listeners[0]` needs `address`"),
        ("upstreams: { value: {} }\n", "`upstreams.value` needs `addresses`"),
        ("rotues: []\n", "unknown field `rotues`; did you mean `routes`?"),
        ("routes: [null]\n", "an item of a list is empty: write it, or leave it out"),
        (
            "trusted_proxies: [ten]\n",
            "an item of `trusted_proxies`: an IP address or a network belongs here, \"10.0.0.0/8\" say",
        ),
        (
            "trusted_proxies: [10.1.2.3/8]\n",
            "`10.1.2.3/8` is one address with the length of a network: write `10.1.2.3` for the address, or `10.0.0.0/8` for the network",
        ),
        (
            "state: { service: { timeout_ms: 5s } }\n",
            "`timeout_ms`: a whole number, 0 or more, belongs here; the unit is in the name, so write `5000` for `5s`",
        ),
        (
            "admin: { address: localhost }\n",
            "`address`: an IP address and a port belong here, \"127.0.0.1:8443\" or \"[::1]:8443\" say",
        ),
        (
            "state: { limits_when_away: lokal }\n",
            "`limits_when_away`: `lokal` is none of local, refuse; did you mean `local`?",
        ),
    ] {
        let told: Vec<String> = mistakes(text).into_iter().map(|mistake| mistake.message).collect();
        // Most lack nearly all of a policy, issuers too.
        let lacks = |told: &&String| told.contains(" needs ") || told.contains("no issuer is left");
        let others: Vec<_> = told.iter().filter(|told| *told == expected || !lacks(told)).collect();
        assert_eq!(others, [expected], "{text:.80}");
    }
}
