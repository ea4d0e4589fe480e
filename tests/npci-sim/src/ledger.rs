//! The banks' books. Every movement has two entries that sum to zero: a customer's account and the
//! settlement account of the customer's bank. Nothing else writes a balance. Pure; time is an argument.

use std::collections::HashMap;

use npci_proxy::wire::{Id, Stamp, Vpa};
use serde::Serialize;

#[derive(Debug)]
pub struct Ledger {
    accounts: Vec<Account>,
    opening_paise: Vec<i64>,
    by_vpa: HashMap<String, usize>,
    settlement_of_bank: HashMap<String, usize>,
    entries: Vec<Entry>,
    movements: HashMap<Id, Movements>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    pub vpa: String,
    pub holder: String,
    pub bank: String,
    pub balance_paise: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub id: u64,
    pub txn_id: Id,
    pub leg: Leg,
    pub account: String,
    /// Signed: what this entry adds to the account.
    #[serde(rename = "amount_paise")]
    pub amount_paise: i64,
    pub at: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Leg {
    Debit,
    Credit,
    /// The debit given back.
    ReversalDebit,
    /// The credit taken back.
    ReversalCredit,
}

/// Why a movement was not made. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no such account")]
    UnknownAccount,
    #[error("insufficient funds")]
    InsufficientFunds,
    #[error("this payment already has that movement, or it does not follow from the earlier ones")]
    OutOfOrder,
}

/// What happened to one payment: the legs in the only order that makes sense.
#[derive(Clone, Copy, Debug)]
struct Movements {
    payer: usize,
    amount_paise: i64,
    debit_reversed: bool,
    credit: Option<Credit>,
}

#[derive(Clone, Copy, Debug)]
struct Credit {
    payee: usize,
    reversed: bool,
}

impl Ledger {
    /// Opens the books: the given accounts, and a settlement account of balance zero for each bank.
    pub fn open(customers: impl IntoIterator<Item = Account>) -> Ledger {
        let mut accounts: Vec<Account> = customers.into_iter().collect();
        let mut banks: Vec<String> = accounts.iter().map(|account| account.bank.clone()).collect();
        banks.sort();
        banks.dedup();
        let by_vpa = accounts
            .iter()
            .enumerate()
            .map(|(index, account)| (account.vpa.to_ascii_lowercase(), index))
            .collect();
        let mut settlement_of_bank = HashMap::new();
        for bank in banks {
            settlement_of_bank.insert(bank.clone(), accounts.len());
            let vpa = format!("settlement@{bank}");
            accounts.push(Account { vpa, holder: format!("{bank} settlement"), bank, balance_paise: 0 });
        }
        let opening_paise = accounts.iter().map(|account| account.balance_paise).collect();
        Ledger {
            accounts,
            opening_paise,
            by_vpa,
            settlement_of_bank,
            entries: Vec::new(),
            movements: HashMap::new(),
        }
    }

    /// Takes the amount from the payer, once for each payment.
    pub fn debit(&mut self, txn: &Id, payer: &Vpa, amount_paise: i64, at: Stamp) -> Result<(), Refused> {
        let payer = self.find(payer)?;
        if amount_paise <= 0 || self.movements.contains_key(txn) {
            return Err(Refused::OutOfOrder);
        }
        self.move_money(txn, Leg::Debit, payer, -amount_paise, at)?;
        let movements = Movements { payer, amount_paise, debit_reversed: false, credit: None };
        self.movements.insert(txn.clone(), movements);
        Ok(())
    }

    /// Gives the debited amount to the payee, once for each payment and only while the debit stands.
    pub fn credit(&mut self, txn: &Id, payee: &Vpa, at: Stamp) -> Result<(), Refused> {
        let payee = self.find(payee)?;
        let done = *self.movements.get(txn).ok_or(Refused::OutOfOrder)?;
        if done.debit_reversed || done.credit.is_some() {
            return Err(Refused::OutOfOrder);
        }
        self.move_money(txn, Leg::Credit, payee, done.amount_paise, at)?;
        self.remember(txn, Movements { credit: Some(Credit { payee, reversed: false }), ..done });
        Ok(())
    }

    /// Gives the payer the money back, unless the payee has it.
    pub fn reverse_debit(&mut self, txn: &Id, at: Stamp) -> Result<(), Refused> {
        let done = *self.movements.get(txn).ok_or(Refused::OutOfOrder)?;
        if done.debit_reversed || done.credit.is_some_and(|credit| !credit.reversed) {
            return Err(Refused::OutOfOrder);
        }
        self.move_money(txn, Leg::ReversalDebit, done.payer, done.amount_paise, at)?;
        self.remember(txn, Movements { debit_reversed: true, ..done });
        Ok(())
    }

