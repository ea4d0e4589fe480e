//! Tables and properties of `step`.

use proptest::prelude::*;

use super::*;

fn payment() -> Txn {
    let now = UnixMs(1_000_000);
    Txn {
        id: TxnId::fresh("TOR".parse().unwrap(), now),
        tenant: "acme".into(),
        subject: "user-1".into(),
        device_id: "device-1".into(),
        from: "alice@torana".parse().unwrap(),
        to: "bob@torana".parse().unwrap(),
        amount: AmountPaise::from_paise(15_075).unwrap(),
        note: "Subscription".into(),
        state: State::Created,
        version: 1,
        code: None,
        rrn: None,
        created_at: now,
        updated_at: now,
        send_by: now.plus(120_000),
        dispatched_at: None,
        sends: 0,
        checks: 0,
        flagged_at: None,
        wake: Some(Wake { kind: WakeKind::Send, at: now.plus(120_000) }),
    }
}

fn report(source: Source, stage: Stage, result: ReportResult, code: &str, reversal: Option<&str>) -> Event {
    Event::Reported(Report {
        source,
        msg_id: "TOR1".into(),
        stage,
        result,
        code: code.into(),
        payer_code: None,
        payee_code: None,
        reversal_code: reversal.map(str::to_owned),
        rrn: None,
    })
}

fn debited() -> Event {
    report(Source::Callback, Stage::Debit, ReportResult::Success, "00", None)
}
fn succeeded() -> Event {
    report(Source::Callback, Stage::Final, ReportResult::Success, "00", None)
}
fn failed(code: &str) -> Event {
    report(Source::Callback, Stage::Final, ReportResult::Failure, code, None)
}
fn unknown_to_network(check: u32) -> Event {
    report(Source::Inquiry { check }, Stage::Final, ReportResult::Failure, "NO", None)
}
fn not_sent(sending: u32) -> Event {
    Event::NotSent { sending, reason: "network_unavailable".into(), retry_after_ms: None }
}
fn call_timed_out(sending: u32) -> Event {
    Event::OutcomeUnknown { sending, reason: "network_timeout".into() }
}
fn unsendable(sending: u32) -> Event {
    Event::Unsendable { sending, reason: "bad_request".into() }
}

/// Applies events a number of milliseconds apart and gives the public status after each, or why it stood.
fn check(events: &[(u64, Event)], want: &[&str]) -> Txn {
    let rules = Rules::default();
    let (mut txn, mut now) = (payment(), payment().created_at);
    let mut got = Vec::new();
    for (after, event) in events {
        now = now.plus(*after);
        match step(&txn, event, now, &rules) {
            Ok(step) => {
                got.push(step.txn.state.status().name());
                txn = step.txn;
            }
            Err(ignored) => got.push(ignored.name()),
        }
    }
    assert_eq!(got, want, "{events:?}");
    txn
}

#[test]
fn lives() {
    let deemed = || report(Source::Callback, Stage::Final, ReportResult::Deemed, "RB", None);
    let reversed = || report(Source::Callback, Stage::Final, ReportResult::Failure, "U68", Some("00"));
    let ack = || (5, Event::Acknowledged { sending: 1 });
    let send = || (5, Event::Dispatch);
    check(
        &[send(), ack(), (5, debited()), (5, succeeded()), (5, succeeded())],
        &["PENDING", "PENDING", "DEBITED", "COMPLETED", "duplicate"],
    );
    // The callback overtakes the answer to the sending.
    check(&[send(), (5, succeeded()), ack()], &["PENDING", "COMPLETED", "late"]);
    check(&[send(), (5, failed("Z9")), (5, failed("Z9"))], &["PENDING", "FAILED", "duplicate"]);
    check(&[send(), ack(), (5, failed("ZA"))], &["PENDING", "PENDING", "DECLINED"]);
    check(&[send(), ack(), (5, failed("U69"))], &["PENDING", "PENDING", "EXPIRED"]);
    // A timeout between the banks is no failure.
    check(&[send(), ack(), (5, failed("U67"))], &["PENDING", "PENDING", "PENDING"]);
    check(&[send(), (5, debited()), (5, failed("U68"))], &["PENDING", "DEBITED", "DEBITED"]);
    check(&[send(), (5, debited()), (5, reversed())], &["PENDING", "DEBITED", "REVERSED"]);
    check(
        &[send(), (5, debited()), (5, deemed()), (5, succeeded())],
        &["PENDING", "DEBITED", "DEEMED", "COMPLETED"],
    );
    check(
        &[send(), (5, debited()), (5, deemed()), (5, reversed())],
        &["PENDING", "DEBITED", "DEEMED", "REVERSED"],
    );
    // The payer has paid: "insufficient funds" can't be true.
    check(&[send(), (5, debited()), (5, failed("Z9"))], &["PENDING", "DEBITED", "conflict"]);
    check(&[send(), (5, succeeded()), (5, failed("Z9"))], &["PENDING", "COMPLETED", "conflict"]);
    check(&[send(), (5, failed("Z9")), (5, succeeded())], &["PENDING", "FAILED", "conflict"]);
    // Only the last check's "unknown" means that it never arrived; until then it may be held up on its way.
    check(
        &[
            send(),
            (5, call_timed_out(1)),
            (90_000, unknown_to_network(1)),
            (900_000, unknown_to_network(2)),
            (5_400_000, unknown_to_network(3)),
        ],
        &["PENDING", "PENDING", "PENDING", "PENDING", "FAILED"],
    );
    check(&[send(), (90_000, unknown_to_network(1)), (5, succeeded())], &["PENDING", "PENDING", "COMPLETED"]);
    // The network took it and then forgot it: nobody knows.
    check(&[send(), ack(), (90_000, unknown_to_network(3))], &["PENDING", "PENDING", "conflict"]);
    // It had something to say about it before: it was there.
    check(
        &[send(), (5, failed("U67")), (90_000, unknown_to_network(1))],
        &["PENDING", "PENDING", "conflict"],
    );
    // No later sending would be taken either.
    check(&[send(), (5, unsendable(1)), (500, Event::Dispatch)], &["PENDING", "FAILED", "late"]);
    check(&[send(), ack(), (5, unsendable(1))], &["PENDING", "PENDING", "late"]);
    check(&[(120_000, Event::Dispatch), (5, Event::Dispatch)], &["FAILED", "late"]);
}

