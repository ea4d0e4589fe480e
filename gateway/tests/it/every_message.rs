//! Every message of `check` has a case: a test expects the whole of it, with something in each place that is filled in.
//!
//! Looked for are the texts in `filters/src/policy/` and `gateway/src/load`, where mistakes and warnings are told; those
//! in functions elsewhere that answer with what is wrong: with an `Unusable`, a `Mistake` or a text; those of errors
//! that values of a policy are read with; and those of what is wrong with certificates, keys and lists. A message without
//! a case fails here: add one to `filters/tests/` (`mistakes/`, `bounds.rs`, `warnings.rs`), to the tests beside the code
//! or to `gateway/tests/it/check/`.

use std::path::{Path, PathBuf};

/// What functions answer with that tell what is wrong, or what a name means that is used twice.
const ANSWERS: [&str; 10] = [
    "Unusable",
    "Mistake",
    "String>",
    "String)",
    "Vec<Shared>",
    "anyhow::Result<Self>",
    "anyhow::Result<Live<Target>>",
    "anyhow::Result<Login>",
    "Result<(), String>",
    "CertError",
];

/// Whose errors (`#[error("…")]`) are of values that a policy has.
const ERRORS: [&str; 5] =
    ["state/mod.rs", "src/calendar.rs", "src/jwt/keys.rs", "src/validity.rs", "certs/src/error.rs"];

/// Files of the gateway that `check` reads with, besides `load`.
const READERS: [&str; 6] =
    ["check.rs", "flags.rs", "introspection.rs", "jwks.rs", "revoke.rs", "state/redis/address.rs"];

/// Files of `certs` that the files are read with which a policy names. What is tested beside them says nothing of what
/// `check` tells.
const CERTS: [&str; 6] = ["crl.rs", "error.rs", "file.rs", "identity.rs", "inspect.rs", "trust.rs"];

/// Texts there that `check` never tells.
const OTHERS: [&str; 43] = [
    "the request does not ask for one version",
    "`file:PATH`, relative to the policy's folder, or `env:NAME`.",
    "`file:PATH`, relative to the policy's folder. It is followed, so it cannot be `env:`.",
    // Of keys, for logs, while the gateway runs.
    "no key counts now",
    "the key has not been told yet",
    // A field of answers.
    r#"<{link}>; rel="deprecation"; type="text/html""#,
    // Of what a module is given, which was checked before.
    "the module was not given this secret",
    "Envoy does not pass on the variable `{name}`",
    // Of the libraries that read policies, told in other words.
    "EOF while parsing",
    "invalid socket address syntax",
    "invalid IP address syntax",
    "data did not match any variant",
    "found a tab",
    "simple key expected",
    "mapping values are not allowed",
    "did not find expected key",
    "string or map",
    // Of a key that is no text, which is told of first.
    "a key is written twice in one place: leave one out",
    // Of paths, for what is told before a route is matched by them.
    "path `{path}`: {why}",
    // Of requests to revoke.
    "name exactly one of `token`, `session`, `device` and `user`",
    "a revocation is kept between 1 and {MOST_KEPT_S} seconds",
    "`issued_until_s` is for devices and users",
    "`issued_until_s` is at most {MOST_AHEAD_S} seconds from now",
    "ids and tenants are 1 to 256 visible ASCII characters, as in tokens",
    // Of the command `certs`, which writes files and shows what is in keys.
    "{} is already there; pass --force to replace the whole PKI, which makes every certificate issued before it useless",
    "cannot write {}: {source}; check that the folder may be written to",
    "the new {} cannot be given to user {user} and group {group}, whose the one before is ({source}): nothing was changed; run this as root or as that user",
    "{} is a link, so somebody else fills this folder; let them renew it, then wait for it with `certs wait`",
    "cannot issue a certificate for {name}: {reason}",
    "its public half cannot be derived",
    // Of what is made from files that were accepted, which nothing has failed at yet.
    "no TLS configuration can be made from {what}: {source}",
    "no client certificate verifier can be made: {source}",
    "no HTTPS client can be made: {source}",
    // Of the library that reads PEM, which has no such error of a text in memory.
    "a section is too large",
    "it cannot be read",
    // Of files that change while the gateway runs.
    "a list is of {this}, older than the one in use, of {newest}",
    // For logs.
    "root left out",
    "a revocation list is past its next update: {becomes}",
    "certificates that it would tell of are refused",
    "it is believed nevertheless",
    // What sections of PEM are called.
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "-----BEGIN ENCRYPTED PRIVATE KEY-----",
];

