//! The network's books of payments: what it acknowledges, how each payment goes on and ends. Pure; time is an
//! argument, waiting and calling back are the caller's.
//!
//! A payment goes `Accepted → Debited → Ended`, or ends earlier, or passes through `Reversing`. Money moves
//! only together with such a step, so the ledger and the payment's state always tell the same story.

use std::collections::HashMap;

use npci_proxy::wire::{
    Ack, Amount, Callback, Code, Id, NetworkResult, Outcome, Pay, PayAck, Rrn, Stage, Stamp, ValidateAnswer,
    Vpa,
};
use serde::Serialize;

use crate::{
    bank::{BankKeys, Banks},
    config::{AccountConfig, Limits, Settlement},
    fault::{self, CreditTimeoutEnds, Fault, Rule},
    ledger::{Account, Ledger, Refused},
    pin::PinError,
};

#[derive(Debug)]
pub struct Network {
    settlement: Settlement,
    limits: Limits,
    banks: Banks,
    ledger: Ledger,
    payments: HashMap<Id, Payment>,
    faults: Vec<Rule>,
}

/// One payment as the network knows it.
#[derive(Clone, Debug)]
pub struct Payment {
    pay: Pay,
    ack: PayAck,
    fault: Option<Fault>,
    rrn: Option<Rrn>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Accepted,
    Debited,
    /// The money is on its way back to the payer; how it will end.
    Reversing {
        payer_told: bool,
        ends: Outcome,
    },
    Ended(Outcome),
}

/// What [`Network::initiate`] made of a request.
#[derive(Clone, Debug)]
pub struct Initiated {
    pub ack: PayAck,
    pub fault: Option<Fault>,
    /// When to call [`Network::advance`] for the first time; absent if there is nothing to settle, or if this
    /// payment was known already.
    pub settle_after_ms: Option<u64>,
}

/// What one step of a payment brought.
#[derive(Clone, Debug, Default)]
pub struct Advanced {
    pub news: Option<Callback>,
    pub next_after_ms: Option<u64>,
}

/// The same transaction id was used for another payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdReused;