    /// Takes the money back from the payee, as far as it is still there.
    pub fn reverse_credit(&mut self, txn: &Id, at: Stamp) -> Result<(), Refused> {
        let done = *self.movements.get(txn).ok_or(Refused::OutOfOrder)?;
        let Some(Credit { payee, reversed: false }) = done.credit else { return Err(Refused::OutOfOrder) };
        self.move_money(txn, Leg::ReversalCredit, payee, -done.amount_paise, at)?;
        self.remember(txn, Movements { credit: Some(Credit { payee, reversed: true }), ..done });
        Ok(())
    }

    pub fn account(&self, vpa: &Vpa) -> Option<&Account> {
        self.find(vpa).ok().and_then(|index| self.accounts.get(index))
    }

    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn entries_of<'a>(&'a self, txn: &'a Id) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.txn_id == *txn)
    }

    pub fn total_paise(&self) -> i64 {
        self.accounts.iter().map(|account| account.balance_paise).sum()
    }

    pub fn opening_total_paise(&self) -> i64 {
        self.opening_paise.iter().sum()
    }

    /// The books agree with themselves: every payment's entries sum to zero, every balance is its
    /// opening plus its entries, and no money was made or lost.
    pub fn balanced(&self) -> bool {
        let mut by_txn: HashMap<&Id, i64> = HashMap::new();
        let mut by_account: HashMap<&str, i64> = HashMap::new();
        for entry in &self.entries {
            *by_txn.entry(&entry.txn_id).or_default() += entry.amount_paise;
            *by_account.entry(&entry.account).or_default() += entry.amount_paise;
        }
        let mut accounts = self.accounts.iter().zip(&self.opening_paise);
        by_txn.values().all(|sum| *sum == 0)
            && self.total_paise() == self.opening_total_paise()
            && accounts.all(|(account, opening)| {
                account.balance_paise - opening == by_account.get(account.vpa.as_str()).copied().unwrap_or(0)
            })
    }

    fn find(&self, vpa: &Vpa) -> Result<usize, Refused> {
        self.by_vpa.get(&vpa.folded()).copied().ok_or(Refused::UnknownAccount)
    }

    fn remember(&mut self, txn: &Id, movements: Movements) {
        self.movements.insert(txn.clone(), movements);
    }

    /// Both entries or none.
    fn move_money(
        &mut self,
        txn: &Id,
        leg: Leg,
        account: usize,
        paise: i64,
        at: Stamp,
    ) -> Result<(), Refused> {
        let customer = self.accounts.get(account).ok_or(Refused::UnknownAccount)?;
        let settlement = *self.settlement_of_bank.get(&customer.bank).ok_or(Refused::UnknownAccount)?;
        let bank = self.accounts.get(settlement).ok_or(Refused::UnknownAccount)?;
        let after = customer.balance_paise.checked_add(paise).ok_or(Refused::OutOfOrder)?;
        let bank_after = bank.balance_paise.checked_sub(paise).ok_or(Refused::OutOfOrder)?;
        if after < 0 {
            return Err(Refused::InsufficientFunds);
        }
        for (index, amount_paise, balance_paise) in
            [(account, paise, after), (settlement, -paise, bank_after)]
        {
            if let Some(account) = self.accounts.get_mut(index) {
                account.balance_paise = balance_paise;
                let (id, txn_id, account) = (self.entries.len() as u64 + 1, txn.clone(), account.vpa.clone());
                self.entries.push(Entry { id, txn_id, leg, account, amount_paise, at });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Stamp = Stamp { unix_ms: 0 };

    fn books() -> Ledger {
        let account = |vpa: &str, bank: &str, balance_paise| Account {
            vpa: vpa.into(),
            holder: vpa.into(),
            bank: bank.into(),
            balance_paise,
        };
        Ledger::open([
            account("alice@torana", "torana", 1_000),
            account("bob@torana", "torana", 0),
            account("carol@okbank", "okbank", 500),
        ])
    }

    fn vpa(index: usize) -> Vpa {
        ["alice@torana", "bob@torana", "carol@okbank", "nobody@okbank"][index % 4].parse().unwrap()
    }

    fn txn(number: usize) -> Id {
        format!("TOR{number:032x}").parse().unwrap()
    }

    #[derive(Debug, Clone)]
    enum Act {
        Debit(usize, usize, i64),
        Credit(usize, usize),
        ReverseDebit(usize),
        ReverseCredit(usize),
    }
    use Act::*;

    fn act(ledger: &mut Ledger, act: &Act) -> Result<(), Refused> {
        match *act {
            Debit(t, payer, paise) => ledger.debit(&txn(t), &vpa(payer), paise, AT),
            Credit(t, payee) => ledger.credit(&txn(t), &vpa(payee), AT),
            ReverseDebit(t) => ledger.reverse_debit(&txn(t), AT),
            ReverseCredit(t) => ledger.reverse_credit(&txn(t), AT),
        }
    }

    #[test]
    fn what_may_follow_what() {
        use Refused::*;
        let check = |name: &str, acts: &[(Act, Result<(), Refused>)]| {
            let mut ledger = books();
            for (step, expected) in acts {
                assert_eq!(act(&mut ledger, step), *expected, "{name}: {step:?}");
                assert!(ledger.balanced(), "{name}: {step:?}");
            }
        };
        check("payment", &[(Debit(1, 0, 1_000), Ok(())), (Credit(1, 2), Ok(()))]);
        check("debited twice", &[(Debit(1, 0, 10), Ok(())), (Debit(1, 0, 10), Err(OutOfOrder))]);
        check(
            "credited twice",
            &[(Debit(1, 0, 10), Ok(())), (Credit(1, 1), Ok(())), (Credit(1, 2), Err(OutOfOrder))],
        );
        check("credit first", &[(Credit(1, 1), Err(OutOfOrder)), (ReverseDebit(1), Err(OutOfOrder))]);
        check("too much", &[(Debit(1, 0, 1_001), Err(InsufficientFunds)), (Debit(1, 0, 1_000), Ok(()))]);
        check("nothing and less", &[(Debit(1, 0, 0), Err(OutOfOrder)), (Debit(1, 0, -5), Err(OutOfOrder))]);
        check("unknown payer", &[(Debit(1, 3, 10), Err(UnknownAccount))]);
        check("unknown payee", &[(Debit(1, 0, 10), Ok(())), (Credit(1, 3), Err(UnknownAccount))]);
        check(
            "reversed once, then nothing more",
            &[
                (Debit(1, 0, 10), Ok(())),
                (ReverseDebit(1), Ok(())),
                (ReverseDebit(1), Err(OutOfOrder)),
                (Credit(1, 1), Err(OutOfOrder)),
                (Debit(1, 0, 10), Err(OutOfOrder)),
            ],
        );
        check(
            "no money back while the payee has it",
            &[
                (Debit(1, 0, 10), Ok(())),
                (Credit(1, 1), Ok(())),
                (ReverseDebit(1), Err(OutOfOrder)),
                (ReverseCredit(1), Ok(())),
                (ReverseCredit(1), Err(OutOfOrder)),
                (ReverseDebit(1), Ok(())),
            ],
        );
        check(
            "spent money cannot be taken back",
            &[
                (Debit(1, 0, 10), Ok(())),
                (Credit(1, 1), Ok(())),
                (Debit(2, 1, 10), Ok(())),
                (ReverseCredit(1), Err(InsufficientFunds)),
            ],
        );
    }

    fn any_act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..6usize, 0..4usize, -10..700i64).prop_map(|(t, payer, paise)| Debit(t, payer, paise)),
            (0..6usize, 0..4usize).prop_map(|(t, payee)| Credit(t, payee)),
            (0..6usize).prop_map(ReverseDebit),
            (0..6usize).prop_map(ReverseCredit),
        ]
    }

    proptest! {
        #[test]
        fn money_is_conserved_whatever_happens(acts in prop::collection::vec(any_act(), 0..60)) {
            let mut ledger = books();
            for step in &acts {
                let before = (ledger.entries().len(), ledger.accounts().to_vec());
                let entries = match act(&mut ledger, step) {
                    Ok(()) => 2,
                    Err(_) => { prop_assert_eq!(ledger.accounts(), &before.1[..]); 0 }
                };
                prop_assert_eq!(ledger.entries().len(), before.0 + entries);
                prop_assert!(ledger.balanced());
                prop_assert_eq!(ledger.total_paise(), 1_500);
            }
            for t in 0..6 {
                let count = |leg| ledger.entries_of(&txn(t)).filter(|entry| entry.leg == leg).count();
                prop_assert!(count(Leg::Debit) <= 2 && count(Leg::Credit) <= 2, "one movement is two entries");
                prop_assert!(count(Leg::ReversalDebit) <= count(Leg::Debit));
                prop_assert!(count(Leg::ReversalCredit) <= count(Leg::Credit));
            }
            let customers = ledger.accounts().iter().filter(|account| !account.vpa.starts_with("settlement@"));
            prop_assert!(customers.into_iter().all(|account| account.balance_paise >= 0));
        }
    }
}
