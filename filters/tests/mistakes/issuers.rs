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
