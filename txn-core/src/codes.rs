//! What the network's answers mean: every response code, keyed by section, and what a whole report says.
//!
//! Owns the one table of codes. Must never turn an unknown code into a failure: what is not in the table has
//! to be reconciled.

use crate::txn::{Outcome, Report, ReportResult, Source, Stage};

/// Where in an answer a code stands; the same two letters mean different things in different places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The answer's own code, or that of one of the two banks.
    Payment,
    /// What came back for a reversal.
    Reversal,
    /// Only valid as the answer to a status check.
    StatusCheck,
}

/// What a code says about the money and about a second try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Success,
    Pending,
    /// The customer said no.
    DeclinedByUser,
    /// A collect request ran out.
    Expired,
    /// Final; nothing moved; passes only after the user has done something (PIN, device, address).
    UserMustAct,
    /// Final; nothing moved; a fresh payment later may pass (funds, limits).
    MayPassLater,
    /// Final; nothing moved; never tried again by a machine (risk, law, no such account).
    Never,
    /// Technical, before any debit: nothing moved; a fresh payment may be sent.
    Technical,
    /// Money may have moved: keep the payment open and reconcile.
    Reconcile,
    /// Taken as a success until reconciliation says otherwise.
    Deemed,
    /// The money is back with the payer.
    Reversed,
    /// A reversal found no credit or debit to undo: the payment failed.
    NothingToReverse,
    /// Carries no cause: the payer's bank's code says why.
    AskPayerBank,
    /// Carries no cause and follows a debit: only the reversal's code ends it.
    AskPayeeBank,
    /// The network does not know the payment.
    NotFound,
}

impl Class {
    /// What it means to the customer, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Class::Success => "The payment succeeded.",
            Class::Pending => "The payment is under way.",
            Class::DeclinedByUser => "The customer declined. No money moved.",
            Class::Expired => "The collect request expired. No money moved.",
            Class::UserMustAct => {
                "The payment failed and no money moved. The customer must correct something (PIN, device, address)."
            }
            Class::MayPassLater => {
                "The payment failed and no money moved. A new payment may pass later (funds, limits)."
            }
            Class::Never => {
                "The payment failed and no money moved. It must not be repeated automatically (risk, law, no such account)."
            }
            Class::Technical => {
                "A technical failure before any debit: no money moved. A new payment may be sent."
            }
            Class::Reconcile => {
                "Money may have moved. The payment stays open until a status check or reconciliation settles it."
            }
            Class::Deemed => {
                "The network takes the payment for a success until reconciliation. Do not pay again."
            }
            Class::Reversed => "The money is back with the payer.",
            Class::NothingToReverse => {
                "The reversal found nothing to undo: the payment failed and no money moved."
            }
            Class::AskPayerBank => "No cause of its own: the code of the payer's bank says why.",
            Class::AskPayeeBank => {
                "No cause of its own after a debit: only the code of the reversal settles it."
            }
            Class::NotFound => "The network does not know the payment.",
        }
    }
}

/// The table as text: code, where it may stand, what it means. With a code only its lines; empty where it is unknown.
pub fn page(code: Option<&str>) -> String {
    let mut page = String::new();
    for (section, class, codes) in TABLE {
        let place = match section {
            Section::Payment => "payment",
            Section::Reversal => "reversal",
            Section::StatusCheck => "status check",
        };
        for known in codes.iter().filter(|known| code.is_none_or(|code| code == **known)) {
            page.push_str(&format!("{known:4} {place:13} {}\n", class.meaning()));
        }
    }
    page
}

