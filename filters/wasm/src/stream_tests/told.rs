//! What the state service tells a worker: secrets, keys, what is revoked, what an opaque token is.

use super::*;

#[test]
fn secrets_come_and_change_while_the_module_runs() {
    let envoy = fake("GET", "/x");
    let filters = json!({ "signature": { "signer": "client" } });
    let plugin =
        Rc::new(Plugin::new(&configured_with(&filters, Secret::Service), &|_| None, &envoy).unwrap());
    let code = |secret: &[u8]| {
        let envoy = fake("GET", "/x");
        let params = Params {
            created: Some(i64::try_from(T0 / 1_000).unwrap()),
            keyid: Some("partner-1".to_owned()),
            ..Params::covering(&["@method", "@path", "@query"]).unwrap()
        };
        let none: Vec<(String, Vec<u8>)> = Vec::new();
        let message = Message::request("GET", "https", "edge.test", "/x", None, &none);
        let made = sign(&message, "sig1", &params, &SigningKey::hmac(secret).unwrap()).unwrap();
        envoy.fields.borrow_mut().push(("signature-input".to_owned(), made.signature_input.into_bytes()));
        envoy.fields.borrow_mut().push(("signature".to_owned(), made.signature.into_bytes()));
        let _ = Stream::new(Rc::clone(&plugin)).header(true, &envoy);
        envoy.code()
    };
    let tell = |secret: &[u8]| {
        assert!(plugin.ask_for_client_keys(&envoy).is_some());
        let body = json!({ "secrets": { "env:ACME": STANDARD.encode(secret) } }).to_string();
        plugin.client_keys_told(&answered(200, &body), &envoy);
    };
    const NEXT: &[u8] = b"the next secret, of 32 bytes too";
    assert!(plugin.lacks_keys(T0));
    assert_eq!(code(SECRET), "signature_keys_unavailable");
    tell(SECRET);
    assert_eq!((code(SECRET).as_str(), code(NEXT).as_str()), ("", "signature_invalid"));
    for (status, body) in
        [(200, "nonsense"), (200, "{\"secrets\":{\"env:ACME\":\"AAAA\"}}"), (403, ""), (500, "")]
    {
        plugin.client_keys_told(&answered(status, body), &envoy);
        assert_eq!(code(SECRET), "", "{status} {body}");
    }
    plugin.client_keys_told(&Answered::default(), &envoy);
    plugin.client_keys_told(&answered(200, "{\"secrets\":{}}"), &envoy);
    assert_eq!(code(SECRET), "", "what is not told again stays");
    tell(NEXT);
    assert_eq!((code(NEXT).as_str(), code(SECRET).as_str()), ("", "signature_invalid"));
}

/// A token of the trusted issuer, by a key that nobody knows.
pub(super) const UNKNOWN_KEY: &str =
    "eyJhbGciOiJFUzI1NiIsImtpZCI6Im5ldyJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0In0.AAAA";

/// What an issuer of the policy is known as.
pub(super) fn known_as(plugin: &Plugin, issuer: &str) -> String {
    plugin.policy.document().issuers[issuer].value.known_as()
}

