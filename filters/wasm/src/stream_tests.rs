//! A request's way through the module, natively: what Envoy is told, in which order, whatever it tells.

use std::rc::Rc;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filters::compiled::{Compiled, Secret};
use filters::signature::digest::content_digest;
use filters::signature::message::{Message, Params, SigningKey, sign};
use filters::state::{Op, Place};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::envoy::Answered;
use crate::fake::Fake;
use crate::plugin::Plugin;
use crate::stream::{Flow, REFUSED_FIELD, ROUTE_FIELD, Stream};

const T0: u64 = 1_767_225_600_000;
const SECRET: &[u8] = b"a partner's secret of 32 bytes!!";

fn document(filters: &Value) -> Value {
    let tls = json!({ "certificate": "file:c", "key": "file:k" });
    json!({
        "listeners": [{ "name": "l", "address": "127.0.0.1:1", "tls": tls }],
        "admin": { "address": "127.0.0.1:2" },
        "state": { "service": { "address": "127.0.0.1:4" } },
        "upstreams": { "u": {
            "addresses": ["127.0.0.1:3"],
            "tls": { "server_name": "u", "ca": "file:a", "certificate": "file:c", "key": "file:k" },
        } },
        "issuers": { "main": {
            "issuer": "https://issuer.test", "audiences": ["torana"], "algorithms": ["ES256"],
            "jwks": { "file": "file:jwks.json" },
        } },
        "clients": { "acme": { "hmac_keys": [{ "id": "partner-1", "secret": "env:ACME" }] } },
        "routes": [{
            "name": "r", "methods": ["GET", "POST"], "path": "/{*rest}", "upstream": "u", "filters": filters,
        }],
    })
}

fn configuration(filters: &Value) -> Vec<u8> {
    configured_with(filters, Secret::Env("ACME".to_owned()))
}

fn configured_with(filters: &Value, secret: Secret) -> Vec<u8> {
    let compiled = Compiled {
        policy: document(filters).to_string(),
        secrets: [("env:ACME".to_owned(), secret)].into(),
        state_cluster: "state".to_owned(),
        peer_field: None,
        certificate_field: None,
    };
    serde_json::to_vec(&compiled).unwrap()
}

fn env(name: &str) -> Option<String> {
    (name == "ACME").then(|| String::from_utf8(SECRET.to_vec()).unwrap())
}

/// With the list of what is revoked, on which there is nothing.
fn plugin(filters: &Value, envoy: &Fake) -> Rc<Plugin> {
    let plugin = Plugin::new(&configuration(filters), &env, envoy).unwrap();
    plugin.revocations.known();
    Rc::new(plugin)
}

fn fake(method: &str, path: &str) -> Fake {
    let fields = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "edge.test")];
    Fake {
        now_ms: T0.into(),
        peer: Some("10.0.0.1:4711".to_owned()),
        fields: fields.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec().into(),
        ..Fake::default()
    }
}

fn limit(counted: &str) -> Value {
    json!({ "rate_limit": { "limits": [{
        "name": "each", "by": "ip", "requests": 1, "per_s": 60, "counted": counted,
    }] } })
}

const TAKEN: &str = r#"[{"taken":{"remaining":0,"reset_ms":60000}}]"#;

fn answered(status: u16, body: &str) -> Answered {
    Answered { status: Some(status), etag: None, body: body.as_bytes().to_vec() }
}

#[test]
fn what_needs_no_state_goes_on_at_once() {
    let envoy = fake("GET", "/x");
    let mut stream = Stream::new(plugin(&limit("here"), &envoy));
    assert_eq!(stream.header(true, &envoy), Flow::Continue);
    assert!(envoy.calls.borrow().is_empty());
    assert_eq!(envoy.set.borrow()[ROUTE_FIELD].as_deref(), Some("r"));
    assert_eq!(envoy.set.borrow()["x-forwarded-for"].as_deref(), Some("10.0.0.1"));
    assert_eq!(envoy.resumed.get(), 0);
    assert_eq!(stream.answer(true, &envoy), Flow::Continue);
    assert_eq!(envoy.answer_set.borrow()["ratelimit"], "\"each\";r=0;t=60");
}

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

/// Secrets that the state service tells count as soon as they are told, and the newer ones from then on.
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

static SIGNING: LazyLock<Value> = LazyLock::new(|| {
    let key = json!({ "key": "partner-1" });
    json!({ "to_upstream": key, "from_upstream": key, "to_client": key })
});

const GONE: &str = "upstream_reset_before_response_started{connection_termination}";

/// An upstream's answer signed as the payment network signs, and the same with one thing changed.
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