#[test]
fn every_message_has_a_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let filters = folder.join("../filters/src");
    let readers = READERS.map(|name| folder.join("src").join(name));
    let certs = CERTS.map(|name| folder.join("../certs/src").join(name));
    let mut load = sources(&folder.join("src/load"));
    load.push(folder.join("src/load.rs"));
    let tests = [folder.join("tests"), folder.join("../filters/tests")];
    let own = Path::new(file!()).file_name().unwrap();
    let of_tests =
        tests.iter().flat_map(|folder| sources(folder)).filter(|path| path.file_name() != Some(own));
    let mut tested: String =
        of_tests.map(|path| without_comments(&std::fs::read_to_string(path).unwrap())).collect();
    let mut messages = Vec::new();
    for path in sources(&filters).into_iter().chain(readers).chain(load.clone()).chain(certs.clone()) {
        let whole = std::fs::read_to_string(&path).unwrap();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs")) {
            tested.push_str(&without_comments(&whole));
            continue;
        }
        let (code, own_tests) = whole.split_once("#[cfg(test)]").unwrap_or((&whole, ""));
        if !certs.contains(&path) {
            tested.push_str(&without_comments(own_tests));
        }
        let code = without_comments(code);
        let mut told = match load.contains(&path) || path.ancestors().any(|folder| folder.ends_with("policy"))
        {
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
    // As it is written in formats too.
    let tested = tested.replace("\\\n", "").replace("{{", "{").replace("}}", "}");
    let tested = tested.split_whitespace().collect::<Vec<_>>().join(" ");
    let without = messages.iter().filter(|(_, text)| !is_expected(text, &tested));
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

/// Whether the whole text stands in quotes in the tests, filled in.
fn is_expected(text: &str, tested: &str) -> bool {
    let fixed = fixed(text);
    let Some((first, others)) = fixed.split_first() else { return true };
    tested.match_indices(first.as_str()).any(|(start, _)| {
        let rest = tested[start + first.len()..].split('"').next().unwrap_or_default();
        follow(others, rest)
    })
}

/// Whether the parts stand there one after the other, with something before each.
fn follow(parts: &[String], rest: &str) -> bool {
    let Some((first, others)) = parts.split_first() else { return true };
    let mut places = rest.match_indices(first.as_str()).filter(|(start, _)| *start > 0);
    places.any(|(start, _)| follow(others, &rest[start + first.len()..]))
}

/// What a text says whatever is filled in.
fn fixed(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().map(|letter| if letter == '"' { '\u{1}' } else { letter }).peekable();
    while let Some(letter) = letters.next() {
        if matches!(letter, '{' | '}') && letters.peek() == Some(&letter) {
            letters.next();
        } else if letter == '{' {
            letters.by_ref().find(|letter| *letter == '}');
            parts.push(String::new());
            continue;
        }
        parts.last_mut().unwrap().push(letter);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn a_message_is_expected_whole_and_filled_in() {
    let tested = without_comments(
        r#"("a", "p.yaml:1:2: limit `few` is of { x }"), "limit `", "` is of { y }",
        // "of nobody",
        "`is \"x\"`""#,
    );
    for (text, expected) in [
        ("limit `{name}` is of {{ x }}", true),
        ("{what} `{}` is of {}", true),
        ("limit `{name}` is of {{ y }}", false),
        ("limit `{name}`{} is of {{ x }}", false),
        ("limit `few` is of {{ x }}, too", false),
        ("of nobody", false),
        ("`is \"{}\"`", true),
    ] {
        assert_eq!(is_expected(text, &tested), expected, "{text}");
    }
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
