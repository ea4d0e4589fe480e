//! Tokens that the issuer's keys do not verify: when the keys are fetched, and what the client hears otherwise.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::crypto::VerifyingKey;

use super::told::{UNKNOWN_KEY, known_as};
use super::*;

/// The issuer's keys are at an address.
fn remote(envoy: &Fake) -> Rc<Plugin> {
    let mut document = document(&json!({ "jwt": {} }));
    document["issuers"]["main"]["jwks"] =
        json!({ "url": "https://issuer.test/keys", "unknown_kid_refresh_s": 10 });
    let configuration = compiled(&document, Secret::Env("ACME".to_owned()));
    let plugin = Plugin::new(&configuration, &env, envoy).unwrap();
    plugin.revocations.known();
    Rc::new(plugin)
}

fn asks(token: &str, at_ms: u64) -> Fake {
    let envoy = fake("GET", "/x");
    envoy.now_ms.set(T0 + at_ms);
    envoy.fields.borrow_mut().push(("authorization".into(), format!("Bearer {token}").into_bytes()));
    envoy
}

fn keys(plugin: &Plugin, jwks: &str, more: &str) -> Answered {
    let main = known_as(plugin, "main");
    answered(200, &format!(r#"{{"issuers":{{"{main}":{{"fetched_ms":{T0},"jwks":{jwks}}}}}{more}}}"#))
}

/// The code, `Retry-After`, and how often the state service was asked.
fn heard(envoy: &Fake) -> (String, Option<String>, usize) {
    (envoy.code(), envoy.retry_after.borrow().clone(), envoy.calls.borrow().len())
}

#[test]
fn a_token_with_an_unknown_key_is_refused_for_good_only_by_fresh_keys() {
    let refused = |code: &str, retry_after: Option<&str>, asked| {
        (code.to_owned(), retry_after.map(str::to_owned), asked)
    };
    let unavailable = |retry_after, asked| refused("token_keys_unavailable", Some(retry_after), asked);
    let fresh = |plugin: &Plugin| keys(plugin, KEYS, "");
    let too_soon = |plugin: &Plugin| keys(plugin, KEYS, r#","retry_after_s":7"#);
    let silent = |_: &Plugin| Answered::default();
    let broken = |_: &Plugin| answered(500, "");
    type Say<'s> = &'s dyn Fn(&Plugin) -> Answered;
    let cases: [(Say<'_>, _, [_; 3]); 4] = [
        (&fresh, refused("token_key_unknown", None, 1), [(1, "10"), (9_000, "1"), (9_999, "1")]),
        (&too_soon, unavailable("7", 1), [(1, "7"), (3_000, "4"), (6_001, "1")]),
        (&silent, unavailable("10", 1), [(1, "10"), (9_000, "1"), (9_999, "1")]),
        (&broken, unavailable("10", 1), [(1, "10"), (9_000, "1"), (9_999, "1")]),
    ];
    for (say, expected, later) in cases {
        let first = asks(UNKNOWN_KEY, 0);
        let plugin = remote(&first);
        plugin.keys_told(&keys(&plugin, KEYS, ""), &first);
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &first), Flow::Pause);
        stream.called(&say(&plugin), &first);
        assert_eq!(heard(&first), expected);
        for (at_ms, retry_after) in later {
            let next = asks(UNKNOWN_KEY, at_ms);
            let _ = Stream::new(Rc::clone(&plugin)).header(true, &next);
            assert_eq!(heard(&next), unavailable(retry_after, 0), "{expected:?} after {at_ms} ms");
        }
        let again = asks(UNKNOWN_KEY, 10_000);
        let _ = Stream::new(plugin).header(true, &again);
        assert_eq!(heard(&again), refused("", None, 1), "{expected:?}: asked again");
    }
    let alone = asks(UNKNOWN_KEY, 0);
    let plugin = remote(&alone);
    plugin.keys_told(&keys(&plugin, KEYS, ""), &alone);
    alone.unreachable.set(true);
    let _ = Stream::new(plugin).header(true, &alone);
    assert_eq!(heard(&alone), unavailable("1", 0));
}

/// Keys that come although the issuer could not be asked now serve all the same.
#[test]
fn keys_that_another_request_has_fetched_serve() {
    let envoy = asks(UNKNOWN_KEY, 0);
    let plugin = remote(&envoy);
    plugin.keys_told(&keys(&plugin, KEYS, ""), &envoy);
    let mut stream = Stream::new(Rc::clone(&plugin));
    assert_eq!(stream.header(true, &envoy), Flow::Pause);
    stream.called(&keys(&plugin, &KEYS.replace("\"old\"", "\"new\""), r#","retry_after_s":7"#), &envoy);
    assert_eq!(envoy.code(), "token_signature", "the key was found");
}

fn signed(key: &SigningKey, kid: &str) -> String {
    let claims =
        json!({ "iss": "https://issuer.test", "aud": "torana", "sub": "u1", "exp": T0 / 1_000 + 600 });
    let head = json!({ "alg": "ES256", "kid": kid });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(&head), part(&claims));
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(key.sign(input.as_bytes()).unwrap()))
}

fn published(key: &SigningKey, kid: &str) -> String {
    let VerifyingKey::EcdsaP256(public) = key.verifying_key().unwrap() else { panic!("not P-256") };
    let (x, y) = public.uncompressed()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y }] }).to_string()
}

/// An issuer that takes an old key's id for a new key has its keys fetched once. Until the next fetch is allowed, tokens
/// whose signature does not hold are refused as forgeries.
#[test]
fn a_key_id_that_names_another_key_now() {
    let key = || {
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        SigningKey::ecdsa_p256_pkcs8(pkcs8.as_ref()).unwrap()
    };
    let (old, new) = (key(), key());
    let first = asks(&signed(&new, "k"), 0);
    let plugin = remote(&first);
    plugin.keys_told(&keys(&plugin, &published(&old, "k"), ""), &first);
    let mut stream = Stream::new(Rc::clone(&plugin));
    assert_eq!(stream.header(true, &first), Flow::Pause);
    assert_eq!(heard(&first), (String::new(), None, 1), "the keys are asked for");
    stream.called(&keys(&plugin, &published(&new, "k"), ""), &first);
    assert_eq!((first.code().as_str(), first.resumed.get()), ("", 1), "it passes");

    for (at_ms, asked) in [(1, 0), (9_999, 0), (10_000, 1)] {
        let next = asks(&signed(&old, "k"), at_ms);
        let mut stream = Stream::new(Rc::clone(&plugin));
        let _ = stream.header(true, &next);
        assert_eq!(next.calls.borrow().len(), asked, "after {at_ms} ms");
        if asked > 0 {
            stream.called(&Answered::default(), &next);
        }
        assert_eq!(next.code(), "token_signature", "after {at_ms} ms");
    }
}
