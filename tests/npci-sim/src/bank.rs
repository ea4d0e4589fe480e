//! What a payer's bank checks before it debits: the account, the PIN, its limits. Pure; time is an argument.

use std::collections::{HashMap, HashSet};

use npci_proxy::wire::{Code, CredBlock, Pay, Stamp, Vpa};

use crate::{
    config::AccountConfig,
    network::{code, paise},
    pin::{self, BankKey, PinError},
};

const PIN_TRIES: u32 = 3;
/// India time, for daily limits.
const INDIA_MS: i64 = (5 * 60 + 30) * 60_000;

/// All banks of the network.
#[derive(Debug)]
pub struct Banks {
    accounts: HashMap<String, AccountConfig>,
    keys: BankKeys,
    failed_pins: HashMap<String, u32>,
    used_blocks: HashSet<String>,
    spent_paise: HashMap<(String, i64), i64>,
}

/// Each bank's key for PINs.
#[derive(Debug, Default)]
pub struct BankKeys(HashMap<String, BankKey>);

impl BankKeys {
    pub fn generate(accounts: &[AccountConfig]) -> Result<BankKeys, PinError> {
        let mut keys = HashMap::new();
        for account in accounts {
            if let std::collections::hash_map::Entry::Vacant(slot) = keys.entry(account.bank()) {
                slot.insert(BankKey::generate()?);
            }
        }
        Ok(BankKeys(keys))
    }
}

impl Banks {
    pub fn new(accounts: &[AccountConfig], keys: BankKeys) -> Banks {
        Banks {
            accounts: accounts.iter().map(|account| (account.vpa.folded(), account.clone())).collect(),
            keys,
            failed_pins: HashMap::new(),
            used_blocks: HashSet::new(),
            spent_paise: HashMap::new(),
        }
    }

    pub fn take_keys(&mut self) -> BankKeys {
        std::mem::take(&mut self.keys)
    }

    pub fn public_keys(&self) -> impl Iterator<Item = (&str, String)> {
        self.keys.0.iter().map(|(bank, key)| (bank.as_str(), key.public()))
    }

    pub fn account(&self, vpa: &Vpa) -> Option<&AccountConfig> {
        self.accounts.get(&vpa.folded())
    }

    /// The checks in the order in which banks make them; funds are the ledger's to check.
    pub fn authorise(&mut self, pay: &Pay, at: Stamp) -> Result<(), Code> {
        let account = self.account(&pay.payer_vpa).cloned().ok_or_else(|| code("XH"))?;
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
        let spent = self.spent_paise.get(&day_of(pay, at)).copied().unwrap_or(0);
        if account.day_max_paise.is_some_and(|most| spent.saturating_add(paise) > most) {
            return Err(code("ZU"));
        }
        Ok(())
    }

    /// Counts a debit towards the day's limit.
    pub fn spend(&mut self, pay: &Pay, at: Stamp) {
        *self.spent_paise.entry(day_of(pay, at)).or_default() += paise(pay.amount);
    }

    /// Money that came back on the same day does not count.
    pub fn unspend(&mut self, pay: &Pay, at: Stamp) {
        if let Some(spent) = self.spent_paise.get_mut(&day_of(pay, at)) {
            *spent = (*spent - paise(pay.amount)).max(0);
        }
    }

    fn check_pin(&mut self, pay: &Pay, account: &AccountConfig, expected: &str) -> Result<(), Code> {
        let tries = self.failed_pins.entry(account.vpa.folded()).or_default();
        if *tries >= PIN_TRIES {
            return Err(code("Z6"));
        }
        let amount = pay.amount.to_string();
        let binding = pin::binding(pay.payer_vpa.as_str(), pay.payee_vpa.as_str(), &amount);
        let block = pay.cred_block.as_ref().map(CredBlock::as_str).unwrap_or_default();
        let key = self.keys.0.get(&account.bank()).ok_or_else(|| code("HS"))?;
        match key.open(block, &binding) {
            // A block authorises one payment: the same one again was copied on its way.
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

fn day_of(pay: &Pay, at: Stamp) -> (String, i64) {
    (pay.payer_vpa.folded(), (at.unix_ms + INDIA_MS).div_euclid(86_400_000))
}
