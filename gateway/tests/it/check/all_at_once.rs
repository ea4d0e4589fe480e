//! All mistakes of a policy in one run, each with its line and the place underlined.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{POLICY, check, check_with};

const MISTAKES: &str = include_str!("mistakes.yaml");

fn pki() -> tempfile::TempDir {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    folder
}

/// With `UPDATE=1` the file with what is expected is written.
#[test]
fn all_that_is_printed_of_many_mistakes() {
    let folder = pki();
    let (status, told) = check(folder.path(), MISTAKES);
    let told = told.replace(&format!("{}/", folder.path().display()), "");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/check/mistakes.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &told).unwrap();
    }
    assert_eq!(told, fs::read_to_string(file).unwrap());
    assert_eq!(status, 1);
}

#[test]
fn programs_get_the_same_as_json() {
    let folder = pki();
    let (_, text) = check(folder.path(), MISTAKES);
    let (status, json) = check_with(folder.path(), MISTAKES, &["--format", "json"]);
    let found: Vec<Value> = serde_json::from_str(&json).unwrap();
    let titles: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    let place = |one: &Value| match one["line"].as_u64().unwrap() {
        0 => String::new(),
        line => format!(":{line}:{}", one["column"]),
    };
    let same = found.iter().map(|one| {
        let text = |field: &str| one[field].as_str().unwrap().to_owned();
        format!("{}: {}{}: {}", text("severity"), text("file"), place(one), text("message"))
    });
    assert_eq!(same.collect::<Vec<_>>(), titles);
    assert_eq!(status, 1);

    let (status, json) = check_with(folder.path(), POLICY, &["--format", "json"]);
    let found: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(status == 0 && !found.is_empty(), "{json}");
    assert!(found.iter().all(|one| one["severity"] == "warning" && one["file"] == "edge.yaml"), "{json}");
}

#[test]
fn errors_and_warnings_are_counted() {
    let folder = pki();
    let last = |policy: &str| check(folder.path(), policy).1.lines().last().unwrap().to_owned();
    assert_eq!(last(&POLICY.replace("PO", "PSO")), "1 error in edge.yaml");
    assert_eq!(last(&POLICY.replace("PO", "PSO").replace("headers", "heders")), "2 errors in edge.yaml");
    assert_eq!(last(POLICY), "4 warnings in edge.yaml");
    let signed = POLICY.replace(
        ", except: [shape] }",
        ", timeout_ms: 5000, filters: { signature: {}, nonce: { window_s: 60 } } }",
    );
    assert!(last(&signed).starts_with("  route send"), "nothing to count");
}

#[test]
fn at_most_a_hundred_are_printed() {
    let folder = pki();
    let unknown: String = (0..130).map(|number| format!("unheard_of_{number}: 1\n")).collect();
    let (status, told) = check(folder.path(), &format!("{POLICY}{unknown}"));
    assert_eq!(told.lines().filter(|line| line.starts_with("error: ")).count(), 100);
    assert!(told.ends_with("\n\nand more\n\nmore than 100 errors in edge.yaml\n"), "{told}");
    assert_eq!(status, 1);
}

/// The column is of a character; the caret stands under it however wide what is before it.
#[test]
fn carets_are_under_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    for (text, line, caret) in [
        ("rotues: []\n", "1 | rotues: []", "  | ^^^^^^"),
        ("rotues: []\r\nadmin: 1\r\n", "1 | rotues: []", "  | ^^^^^^"),
        ("\u{feff}rotues: []\n", "1 | rotues: []", "  | ^^^^^^"),
        ("{ \"rotues\": [] }\n", "1 | { \"rotues\": [] }", "  |   ^^^^^^^^"),
        ("{\t\"rotues\": [] }\n", "1 | {    \"rotues\": [] }", "  |      ^^^^^^^^"),
        ("\"支付\": 1\n", "1 | \"支付\": 1", "  | ^^^^^^"),
        ("{ 支付: 1, x: 2 }\n", "1 | { 支付: 1, x: 2 }", "  |            ^"),
        ("admin: { address: 'é' }\n", "1 | admin: { address: 'é' }", "  |                   ^^^"),
        ("admin:\n  address: >\n    x\n", "3 |     x", "  |     ^"),
    ] {
        let (_, told) = check_with(folder.path(), text, &["--without-files"]);
        assert!(told.contains(&format!("{line}\n{caret}\n")), "{text:?}: {told}");
    }
}
