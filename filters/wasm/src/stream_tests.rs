//! A request's way through the module, natively: what Envoy is told, in which order, whatever it tells.

mod answers;
mod anything;
mod fresh_keys;
mod told;

use std::rc::Rc;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filters::compiled::{Compiled, Secret};
use filters::signature::digest::content_digest;
use filters::signature::message::{Message, Params, SigningKey, sign};
use filters::state::{Op, Place};
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
    compiled(&document(filters), secret)
}

fn compiled(document: &Value, secret: Secret) -> Vec<u8> {
    let compiled = Compiled {
        policy: document.to_string(),
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

static SIGNING: LazyLock<Value> = LazyLock::new(|| {
    let key = json!({ "key": "partner-1" });
    json!({ "to_upstream": key, "from_upstream": key, "to_client": key })
});

const GONE: &str = "upstream_reset_before_response_started{connection_termination}";
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"old","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
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

#[test]
fn a_configuration_that_is_none_is_told() {
    let envoy = fake("GET", "/x");
    for (configuration, expected) in [
        (b"".to_vec(), "not what `gateway envoy` writes"),
        (b"{}".to_vec(), "not what `gateway envoy` writes"),
        (br#"{"policy":"routes: []","state_cluster":"s"}"#.to_vec(), "needs `listeners`"),
        (configuration(&json!({ "jvt": {} })), "unknown field `jvt`"),
    ] {
        let error = Plugin::new(&configuration, &env, &envoy).unwrap_err().0;
        assert!(error.contains(expected), "{error}");
    }
    let error = Plugin::new(&configuration(&json!({})), &|_| None, &envoy).unwrap_err().0;
    assert!(error.contains("Envoy does not pass on the variable `ACME`"), "{error}");
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
    let note = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let refused = vec![note("torana_refused", "rate_limit/rate_limited/r"), note("torana_limit", "each")];
    for notes in [vec![], refused] {
        let mut stream = Stream::new(Rc::clone(&plugin));
        let expected = if notes.is_empty() { Flow::Continue } else { Flow::Pause };
        assert_eq!(stream.header(true, &envoy), expected);
        stream.ended(&envoy);
        assert_eq!(*envoy.notes.borrow(), notes);
    }
}