/// The table. Source: `UPI.md`, "Response codes" and "How a payment ends".
pub const TABLE: &[(Section, Class, &[&str])] = &[
    (Section::Payment, Class::Success, &["00"]),
    (Section::Payment, Class::Pending, &["01"]),
    (Section::Payment, Class::DeclinedByUser, &["ZA"]),
    (Section::Payment, Class::Expired, &["U69"]),
    (Section::Payment, Class::UserMustAct, &["ZM", "Z6", "AM", "ZH", "UX", "U66", "ZF", "B1"]),
    (Section::Payment, Class::MayPassLater, &["Z9", "Z7", "Z8", "ZU", "U02", "U03", "FL", "FP"]),
    (
        Section::Payment,
        Class::Never,
        &["K1", "59", "ZI", "U16", "M16", "XH", "XI", "YE", "YF", "ZX", "ZY", "VO", "VP", "VQ", "VR", "VZ"],
    ),
    (
        Section::Payment,
        Class::Technical,
        &[
            "XY", "HS", "IR", "XT", "U09", "U18", "U20", "U27", "U28", "U80", "U81", "U84", "U85", "U86",
            "U89", "U90", "U91", "U92", "U93", "U94",
        ],
    ),
    (
        Section::Payment,
        Class::Reconcile,
        &[
            "U67", "U68", "U82", "U87", "U88", "U26", "U53", "UP", "UT", "BT", "RR", "RP", "32", "U32",
            "U33", "U37", "U70", "U01", "U35", "U36", "U38", "U42", "DF", "DT",
        ],
    ),
    (Section::Payment, Class::Deemed, &["RB", "96"]),
    (Section::Payment, Class::Reversed, &["21"]),
    (Section::Payment, Class::AskPayerBank, &["U30"]),
    (Section::Payment, Class::AskPayeeBank, &["U31"]),
    (Section::Reversal, Class::Reversed, &["00"]),
    (Section::Reversal, Class::Deemed, &["96"]),
    (Section::Reversal, Class::Success, &["CS"]),
    (Section::Reversal, Class::NothingToReverse, &["NC", "ND", "OC", "OD"]),
    (Section::Reversal, Class::Reconcile, &["RB", "RR", "RP", "U67", "U68", "UT", "BT", "32"]),
    (Section::StatusCheck, Class::NotFound, &["NO"]),
];

/// The class of `code` in `section`. A code that nobody has listed has to be reconciled.
pub fn class(section: Section, code: &str) -> Class {
    TABLE
        .iter()
        .find(|(s, _, codes)| *s == section && codes.contains(&code))
        .map_or(Class::Reconcile, |(_, class, _)| *class)
}

/// What a whole report says about the payment. Contradictions (a success with a failure's code) are
/// [`Outcome::Unclear`]: they are reconciled, never guessed.
pub fn outcome(report: &Report) -> Outcome {
    if report.result == ReportResult::Pending {
        return Outcome::StillPending;
    }
    if let Some(code) = &report.reversal_code {
        return unless_the_payer_paid(
            report,
            reversal_outcome(report.result, class(Section::Reversal, code)),
        );
    }
    let section = if matches!(report.source, Source::Inquiry { .. })
        && class(Section::StatusCheck, &report.code) == Class::NotFound
    {
        Section::StatusCheck
    } else {
        Section::Payment
    };
    let class_of_code = class(section, &report.code);
    match report.result {
        ReportResult::Pending => Outcome::StillPending,
        ReportResult::Success => success_outcome(report, class_of_code),
        ReportResult::Deemed => match class_of_code {
            Class::Success | Class::Deemed | Class::Reconcile => Outcome::Deemed,
            Class::Pending
            | Class::DeclinedByUser
            | Class::Expired
            | Class::UserMustAct
            | Class::MayPassLater
            | Class::Never
            | Class::Technical
            | Class::Reversed
            | Class::NothingToReverse
            | Class::AskPayerBank
            | Class::AskPayeeBank
            | Class::NotFound => Outcome::Unclear,
        },
        ReportResult::Failure => {
            let failed = match class_of_code {
                Class::AskPayerBank => report
                    .payer_code
                    .as_deref()
                    .map_or(Outcome::Unclear, |code| failure_outcome(class(Section::Payment, code))),
                other => failure_outcome(other),
            };
            unless_the_payer_paid(report, failed)
        }
    }
}

/// "Nothing moved" is not believed against the payer's own bank. If that bank says that it paid, only a confirmed
/// reversal ends the payment; if it does not know, only a reversal that found nothing does.
fn unless_the_payer_paid(report: &Report, outcome: Outcome) -> Outcome {
    use Outcome as O;
    let payer_bank = report.payer_code.as_deref().map(|code| class(Section::Payment, code));
    let believed = match (outcome, payer_bank) {
        (O::Declined | O::Expired | O::Failed | O::NotFound, Some(class)) => {
            matches!(failure_outcome(class), O::Declined | O::Expired | O::Failed)
        }
        (O::ReversalRefused, Some(class)) => class != Class::Success,
        (O::Debited | O::Succeeded | O::StillPending | O::Unclear | O::Deemed | O::Reversed, Some(_))
        | (_, None) => true,
    };
    if believed { outcome } else { Outcome::Unclear }
}

