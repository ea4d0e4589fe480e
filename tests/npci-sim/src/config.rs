//! The configuration file: the network's address and keys, its rules, its banks' accounts, its faults.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use certs::TlsFiles;
use npci_proxy::{
    config::{self, Admin, ConfigError, KeyList},
    wire::Vpa,
};
use serde::Deserialize;

use crate::fault::{CreditTimeoutEnds, Rule};

/// `npci-sim --config FILE`. Relative paths in it are seen from its own folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Plain HTTP: the ledger, faults, keys, counts.
    pub admin: Admin,
    pub front: Front,
    pub callback: Callback,
    /// Signs the network's answers and callbacks.
    pub sign: KeyList,
    /// Verifies the payment service provider's requests.
    pub verify: KeyList,
    #[serde(default)]
    pub settlement: Settlement,
    #[serde(default)]
    pub limits: Limits,
    pub accounts: Vec<AccountConfig>,
    #[serde(default)]
    pub faults: Vec<Rule>,
    #[serde(default = "drain_timeout_ms")]
    pub drain_timeout_ms: u64,
    #[serde(skip)]
    folder: PathBuf,
}

/// Where the network takes calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Front {
    pub listen: SocketAddr,
    pub tls: TlsFiles,
    pub allowed_clients: Vec<String>,
    /// How old a request may be.
    #[serde(default = "window_ms")]
    pub window_ms: i64,
    #[serde(default = "nonces")]
    pub nonces: usize,
}

/// How the network calls back.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// `https://host:port`, nothing after it.
    pub url: String,
    pub tls: TlsFiles,
    #[serde(default = "callback_timeout_ms")]
    pub timeout_ms: u64,
    /// Attempts for one piece of news, all with the same message id.
    #[serde(default = "attempts")]
    pub attempts: u32,
    /// The wait before the second attempt; it doubles up to `retry_max_ms`.
    #[serde(default = "retry_ms")]
    pub retry_ms: u64,
    #[serde(default = "retry_max_ms")]
    pub retry_max_ms: u64,
}

/// How fast the banks are, and what becomes of a credit that nobody answered.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settlement {
    pub debit_after_ms: u64,
    pub credit_after_ms: u64,
    pub reversal_after_ms: u64,
    pub credit_timeout_ends: CreditTimeoutEnds,
}

/// The network's own limits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Above it a payment is refused with U02.
    pub amount_max_paise: u64,
    /// Payments kept in memory; further ones are refused with U09.
    pub payments: usize,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountConfig {
    pub vpa: Vpa,
    pub holder: String,
    /// Absent: the handle of the VPA.
    #[serde(default)]
    pub bank: Option<String>,
    #[serde(default)]
    pub balance_paise: i64,
    /// Without one, payments from this account need no credential block.
    #[serde(default)]
    pub pin: Option<String>,
    /// Above it: Z8.
    #[serde(default)]
    pub payment_max_paise: Option<i64>,
    /// Above it on one day (India time): ZU.
    #[serde(default)]
    pub day_max_paise: Option<i64>,
    /// Frozen accounts neither pay (YE) nor receive (YF).
    #[serde(default)]
    pub frozen: bool,
    /// What happens to a payment to or from this account, for people.
    #[serde(default)]
    pub about: String,
}

impl std::fmt::Debug for AccountConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccountConfig").field("vpa", &self.vpa).finish_non_exhaustive()
    }
}

impl AccountConfig {
    pub fn bank(&self) -> String {
        let handle = || self.vpa.as_str().split_once('@').map(|(_, handle)| handle.to_ascii_lowercase());
        self.bank.clone().or_else(handle).unwrap_or_default()
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        config::load(path, Config::parse)
    }

    /// The message names line and column, if the file is to blame for one place.
    pub fn parse(text: &str, folder: PathBuf) -> Result<Config, String> {
        let config: Config = config::from_yaml(text)?;
        let mut seen = std::collections::HashSet::new();
        for account in &config.accounts {
            if !seen.insert(account.vpa.folded()) {
                return Err(format!("two accounts have the address {}", account.vpa));
            }
            if account.balance_paise < 0 {
                return Err(format!("the account {} opens with a debt", account.vpa));
            }
        }
        Ok(Config {
            front: Front { tls: config.front.tls.relative_to(&folder), ..config.front },
            callback: Callback { tls: config.callback.tls.relative_to(&folder), ..config.callback },
            folder,
            ..config
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Default for Settlement {
    fn default() -> Self {
        Settlement {
            debit_after_ms: 50,
            credit_after_ms: 100,
            reversal_after_ms: 200,
            credit_timeout_ends: CreditTimeoutEnds::Reversed,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { amount_max_paise: 10_000_000, payments: 1_000_000 }
    }
}

fn drain_timeout_ms() -> u64 {
    2_000
}
fn window_ms() -> i64 {
    300_000
}
fn nonces() -> usize {
    1_000_000
}
fn callback_timeout_ms() -> u64 {
    10_000
}
fn attempts() -> u32 {
    12
}
fn retry_ms() -> u64 {
    250
}
fn retry_max_ms() -> u64 {
    10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../config.example.yaml");

    #[test]
    fn the_example_is_valid() {
        let config = Config::parse(EXAMPLE, "/sim".into()).unwrap();
        assert_eq!(config.front.tls.key, Path::new("/sim/pki/network.key"));
        let account = |vpa: &str| config.accounts.iter().find(|a| a.vpa == vpa.parse().unwrap()).unwrap();
        assert_eq!(
            (account("alice@torana").pin.as_deref(), account("alice@torana").bank()),
            (None, "torana".into())
        );
        assert_eq!(account("pinned@torana").pin.as_deref(), Some("1234"));
        assert!(config.faults.len() > 10);
        // Every rule by address is for an account that exists, or nobody could set it off.
        for rule in &config.faults {
            let crate::fault::Match::Vpa(pattern) = &rule.when else { continue };
            let start = pattern.trim_end_matches('*');
            assert!(config.accounts.iter().any(|a| a.vpa.folded().starts_with(start)), "{pattern}");
        }
    }

    #[test]
    fn mistakes() {
        for (from, to, expected) in [
            ("vpa: bob@torana", "vpa: ALICE@torana", "a***@torana"),
            ("kind: silent", "kind: quiet", "quiet"),
            ("balance_paise", "balance", "balance"),
        ] {
            let to = if from.starts_with("vpa") { to.replace("ALICE", "alice") } else { to.to_owned() };
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replacen(from, &to, 1), PathBuf::new()).unwrap_err();
            assert!(error.to_lowercase().contains(expected), "{error}");
        }
    }
}
