//! Of how a document is written: words are the same in every reading.

use filters::policy::as_json;

use super::{GOOD, read, with_certificates};

/// Whoever reads the document, as YAML with places or as the JSON that a module gets, reads the same words.
#[test]
fn words_are_words_in_every_reading() {
    for (written, fine) in
        [("mode: off", true), ("mode: \"off\"", true), ("mode: Off", false), ("mode: false", false)]
    {
        let yaml = with_certificates("{ dns: a.test }", &format!("{{ client_cert: {{ {written} }} }}"), true);
        let json = as_json(&yaml).unwrap();
        assert_eq!(read(&yaml).is_ok(), fine, "{written}");
        assert_eq!(read(&json).is_ok(), fine, "{written}");
    }
    for (written, fine) in [("required: true", true), ("required: yes", false), ("required: on", false)] {
        let yaml = with_certificates("{ dns: a.test }", "{ client_cert: {} }", true)
            .replace("clients.pem\" }", &format!("clients.pem\", {written} }}"));
        let json = as_json(&yaml).unwrap();
        assert_eq!((read(&yaml).is_ok(), read(&json).is_ok()), (fine, fine), "{written}");
    }
}

/// `jwt:` is not the absence of `jwt`.
#[test]
fn what_is_left_empty_is_told() {
    let nothing = |key: &str, at: &str| {
        format!(
            "p.yaml:{at}: nothing is written for `{key}`: write its value, `{{}}` for all by default, or leave it out"
        )
    };
    for (from, to, expected) in [
        ("  shape: {}\n", "  shape:\n", nothing("shape", "14:3")),
        ("  shape: {}\n", "  shape: null\n", nothing("shape", "14:3")),
        ("  shape: {}\n", "  shape: ~\n", nothing("shape", "14:3")),
        (
            "key: \"file:edge.key\" }",
            "key: \"file:edge.key\", client_certificates: }",
            nothing("client_certificates", "5:64"),
        ),
        ("methods: [POST]\n", "methods: [POST]\n    filters: { jwt: }\n", nothing("jwt", "18:16")),
        (
            "addresses: [\"127.0.0.1:9001\"]\n",
            "addresses: [\"127.0.0.1:9001\"]\n    health:\n",
            nothing("health", "10:5"),
        ),
    ] {
        let told = read(&GOOD.replace(from, to)).unwrap_err();
        assert!(told.lines().next() == Some(expected.as_str()), "{told}");
    }
}

/// A replacement takes the anchor with it that the rest uses. What then follows is no mistake of the document.
#[test]
fn an_anchor_that_goes_with_a_mistake_is_no_mistake() {
    let own = "p.yaml:14:3: unknown field `base`";
    let text = GOOD.replacen("  shape: {}\n", "  base: &b { scopes: [a] }\n  jwt: { <<: *b }\n", 1);
    let told = read(&text).unwrap_err();
    assert!(told.starts_with(own) && !told.contains("anchor"), "{told}");
    let without = GOOD.replacen("  shape: {}\n", "  jwt: { <<: *b }\n", 1);
    assert!(read(&without).unwrap_err().contains("it refers to an anchor (`&name`) that is not above it"));
}