/// The admin address's view of a payment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentView {
    txn_id: Id,
    payer: Vpa,
    payee: Vpa,
    amount: Amount,
    acknowledged: Ack,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Network {
    pub fn new(
        accounts: &[AccountConfig],
        faults: &[Rule],
        settlement: Settlement,
        limits: Limits,
    ) -> Result<Network, PinError> {
        let keys = BankKeys::generate(accounts)?;
        Ok(Network::open(accounts, faults, settlement, limits, keys))
    }

    /// Everything as at the beginning; the banks keep their keys.
    pub fn reset(&mut self, accounts: &[AccountConfig], faults: &[Rule]) {
        let keys = self.banks.take_keys();
        *self = Network::open(accounts, faults, self.settlement, self.limits, keys);
    }

    fn open(
        accounts: &[AccountConfig],
        faults: &[Rule],
        settlement: Settlement,
        limits: Limits,
        keys: BankKeys,
    ) -> Network {
        Network {
            settlement,
            limits,
            banks: Banks::new(accounts, keys),
            ledger: Ledger::open(accounts.iter().map(|account| Account {
                vpa: account.vpa.folded(),
                holder: account.holder.clone(),
                bank: account.bank(),
                balance_paise: account.balance_paise,
            })),
            payments: HashMap::new(),
            faults: faults.to_vec(),
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn faults(&self) -> &[Rule] {
        &self.faults
    }

    pub fn set_faults(&mut self, faults: Vec<Rule>) {
        self.faults = faults;
    }

    /// Each bank's public key for PINs.
    pub fn keys(&self) -> impl Iterator<Item = (&str, String)> {
        self.banks.public_keys()
    }

    pub fn payment(&self, txn: &Id) -> Option<PaymentView> {
        let payment = self.payments.get(txn)?;
        Some(PaymentView {
            txn_id: txn.clone(),
            payer: payment.pay.payer_vpa.clone(),
            payee: payment.pay.payee_vpa.clone(),
            amount: payment.pay.amount,
            acknowledged: payment.ack.ack,
            outcome: payment.outcome(),
        })
    }

    /// The fault of a payment: that of its first call, once it is known.
    pub fn fault_of(&self, pay: &Pay) -> Option<Fault> {
        match self.payments.get(&pay.txn_id) {
            Some(known) => known.fault.clone(),
            None => fault::find(&self.faults, &[&pay.payer_vpa, &pay.payee_vpa], Some(pay.amount)).cloned(),
        }
    }

    pub fn fault_of_txn(&self, txn: &Id) -> Option<Fault> {
        self.payments.get(txn).and_then(|payment| payment.fault.clone())
    }

    /// What goes wrong with a status check: what goes wrong with every call now, or a payment whose answers
    /// are all forged.
    pub fn fault_of_inquiry(&self, txn: &Id) -> Option<Fault> {
        let of_every_call = fault::find(&self.faults, &[], None).cloned();
        let of_payment = self.fault_of_txn(txn).filter(|fault| *fault == Fault::BadAnswerSignature);
        of_every_call.or(of_payment)
    }

    pub fn fault_of_vpa(&self, vpa: &Vpa) -> Option<Fault> {
        fault::find(&self.faults, &[vpa], None).cloned()
    }

    /// Takes a payment in. The same transaction id again gets the same acknowledgement and has no effect.
    pub fn initiate(&mut self, pay: &Pay, rrn: Option<Rrn>) -> Result<Initiated, IdReused> {
        if let Some(known) = self.payments.get(&pay.txn_id) {
            if !known.is_for(pay) {
                return Err(IdReused);
            }
            let ack = PayAck { msg_id: pay.msg_id.clone(), ..known.ack.clone() };
            return Ok(Initiated { ack, fault: known.fault.clone(), settle_after_ms: None });
        }
        let fault = self.fault_of(pay);
        let refused = self.refusal(pay, fault.as_ref());
        let ack = PayAck {
            txn_id: pay.txn_id.clone(),
            msg_id: pay.msg_id.clone(),
            ack: if refused.is_some() { Ack::Rejected } else { Ack::Accepted },
            code: refused.as_ref().map(|(code, _)| code.clone()),
            reason: refused.as_ref().map(|(_, reason)| reason.clone()),
        };
        let state = match refused {
            None => State::Accepted,
            Some((code, _)) => State::Ended(ended(NetworkResult::Failure, code)),
        };
        let settles = state == State::Accepted && fault != Some(Fault::SilentUnsettled);
        let settle_after_ms = settles.then_some(self.settlement.debit_after_ms + lag_ms(fault.as_ref()));
        if self.payments.len() < self.limits.payments {
            let payment = Payment { pay: pay.clone(), ack: ack.clone(), fault: fault.clone(), rrn, state };
            self.payments.insert(pay.txn_id.clone(), payment);
        }
        Ok(Initiated { ack, fault, settle_after_ms })
    }

    /// The next step of a payment. `msg_id` names the news, if there is any.
    pub fn advance(&mut self, txn: &Id, msg_id: Id, now_ms: i64) -> Advanced {
        let Some(payment) = self.payments.get(txn).cloned() else { return Advanced::default() };
        let at = Stamp { unix_ms: now_ms };
        let (state, next) = match &payment.state {
            State::Accepted => self.debit(&payment, at),
            State::Debited => self.credit(&payment, at),
            State::Reversing { ends, .. } => self.reverse(&payment, ends, at),
            State::Ended(_) => return Advanced::default(),
        };
        let payer_told = matches!(state, State::Debited | State::Ended(_));
        let Some(known) = self.payments.get_mut(txn) else { return Advanced::default() };
        known.state = state;
        let outcome = known.outcome();
        let silent = matches!(known.fault, Some(Fault::Silent));
        let news = (payer_told && !silent).then(|| Callback { msg_id, txn_id: txn.clone(), outcome, at });
        let lag_ms = lag_ms(payment.fault.as_ref());
        Advanced { news, next_after_ms: next.map(|after_ms| after_ms + lag_ms) }
    }

    /// What a status check finds. An unknown payment has failed with NO: nothing of it ever arrived.
    pub fn status(&self, txn: &Id) -> Outcome {
        match self.payments.get(txn) {
            Some(payment) => payment.outcome(),
            None => ended(NetworkResult::Failure, code("NO")),
        }
    }

    pub fn validate(&self, vpa: &Vpa) -> ValidateAnswer {
        let account = self.banks.account(vpa);
        ValidateAnswer {
            vpa: vpa.clone(),
            valid: account.is_some(),
            name: account.map(|account| account.holder.clone()),
            code: code(if account.is_some() { "00" } else { "ZH" }),
        }
    }

    /// Why the network does not even take a payment in.
    fn refusal(&self, pay: &Pay, fault: Option<&Fault>) -> Option<(Code, String)> {
        if let Some(Fault::Reject { code, reason }) = fault {
            let reason = reason.clone().unwrap_or_else(|| "refused on demand".to_owned());
            return Some((code.clone(), reason));
        }
        if self.payments.len() >= self.limits.payments {
            return Some((code("U09"), "the network takes no more payments".to_owned()));
        }
        if pay.amount.paise > self.limits.amount_max_paise {
            return Some((code("U02"), "above the network's amount cap".to_owned()));
        }
        let known = |vpa: &Vpa| self.banks.account(vpa).is_some();
        if !known(&pay.payer_vpa) || !known(&pay.payee_vpa) {
            return Some((code("ZH"), "no such address".to_owned()));
        }
        None
    }

    fn debit(&mut self, payment: &Payment, at: Stamp) -> (State, Option<u64>) {
        let pay = &payment.pay;
        if let Some(Fault::Decline { code }) = &payment.fault {
            return (State::Ended(declined(code.clone())), None);
        }
        if let Err(refused) = self.banks.authorise(pay, at) {
            return (State::Ended(declined(refused)), None);
        }
        let paise = paise(pay.amount);
        match self.ledger.debit(&pay.txn_id, &pay.payer_vpa, paise, at) {
            Ok(()) => {}
            Err(Refused::InsufficientFunds) => return (State::Ended(declined(code("Z9"))), None),
            Err(Refused::UnknownAccount) => return (State::Ended(declined(code("XH"))), None),
            Err(Refused::OutOfOrder) => return (State::Ended(declined(code("U16"))), None),
        }
        self.banks.spend(pay, at);
        if payment.fault == Some(Fault::DebitTimeout) {
            let ends = Outcome {
                payer_code: Some(code("UT")),
                reversal_code: Some(code("00")),
                ..ended(NetworkResult::Failure, code("U67"))
            };
            return (State::Reversing { payer_told: false, ends }, Some(self.settlement.reversal_after_ms));
        }
        (State::Debited, Some(self.settlement.credit_after_ms))
    }

    fn credit(&mut self, payment: &Payment, at: Stamp) -> (State, Option<u64>) {
        let pay = &payment.pay;
        let timeout_ends = match &payment.fault {
            Some(Fault::Deemed) => Some(CreditTimeoutEnds::Deemed),
            Some(Fault::DebitThenCreditTimeout { ends }) => {
                Some(ends.unwrap_or(self.settlement.credit_timeout_ends))
            }
            _ => None,
        };
        if timeout_ends == Some(CreditTimeoutEnds::Reversed) {
            return self.start_reversal("U68", "BT");
        }
        let frozen = self.banks.account(&pay.payee_vpa).is_some_and(|payee| payee.frozen);
        if payment.fault == Some(Fault::Reversal) || frozen {
            return self.start_reversal("U31", if frozen { "YF" } else { "XI" });
        }
        if self.ledger.credit(&pay.txn_id, &pay.payee_vpa, at).is_err() {
            return self.start_reversal("U31", "XI");
        }
        let settled = |result, own, payee, reversal: Option<&str>| Outcome {
            payer_code: Some(code("00")),
            payee_code: Some(code(payee)),
            reversal_code: reversal.map(code),
            ..ended(result, code(own))
        };
        let outcome = match timeout_ends {
            Some(CreditTimeoutEnds::Deemed) => settled(NetworkResult::Deemed, "RB", "BT", Some("96")),
            Some(CreditTimeoutEnds::Reversed) | None => settled(NetworkResult::Success, "00", "00", None),
        };
        (State::Ended(outcome), None)
    }

    fn start_reversal(&self, own: &str, payee: &str) -> (State, Option<u64>) {
        let ends = Outcome {
            payer_code: Some(code("00")),
            payee_code: Some(code(payee)),
            reversal_code: Some(code("00")),
            ..ended(NetworkResult::Failure, code(own))
        };
        (State::Reversing { payer_told: true, ends }, Some(self.settlement.reversal_after_ms))
    }

    fn reverse(&mut self, payment: &Payment, ends: &Outcome, at: Stamp) -> (State, Option<u64>) {
        let pay = &payment.pay;
        match self.ledger.reverse_debit(&pay.txn_id, at) {
            Ok(()) => {
                self.banks.unspend(pay, at);
                (State::Ended(ends.clone()), None)
            }
            // The debit stands and nobody knows better: that is for reconciliation.
            Err(_) => (State::Ended(ended(NetworkResult::Deemed, code("RR"))), None),
        }
    }
}

impl Payment {
    fn is_for(&self, pay: &Pay) -> bool {
        let facts = |pay: &Pay| (pay.payer_vpa.folded(), pay.payee_vpa.folded(), pay.amount);
        facts(&self.pay) == facts(pay)
    }

    fn outcome(&self) -> Outcome {
        let at_debit = |result, own| Outcome { stage: Stage::Debit, ..ended(result, code(own)) };
        let outcome = match &self.state {
            State::Accepted | State::Reversing { payer_told: false, .. } => {
                at_debit(NetworkResult::Pending, "01")
            }
            State::Debited | State::Reversing { payer_told: true, .. } => {
                at_debit(NetworkResult::Success, "00")
            }
            State::Ended(outcome) => outcome.clone(),
        };
        Outcome { rrn: self.rrn.clone(), ..outcome }
    }
}

fn ended(result: NetworkResult, own: Code) -> Outcome {
    Outcome {
        stage: Stage::Final,
        result,
        code: own,
        payer_code: None,
        payee_code: None,
        reversal_code: None,
        rrn: None,
    }
}

/// Refused before any debit: by the network itself, or by the payer's bank under U30.
fn declined(refused: Code) -> Outcome {
    if refused.as_str().starts_with('U') && refused.as_str() != "UX" {
        return ended(NetworkResult::Failure, refused);
    }
    Outcome { payer_code: Some(refused), ..ended(NetworkResult::Failure, code("U30")) }
}

fn lag_ms(fault: Option<&Fault>) -> u64 {
    match fault {
        Some(Fault::SlowSettlement { ms }) => *ms,
        _ => 0,
    }
}

pub(crate) fn paise(amount: Amount) -> i64 {
    i64::try_from(amount.paise).unwrap_or(i64::MAX)
}

#[allow(clippy::expect_used, reason = "called with literals of two or three letters and digits only")]
pub(crate) fn code(text: &str) -> Code {
    text.parse().expect("a literal code is valid")
}

#[cfg(test)]
mod tests;
