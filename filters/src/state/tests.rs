//! The arithmetic: batches whole or not at all, limits that hold, and what travels.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Map(HashMap<String, (u64, u64)>, HashMap<(String, String), Usage>, Windows);

impl Cells for Map {
    fn get(&self, key: &str, now_us: u64) -> Option<u64> {
        self.0.get(key).filter(|(_, expires)| *expires > now_us).map(|(value, _)| *value)
    }
    fn put(&mut self, key: &str, value: u64, expires_us: u64) {
        self.0.insert(key.to_owned(), (value, expires_us));
    }
    fn tally(&mut self, day: &str, tenant: &str, usage: Usage, _until_us: u64) {
        *self.1.entry((day.to_owned(), tenant.to_owned())).or_default() += usage;
    }
    fn since_us(&self) -> u64 {
        (T0 - 60_000) * 1_000
    }
    fn windows(&self) -> &Windows {
        &self.2
    }
    fn windows_mut(&mut self) -> &mut Windows {
        &mut self.2
    }
}

const MADE_S: i64 = (T0 / 1_000) as i64;

const T0: u64 = 1_700_000_000_000;

fn rate(requests: u32, per_ms: u64, burst: u32) -> Rate {
    Rate::new(requests, per_ms, burst).unwrap()
}

fn take_op(key: &str, rate: Rate, cost: u32) -> Op {
    Op::Take { key: key.into(), rate, cost, mode: Mode::Enforce }
}