fn success_outcome(report: &Report, class_of_code: Class) -> Outcome {
    let banks_agree = [&report.payer_code, &report.payee_code]
        .into_iter()
        .flatten()
        .all(|code| class(Section::Payment, code) == Class::Success);
    match (class_of_code == Class::Success && banks_agree, report.stage) {
        (true, Stage::Debit) => Outcome::Debited,
        (true, Stage::Final) => Outcome::Succeeded,
        (false, Stage::Debit | Stage::Final) => Outcome::Unclear,
    }
}

fn failure_outcome(class: Class) -> Outcome {
    match class {
        Class::Pending => Outcome::StillPending,
        Class::DeclinedByUser => Outcome::Declined,
        Class::Expired => Outcome::Expired,
        Class::UserMustAct | Class::MayPassLater | Class::Never | Class::Technical => Outcome::Failed,
        Class::Reversed => Outcome::Reversed,
        Class::NotFound => Outcome::NotFound,
        Class::Success
        | Class::Reconcile
        | Class::Deemed
        | Class::NothingToReverse
        | Class::AskPayerBank
        | Class::AskPayeeBank => Outcome::Unclear,
    }
}

fn reversal_outcome(result: ReportResult, class: Class) -> Outcome {
    match (result, class) {
        (ReportResult::Failure, Class::Reversed) => Outcome::Reversed,
        (ReportResult::Failure | ReportResult::Deemed, Class::Deemed) => Outcome::Deemed,
        (ReportResult::Deemed, Class::Reconcile) => Outcome::Deemed,
        (ReportResult::Success | ReportResult::Failure, Class::Success) => Outcome::Succeeded,
        (ReportResult::Failure, Class::NothingToReverse) => Outcome::ReversalRefused,
        (
            ReportResult::Success | ReportResult::Failure | ReportResult::Pending | ReportResult::Deemed,
            Class::Success
            | Class::Pending
            | Class::DeclinedByUser
            | Class::Expired
            | Class::UserMustAct
            | Class::MayPassLater
            | Class::Never
            | Class::Technical
            | Class::Reconcile
            | Class::Deemed
            | Class::Reversed
            | Class::NothingToReverse
            | Class::AskPayerBank
            | Class::AskPayeeBank
            | Class::NotFound,
        ) => Outcome::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_stands_in_a_section_once() {
        let mut seen = std::collections::HashSet::new();
        for (section, _, codes) in TABLE {
            for code in *codes {
                assert!(seen.insert((format!("{section:?}"), *code)), "{code} twice in {section:?}");
            }
        }
    }

    #[test]
    fn what_nobody_listed_is_reconciled() {
        for code in ["", "U99", "00 ", "zz", "NO"] {
            assert_eq!(class(Section::Payment, code), Class::Reconcile, "{code}");
        }
    }

    /// `result stage code payer/payee/reversal` and what it means.
    #[test]
    fn reports() {
        use Outcome::*;
        use ReportResult::{Failure, Pending, Success};
        const DEEMED: ReportResult = ReportResult::Deemed;
        let cases = [
            (Success, Stage::Debit, ["00", "", "", ""], Debited),
            (Success, Stage::Final, ["00", "", "", ""], Succeeded),
            (Success, Stage::Final, ["00", "00", "00", ""], Succeeded),
            (Success, Stage::Final, ["00", "00", "XH", ""], Unclear),
            (Success, Stage::Final, ["U30", "", "", ""], Unclear),
            (Success, Stage::Final, ["00", "", "", "00"], Unclear),
            (Success, Stage::Final, ["00", "", "", "CS"], Succeeded),
            (Pending, Stage::Final, ["01", "", "", ""], StillPending),
            (Failure, Stage::Final, ["01", "", "", ""], StillPending),
            (Failure, Stage::Final, ["00", "", "", ""], Unclear),
            (Failure, Stage::Final, ["Z9", "", "", ""], Failed),
            (Failure, Stage::Final, ["ZM", "", "", ""], Failed),
            (Failure, Stage::Final, ["U09", "", "", ""], Failed),
            (Failure, Stage::Final, ["K1", "", "", ""], Failed),
            (Failure, Stage::Final, ["ZA", "", "", ""], Declined),
            (Failure, Stage::Final, ["U69", "", "", ""], Expired),
            (Failure, Stage::Final, ["U67", "", "", ""], Unclear),
            (Failure, Stage::Final, ["U68", "", "", ""], Unclear),
            (Failure, Stage::Final, ["BT", "", "", ""], Unclear),
            (Failure, Stage::Final, ["RB", "", "", ""], Unclear),
            (Failure, Stage::Final, ["U99", "", "", ""], Unclear),
            (Failure, Stage::Final, ["21", "", "", ""], Reversed),
            (Failure, Stage::Final, ["U30", "", "", ""], Unclear),
            (Failure, Stage::Final, ["U30", "Z9", "", ""], Failed),
            (Failure, Stage::Final, ["U30", "ZA", "", ""], Declined),
            (Failure, Stage::Final, ["U30", "U67", "", ""], Unclear),
            (Failure, Stage::Final, ["U31", "00", "XH", ""], Unclear),
            (Failure, Stage::Final, ["XH", "00", "XH", ""], Unclear),
            (Failure, Stage::Final, ["Z9", "00", "", ""], Unclear),
            (Failure, Stage::Final, ["XY", "00", "", ""], Unclear),
            (Failure, Stage::Final, ["ZA", "00", "", ""], Unclear),
            (Failure, Stage::Final, ["U69", "00", "", ""], Unclear),
            (Failure, Stage::Final, ["Z9", "U67", "", ""], Unclear),
            (Failure, Stage::Final, ["Z9", "Z9", "", ""], Failed),
            (Failure, Stage::Final, ["21", "00", "", ""], Reversed),
            (Failure, Stage::Final, ["XH", "00", "XH", "00"], Reversed),
            (Failure, Stage::Final, ["U68", "00", "", "OD"], Unclear),
            (Failure, Stage::Final, ["U67", "UT", "", "OD"], ReversalRefused),
            (Failure, Stage::Final, ["U31", "00", "XH", "00"], Reversed),
            (Failure, Stage::Final, ["U68", "00", "", "00"], Reversed),
            (Failure, Stage::Final, ["U68", "00", "", "96"], Deemed),
            (Failure, Stage::Final, ["U68", "00", "", "RR"], Unclear),
            (Failure, Stage::Final, ["U67", "", "", "OD"], ReversalRefused),
            (Failure, Stage::Final, ["U68", "", "", "CS"], Succeeded),
            (DEEMED, Stage::Final, ["RB", "00", "", ""], Deemed),
            (DEEMED, Stage::Final, ["RB", "00", "BT", "96"], Deemed),
            (DEEMED, Stage::Final, ["U68", "", "", ""], Deemed),
            (DEEMED, Stage::Final, ["Z9", "", "", ""], Unclear),
        ];
        for (result, stage, [code, payer, payee, reversal], want) in cases {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let report = Report {
                source: Source::Callback,
                msg_id: "TOR1".into(),
                stage,
                result,
                code: code.into(),
                payer_code: some(payer),
                payee_code: some(payee),
                reversal_code: some(reversal),
                rrn: None,
            };
            assert_eq!(outcome(&report), want, "{result:?} {stage:?} {code} {payer} {payee} {reversal}");
        }
    }

    #[test]
    fn unknown_to_the_network_only_counts_as_the_answer_to_a_status_check() {
        for (source, want) in [
            (Source::Inquiry { check: 1 }, Outcome::NotFound),
            (Source::Callback, Outcome::Unclear),
            (Source::Ack { sending: 1 }, Outcome::Unclear),
        ] {
            let report = Report {
                source,
                msg_id: "TOR1".into(),
                stage: Stage::Final,
                result: ReportResult::Failure,
                code: "NO".into(),
                payer_code: None,
                payee_code: None,
                reversal_code: None,
                rrn: None,
            };
            assert_eq!(outcome(&report), want, "{source:?}");
        }
    }
}
