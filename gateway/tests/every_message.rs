//! Every message of `check` has a case: some words of each stand in a test's expectation.
//!
//! Looked for are the texts in `filters/src/policy/` and `gateway/src/load.rs`, where mistakes and warnings are told, and
//! those of `Unusable`, which filters tell of their settings. A message without a case fails here: add one to
//! `filters/tests/` (`mistakes/`, `bounds.rs`, `warnings.rs`) or `gateway/tests/check.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::path::{Path, PathBuf};

/// Words of a message that a test must quote, one after the other.
const WORDS: usize = 4;

/// Texts there that `check` never tells.
const OTHERS: [&str; 5] = [
    "the request does not ask for one version",
    "`file:PATH`, relative to the policy's folder, or `env:NAME`.",
    // Of keys, for logs, while the gateway runs.
    "no key counts now",
    "the key has not been told yet",
    // A field of answers.
    r#"<{link}>; rel="deprecation"; type="text/html""#,
];

#[test]
fn every_message_has_a_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (filters, load) = (folder.join("../filters/src"), folder.join("src/load.rs"));
    let tests = [folder.join("tests"), folder.join("../filters/tests")];
    let own = Path::new(file!()).file_name().unwrap();
    let of_tests =
        tests.iter().flat_map(|folder| sources(folder)).filter(|path| path.file_name() != Some(own));
    let mut tested: String = of_tests.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut messages = Vec::new();
    for path in sources(&filters).into_iter().chain([load.clone()]) {
        let whole = std::fs::read_to_string(&path).unwrap();
        let (code, own_tests) = whole.split_once("#[cfg(test)]").unwrap_or((&whole, ""));
        tested.push_str(own_tests);
        let told = match path == load || path.parent().is_some_and(|folder| folder.ends_with("policy")) {
            true => literals(code),
            false => {
                let code = without_comments(code);
                code.split("Unusable::new(").skip(1).flat_map(|rest| literals(argument(rest))).collect()
            }
        };
        let told =
            told.into_iter().filter(|text| text.split(' ').count() > 2 && !OTHERS.contains(&text.as_str()));
        messages.extend(told.map(|text| (path.clone(), text)));
    }
    assert!(messages.len() > 60, "only {} messages are found", messages.len());
    let tested = tested.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let without = messages.iter().filter(|(_, text)| !is_quoted(text, &tested));
    let without: Vec<String> = without.map(|(path, text)| format!("{}: {text}", path.display())).collect();
    assert!(without.is_empty(), "messages without a case:\n{}", without.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether some words of the text, between what is filled in, stand in the tests.
fn is_quoted(text: &str, tested: &str) -> bool {
    let mut fixed: Vec<Vec<&str>> = Vec::new();
    for (position, part) in text.split(['{', '}']).enumerate() {
        // What stands between braces is filled in.
        if position % 2 == 0 {
            let words = part.split_whitespace().filter(|word| word.contains(char::is_alphanumeric));
            fixed.push(words.collect());
        }
    }
    let longest = fixed.iter().map(Vec::len).max().unwrap_or_default();
    fixed.iter().any(|words| {
        let windows = words.windows(WORDS.min(longest).max(1));
        windows.map(|words| words.join(" ")).any(|words| tested.contains(&words))
    })
}

/// What stands before the parenthesis that closes.
fn argument(code: &str) -> &str {
    let (mut open, mut quoted) = (1, false);
    for (position, byte) in code.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'(' if !quoted => open += 1,
            b')' if !quoted => open -= 1,
            _ => {}
        }
        if open == 0 {
            return &code[..position];
        }
    }
    code
}

/// The texts in quotes, not those in comments.
fn literals(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in without_comments(code).split('"').skip(1).step_by(2) {
        let text = line.replace('\u{1}', "\"").replace("\\\n", " ");
        found.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    found
}

/// The code with escaped quotes as `\u{1}`, so that the others come in pairs.
fn without_comments(code: &str) -> String {
    let lines = code.lines().map(|line| match line.trim_start().starts_with("//") {
        true => "",
        false => line,
    });
    lines.collect::<Vec<_>>().join("\n").replace("\\\"", "\u{1}").replace("'\"'", "")
}