#[test]
fn a_burst_passes_then_one_each_interval() {
    let mut cells = Map::default();
    let op = [take_op("u", rate(10, 1_000, 3), 1)];
    let mut left = Vec::new();
    for _ in 0..3 {
        match run(&op, T0, &mut cells)[0] {
            Answer::Taken(a) => left.push(a.remaining),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(left, [2, 1, 0]);
    let expected =
        Answer::Exhausted { allowance: Allowance { remaining: 0, reset_ms: 300 }, retry_after_ms: 100 };
    assert_eq!(run(&op, T0, &mut cells), [expected]);
    assert!(matches!(run(&op, T0 + 100, &mut cells)[0], Answer::Taken(_)));
    assert!(matches!(run(&op, T0 + 100, &mut cells)[0], Answer::Exhausted { .. }));
}

#[test]
fn a_refused_batch_writes_nothing() {
    let mut cells = Map::default();
    let wide = rate(100, 1_000, 100);
    let narrow = rate(1, 60_000, 1);
    let nonce = |n: &str| Op::Remember {
        key: format!("nonce/{n}"),
        ttl_ms: 600_000,
        made_s: MADE_S,
        ahead_s: 0,
        window_s: None,
    };
    let batch = |n: &str| [nonce(n), take_op("tenant", wide, 1), take_op("user", narrow, 1)];
    assert!(run(&batch("a"), T0, &mut cells).iter().all(|a| !a.refuses()));
    let before = cells.0.clone();
    let answers = run(&batch("b"), T0, &mut cells);
    assert!(matches!(answers[2], Answer::Exhausted { .. }));
    let Answer::Taken(left) = answers[1] else { panic!("{answers:?}") };
    assert_eq!(left.remaining, wide.burst() - 1, "what is left after the first, for the second took nothing");
    assert_eq!(cells.0, before, "a nonce or an allowance was spent on a refused request");
    assert_eq!(run(&batch("b"), T0 + 60_000, &mut cells)[0], Answer::Remembered);
    assert_eq!(run(&batch("b"), T0 + 120_000, &mut cells)[0], Answer::Seen);
}

#[test]
fn what_is_remembered_is_forgotten_after_its_time() {
    let mut cells = Map::default();
    let op = [Op::Remember { key: "n".into(), ttl_ms: 1_000, made_s: MADE_S, ahead_s: 0, window_s: None }];
    for (at, expected) in [(0, Answer::Remembered), (999, Answer::Seen), (1_000, Answer::Remembered)] {
        assert_eq!(run(&op, T0 + at, &mut cells), [expected], "at {at} ms");
    }
}

#[test]
fn what_is_older_than_the_memory_is_refused() {
    for (made, ahead_s, expected) in [
        (-61, 0, Answer::TooOld),
        // In the second of the beginning, maybe before it.
        (-60, 0, Answer::TooOld),
        (-59, 0, Answer::Remembered),
        (0, 0, Answer::Remembered),
        // By a clock that was ahead.
        (-59, 30, Answer::TooOld),
        (-30, 30, Answer::TooOld),
        (-29, 30, Answer::Remembered),
    ] {
        let (made_s, window_s) = (MADE_S + made, None);
        let op = [Op::Remember { key: "n".into(), ttl_ms: 1_000, made_s, ahead_s, window_s }];
        assert_eq!(run(&op, T0, &mut Map::default()), [expected], "made {made}, {ahead_s} ahead");
    }
}

#[test]
fn places_are_held_given_back_and_freed_by_their_lease() {
    let mut cells = Map::default();
    let hold = [Op::Hold { key: "t".into(), most: 2, lease_ms: 1_000, mode: Mode::Enforce }];
    let place = |number, at_ms: u64| Place { number, until_us: (T0 + at_ms + 1_000) * 1_000 };
    let release = |place| [Op::Release { key: "t".into(), place }];
    assert_eq!(run(&hold, T0, &mut cells), [Answer::Held(place(0, 0))]);
    assert_eq!(run(&hold, T0 + 400, &mut cells), [Answer::Held(place(1, 400))]);
    assert_eq!(run(&hold, T0 + 400, &mut cells), [Answer::Busy { retry_after_ms: 600 }]);
    assert_eq!(run(&release(place(1, 400)), T0 + 500, &mut cells), [Answer::Released]);
    assert_eq!(run(&hold, T0 + 500, &mut cells), [Answer::Held(place(1, 500))]);
    // A place that was given back already, or whose lease has ended, is somebody else's by now.
    assert_eq!(run(&release(place(1, 400)), T0 + 500, &mut cells), [Answer::Released]);
    assert_eq!(run(&hold, T0 + 500, &mut cells), [Answer::Busy { retry_after_ms: 500 }]);
    assert_eq!(run(&hold, T0 + 1_000, &mut cells), [Answer::Held(place(0, 1_000))]);
}

#[test]
fn a_release_counts_whatever_becomes_of_its_batch() {
    let mut cells = Map::default();
    let hold = Op::Hold { key: "t".into(), most: 1, lease_ms: 1_000, mode: Mode::Enforce };
    let [Answer::Held(place)] = run(std::slice::from_ref(&hold), T0, &mut cells)[..] else { panic!() };
    run(&[take_op("u", rate(1, 60_000, 1), 1)], T0, &mut cells);
    let batch = [Op::Release { key: "t".into(), place }, take_op("u", rate(1, 60_000, 1), 1)];
    assert!(matches!(run(&batch, T0, &mut cells)[..], [Answer::Released, Answer::Exhausted { .. }]));
    assert!(matches!(run(&[hold], T0, &mut cells)[..], [Answer::Held(_)]));
}

#[test]
fn operations_and_answers_travel_as_json() {
    let place = Place { number: 3, until_us: 9 };
    let ops = [
        take_op("k", rate(10, 1_000, 3), 2),
        Op::Remember { key: "n".into(), ttl_ms: 5, made_s: -1, ahead_s: 0, window_s: None },
        Op::Hold { key: "h".into(), most: 4, lease_ms: 6, mode: Mode::Enforce },
        Op::Release { key: "h".into(), place },
    ];
    let text = serde_json::to_string(&ops).unwrap();
    assert_eq!(
        text,
        r#"[{"take":{"key":"k","rate":{"requests":10,"per_ms":1000,"burst":3},"cost":2}},{"remember":{"key":"n","ttl_ms":5,"made_s":-1,"ahead_s":0}},{"hold":{"key":"h","most":4,"lease_ms":6}},{"release":{"key":"h","place":{"number":3,"until_us":9}}}]"#
    );
    assert_eq!(serde_json::from_str::<Vec<Op>>(&text).unwrap(), ops);
    let answers = [
        Answer::Taken(Allowance { remaining: 1, reset_ms: 2 }),
        Answer::Exhausted { allowance: Allowance { remaining: 0, reset_ms: 2 }, retry_after_ms: 3 },
        Answer::Remembered,
        Answer::Held(place),
    ];
    let text = serde_json::to_string(&answers).unwrap();
    assert_eq!(
        text,
        r#"[{"taken":{"remaining":1,"reset_ms":2}},{"exhausted":{"allowance":{"remaining":0,"reset_ms":2},"retry_after_ms":3}},"remembered",{"held":{"number":3,"until_us":9}}]"#
    );
    assert_eq!(serde_json::from_str::<Vec<Answer>>(&text).unwrap(), answers);
    let impossible = r#"{"take":{"key":"k","rate":{"requests":0,"per_ms":1,"burst":1},"cost":1}}"#;
    assert!(serde_json::from_str::<Op>(impossible).is_err(), "a rate is checked on its way in");
}

#[test]
fn rates_outside_the_arithmetic_are_refused() {
    for (requests, per_ms, burst, ok) in [
        (1, 1_000, 1, true),
        (1_000_000, 1_000, 1_000_000, true),
        (0, 1_000, 1, false),
        (1_000_001, 60_000, 1, false),
        (1, 0, 1, false),
        (1, Rate::MAX_PER_MS + 1, 1, false),
        (1_000_000, 999, 1, false),
        (1, 1_000, 0, false),
    ] {
        assert_eq!(Rate::new(requests, per_ms, burst).is_ok(), ok, "{requests}/{per_ms}/{burst}");
    }
}

proptest! {
    /// In any window, no more than the burst and the window's share may pass.
    #[test]
    fn never_more_than_the_limit(
        requests in 1u32..1_000, per_ms in 1u64..100_000, burst in 1u32..50,
        steps in prop::collection::vec((0u64..5_000, 1u32..4), 1..200),
    ) {
        prop_assume!(per_ms * 1_000 >= u64::from(requests));
        let rate = rate(requests, per_ms, burst);
        let mut cells = Map::default();
        let mut now = T0;
        let mut passed = 0u64;
        for (wait, cost) in steps {
            now += wait;
            match run(&[take_op("k", rate, cost)], now, &mut cells)[0] {
                Answer::Taken(_) => passed += u64::from(cost),
                Answer::Exhausted { retry_after_ms, allowance } => {
                    prop_assert!(allowance.remaining < cost || cost > burst);
                    prop_assert!(retry_after_ms > 0);
                    if cost <= burst {
                        let mut later = Map(cells.0.clone(), HashMap::new(), Windows::default());
                        let again = run(&[take_op("k", rate, cost)], now + retry_after_ms, &mut later);
                        prop_assert!(matches!(again[0], Answer::Taken(_)), "Retry-After lied");
                    }
                }
                other => prop_assert!(false, "{other:?}"),
            }
            let share = (now - T0) * u64::from(requests) / per_ms;
            prop_assert!(passed <= u64::from(burst) + share + 1, "{passed} passed by {}", now - T0);
        }
    }

    #[test]
    fn no_input_overflows(tat in any::<Option<u64>>(), now in any::<u64>(), cost in any::<u32>(),
        requests in 1u32..=Rate::MAX_REQUESTS, per_ms in 1u64..=Rate::MAX_PER_MS, burst in 1u32..=Rate::MAX_REQUESTS,
    ) {
        if let Ok(rate) = Rate::new(requests, per_ms, burst) {
            let _ = rate::take(tat, now, &rate, cost);
        }
    }
}
