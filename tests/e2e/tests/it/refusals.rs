//! What is refused, with which code, and that a refusal leaves no trace in the books.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::{Answer, Ledger, accepted, calls, options, pay, start};
use filters::signature::message::Params;
use serde_json::{Value, json};
use stack::{Claims, Device, Edge, EdgeRequest, Forgery, Payment, Service, Stack, signature_params};

/// A request and what must become of it.
struct Case {
    name: &'static str,
    request: EdgeRequest,
    expected: (u16, &'static str),
}

struct Cases<'s> {
    stack: &'s Stack,
    list: Vec<Case>,
}

const COVERED: &[&str] =
    &["@method", "@path", "@query", "content-digest", "content-type", "authorization", "idempotency-key"];

impl Cases<'_> {
    fn add(&mut self, name: &'static str, request: EdgeRequest, expected: (u16, &'static str)) {
        self.list.push(Case { name, request, expected });
    }

    /// A payment that would be accepted, not yet signed.
    fn unsigned(&self) -> anyhow::Result<EdgeRequest> {
        self.unsigned_with(&self.stack.alice()?.token, &Payment::new("alice@torana", "bob@torana", "10.00"))
    }

    fn unsigned_with(&self, token: &str, payment: &Payment) -> anyhow::Result<EdgeRequest> {
        EdgeRequest::payment(self.stack.edge_url(), token, self.device()?, payment)
    }

    fn device(&self) -> anyhow::Result<&Device> {
        Ok(&self.stack.alice()?.device)
    }

    /// A payment that is right but for its token.
    fn token(&mut self, name: &'static str, token: &str, code: &'static str) -> anyhow::Result<()> {
        let payment = Payment::new("alice@torana", "bob@torana", "10.00");
        let request = self.unsigned_with(token, &payment)?.signed(self.device()?)?;
        self.add(name, request, (401, code));
        Ok(())
    }

    /// A payment that is right but for what its token claims.
    fn claims(
        &mut self,
        name: &'static str,
        code: &'static str,
        change: impl FnOnce(&mut Claims),
    ) -> anyhow::Result<()> {
        let mut claims = self.stack.claims("alice", &["alice@torana"], self.device()?)?;
        change(&mut claims);
        let token = self.stack.issuer().mint(&claims)?;
        self.token(name, &token, code)
    }

    /// A payment whose body is this JSON, properly signed.
    fn body(&mut self, name: &'static str, body: &str, expected: (u16, &'static str)) -> anyhow::Result<()> {
        let mut request = self.unsigned()?;
        request.body = body.as_bytes().to_vec();
        request.set("content-digest", Some(&filters::signature::digest::content_digest(body.as_bytes())));
        let request = request.signed(self.device()?)?;
        self.add(name, request, expected);
        Ok(())
    }

    /// A payment like any other but for some members of its body, properly signed.
    fn members(
        &mut self,
        name: &'static str,
        members: &[(&str, &str)],
        expected: (u16, &'static str),
    ) -> anyhow::Result<()> {
        let request = self.unsigned()?;
        let mut body: BTreeMap<String, Value> = serde_json::from_slice(&request.body)?;
        // As text, so that `1e3` stays `1e3`.
        let mut marks = Vec::new();
        for (member, value) in members {
            let mark = format!("@{member}@");
            body.insert((*member).to_owned(), json!(mark));
            marks.push((format!("\"{mark}\""), *value));
        }
        let mut text = serde_json::to_string(&body)?;
        for (mark, value) in marks {
            text = text.replace(&mark, value);
        }
        let key = body.get("idempotencyKey").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut request = request;
        request.body = text.clone().into_bytes();
        request.set("idempotency-key", Some(&key));
        request.set("content-digest", Some(&filters::signature::digest::content_digest(text.as_bytes())));
        let request = request.signed(self.device()?)?;
        self.add(name, request, expected);
        Ok(())
    }
}

