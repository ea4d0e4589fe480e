//! Answers on their way through the module.

use super::*;

#[test]
fn many_fields_of_an_answer_are_set_at_once() {
    let envoy = fake("GET", "/x");
    let mut stream = Stream::new(plugin(&json!({ "headers": {} }), &envoy));
    assert_eq!(stream.header(true, &envoy), Flow::Continue);
    assert_eq!(stream.answer(true, &envoy), Flow::Continue);
    let set = envoy.answer_set.borrow();
    assert_eq!((set[":status"].as_str(), set["x-frame-options"].as_str()), ("200", "DENY"));
    assert_eq!(set["x-request-id"].len(), 36);
}

/// Envoy compresses by the header that the module leaves.
#[test]
fn answers_are_left_as_the_compressor_is_to_find_them() {
    let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    for (more, whole, expected) in [
        (vec![field("etag", "\"1\"")], false, vec![("etag", "W/\"1\""), ("vary", "Accept-Encoding")]),
        // Without a body there is nothing to compress.
        (vec![field("etag", "\"1\"")], true, vec![("etag", "\"1\""), ("vary", "Accept-Encoding")]),
        (
            vec![field("set-cookie", "a=b")],
            false,
            vec![("cache-control", "no-transform"), ("set-cookie", "a=b")],
        ),
    ] {
        let envoy = fake("GET", "/x");
        envoy.fields.borrow_mut().push(field("accept-encoding", "gzip"));
        let mut stream = Stream::new(plugin(&json!({ "compression": {} }), &envoy));
        assert_eq!(stream.header(true, &envoy), Flow::Continue);
        *envoy.answer_told.borrow_mut() = more;
        assert_eq!(stream.answer(whole, &envoy), Flow::Continue);
        let set = envoy.answer_set.borrow();
        let told = set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let told: Vec<_> = told
            .filter(|(name, _)| !matches!(*name, ":status" | "x-frame-options" | "x-request-id"))
            .collect();
        assert_eq!(told, expected, "{whole}");
    }
}

/// An upstream's answer signed as the payment network signs, and the same with one thing changed.
#[test]
fn an_answer_is_held_until_it_is_whole_and_verified() {
    let key = SigningKey::hmac(SECRET).unwrap();
    let signed = |nonce: &str| {
        let mut fields = vec![
            ("content-digest".to_owned(), content_digest(b"{}").into_bytes()),
            ("x-request-nonce".to_owned(), nonce.as_bytes().to_vec()),
        ];
        let covered = ["@status", "content-digest", "x-request-nonce", "\"@method\";req", "\"@path\";req"];
        let mut params = Params::covering(&covered).unwrap();
        params.created = i64::try_from(T0 / 1_000).ok();
        params.keyid = Some("partner-1".to_owned());
        let none: Vec<(String, Vec<u8>)> = Vec::new();
        let asked = Message::request("POST", "https", "", "/x", None, &none);
        let made = sign(&Message::response(200, &fields, Some(&asked)), "net", &params, &key).unwrap();
        fields.push(("signature-input".to_owned(), made.signature_input.into_bytes()));
        fields.push(("signature".to_owned(), made.signature.into_bytes()));
        fields
    };
    let answered = |nonce: Option<&str>, body: &[u8], details: Option<&str>| {
        let envoy = fake("POST", "/x");
        let mut stream = Stream::new(plugin(&json!({ "signing": SIGNING.clone() }), &envoy));
        assert_eq!(stream.header(true, &envoy), Flow::Continue);
        let sent = envoy.set.borrow()["signature-input"].clone().unwrap();
        let ours = sent.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        if let Some(nonce) = nonce {
            *envoy.answer_told.borrow_mut() = signed(if nonce.is_empty() { &ours } else { nonce });
        }
        *envoy.answer_body.borrow_mut() = body.to_vec();
        *envoy.details.borrow_mut() = details.map(|details| details.as_bytes().to_vec());
        let begun = stream.answer(false, &envoy);
        let ended = stream.answer_body(body.len(), true, &envoy);
        assert_eq!(begun == Flow::Continue, details == Some(GONE), "held until whole");
        (ended, envoy.code(), envoy.answer_set.borrow().contains_key("signature"))
    };
    let refused = |code: &str| (Flow::Pause, code.to_owned(), false);
    let passed = (Flow::Continue, String::new(), true);
    let upstream = Some("via_upstream");
    assert_eq!(answered(Some(""), b"{}", upstream), passed);
    assert_eq!(answered(Some(""), b"[]", upstream), refused("answer_digest_mismatch"));
    assert_eq!(answered(Some("0123456789abcdef"), b"{}", upstream), refused("answer_to_another_request"));
    assert_eq!(answered(None, b"{}", upstream), refused("answer_unsigned"));
    assert_eq!(answered(Some(""), &vec![b'x'; 64 * 1024 + 1], upstream), refused("answer_too_large"));
    // Envoy's own 503 is no answer of the upstream's. What it says nothing known of is verified.
    assert_eq!(answered(None, b"", Some(GONE)), (Flow::Continue, String::new(), false));
    for details in [None, Some(""), Some("ext_authz_denied")] {
        assert_eq!(answered(None, b"{}", details), refused("answer_unsigned"), "{details:?}");
        assert_eq!(answered(Some(""), b"{}", details), passed, "{details:?}");
    }
}

/// An answer to a request of an experiment is counted by its variant and status; a refusal is no answer to one.
#[test]
fn answers_are_counted_by_variant() {
    let mut document = document(&json!({ "idempotency": {} }));
    let route = document["routes"][0].as_object_mut().unwrap();
    route.remove("upstream");
    let [all, none] = [("one-tap", 1), ("control", 0)]
        .map(|(variant, weight)| json!({ "upstream": "u", "weight": weight, "variant": variant }));
    route.insert("upstreams".into(), json!([all, none]));
    route.insert("sticky".into(), json!("ip"));
    route.insert("experiment".into(), json!("checkout"));
    let envoy = fake("POST", "/x");
    envoy
        .fields
        .borrow_mut()
        .push(("idempotency-key".into(), b"0b7e6f3c-4a77-4c8e-9d64-6f6b4a1d2c3e".to_vec()));
    let plugin =
        Rc::new(Plugin::new(&compiled(&document, Secret::Env("ACME".into())), &env, &envoy).unwrap());
    for status in [b"200", b"200", b"503"] {
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &envoy), Flow::Continue);
        *envoy.answer_told.borrow_mut() = vec![(":status".into(), status.to_vec())];
        assert_eq!(stream.answer(true, &envoy), Flow::Continue);
    }
    let refused = fake("POST", "/x");
    let mut stream = Stream::new(plugin);
    assert_eq!(stream.header(true, &refused), Flow::Pause);
    assert_eq!(stream.answer(true, &refused), Flow::Continue);
    assert!(refused.counters.borrow().is_empty());
    let counted = [("200", 2), ("503", 1)];
    let counted =
        counted.map(|(status, count)| (format!("torana_experiment.checkout.one-tap.{status}"), count));
    assert_eq!(*envoy.counters.borrow(), counted);
}