/// Without randomness no request could be told from another, nor its answer from a replay: none passes.
#[test]
fn without_randomness_nothing_passes() {
    let envoy = fake("GET", "/x");
    let mut stream = Stream::new(plugin(&json!({}), &envoy));
    envoy.no_randomness.set(true);
    assert_eq!(stream.header(true, &envoy), Flow::Pause);
    assert_eq!(envoy.answered.borrow().first().map(|(status, _)| *status), Some(500));
    assert!(envoy.set.borrow().is_empty());
}

#[test]
fn who_sends_is_told_by_envoy_and_not_by_the_client() {
    let told = |field: Option<&str>, sent: &str| {
        let envoy = fake("GET", "/x");
        envoy.fields.borrow_mut().push(("x-envoy-external-address".into(), sent.as_bytes().to_vec()));
        let mut compiled: Value = serde_json::from_slice(&configuration(&json!({}))).unwrap();
        compiled["peer_field"] = json!(field);
        let plugin = Plugin::new(compiled.to_string().as_bytes(), &env, &envoy).unwrap();
        let _ = Stream::new(Rc::new(plugin)).header(true, &envoy);
        let set = envoy.set.borrow();
        set.get("x-forwarded-for").cloned().flatten()
    };
    assert_eq!(told(None, "10.9.9.9").as_deref(), Some("10.0.0.1"));
    assert_eq!(told(Some("x-envoy-external-address"), "10.9.9.9").as_deref(), Some("10.9.9.9"));
    assert_eq!(told(Some("x-envoy-external-address"), "nobody"), None, "refused");
}

