//! The configuration file: what it says, and how it is read.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use certs::TlsFiles;
use serde::{Deserialize, de::DeserializeOwned};

pub use crate::keys::{Key, KeyList};
use crate::{breaker, budget, freshness, peak_hours};

/// `npci-proxy --config FILE`. Relative paths in it are seen from its own folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub admin: Admin,
    pub inside: Inside,
    pub outside: Outside,
    pub network: Network,
    pub core: Core,
    #[serde(default)]
    pub freshness: freshness::Rules,
    #[serde(default)]
    pub status_checks: StatusChecks,
    /// Absent: calls that no user started are made at any hour.
    #[serde(default)]
    pub peak_hours: Option<peak_hours::Rules>,
    /// How long calls in flight may take to end after SIGTERM; longer than the longest call, or a restart
    /// leaves payments whose outcome nobody was told.
    #[serde(default = "drain_timeout_ms")]
    pub drain_timeout_ms: u64,
    #[serde(skip)]
    folder: PathBuf,
}

/// Plain HTTP for people and machines that watch the process; keep it on loopback.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    pub listen: SocketAddr,
}

/// Where txn-core calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inside {
    pub listen: SocketAddr,
    pub tls: TlsFiles,
    /// DNS names (SAN) of the clients that may call.
    pub allowed_clients: Vec<String>,
}

/// Where the network calls back.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    pub listen: SocketAddr,
    pub tls: TlsFiles,
    pub allowed_clients: Vec<String>,
    #[serde(default = "body_max_bytes")]
    pub body_max_bytes: usize,
    /// Callbacks on their way to txn-core at once.
    #[serde(default = "in_flight")]
    pub max_in_flight: usize,
}

/// How the network is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// `https://host:port`, nothing after it.
    pub url: String,
    pub tls: TlsFiles,
    /// Base64 of the SHA-256 of the server's SubjectPublicKeyInfo (`certs show` prints it). When given, the
    /// server must present one of these keys, in addition to a certificate of the CA.
    #[serde(default)]
    pub spki_pins: Vec<String>,
    /// Signs our requests, and our answers to callbacks: of several the newest that counts.
    pub sign: KeyList,
    /// Verifies the network's answers and callbacks: every one that counts.
    pub verify: KeyList,
    #[serde(default = "connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    #[serde(default)]
    pub pay: PayCall,
    #[serde(default = "ten_seconds")]
    pub status: Call,
    #[serde(default = "ten_seconds")]
    pub validate: Call,
    /// One breaker for each of the three calls.
    #[serde(default)]
    pub breaker: breaker::Rules,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub timeout_ms: u64,
    #[serde(default = "in_flight")]
    pub max_in_flight: usize,
}

/// The call that moves money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PayCall {
    pub timeout_ms: u64,
    pub max_in_flight: usize,
    /// A payment whose `initiatedAt` lies further back is not sent (how far ahead it may lie is
    /// `freshness.ahead_ms`). Keep it below the time of the first status check: who asked about a payment
    /// and heard that the network does not know it must not see it go out afterwards.
    pub max_age_ms: i64,
}

/// Where callbacks are made durable.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Core {
    pub url: String,
    pub tls: TlsFiles,
    #[serde(default = "core_timeout_ms")]
    pub timeout_ms: u64,
}

/// The network's budget of status checks, and how many payments are remembered for it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusChecks {
    pub first_after_ms: i64,
    pub most: u32,
    pub within_ms: i64,
    pub payments: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
}

/// Reads a configuration file with `parse`, which gets its text and its folder.
pub fn load<C>(
    path: &Path,
    parse: impl FnOnce(&str, PathBuf) -> Result<C, String>,
) -> Result<C, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    parse(&text, folder).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

/// What the YAML says, before paths are resolved. The message names line and column, and shows no line: it may
/// be a key that somebody wrote inline.
pub fn from_yaml<C: DeserializeOwned>(text: &str) -> Result<C, String> {
    serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        load(path, Config::parse)
    }

    /// The message names line and column.
    pub fn parse(text: &str, folder: PathBuf) -> Result<Config, String> {
        let config: Config = from_yaml(text)?;
        let files = |files: &TlsFiles| files.relative_to(&folder);
        let config = Config {
            inside: Inside { tls: files(&config.inside.tls), ..config.inside },
            outside: Outside { tls: files(&config.outside.tls), ..config.outside },
            network: Network { tls: files(&config.network.tls), ..config.network },
            core: Core { tls: files(&config.core.tls), ..config.core },
            ..config
        };
        Ok(Config { folder, ..config })
    }

    /// What key files are seen from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl StatusChecks {
    pub fn rules(&self) -> budget::Rules {
        budget::Rules { first_after_ms: self.first_after_ms, most: self.most, within_ms: self.within_ms }
    }
}

impl Default for PayCall {
    fn default() -> Self {
        PayCall { timeout_ms: 15_000, max_in_flight: in_flight(), max_age_ms: 20_000 }
    }
}

impl Default for StatusChecks {
    fn default() -> Self {
        let budget::Rules { first_after_ms, most, within_ms } = budget::Rules::default();
        StatusChecks { first_after_ms, most, within_ms, payments: 500_000 }
    }
}

fn drain_timeout_ms() -> u64 {
    20_000
}
fn body_max_bytes() -> usize {
    64 * 1024
}
fn in_flight() -> usize {
    256
}
fn connect_timeout_ms() -> u64 {
    2_000
}
fn core_timeout_ms() -> u64 {
    5_000
}
fn ten_seconds() -> Call {
    Call { timeout_ms: 10_000, max_in_flight: in_flight() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../config.example.yaml");

    #[test]
    fn the_example_is_valid_and_shows_the_defaults() {
        let config = Config::parse(EXAMPLE, "/etc/torana".into()).unwrap();
        assert_eq!(config.network.tls.certificate, Path::new("/etc/torana/pki/psp.pem"));
        assert_eq!(config.network.pay, PayCall::default());
        assert_eq!(config.network.status.timeout_ms, 10_000);
        assert_eq!(config.network.breaker, breaker::Rules::default());
        assert_eq!(config.freshness, freshness::Rules::default());
        assert_eq!(config.status_checks.rules(), budget::Rules::default());
        assert_eq!(config.peak_hours, Some(peak_hours::Rules::default()));
    }

    #[test]
    fn mistakes_are_named_with_line_and_column() {
        for (from, to, expected) in [
            ("timeout_ms: 15000", "timeout_sm: 15000", "timeout_sm"),
            ("failures: 3", "failures: three", "u32"),
            ("key: file:keys/psp-signing.key", "key: c2VjcmV0", "never inline"),
            ("[\"10:00\", \"13:00\"]", "[\"13:00\", \"10:00\"]", "later than the first"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replacen(from, to, 1), PathBuf::new()).unwrap_err();
            assert!(error.contains("line") && error.contains("column"), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }
}
