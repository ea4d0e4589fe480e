use proptest::prelude::*;

use super::*;
use crate::{fault::Match, ledger::Leg, pin};

fn accounts() -> Vec<AccountConfig> {
    let text = r#"[
        {"vpa":"alice@torana","holder":"Alice","balance_paise":1000000},
        {"vpa":"bob@okbank","holder":"Bob"},
        {"vpa":"pinned@torana","holder":"P","balance_paise":100000,"pin":"1234"},
        {"vpa":"capped@torana","holder":"C","balance_paise":100000,"payment_max_paise":1000,"day_max_paise":1500},
        {"vpa":"frozen@okbank","holder":"F","balance_paise":100000,"frozen":true}
    ]"#;
    serde_json::from_str(text).unwrap()
}

fn network(faults: &str) -> Network {
    let faults: Vec<Rule> = serde_json::from_str(faults).unwrap();
    let limits = Limits { amount_max_paise: 500_000, payments: 100 };
    Network::new(&accounts(), &faults, Settlement::default(), limits).unwrap()
}

fn id(number: usize) -> Id {
    format!("TOR{number:032x}").parse().unwrap()
}

fn pay(number: usize, payer: &str, payee: &str, amount: &str, block: Option<String>) -> Pay {
    serde_json::from_value(serde_json::json!({
        "txnId": id(number), "msgId": id(number), "type": "PAY", "payerVpa": payer, "payeeVpa": payee,
        "amount": amount, "credBlock": block, "initiatedAt": "2026-01-01T00:00:00.000Z",
    }))
    .unwrap()
}

/// Takes a payment to its end; what was told on the way, as `STAGE RESULT CODE payer/payee/reversal`.
fn run(network: &mut Network, pay: &Pay) -> Vec<String> {
    let initiated = network.initiate(pay, None).unwrap();
    let mut told = Vec::new();
    if initiated.ack.ack == Ack::Rejected {
        told.push(format!("REJECTED {}", initiated.ack.code.unwrap().as_str()));
    }
    let mut next = initiated.settle_after_ms;
    while next.is_some() {
        let advanced = network.advance(&pay.txn_id, id(999), 0);
        told.extend(advanced.news.map(|news| show(&news.outcome)));
        assert!(network.ledger().balanced());
        next = advanced.next_after_ms;
    }
    told
}

fn show(outcome: &Outcome) -> String {
    let part = |code: &Option<Code>| code.as_ref().map_or("-".to_owned(), |code| code.as_str().to_owned());
    format!(
        "{:?} {:?} {} {}/{}/{}",
        outcome.stage,
        outcome.result,
        outcome.code.as_str(),
        part(&outcome.payer_code),
        part(&outcome.payee_code),
        part(&outcome.reversal_code)
    )
}

fn legs(network: &Network, txn: &Id) -> Vec<Leg> {
    network.ledger().entries_of(txn).map(|entry| entry.leg).step_by(2).collect()
}