#[test]
fn an_unknown_key_is_asked_for_at_a_bounded_rate() {
    let envoy = fake("GET", "/x");
    envoy.fields.borrow_mut().push(("authorization".into(), format!("Bearer {UNKNOWN_KEY}").into_bytes()));
    let plugin = plugin(&json!({ "jwt": {} }), &envoy);
    let mut first = Stream::new(Rc::clone(&plugin));
    assert_eq!(first.header(true, &envoy), Flow::Pause);
    let main = known_as(&plugin, "main");
    assert_eq!(envoy.calls.borrow()[..], [("/v1/keys/refresh".to_owned(), main.clone().into_bytes())]);
    first.called(
        &answered(200, &format!(r#"{{"issuers":{{"{main}":{{"fetched_ms":{T0},"jwks":{KEYS}}}}}}}"#)),
        &envoy,
    );
    assert_eq!(envoy.code(), "token_key_unknown");

    // The keys are there for the next incarnation of this worker, and for others.
    let again = fake("GET", "/x");
    *again.shared.borrow_mut() = envoy.shared.borrow().clone();
    let reborn = Plugin::new(&configuration(&json!({ "jwt": {} })), &env, &again).unwrap();
    assert_eq!(reborn.keys.borrow().missing(T0), 0);
    assert_eq!(reborn.keys.borrow().missing(T0 + 86_400_001), 1, "stale keys are none");

    envoy.answered.borrow_mut().clear();
    let mut second = Stream::new(plugin);
    assert_eq!(second.header(true, &envoy), Flow::Pause);
    assert_eq!(
        (envoy.code().as_str(), envoy.calls.borrow().len()),
        ("token_key_unknown", 1),
        "the file was unchanged a moment ago"
    );
}

/// Who arrives while the keys are being fetched waits for them too, up to a bound; who gives up makes room.
#[test]
fn all_wait_for_one_fetch() {
    let envoy = fake("GET", "/x");
    envoy.fields.borrow_mut().push(("authorization".into(), format!("Bearer {UNKNOWN_KEY}").into_bytes()));
    let plugin = plugin(&json!({ "jwt": {} }), &envoy);
    let told = |keys: &str| {
        let main = known_as(&plugin, "main");
        answered(200, &format!(r#"{{"issuers":{{"{main}":{{"fetched_ms":{T0},"jwks":{keys}}}}}}}"#))
    };
    plugin.keys_told(&told(KEYS), &envoy);
    let arrives = || {
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &envoy), Flow::Pause);
        stream
    };
    let mut waiting: Vec<Stream> = (0..64).map(|_| arrives()).collect();
    assert_eq!((envoy.code().as_str(), envoy.calls.borrow().len()), ("", 64), "each asks");
    let _ = arrives();
    assert_eq!(
        (envoy.code().as_str(), envoy.calls.borrow().len()),
        ("token_keys_unavailable", 64),
        "one too many"
    );
    envoy.answered.borrow_mut().clear();
    drop(waiting.pop());
    waiting.push(arrives());
    assert_eq!((envoy.code().as_str(), envoy.calls.borrow().len()), ("", 65));
    // That key comes; the signature is nonsense, so the token is refused for that.
    let new = told(&KEYS.replace("\"old\"", "\"new\""));
    for (position, mut stream) in waiting.into_iter().enumerate() {
        stream.called(&new, &envoy);
        assert_eq!(envoy.code(), "token_signature");
        envoy.answered.borrow_mut().clear();
        if position == 0 {
            // Others wait still, but whoever made us ask has been answered, a moment ago.
            envoy.fields.borrow_mut().last_mut().unwrap().1 =
                format!("Bearer {}", UNKNOWN_KEY.replace("5ldyJ9", "5ldzIifQ")).into_bytes();
            let _ = arrives();
            assert_eq!((envoy.code().as_str(), envoy.calls.borrow().len()), ("token_key_unknown", 65));
            envoy.answered.borrow_mut().clear();
        }
    }
}

/// Until the state service has told the whole list no token is looked at; what one worker was told the next one starts
/// with, if that was a moment ago; and whatever else is told changes nothing.
#[test]
fn what_is_revoked_is_followed() {
    let envoy = fake("GET", "/x");
    envoy.fields.borrow_mut().push(("authorization".into(), format!("Bearer {UNKNOWN_KEY}").into_bytes()));
    let configuration = configuration(&json!({ "jwt": {} }));
    let plugin = Rc::new(Plugin::new(&configuration, &env, &envoy).unwrap());
    let _ = Stream::new(Rc::clone(&plugin)).header(true, &envoy);
    assert_eq!(envoy.code(), "token_revocations_unavailable");

    let path = || envoy.calls.borrow().last().map(|(path, _)| path.clone()).unwrap_or_default();
    let told = |after: u64, whole: bool, rest: &str| {
        assert!(plugin.ask_for_revocations(&envoy).is_some());
        let body = format!(r#"{{"epoch":"e1","last":{after},"whole":{whole},"changes":[{rest}]}}"#);
        plugin.revocations_told(&answered(200, &body), &envoy);
        (plugin.revocations.is_known(), plugin.revocations.len())
    };
    let one = |id: &str| format!(r#"{{"kind":"token","id":"{id}","until_ms":{}}}"#, T0 + 60_000);
    assert_eq!(told(1, false, &one("a")), (false, 1), "a part of it");
    assert_eq!(path(), "/v1/revocations?epoch=&after=0");
    assert_eq!(told(2, true, &one("b")), (true, 2));
    assert_eq!(path(), "/v1/revocations?epoch=e1&after=1");
    for (status, body) in [(500, ""), (200, "<html>"), (200, r#"{"epoch":"e1"}"#), (404, "{}")] {
        plugin.revocations_told(&answered(status, body), &envoy);
        assert_eq!(plugin.revocations.len(), 2, "{status} {body}");
    }
    plugin.revocations_told(&Answered::default(), &envoy);
    let undone = one("a").replace('}', r#","undone":true}"#);
    assert_eq!(told(3, true, &undone), (true, 1));

    for (later_ms, known) in [(0, (true, 1)), (5_000, (true, 1)), (5_001, (false, 0))] {
        let again = fake("GET", "/x");
        again.now_ms.set(T0 + later_ms);
        *again.shared.borrow_mut() = envoy.shared.borrow().clone();
        let reborn = Plugin::new(&configuration, &env, &again).unwrap();
        assert_eq!((reborn.revocations.is_known(), reborn.revocations.len()), known, "{later_ms}");
        assert!(reborn.ask_for_revocations(&again).is_some());
        let path = again.calls.borrow()[0].0.clone();
        let expected =
            if known.0 { "/v1/revocations?epoch=e1&after=3" } else { "/v1/revocations?epoch=&after=0" };
        assert_eq!(path, expected);
    }
}

/// A token that only its issuer can read holds its request until the state service has told what it is; the next one
/// with it goes on at once, until that is over.
#[test]
fn an_opaque_token_is_asked_about_once() {
    let mut policy = document(&json!({ "jwt": {} }));
    policy["issuers"]["asked"] = json!({
        "issuer": "https://asked.test", "audiences": ["torana"],
        "introspection": { "url": "https://asked.test", "ca": "file:a", "client_id": "e", "client_secret": "file:s" },
    });
    let compiled = Compiled {
        policy: policy.to_string(),
        secrets: [("env:ACME".to_owned(), Secret::Env("ACME".to_owned()))].into(),
        state_cluster: "state".to_owned(),
        peer_field: None,
        certificate_field: None,
    };
    let claims = json!({ "sub": "u1", "aud": "torana", "exp": T0 / 1_000 + 600 }).to_string();
    let told = |claims: Option<&str>| json!({ "claims": claims, "until_ms": T0 + 30_000 }).to_string();
    let ask = || {
        let envoy = fake("GET", "/x");
        envoy.fields.borrow_mut().push(("authorization".into(), b"Bearer opaque".to_vec()));
        envoy
    };
    for (answer, expected) in [
        (answered(200, &told(Some(&claims))), ""),
        (answered(200, &told(None)), "token_inactive"),
        (answered(200, &told(Some("{}"))), "token_malformed"),
        (answered(200, "<html>"), "token_introspection_unavailable"),
        (answered(503, ""), "token_introspection_unavailable"),
        (Answered::default(), "token_introspection_unavailable"),
    ] {
        let envoy = ask();
        let plugin = Rc::new(Plugin::new(&serde_json::to_vec(&compiled).unwrap(), &env, &envoy).unwrap());
        plugin.revocations.known();
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &envoy), Flow::Pause);
        let issuer = known_as(&plugin, "asked");
        let question = json!({ "issuer": issuer, "token": "opaque" }).to_string().into_bytes();
        assert_eq!(envoy.calls.borrow()[..], [("/v1/introspect".to_owned(), question)]);
        stream.called(&answer, &envoy);
        assert_eq!((envoy.code().as_str(), envoy.resumed.get()), (expected, u32::from(expected.is_empty())));
        assert_eq!(envoy.calls.borrow().len(), 1, "asked once");

        let known = !expected.contains("unavailable");
        for (later_ms, asks) in [(30_000, !known), (30_001, true)] {
            let again = ask();
            again.now_ms.set(T0 + later_ms);
            let flow = Stream::new(Rc::clone(&plugin)).header(true, &again);
            assert_eq!(again.calls.borrow().len(), usize::from(asks), "{expected} after {later_ms} ms");
            assert_eq!(flow == Flow::Continue, expected.is_empty() && !asks);
        }
        let away = ask();
        away.now_ms.set(T0 + 60_000);
        away.unreachable.set(true);
        let _ = Stream::new(plugin).header(true, &away);
        assert_eq!(away.code(), "token_introspection_unavailable");
    }
}