#[test]
fn what_was_certainly_not_sent_is_sent_again_later_until_it_is_too_late() {
    let txn = check(
        &[
            (0, Event::Dispatch),
            (1, not_sent(1)),
            (1, Event::Dispatch),
            (500, Event::Dispatch),
            (1, Event::Dispatch),
            (1, not_sent(2)),
            (119_500, Event::Dispatch),
        ],
        &["PENDING", "PENDING", "not_due", "PENDING", "duplicate", "PENDING", "FAILED"],
    );
    assert_eq!((txn.sends, txn.wake), (2, None));
}

#[test]
fn the_result_of_an_older_sending_says_nothing_about_this_one() {
    let refused = report(Source::Ack { sending: 1 }, Stage::Final, ReportResult::Failure, "Z9", None);
    let late = [not_sent(1), unsendable(1), call_timed_out(1), Event::Acknowledged { sending: 1 }, refused];
    for event in late {
        let second_time = [(0, Event::Dispatch), (1, not_sent(1)), (500, Event::Dispatch), (1, event)];
        let txn = check(&second_time, &["PENDING", "PENDING", "PENDING", "late"]);
        assert_eq!((txn.state, txn.sends), (State::Dispatched, 2), "{second_time:?}");
    }
}

#[test]
fn three_checks_then_it_waits_for_reconciliation_and_stays_pending() {
    let rules = Rules::default();
    let mut txn = payment();
    let mut now = txn.created_at;
    let sent_at = now;
    txn = step(&txn, &Event::Dispatch, now, &rules).unwrap().txn;
    txn = step(&txn, &Event::Acknowledged { sending: 1 }, now, &rules).unwrap().txn;
    let mut asked = Vec::new();
    while let Some(wake) = txn.wake {
        assert_eq!(step(&txn, &Event::CheckDue, UnixMs(wake.at.0 - 1), &rules), Err(Ignored::NotDue));
        now = wake.at;
        let step = step(&txn, &Event::CheckDue, now, &rules).unwrap();
        if step.effects.contains(&Effect::Inquire) {
            asked.push(sent_at.until(now));
        } else {
            assert_eq!(step.effects, [Effect::Publish(EventType::TransactionUnresolved)]);
        }
        txn = step.txn;
    }
    assert_eq!(asked, rules.status_checks_ms);
    assert_eq!((txn.state.status(), txn.flagged_at), (Status::Pending, Some(now)));
    let done = step(&txn, &succeeded(), now, &rules).unwrap();
    assert_eq!(done.txn.state, State::Completed, "a late callback still ends it");
}