#[test]
fn the_state_is_asked_once_and_decides() {
    for (answer, expected) in [
        (answered(200, TAKEN), ""),
        (
            answered(200, r#"[{"exhausted":{"allowance":{"remaining":0,"reset_ms":9},"retry_after_ms":9}}]"#),
            "rate_limited",
        ),
        (answered(507, ""), "state_full"),
        (answered(200, r#"["remembered"]"#), ""),
        (answered(500, ""), ""),
        (Answered::default(), ""),
    ] {
        let envoy = fake("POST", "/x");
        let plugin = plugin(&limit("shared"), &envoy);
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(false, &envoy), Flow::Pause);
        assert_eq!(stream.body(3, false, &envoy), Flow::Pause);
        assert!(envoy.calls.borrow().is_empty(), "the body is not whole");
        *envoy.body.borrow_mut() = b"abcdef".to_vec();
        assert_eq!(stream.body(6, true, &envoy), Flow::Pause);
        assert_eq!(envoy.calls.borrow().len(), 1);
        stream.called(&answer, &envoy);
        assert_eq!(envoy.code(), expected, "{answer:?}");
        assert_eq!(envoy.resumed.get(), u32::from(expected.is_empty()));
        assert_eq!(envoy.set.borrow().contains_key(REFUSED_FIELD), !expected.is_empty());
        // A late second answer changes nothing.
        stream.called(&answered(200, TAKEN), &envoy);
        assert_eq!(envoy.resumed.get(), u32::from(expected.is_empty()));
    }
}

/// Places that others have left go with a request's batch; if it is cut off meanwhile they go with the next one too.
#[test]
fn what_was_sent_along_with_a_request_that_is_cut_off_is_sent_again() {
    let envoy = fake("GET", "/x");
    let plugin = plugin(&limit("shared"), &envoy);
    let left = vec![Op::Release { key: "one".into(), place: Place { number: 1, until_us: 9 } }];
    plugin.left(left.clone(), &envoy);
    for (answer, then) in
        [(None, left), (Some(r#"["released",{"taken":{"remaining":0,"reset_ms":9}}]"#), vec![])]
    {
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &envoy), Flow::Pause);
        assert!(envoy.calls.borrow().last().is_some_and(|(_, body)| body.starts_with(br#"[{"release""#)));
        if let Some(answer) = answer {
            stream.called(&answered(200, answer), &envoy);
        }
        stream.ended(&envoy);
        let untold = plugin.releases();
        assert_eq!(untold, then);
        plugin.left(untold, &envoy);
    }
}

#[test]
fn while_the_state_is_away_limits_hold_here_and_nonces_are_refused() {
    let envoy = fake("GET", "/x");
    let plugin = plugin(&limit("shared"), &envoy);
    envoy.unreachable.set(true);
    for expected in [Flow::Continue, Flow::Pause] {
        assert_eq!(Stream::new(Rc::clone(&plugin)).header(true, &envoy), expected);
    }
    assert_eq!(envoy.code(), "rate_limited");
}

#[test]
fn trailers_end_a_body() {
    let envoy = fake("POST", "/x");
    let mut stream = Stream::new(plugin(&json!({ "shape": {} }), &envoy));
    assert_eq!(stream.header(false, &envoy), Flow::Pause);
    *envoy.body.borrow_mut() = b"{}".to_vec();
    assert_eq!(stream.body(2, false, &envoy), Flow::Pause);
    assert_eq!(stream.trailers(&envoy), Flow::Pause);
    assert_eq!(envoy.code(), "content_type_missing");
}

#[test]
fn a_body_is_refused_as_soon_as_it_is_too_large() {
    let envoy = fake("POST", "/x");
    let mut stream = Stream::new(plugin(&json!({}), &envoy));
    assert_eq!(stream.header(false, &envoy), Flow::Pause);
    assert_eq!(stream.body(65_537, false, &envoy), Flow::Pause);
    assert_eq!(envoy.code(), "body_too_large");
    assert_eq!(stream.body(70_000, true, &envoy), Flow::Pause);
    assert_eq!(envoy.code(), "body_too_large", "answered once");
}

/// A token of the trusted issuer, by a key that nobody knows.
const UNKNOWN_KEY: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6Im5ldyJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0In0.AAAA";
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"old","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// What an issuer of the policy is known as.
fn known_as(plugin: &Plugin, issuer: &str) -> String {
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
        "asked a moment ago"
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
        ("token_key_unknown", 64),
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

#[test]
fn a_configuration_that_is_none_is_told() {
    let envoy = fake("GET", "/x");
    for (configuration, expected) in [
        (b"".to_vec(), "not what `gateway envoy` writes"),
        (b"{}".to_vec(), "not what `gateway envoy` writes"),
        (br#"{"policy":"routes: []","state_cluster":"s"}"#.to_vec(), "missing field"),
        (configuration(&json!({ "jvt": {} })), "unknown field `jvt`"),
    ] {
        let error = Plugin::new(&configuration, &env, &envoy).unwrap_err().0;
        assert!(error.contains(expected), "{error}");
    }
    let error = Plugin::new(&configuration(&json!({})), &|_| None, &envoy).unwrap_err().0;
    assert!(error.contains("Envoy does not pass on the variable `ACME`"), "{error}");
}

/// What Envoy may do next.
#[derive(Clone, Debug)]
enum Step {
    Header(bool),
    Body(usize, bool),
    Trailers,
    Called(Option<u16>, Vec<u8>),
    Answer(bool),
    AnswerBody(usize, bool),
    AnswerTrailers,
    Ended,
}

fn step() -> impl Strategy<Value = Step> {
    let bodies = prop_oneof![
        Just(TAKEN.as_bytes().to_vec()),
        Just(br#"["remembered"]"#.to_vec()),
        Just(KEYS.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..60),
    ];
    prop_oneof![
        any::<bool>().prop_map(Step::Header),
        (0usize..70_000, any::<bool>()).prop_map(|(length, whole)| Step::Body(length, whole)),
        Just(Step::Trailers),
        (proptest::option::of(prop_oneof![Just(200), Just(507), any::<u16>()]), bodies)
            .prop_map(|(status, body)| Step::Called(status, body)),
        any::<bool>().prop_map(Step::Answer),
        (0usize..70_000, any::<bool>()).prop_map(|(length, whole)| Step::AnswerBody(length, whole)),
        Just(Step::AnswerTrailers),
        Just(Step::Ended),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever bytes a client sends and whatever Envoy does in whatever order, nothing panics, a request is
    /// answered once at most, and none that was answered goes on.
    #[test]
    fn nothing_panics_and_nothing_is_both_refused_and_admitted(
        pseudo in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 4),
        fields in proptest::collection::vec(
            (prop_oneof![
                Just("authorization".to_owned()), Just("content-type".to_owned()), Just("traceparent".to_owned()),
                Just("signature-input".to_owned()), Just("x-api-version".to_owned()), "[a-z-]{1,12}",
            ], proptest::collection::vec(any::<u8>(), 0..80)), 0..20),
        plain in any::<bool>(),
        peer in proptest::option::of(prop_oneof![Just("[::1]:1".to_owned()), Just("10.0.0.1:1".to_owned()), any::<String>()]),
        body in proptest::collection::vec(any::<u8>(), 0..200),
        steps in proptest::collection::vec(step(), 1..10),
        unreachable in any::<bool>(),
        answer in proptest::collection::vec(
            (prop_oneof![
                Just(":status".to_owned()), Just("signature".to_owned()), Just("signature-input".to_owned()),
                Just("content-digest".to_owned()), "[a-z-]{1,12}",
            ], proptest::collection::vec(any::<u8>(), 0..80)), 0..6),
    ) {
        let filters = json!({
            "ip_access": { "deny": ["10.6.0.0/16"] }, "shape": {}, "headers": {}, "idempotency": {},
            "rate_limit": { "limits": [{ "name": "each", "by": "ip", "requests": 1, "per_s": 60 }] },
            "signing": SIGNING.clone(),
        });
        let strict = json!({ "jwt": {}, "signature": {}, "nonce": {} });
        let envoy = fake("GET", "/x");
        let plugin = plugin(if plain { &filters } else { &strict }, &envoy);
        let envoy = Fake { now_ms: T0.into(), peer, unreachable: unreachable.into(), ..Fake::default() };
        for (name, value) in [":method", ":path", ":authority", ":scheme"].iter().zip(pseudo) {
            envoy.fields.borrow_mut().push(((*name).to_owned(), value));
        }
        envoy.fields.borrow_mut().extend(fields);
        envoy.answer_body.borrow_mut().clone_from(&body);
        *envoy.answer_told.borrow_mut() = answer;
        *envoy.body.borrow_mut() = body;
        let mut stream = Stream::new(plugin);
        let mut went_on = 0;
        for step in steps {
            let resumed = envoy.resumed.get();
            let flow = match step {
                Step::Header(whole) => stream.header(whole, &envoy),
                Step::Body(length, whole) => stream.body(length, whole, &envoy),
                Step::Trailers => stream.trailers(&envoy),
                Step::Called(status, body) => {
                    stream.called(&Answered { status, etag: None, body }, &envoy);
                    if envoy.resumed.get() > resumed { Flow::Continue } else { Flow::Pause }
                }
                Step::Answer(_) | Step::AnswerBody(..) | Step::AnswerTrailers if went_on == 0 => Flow::Pause,
                Step::Answer(whole) => stream.answer(whole, &envoy),
                Step::AnswerBody(length, whole) => stream.answer_body(length, whole, &envoy),
                Step::AnswerTrailers => stream.answer_trailers(&envoy),
                Step::Ended => { stream.ended(&envoy); Flow::Pause }
            };
            if flow == Flow::Continue {
                went_on += 1;
                prop_assert!(envoy.set.borrow().contains_key(ROUTE_FIELD), "went on without a decision");
            }
            prop_assert!(envoy.answered.borrow().len() <= 1, "answered more than once");
            if went_on == 0 && !envoy.answered.borrow().is_empty() {
                prop_assert_eq!(envoy.resumed.get(), 0, "a refused request went on");
                break;
            }
        }
    }

    /// Whatever the configuration is, it is taken or refused.
    #[test]
    fn no_configuration_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), policy in any::<String>()) {
        let envoy = fake("GET", "/x");
        let _ = Plugin::new(&bytes, &env, &envoy);
        let compiled = json!({ "policy": policy, "state_cluster": "s" });
        let _ = Plugin::new(compiled.to_string().as_bytes(), &env, &envoy);
    }
}

/// What a limit in shadow would have refused is counted in one counter, and noted for the access log; the request goes on.
#[test]
fn shadows_are_counted_and_noted() {
    let mut filters = limit("here");
    filters["rate_limit"]["limits"][0]["mode"] = json!("shadow");
    let plugin = plugin(&filters, &fake("GET", "/x"));
    let envoy = fake("GET", "/x");
    for expected in [0, 1, 2] {
        let mut stream = Stream::new(Rc::clone(&plugin));
        assert_eq!(stream.header(true, &envoy), Flow::Continue);
        stream.ended(&envoy);
        let counters = envoy.counters.borrow().clone();
        let counted: u32 = counters.iter().map(|(_, count)| count).sum();
        assert_eq!((counted, counters.len()), (expected, usize::from(expected > 0).min(1)), "{counters:?}");
    }
    assert_eq!(envoy.counters.borrow()[0].0, "torana_would_refuse.rate_limit.each");
    let noted = ("torana_would_refuse".to_owned(), "rate_limit/each".to_owned());
    assert_eq!(*envoy.notes.borrow(), [noted.clone(), noted]);
}

/// Which limit refuses is noted for the access log.
#[test]
fn the_limit_that_refuses_is_noted() {
    let plugin = plugin(&limit("here"), &fake("GET", "/x"));
    let envoy = fake("GET", "/x");
    for notes in [vec![], vec![("torana_limit".to_owned(), "each".to_owned())]] {
        let mut stream = Stream::new(Rc::clone(&plugin));
        let expected = if notes.is_empty() { Flow::Continue } else { Flow::Pause };
        assert_eq!(stream.header(true, &envoy), expected);
        stream.ended(&envoy);
        assert_eq!(*envoy.notes.borrow(), notes);
    }
}
