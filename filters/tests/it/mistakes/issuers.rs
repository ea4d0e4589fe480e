//! Of `issuers`.

use super::{GOOD, read};

/// A token says nothing of whom to ask about it.
#[test]
fn of_opaque_tokens_one_issuer_is_asked() {
    let introspection =
        "introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s' }";
    let issuers = format!(
        "issuers:\n  a: {{ issuer: a, audiences: [x], {introspection} }}\n  b: {{ issuer: b, audiences: [x], {introspection} }}\n"
    );
    let told = read(&format!("{GOOD}    filters: {{ jwt: {{}} }}\n{issuers}")).unwrap_err();
    let expected = "`a` and `b` both have `introspection`, and nothing in a token tells which one to ask; name `issuers`";
    assert!(told.contains(expected), "{told}");
    let named = format!("{GOOD}    filters: {{ jwt: {{ issuers: [a] }} }}\n{issuers}");
    assert!(read(&named).is_ok());
    let told = read(&named.replacen("client_id: e", "client_id: 'a\u{e9}'", 1)).unwrap_err();
    assert!(told.contains("introspection: `client_id` is visible ASCII"), "{told}");
}

/// Where nothing could ever be fetched from.
#[test]
fn addresses_are_whole() {
    const NO_HOST: &str = "p.yaml:14:8: issuer `dev`: `jwks.url` names no host: write https://host/path";
    const NO_PORT: &str =
        "p.yaml:14:8: issuer `dev`: `jwks.url` has a port that is none: write a number from 1 to 65535";
    for (url, expected) in [
        ("https://i", None),
        ("https://i:8443/keys?a=b:c", None),
        ("https://[::1]", None),
        ("https://[::1]:8443/keys", None),
        ("https://:8443/keys", Some(NO_HOST)),
        ("https://[/keys", Some(NO_HOST)),
        ("https://[i]/keys", Some(NO_HOST)),
        ("https://::1/keys", Some(NO_HOST)),
        ("https://i:99999/keys", Some(NO_PORT)),
        ("https://i:0/keys", Some(NO_PORT)),
        ("https://i:/keys", Some(NO_PORT)),
        ("https://[::1]:x", Some(NO_PORT)),
    ] {
        let issuer = format!(
            "issuers:\n  dev: {{ issuer: i, audiences: [a], algorithms: [ES256], jwks: {{ url: '{url}' }} }}\nfilters:\n"
        );
        let told = read(&GOOD.replacen("filters:\n", &issuer, 1)).err();
        assert_eq!(told.as_deref(), expected, "{url}");
    }
}