#[tokio::test]
async fn every_refusal_has_its_code_and_leaves_no_trace() -> anyhow::Result<()> {
    let stack = start(options("refusals")?).await?;
    let mut cases = Cases { stack: &stack, list: Vec::new() };
    tokens(&mut cases)?;
    signatures(&mut cases)?;
    bodies(&mut cases)?;
    amounts_and_addresses(&mut cases)?;
    forged_fields(&mut cases)?;

    let mut wrong = Vec::new();
    for Case { name, request, expected } in &cases.list {
        let mut answer = Answer::to(&stack, request).await?;
        // A token has caused a fetch of the keys before: the next one is allowed after this time.
        if answer.code() == "token_keys_unavailable" {
            tokio::time::sleep(Duration::from_secs(answer.header("retry-after").parse()?)).await;
            answer = Answer::to(&stack, request).await?;
        }
        if (answer.status, answer.code()) != *expected {
            wrong.push(format!("{name}: expected {expected:?}, got {} {}", answer.status, answer.body));
        }
        if answer.header("x-content-type-options") != "nosniff" || answer.header("x-request-id").is_empty() {
            wrong.push(format!("{name}: the answer lacks its fields: {:?}", answer.headers));
        }
        if expected.0 == 401 && answer.header("www-authenticate").is_empty() && expected.1 != "nonce_missing"
        {
            wrong.push(format!("{name}: a 401 names no scheme"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.list.len(), wrong.join("\n"));

    let ledger = Ledger::of(&stack).await?;
    assert!(ledger.entries.is_empty(), "a refused payment moved money: {:?}", ledger.entries);
    assert_eq!(accepted(&stack).await?, 0, "the core accepted a payment that the edge or itself refused");
    let calls = calls(&stack).await?;
    assert!(!calls.to_string().contains("TOR"), "a refused payment reached the network: {calls}");

    // And the stack is as good as before.
    let (_, end) = pay(&stack, stack.alice()?, &Payment::new("alice@torana", "bob@torana", "1.00")).await?;
    assert_eq!(end.status, "COMPLETED");
    stack.stop().await;
    Ok(())
}

fn tokens(cases: &mut Cases<'_>) -> anyhow::Result<()> {
    let mut none = cases.unsigned()?;
    none.set("authorization", None);
    let none = over(none, cases.device()?, &without("authorization"), now_s(), &nonce())?;
    cases.add("no token", none, (401, "token_missing"));
    let now = now_s();
    cases.claims("expired", "token_expired", |claims| claims.exp = now - 120)?;
    cases.claims("not yet valid", "token_not_yet_valid", |claims| {
        claims.more.insert("nbf".into(), json!(now + 600));
    })?;
    cases.claims("wrong audience", "token_audience", |claims| claims.aud = "somebody-else".into())?;
    cases.claims("wrong issuer", "token_issuer", |claims| claims.iss = "https://issuer.example".into())?;
    let claims = cases.stack.claims("alice", &["alice@torana"], cases.device()?)?;
    for (name, forgery, code) in [
        ("alg none", Forgery::AlgNone, "token_algorithm"),
        ("HS256 with the public key", Forgery::Hs256WithPublicKey, "token_algorithm"),
        ("unknown kid", Forgery::UnknownKid, "token_key_unknown"),
        ("another's key", Forgery::OtherKey, "token_signature"),
    ] {
        let token = cases.stack.issuer().forge(forgery, &claims)?;
        cases.token(name, &token, code)?;
    }
    cases.token("not a token", "abc.def", "token_malformed")?;
    let mut claims = cases.stack.claims("alice", &["alice@torana"], cases.device()?)?;
    claims.scope = "payments:read".into();
    let token = cases.stack.issuer().mint(&claims)?;
    let payment = Payment::new("alice@torana", "bob@torana", "10.00");
    let request = cases.unsigned_with(&token, &payment)?.signed(cases.device()?)?;
    cases.add("a token that may only read", request, (403, "scope_missing"));
    Ok(())
}

fn signatures(cases: &mut Cases<'_>) -> anyhow::Result<()> {
    let request = cases.unsigned()?;
    cases.add("unsigned", request, (401, "signature_missing"));

    let thief = Device::generate("device-alice-1")?;
    let request = cases.unsigned()?.signed(&thief)?;
    cases.add("another device's key", request, (401, "signature_invalid"));

    for component in ["@method", "@path", "@query", "content-digest", "authorization", "idempotency-key"] {
        let request = over(cases.unsigned()?, cases.device()?, &without(component), now_s(), &nonce())?;
        cases.add("partial signature", request, (401, "signature_incomplete"));
    }

    let mut request = cases.unsigned()?.signed(cases.device()?)?;
    request.body = String::from_utf8(request.body)?.replace("10.00", "90.00").into_bytes();
    cases.add("body changed after signing", request, (400, "digest_mismatch"));

    let mut request = cases.unsigned()?.signed(cases.device()?)?;
    request.body = String::from_utf8(request.body)?.replace("10.00", "90.00").into_bytes();
    let digest = filters::signature::digest::content_digest(&request.body);
    request.set("content-digest", Some(&digest));
    cases.add("body and digest changed after signing", request, (401, "signature_invalid"));

    let mut request = cases.unsigned()?.signed(cases.device()?)?;
    request.url.push_str("?amount=90");
    cases.add("a query added after signing", request, (401, "signature_invalid"));

    let mut request = cases.unsigned()?;
    request.set("content-digest", None);
    let request = over(request, cases.device()?, &without("content-digest"), now_s(), &nonce())?;
    cases.add("no digest", request, (400, "digest_missing"));

    for (name, created, code) in [
        ("created too old", -3_600, "created_too_old"),
        ("created in the future", 3_600, "created_in_future"),
    ] {
        let request = over(cases.unsigned()?, cases.device()?, COVERED, now_s() + created, &nonce())?;
        cases.add(name, request, (401, code));
    }
    let request = over(cases.unsigned()?, cases.device()?, COVERED, now_s(), "short")?;
    cases.add("a nonce that can be guessed", request, (401, "nonce_missing"));
    Ok(())
}

fn bodies(cases: &mut Cases<'_>) -> anyhow::Result<()> {
    let large = format!("{{\"txnNote\":\"{}\"}}", "x".repeat(70_000));
    cases.body("body too large", &large, (413, "body_too_large"))?;
    cases.body("not JSON", "fromVPA=alice", (400, "json_invalid"))?;
    cases.body("cut short", "{\"fromVPA\":", (400, "json_invalid"))?;
    let deep = format!("{}1{}", "[".repeat(50), "]".repeat(50));
    cases.body("nested too deep", &deep, (400, "json_too_deep"))?;
    cases.body("a member twice", r#"{"amount":1,"amount":2}"#, (400, "json_duplicate_member"))?;
    cases.body(
        "another key than the header's",
        r#"{"idempotencyKey":"another-key"}"#,
        (400, "idempotency_key_mismatch"),
    )?;

    let mut request = cases.unsigned()?;
    request.set("content-type", Some("text/plain"));
    let request = request.signed(cases.device()?)?;
    cases.add("not said to be JSON", request, (415, "content_type_unsupported"));

    let mut request = cases.unsigned()?;
    request.set("idempotency-key", None);
    let request = over(request, cases.device()?, &without("idempotency-key"), now_s(), &nonce())?;
    cases.add("no idempotency key", request, (400, "idempotency_key_missing"));
    Ok(())
}

fn amounts_and_addresses(cases: &mut Cases<'_>) -> anyhow::Result<()> {
    for amount in [
        "0",
        "0.00",
        "-1",
        "-0.01",
        "1.001",
        "150.755",
        "\"150.75\"",
        "1e3",
        "1E3",
        "null",
        "[1]",
        "01",
        "1.",
    ] {
        let code = match amount {
            // Not a number of JSON's grammar at all.
            "01" | "1." => "json_invalid",
            _ => "amount_invalid",
        };
        cases.members("amount", &[("amount", amount)], (400, code))?;
    }
    cases.members("above the limit", &[("amount", "100000.01")], (422, "amount_above_limit"))?;
    cases.members("far above the limit", &[("amount", "9999999999.99")], (422, "amount_above_limit"))?;
    for vpa in [
        r#""bob""#,
        r#""@torana""#,
        r#""bob@""#,
        r#""b@torana""#,
        r#""bob@tor ana""#,
        r#""bob@torana@x""#,
        "7",
    ] {
        let code = if vpa == "7" { "body_invalid" } else { "vpa_invalid" };
        cases.members("payee's address", &[("toVPA", vpa)], (400, code))?;
    }
    cases.members("to oneself", &[("toVPA", r#""ALICE@torana""#)], (400, "same_vpa"))?;
    cases.members("empty note", &[("txnNote", r#""""#)], (400, "note_invalid"))?;
    let long = format!("\"{}\"", "x".repeat(51));
    cases.members("long note", &[("txnNote", &long)], (400, "note_invalid"))?;
    cases.members(
        "from another's account",
        &[("fromVPA", r#""bob@torana""#), ("toVPA", r#""alice@torana""#)],
        (403, "vpa_not_owned"),
    )?;
    cases.members("another device", &[("deviceId", r#""device-bob-1""#)], (403, "device_mismatch"))?;
    cases.members("unknown member", &[("surprise", "1")], (400, "body_invalid"))?;
    Ok(())
}

/// Fields by which a client would pass for somebody else change nothing.
fn forged_fields(cases: &mut Cases<'_>) -> anyhow::Result<()> {
    for (field, value) in [
        ("x-torana-vpa", "bob@torana"),
        ("x-torana-subject", "bob"),
        ("x-torana-device", "device-bob-1"),
        ("X-Torana-Vpa", "bob@torana,alice@torana"),
    ] {
        let payment = Payment::new("bob@torana", "alice@torana", "10.00");
        let mut request =
            cases.unsigned_with(&cases.stack.alice()?.token, &payment)?.signed(cases.device()?)?;
        request.headers.push((field.to_owned(), value.to_owned()));
        cases.add("forged identity", request, (403, "vpa_not_owned"));
    }
    Ok(())
}

#[tokio::test]
async fn replays_limits_and_paths() -> anyhow::Result<()> {
    let limit =
        json!({ "limits": [{ "name": "payments", "by": "user", "requests": 60, "per_s": 60, "burst": 5 }] });
    let options = options("limits")?.set(Service::Edge, "/routes/0/filters/rate_limit", limit);
    let stack = start(options).await?;
    let alice = stack.alice()?;

    let request = stack.payment(alice, &Payment::new("alice@torana", "bob@torana", "1.00"))?;
    assert_eq!(Answer::to(&stack, &request).await?.status, 200);
    let replayed = Answer::to(&stack, &request).await?;
    assert_eq!((replayed.status, replayed.code()), (401, "nonce_replayed"), "{replayed:?}");

    // More than the burst; on a slow machine some are earned back while they are sent.
    let mut last = None;
    for _ in 0..50 {
        let request = stack.payment(alice, &Payment::new("alice@torana", "bob@torana", "1.00"))?;
        let answer = Answer::to(&stack, &request).await?;
        let limited = answer.status == 429;
        last = Some((answer, request));
        if limited {
            break;
        }
    }
    let (limited, request) = last.expect("some were sent");
    assert_eq!((limited.status, limited.code()), (429, "rate_limited"), "{limited:?}");
    let wait: u64 = limited.header("retry-after").parse()?;
    assert!((1..=2).contains(&wait), "one a second: {wait}");
    assert!(limited.header("ratelimit").contains("\"payments\";r=0;"), "{:?}", limited.headers);
    assert!(limited.header("ratelimit-policy").contains("\"payments\";q=60;w=60"), "{:?}", limited.headers);
    // A limit does not burn the nonce: the same bytes pass later.
    tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
    assert_eq!(Answer::to(&stack, &request).await?.status, 200);

    paths(&stack).await?;
    stack.stop().await;
    Ok(())
}

/// Sent by hand: no client library would send these as they are.
async fn paths(stack: &Stack) -> anyhow::Result<()> {
    let port: u16 = stack.edge_url().rsplit(':').next().unwrap_or_default().parse()?;
    let token = &stack.alice()?.token;
    let absolute = match stack.edge() {
        Edge::Gateway => "400 ",
        Edge::Envoy => "404 transaction_not_found",
    };
    for (path, expected) in [
        ("//v1/transactions/send", "400 path_ambiguous"),
        ("/v1//transactions/send", "400 path_ambiguous"),
        ("/v1/transactions/x/../send", "400 path_ambiguous"),
        ("/v1/transactions/%2e%2e/send", "400 path_ambiguous"),
        ("/v1/transactions/x%2Fy", "400 path_ambiguous"),
        ("/v1/transactions/send;x=1", "400 path_ambiguous"),
        ("/v1/transactions/..;/send", "400 path_ambiguous"),
        ("/v1\\transactions\\send", "400 path_ambiguous"),
        ("/v1/transactions/send/", "400 path_ambiguous"),
        // Pingora refuses the absolute form itself; Envoy takes it, as RFC 9112 section 3.2.2 asks of servers.
        ("http://other.test/v1/transactions/x", absolute),
        ("/internal/v1/network-events", "404 route_not_found"),
        ("/metrics", "404 route_not_found"),
        ("/v1/transactions/send", "405 method_not_allowed"),
        ("/v1/transactions/TORunknown", "404 transaction_not_found"),
    ] {
        let answer = e2e::raw::get(port, &stack.dir().join("pki/edge-ca.pem"), path, token).await?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        let code =
            answer.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        assert_eq!(format!("{status} {code}"), expected, "{path}\n{answer}");
    }
    Ok(())
}

/// The request signed over these components; `created` in seconds since the epoch.
fn over(
    request: EdgeRequest,
    device: &Device,
    components: &[&str],
    created: i64,
    nonce: &str,
) -> anyhow::Result<EdgeRequest> {
    let params =
        Params { created: Some(created), nonce: Some(nonce.to_owned()), ..signature_params(device.id())? };
    request
        .signed_as(&Params { components: Params::covering(components)?.components, ..params }, device.key())
}

fn without(component: &str) -> Vec<&'static str> {
    COVERED.iter().copied().filter(|covered| *covered != component).collect()
}

fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn nonce() -> String {
    uuid::Uuid::new_v4().to_string()
}
