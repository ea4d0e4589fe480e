//! Whatever Envoy says, in whatever order.

use proptest::prelude::*;

use super::*;

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
