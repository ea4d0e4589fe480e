//! Every message of `check` has a case: some words of each stand in a test's expectation.
//!
//! Looked for are the texts in `filters/src/policy/` and `gateway/src/load.rs`, where mistakes and warnings are told; those
//! in functions elsewhere that answer with what is wrong: with an `Unusable`, a `Mistake` or a text; and those of errors
//! that values of a policy are read with. A message without a case fails here: add one to `filters/tests/` (`mistakes/`,
//! `bounds.rs`, `warnings.rs`), to the tests beside the code or to `gateway/tests/check.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::path::{Path, PathBuf};

/// Words of a message that a test must quote, one after the other.
const WORDS: usize = 4;

/// What functions answer with that tell what is wrong, or what a name means that is used twice.
const ANSWERS: [&str; 7] = [
    "Unusable",
    "Mistake",
    "String>",
    "String)",
    "Vec<Shared>",
    "anyhow::Result<Self>",
    "anyhow::Result<Live<Client>>",
];

/// Whose errors (`#[error("…")]`) are of values that a policy has.
const ERRORS: [&str; 3] = ["state/mod.rs", "src/calendar.rs", "src/validity.rs"];

/// Files of the gateway that `check` reads with, besides `load.rs`.
const READERS: [&str; 5] = ["flags.rs", "introspection.rs", "jwks.rs", "revoke.rs", "state/redis.rs"];

/// Texts there that `check` never tells.
const OTHERS: [&str; 16] = [
    "the request does not ask for one version",
    "`file:PATH`, relative to the policy's folder, or `env:NAME`.",
    // Of keys, for logs, while the gateway runs.
    "no key counts now",
    "the key has not been told yet",
    // A field of answers.
    r#"<{link}>; rel="deprecation"; type="text/html""#,
    // Of what a module is given, which was checked before.
    "the module was not given this secret",
    "Envoy does not pass on the variable `{name}`",
    // Of the libraries that read policies, told in other words.
    "invalid socket address syntax",
    "invalid IP address syntax",
    "data did not match any variant",
    "found a tab",
    "simple key expected",
    "mapping values are not allowed",
    "did not find expected key",
    // Of requests to revoke.
    "`issued_until_s` is at most {MOST_AHEAD_S} seconds from now",
    "ids and tenants are 1 to 256 visible ASCII characters, as in tokens",
];

#[test]
fn every_message_has_a_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let filters = folder.join("../filters/src");
    let readers = READERS.map(|name| folder.join("src").join(name));
    let load = folder.join("src/load.rs");
    let tests = [folder.join("tests"), folder.join("../filters/tests")];
    let own = Path::new(file!()).file_name().unwrap();
    let of_tests =
        tests.iter().flat_map(|folder| sources(folder)).filter(|path| path.file_name() != Some(own));
    let mut tested: String = of_tests.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut messages = Vec::new();
    for path in sources(&filters).into_iter().chain(readers).chain([load.clone()]) {
        let whole = std::fs::read_to_string(&path).unwrap();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs")) {
            tested.push_str(&whole);
            continue;
        }
        let (code, own_tests) = whole.split_once("#[cfg(test)]").unwrap_or((&whole, ""));
        tested.push_str(own_tests);
        let code = without_comments(code);
        let mut told = match path == load || path.ancestors().any(|folder| folder.ends_with("policy")) {
            true => literals(&code),
            false => answering(&code).into_iter().flat_map(literals).collect(),
        };
        if ERRORS.iter().any(|name| path.ends_with(name)) {
            told.extend(code.split("#[error(").skip(1).filter_map(|rest| literals(rest).into_iter().next()));
        }
        let told =
            told.into_iter().filter(|text| text.split(' ').count() > 2 && !OTHERS.contains(&text.as_str()));
        messages.extend(told.map(|text| (path.clone(), text)));
    }
    assert!(messages.len() > 200, "only {} messages are found", messages.len());
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

/// The bodies of functions that answer with what is wrong.
fn answering(code: &str) -> Vec<&str> {
    let functions = code.match_indices("fn ").filter_map(|(start, _)| {
        let rest = &code[start..];
        let (head, body) = rest.split_at(rest.find('{')?);
        let (_, answer) = head.rsplit_once("->")?;
        // A `;` ends one that has no body.
        (!head.contains(';') && ANSWERS.iter().any(|known| answer.contains(known))).then(|| block(body))
    });
    functions.collect()
}

/// What stands before the brace that closes the first one.
fn block(code: &str) -> &str {
    let (mut open, mut quoted) = (0, false);
    for (position, byte) in code.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'{' if !quoted => open += 1,
            b'}' if !quoted => open -= 1,
            _ => {}
        }
        if open == 0 {
            return &code[..position];
        }
    }
    code
}

/// The texts in quotes.
fn literals(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code.split('"').skip(1).step_by(2) {
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
