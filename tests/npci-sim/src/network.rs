//! The network's books of payments: what it acknowledges, how each payment goes on and ends. Pure; time is an
//! argument, waiting and calling back are the caller's.
//!
//! A payment goes `Accepted → Debited → Ended`, or ends earlier, or passes through `Reversing`. Money moves
//! only together with such a step, so the ledger and the payment's state always tell the same story.

use std::collections::{HashMap, HashSet};

use npci_proxy::wire::{
    Ack, Amount, Callback, Code, CredBlock, Id, NetworkResult, Outcome, Pay, PayAck, Rrn, Stage, Stamp,
    ValidateAnswer, Vpa,
};
use serde::Serialize;

use crate::{
    config::{AccountConfig, Limits, Settlement},
    fault::{self, CreditTimeoutEnds, Fault, Rule},
    ledger::{Account, Ledger, Refused},
    pin::{self, BankKey, PinError},
};

const PIN_TRIES: u32 = 3;
/// India time, for daily limits.
const INDIA_MS: i64 = (5 * 60 + 30) * 60_000;

#[derive(Debug)]
pub struct Network {
    settlement: Settlement,
    limits: Limits,
    accounts: HashMap<String, AccountConfig>,
    keys: HashMap<String, BankKey>,
    ledger: Ledger,
    payments: HashMap<Id, Payment>,
    faults: Vec<Rule>,
    failed_pins: HashMap<String, u32>,
    used_blocks: HashSet<String>,
    spent: HashMap<(String, i64), i64>,
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
        let mut keys = HashMap::new();
        for account in accounts {
            if let std::collections::hash_map::Entry::Vacant(slot) = keys.entry(account.bank()) {
                slot.insert(BankKey::generate()?);
            }
        }
        Ok(Network::open(accounts, faults, settlement, limits, keys))
    }

    /// Everything as at the beginning; the banks keep their keys.
    pub fn reset(&mut self, accounts: &[AccountConfig], faults: &[Rule]) {
        let keys = std::mem::take(&mut self.keys);
        *self = Network::open(accounts, faults, self.settlement, self.limits, keys);
    }

    fn open(
        accounts: &[AccountConfig],
        faults: &[Rule],
        settlement: Settlement,
        limits: Limits,
        keys: HashMap<String, BankKey>,
    ) -> Network {
        Network {
            settlement,
            limits,
            accounts: accounts.iter().map(|account| (account.vpa.folded(), account.clone())).collect(),
            keys,
            ledger: Ledger::open(accounts.iter().map(|account| Account {
                vpa: account.vpa.folded(),
                holder: account.holder.clone(),
                bank: account.bank(),
                balance_paise: account.balance_paise,
            })),
            payments: HashMap::new(),
            faults: faults.to_vec(),
            failed_pins: HashMap::new(),
            used_blocks: HashSet::new(),
            spent: HashMap::new(),
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
        self.keys.iter().map(|(bank, key)| (bank.as_str(), key.public()))
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
            reason: refused.as_ref().map(|(_, reason)| (*reason).to_owned()),
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
        let account = self.accounts.get(&vpa.folded());
        ValidateAnswer {
            vpa: vpa.clone(),
            valid: account.is_some(),
            name: account.map(|account| account.holder.clone()),
            code: code(if account.is_some() { "00" } else { "ZH" }),
        }
    }

    /// Why the network does not even take a payment in.
    fn refusal(&self, pay: &Pay, fault: Option<&Fault>) -> Option<(Code, &'static str)> {
        if let Some(Fault::Reject { code }) = fault {
            return Some((code.clone(), "refused on demand"));
        }
        if self.payments.len() >= self.limits.payments {
            return Some((code("U09"), "the network takes no more payments"));
        }
        if pay.amount.paise > self.limits.amount_max_paise {
            return Some((code("U02"), "above the network's amount cap"));
        }
        let known = |vpa: &Vpa| self.accounts.contains_key(&vpa.folded());
        if !known(&pay.payer_vpa) || !known(&pay.payee_vpa) {
            return Some((code("ZH"), "no such address"));
        }
        None
    }

    fn debit(&mut self, payment: &Payment, at: Stamp) -> (State, Option<u64>) {
        let pay = &payment.pay;
        if let Some(Fault::Decline { code }) = &payment.fault {
            return (State::Ended(declined(code.clone())), None);
        }
        if let Err(refused) = self.authorise(pay, at) {
            return (State::Ended(declined(refused)), None);
        }
        let paise = paise(pay.amount);
        match self.ledger.debit(&pay.txn_id, &pay.payer_vpa, paise, at) {
            Ok(()) => {}
            Err(Refused::InsufficientFunds) => return (State::Ended(declined(code("Z9"))), None),
            Err(Refused::UnknownAccount) => return (State::Ended(declined(code("XH"))), None),
            Err(Refused::OutOfOrder) => return (State::Ended(declined(code("U16"))), None),
        }
        *self.spent.entry((pay.payer_vpa.folded(), day(at))).or_default() += paise;
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
        let frozen = self.accounts.get(&pay.payee_vpa.folded()).is_some_and(|payee| payee.frozen);
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
                if let Some(spent) = self.spent.get_mut(&(pay.payer_vpa.folded(), day(at))) {
                    *spent = (*spent - paise(pay.amount)).max(0);
                }
                (State::Ended(ends.clone()), None)
            }
            // The debit stands and nobody knows better: that is for reconciliation.
            Err(_) => (State::Ended(ended(NetworkResult::Deemed, code("RR"))), None),
        }
    }

    /// The payer's bank's own checks, in the order in which banks make them.
    fn authorise(&mut self, pay: &Pay, at: Stamp) -> Result<(), Code> {
        let Some(account) = self.accounts.get(&pay.payer_vpa.folded()).cloned() else {
            return Err(code("XH"));
        };
        if account.frozen {
            return Err(code("YE"));
        }
        if let Some(expected) = &account.pin {
            self.check_pin(pay, &account, expected)?;
        }
        let paise = paise(pay.amount);
        if account.payment_max_paise.is_some_and(|most| paise > most) {
            return Err(code("Z8"));
        }
        let spent = self.spent.get(&(pay.payer_vpa.folded(), day(at))).copied().unwrap_or(0);
        if account.day_max_paise.is_some_and(|most| spent.saturating_add(paise) > most) {
            return Err(code("ZU"));
        }
        Ok(())
    }

    fn check_pin(&mut self, pay: &Pay, account: &AccountConfig, expected: &str) -> Result<(), Code> {
        let tries = self.failed_pins.entry(account.vpa.folded()).or_default();
        if *tries >= PIN_TRIES {
            return Err(code("Z6"));
        }
        let binding = pin::binding(pay.payer_vpa.as_str(), pay.payee_vpa.as_str(), &pay.amount.to_string());
        let block = pay.cred_block.as_ref().map(CredBlock::as_str).unwrap_or_default();
        let opened =
            self.keys.get(&account.bank()).ok_or(PinError::Block).and_then(|key| key.open(block, &binding));
        // A block authorises one payment: the same one again was copied on its way.
        match opened {
            Ok(pin) if pin == expected && self.used_blocks.insert(block.to_owned()) => {
                *tries = 0;
                Ok(())
            }
            Ok(_) | Err(_) => {
                *tries += 1;
                Err(code("ZM"))
            }
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

fn paise(amount: Amount) -> i64 {
    i64::try_from(amount.paise).unwrap_or(i64::MAX)
}

fn day(at: Stamp) -> i64 {
    (at.unix_ms + INDIA_MS).div_euclid(86_400_000)
}

#[allow(clippy::expect_used, reason = "called with literals of two or three letters and digits only")]
fn code(text: &str) -> Code {
    text.parse().expect("a literal code is valid")
}

#[cfg(test)]
mod tests;