#[test]
fn how_payments_end() {
    use Leg::*;
    const DEBITED: &str = "Debit Success 00 -/-/-";
    let check = |name: &str, fault: &str, payment: Pay, told: &[&str], ends: &str, moved: &[Leg]| {
        let faults = match fault {
            "" => "[]".to_owned(),
            fault => format!(r#"[{{"match":{{"any":true}},"fault":{fault}}}]"#),
        };
        let mut network = network(&faults);
        assert_eq!(run(&mut network, &payment), told, "{name}");
        assert_eq!(show(&network.status(&payment.txn_id)), ends, "{name}");
        assert_eq!(legs(&network, &payment.txn_id), moved, "{name}");
        assert_eq!(network.initiate(&payment, None).unwrap().settle_after_ms, None, "{name}: settled twice");
    };
    let plain = || pay(1, "alice@torana", "bob@okbank", "10.00", None);
    let success = "Final Success 00 00/00/-";
    check("plain", "", plain(), &[DEBITED, success], success, &[Debit, Credit]);
    check("silent", r#"{"kind":"silent"}"#, plain(), &[], success, &[Debit, Credit]);
    check("unsettled", r#"{"kind":"silent_unsettled"}"#, plain(), &[], "Debit Pending 01 -/-/-", &[]);
    let reversed = "Final Failure U68 00/BT/00";
    let timeout = r#"{"kind":"debit_then_credit_timeout"}"#;
    check("credit timeout", timeout, plain(), &[DEBITED, reversed], reversed, &[Debit, ReversalDebit]);
    let deemed = "Final Deemed RB 00/BT/96";
    let timeout = r#"{"kind":"debit_then_credit_timeout","ends":"deemed"}"#;
    check("credit timeout, deemed", timeout, plain(), &[DEBITED, deemed], deemed, &[Debit, Credit]);
    check("deemed", r#"{"kind":"deemed"}"#, plain(), &[DEBITED, deemed], deemed, &[Debit, Credit]);
    let reversed = "Final Failure U31 00/XI/00";
    check(
        "reversal",
        r#"{"kind":"reversal"}"#,
        plain(),
        &[DEBITED, reversed],
        reversed,
        &[Debit, ReversalDebit],
    );
    let reversed = "Final Failure U67 UT/-/00";
    check(
        "debit timeout",
        r#"{"kind":"debit_timeout"}"#,
        plain(),
        &[reversed],
        reversed,
        &[Debit, ReversalDebit],
    );
    let declined = "Final Failure U30 ZA/-/-";
    check("decline", r#"{"kind":"decline","code":"ZA"}"#, plain(), &[declined], declined, &[]);
    let declined = "Final Failure U09 -/-/-";
    check("decline, network", r#"{"kind":"decline","code":"U09"}"#, plain(), &[declined], declined, &[]);
    check("reject", r#"{"kind":"reject","code":"U09"}"#, plain(), &["REJECTED U09"], declined, &[]);
    for (name, payment, told) in [
        ("cap", pay(1, "alice@torana", "bob@okbank", "5000.01", None), "REJECTED U02"),
        ("no payee", pay(1, "alice@torana", "nobody@okbank", "1.00", None), "REJECTED ZH"),
        ("no payer", pay(1, "nobody@torana", "bob@okbank", "1.00", None), "REJECTED ZH"),
    ] {
        let ends = format!("Final Failure {} -/-/-", told.rsplit(' ').next().unwrap());
        check(name, "", payment, &[told], &ends, &[]);
    }
    for (name, payment, bank) in [
        ("poor", pay(1, "bob@okbank", "alice@torana", "1.00", None), "Z9"),
        ("limit", pay(1, "capped@torana", "bob@okbank", "10.01", None), "Z8"),
        ("frozen", pay(1, "frozen@okbank", "bob@okbank", "10.01", None), "YE"),
        ("no PIN", pay(1, "pinned@torana", "bob@okbank", "1.00", None), "ZM"),
    ] {
        let declined = format!("Final Failure U30 {bank}/-/-");
        check(name, "", payment, &[&declined], &declined, &[]);
    }
    let frozen = "Final Failure U31 00/YF/00";
    let payment = pay(1, "alice@torana", "frozen@okbank", "1.00", None);
    check("frozen payee", "", payment, &[DEBITED, frozen], frozen, &[Debit, ReversalDebit]);
}

#[test]
fn limits_of_a_day() {
    let mut network = network("[]");
    let last = |told: Vec<String>| told.last().cloned().unwrap();
    let ten = |number| pay(number, "capped@torana", "bob@okbank", "10.00", None);
    assert_eq!(last(run(&mut network, &ten(1))), "Final Success 00 00/00/-");
    assert_eq!(last(run(&mut network, &ten(2))), "Final Failure U30 ZU/-/-");
    assert_eq!(
        last(run(&mut network, &pay(3, "capped@torana", "bob@okbank", "5.00", None))),
        "Final Success 00 00/00/-"
    );
}

#[test]
fn the_pin() {
    let mut network = network("[]");
    let public = network.keys().find(|(bank, _)| *bank == "torana").unwrap().1;
    let block = |pin: &str, amount: &str| {
        pin::encrypt(&public, pin, &pin::binding("pinned@torana", "bob@okbank", amount)).unwrap()
    };
    let mut number = 0;
    let mut check = |block: &str, expected: &str| {
        number += 1;
        let payment = pay(number, "pinned@torana", "bob@okbank", "1.00", Some(block.to_owned()));
        assert_eq!(run(&mut network, &payment).last().unwrap(), expected, "payment {number}");
    };
    let (success, wrong) = ("Final Success 00 00/00/-", "Final Failure U30 ZM/-/-");
    let right = block("1234", "1.00");
    check(&right, success);
    check(&right, wrong); // used
    check(&block("1234", "2.00"), wrong); // for another amount
    check(&block("1234", "1.00"), success); // the count starts again
    check(&block("4321", "1.00"), wrong);
    check("AAAA", wrong);
    check(&block("4321", "1.00"), wrong);
    check(&block("1234", "1.00"), "Final Failure U30 Z6/-/-");
}

#[test]
fn the_same_id_is_the_same_payment() {
    let mut network = network("[]");
    let first = network.initiate(&pay(1, "alice@torana", "bob@okbank", "1.00", None), None).unwrap();
    let again = network.initiate(&pay(1, "Alice@torana", "bob@okbank", "1.00", None), None).unwrap();
    assert_eq!(first.ack, again.ack);
    assert!(first.settle_after_ms.is_some() && again.settle_after_ms.is_none());
    let other = network.initiate(&pay(1, "alice@torana", "bob@okbank", "2.00", None), None);
    assert_eq!(other.unwrap_err(), IdReused);
    assert_eq!(show(&network.status(&id(77))), "Final Failure NO -/-/-");
}

fn any_fault() -> impl Strategy<Value = Option<Fault>> {
    let some = |text: &'static str| Just(Some(serde_json::from_str::<Fault>(text).unwrap()));
    prop_oneof![
        Just(None),
        some(r#"{"kind":"silent"}"#),
        some(r#"{"kind":"silent_unsettled"}"#),
        some(r#"{"kind":"debit_timeout"}"#),
        some(r#"{"kind":"debit_then_credit_timeout"}"#),
        some(r#"{"kind":"debit_then_credit_timeout","ends":"deemed"}"#),
        some(r#"{"kind":"deemed"}"#),
        some(r#"{"kind":"reversal"}"#),
        some(r#"{"kind":"decline","code":"XY"}"#),
        some(r#"{"kind":"reject","code":"U09"}"#),
    ]
}

proptest! {
    /// Payments with faults, interleaved in any order: money is conserved, and what the network says of a
    /// payment is what its ledger shows.
    #[test]
    fn the_network_tells_what_the_ledger_shows(
        payments in prop::collection::vec((any_fault(), 0..4usize, 0..4usize, 1..900_000u64), 1..8),
        order in prop::collection::vec(0..8usize, 0..60),
    ) {
        let mut network = network("[]");
        let vpas = ["alice@torana", "bob@okbank", "capped@torana", "frozen@okbank"];
        let opening = network.ledger().total_paise();
        for (number, (fault, payer, payee, paise)) in payments.iter().enumerate() {
            let any = Match::Any(true);
            network.set_faults(fault.iter().map(|fault| Rule { when: any.clone(), fault: fault.clone() }).collect());
            let payment = pay(number, vpas[*payer], vpas[*payee], &Amount { paise: *paise }.to_string(), None);
            network.initiate(&payment, None).unwrap();
        }
        let check = |network: &Network| {
            for number in 0..payments.len() {
                let outcome = network.status(&id(number));
                let debited: &[Leg] = &[Leg::Debit];
                let expected: &[Leg] = match (outcome.stage, outcome.result, outcome.reversal_code.is_some()) {
                    (Stage::Debit, NetworkResult::Success, _) => debited,
                    // A debit timeout: the payer is debited and the network does not know it yet.
                    (Stage::Debit, _, _) if legs(network, &id(number)) == debited => debited,
                    (Stage::Debit, _, _) | (_, NetworkResult::Failure, false) => &[],
                    (_, NetworkResult::Failure, true) => &[Leg::Debit, Leg::ReversalDebit],
                    (_, NetworkResult::Success | NetworkResult::Deemed, _) => &[Leg::Debit, Leg::Credit],
                    (_, NetworkResult::Pending, _) => unreachable!(),
                };
                assert_eq!(legs(network, &id(number)), expected, "{number}: {outcome:?}");
            }
        };
        for number in order {
            // A payment that never settles is never advanced.
            if network.fault_of_txn(&id(number)) != Some(Fault::SilentUnsettled) {
                network.advance(&id(number), id(999), 0);
            }
            prop_assert!(network.ledger().balanced());
            prop_assert_eq!(network.ledger().total_paise(), opening);
            check(&network);
        }
    }
}
