//! Faults on demand: which payments are treated badly, and how.

use npci_proxy::wire::{Amount, Code, Vpa};
use serde::{Deserialize, Serialize};

/// One rule; of several that match a payment the first counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(rename = "match")]
    pub when: Match,
    pub fault: Fault,
}

/// Whom a rule is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Match {
    /// The payer's or the payee's address; a `*` at the end or at the beginning stands for anything.
    Vpa(String),
    /// Exactly this many rupees, such as `"13.37"`.
    Amount(Amount),
    /// Every call.
    Any(bool),
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The acknowledgement comes this much later and the payment settles meanwhile; with `any`, every answer.
    Slow { ms: u64 },
    /// Every step of the settlement takes this much longer.
    SlowSettlement { ms: u64 },
    /// Acknowledges and settles, but never calls back.
    Silent,
    /// Acknowledges and never settles: a status check finds the payment pending for ever.
    SilentUnsettled,
    /// Tells each piece of news twice: same message id, fresh nonce and signature.
    DuplicateCallback,
    /// Sends the identical bytes again, nonce and signature included.
    ReplayedCallback,
    /// Signs its callbacks with a wrong key.
    BadSignature,
    /// Signs its answers with a wrong key.
    BadAnswerSignature,
    /// The payer's bank debits, the answer gets lost, the network gives the money back.
    DebitTimeout,
    /// The payer is debited, the payee's bank does not answer. `ends` overrides the configuration.
    DebitThenCreditTimeout {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends: Option<CreditTimeoutEnds>,
    },
    /// The same, ending as deemed success: the payee's bank did credit, only its answer was lost.
    Deemed,
    /// The payee's bank refuses the credit and the payer gets the money back.
    Reversal,
    /// Accepted, then declined before any debit. A code of the network (`U…`) stands alone; any other is
    /// the payer bank's, under U30.
    Decline { code: Code },
    /// Refused in the acknowledgement, in these words; nothing moves.
    Reject {
        code: Code,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The connection breaks without an answer and the call leaves no trace.
    Unreachable,
}

/// How a payment ends whose credit timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditTimeoutEnds {
    Deemed,
    Reversed,
}

/// The fault of a call about these addresses and this amount, as far as it names them.
pub fn find<'a>(rules: &'a [Rule], vpas: &[&Vpa], amount: Option<Amount>) -> Option<&'a Fault> {
    let rule = rules.iter().find(|rule| match &rule.when {
        Match::Vpa(pattern) => vpas.iter().any(|vpa| fits(pattern, &vpa.folded())),
        Match::Amount(exactly) => amount == Some(*exactly),
        Match::Any(any) => *any,
    });
    rule.map(|rule| &rule.fault)
}

fn fits(pattern: &str, vpa: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (_, Some(start)) => vpa.starts_with(start),
        (Some(end), None) => vpa.ends_with(end),
        (None, None) => vpa == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules: Vec<Rule> = serde_json::from_str(
            r#"[{"match":{"vpa":"silent@*"},"fault":{"kind":"silent"}},
                {"match":{"amount":"13.37"},"fault":{"kind":"slow","ms":5}},
                {"match":{"vpa":"*@farbank"},"fault":{"kind":"decline","code":"XY"}},
                {"match":{"vpa":"Carol@okbank"},"fault":{"kind":"debit_then_credit_timeout","ends":"deemed"}},
                {"match":{"any":false},"fault":{"kind":"unreachable"}}]"#,
        )
        .unwrap();
        let check = |payer: &str, payee: &str, amount: &str, expected: Option<&Fault>| {
            let (payer, payee): (Vpa, Vpa) = (payer.parse().unwrap(), payee.parse().unwrap());
            assert_eq!(
                find(&rules, &[&payer, &payee], amount.parse().ok()),
                expected,
                "{payer} {payee} {amount}"
            );
        };
        let decline = Fault::Decline { code: "XY".parse().unwrap() };
        check("alice@torana", "bob@torana", "1.00", None);
        check("alice@torana", "silent@okbank", "13.37", Some(&Fault::Silent));
        check("SILENT@okbank", "bob@torana", "1.00", Some(&Fault::Silent));
        check("alice@torana", "bob@torana", "13.37", Some(&Fault::Slow { ms: 5 }));
        check("alice@torana", "bob@farbank", "1.00", Some(&decline));
        let deemed = Fault::DebitThenCreditTimeout { ends: Some(CreditTimeoutEnds::Deemed) };
        check("alice@torana", "carol@OKBANK", "1.00", Some(&deemed));
    }

    #[test]
    fn what_is_not_a_rule() {
        for text in [
            r#"{"match":{"vpa":"a@b","amount":"1.00"},"fault":{"kind":"silent"}}"#,
            r#"{"match":{"any":true},"fault":{"kind":"loud"}}"#,
            r#"{"match":{"any":true},"fault":{"kind":"slow"}}"#,
            r#"{"match":{},"fault":{"kind":"silent"}}"#,
        ] {
            assert!(serde_json::from_str::<Rule>(text).is_err(), "{text}");
        }
    }
}