#[test]
fn a_check_that_was_not_made_does_not_count() {
    let rules = Rules::default();
    let mut txn = payment();
    let mut now = txn.created_at;
    txn = step(&txn, &Event::Dispatch, now, &rules).unwrap().txn;
    assert_eq!(txn.wake.unwrap().at, now.plus(90_000));
    now = now.plus(90_000);
    txn = step(&txn, &Event::CheckDue, now, &rules).unwrap().txn;
    let event = Event::CheckNotMade { check: 1, reason: "peak_hours".into(), retry_after_ms: Some(7_000) };
    txn = step(&txn, &event, now, &rules).unwrap().txn;
    assert_eq!((txn.checks, txn.wake.unwrap().at), (0, now.plus(7_000)));
    assert_eq!(step(&txn, &event, now, &rules), Err(Ignored::Late), "given back once");
}

#[test]
fn no_check_before_an_unanswered_sending_has_settled() {
    let rules = Rules { status_checks_ms: vec![2_000], send_settles_within_ms: 20_000, ..Rules::default() };
    let txn = payment();
    let sent = step(&txn, &Event::Dispatch, txn.created_at, &rules).unwrap().txn;
    assert_eq!(sent.wake.unwrap().at, txn.created_at.plus(20_000));
    let acknowledged =
        step(&sent, &Event::Acknowledged { sending: 1 }, txn.created_at.plus(5), &rules).unwrap().txn;
    assert_eq!(acknowledged.wake.unwrap().at, txn.created_at.plus(2_000));
}

fn any_event() -> impl Strategy<Value = Event> {
    let codes = prop::sample::select(vec![
        "00", "01", "Z9", "ZA", "U69", "U67", "U68", "RB", "21", "U30", "NO", "??",
    ]);
    let reversals = prop::option::weighted(0.3, prop::sample::select(vec!["00", "96", "CS", "OC", "RR"]));
    let sources = prop::sample::select(vec![
        Source::Ack { sending: 1 },
        Source::Ack { sending: 2 },
        Source::Callback,
        Source::Inquiry { check: 1 },
        Source::Inquiry { check: 3 },
    ]);
    let stages = prop::sample::select(vec![Stage::Debit, Stage::Final]);
    let results = prop::sample::select(vec![
        ReportResult::Success,
        ReportResult::Failure,
        ReportResult::Pending,
        ReportResult::Deemed,
    ]);
    prop_oneof![
        3 => Just(Event::Dispatch),
        1 => (1_u32..4).prop_map(not_sent),
        1 => (1_u32..4).prop_map(unsendable),
        1 => (1_u32..4).prop_map(call_timed_out),
        1 => (1_u32..4).prop_map(|sending| Event::Acknowledged { sending }),
        1 => Just(Event::CheckDue),
        1 => (1_u32..4)
            .prop_map(|check| Event::CheckNotMade { check, reason: "peak_hours".into(), retry_after_ms: None }),
        1 => Just(Event::CheckUnanswered { reason: "network_timeout".into() }),
        6 => (sources, stages, results, codes, reversals).prop_map(|(so, st, r, c, rev)| report(so, st, r, c, rev)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens(events in prop::collection::vec((0_u64..200_000, any_event()), 0..40)) {
        let rules = Rules::default();
        let (mut txn, mut now) = (payment(), payment().created_at);
        let mut in_flight = false;
        for (after, event) in events {
            now = now.plus(after);
            let Ok(step) = step(&txn, &event, now, &rules) else { continue };
            let (before, after) = (txn.state, step.txn.state);
            let said = match &event { Event::Reported(report) => Some(codes::outcome(report)), _ => None };

            if before.is_final() && after != before {
                prop_assert_eq!(before, State::Deemed);
                prop_assert!(matches!(after, State::Completed | State::Reversed));
            }
            if after == State::Completed && before != after {
                prop_assert_eq!(said, Some(Outcome::Succeeded), "completed by a success alone");
            }
            if matches!(before.money(), Money::LeftPayer | Money::Arrived | Money::Returned) {
                prop_assert!(!matches!(after.money(), Money::Still | Money::Unknown), "{before:?} -> {after:?}");
            }
            // From "may have moved" to "nothing moved" only on somebody's definite word.
            if before.money() == Money::Unknown && after.money() == Money::Still {
                let definite = matches!(event, Event::NotSent { .. } | Event::Unsendable { .. }) || said.is_some();
                prop_assert!(definite, "{event:?}");
            }
            if step.effects.contains(&Effect::Send) {
                prop_assert!(!in_flight, "sent twice without a definite word that it was not sent");
                in_flight = true;
            }
            if matches!(event, Event::NotSent { .. }) && after == State::Created {
                in_flight = false;
            }
            prop_assert!(step.txn.wake.is_some() || after.is_final() || step.txn.flagged_at.is_some(), "forgotten");
            prop_assert_eq!(step.txn.version, txn.version + 1);
            txn = step.txn;
        }
    }
}
