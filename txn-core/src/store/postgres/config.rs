//! How the database is reached, and how long anything may take.

use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use certs::file::Content;
use certs::{Bytes, CertError, Live, Subject, Watch};
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use time::OffsetDateTime;

use crate::secret::SecretRef;
use crate::store::{StoreError, WriterLimits};

/// `config.example.yaml` explains each line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where to find `postgres://user:password@host/database?sslmode=…`.
    pub url: SecretRef,
    #[serde(default)]
    pub tls: Tls,
    /// Connections that make new payments durable, each with one commit under way. One makes the largest batches,
    /// which cost least.
    #[serde(default = "one")]
    pub accept_writers: u32,
    /// Connections that write what happens to payments.
    #[serde(default = "two")]
    pub apply_writers: u32,
    /// Of each of them.
    #[serde(default)]
    pub writer: WriterLimits,
    /// Connections for everything else, at most.
    #[serde(default = "default_readers")]
    pub readers: u32,
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// For a free connection out of `readers`.
    #[serde(default = "default_acquire_timeout_ms")]
    pub acquire_timeout_ms: u64,
    /// For one statement; the server ends it.
    #[serde(default = "default_statement_timeout_ms")]
    pub statement_timeout_ms: u64,
    /// At start, for a database that is away.
    #[serde(default = "default_start_wait_ms")]
    pub start_wait_ms: u64,
    /// Months after this one for which partitions are made.
    #[serde(default = "two")]
    pub months_ahead: u32,
}

/// Whether a database that is not on this machine may be spoken to without proof of who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Its certificate has to hold for its name (`sslmode=verify-full`; `sslrootcert=FILE` for a CA of one's own).
    #[default]
    Verified,
    /// As `sslmode` in the URL says.
    AsUrlSays,
}

impl PostgresConfig {
    /// With everything but the URL as it is by default.
    pub fn new(url: SecretRef) -> PostgresConfig {
        PostgresConfig {
            url,
            tls: Tls::default(),
            accept_writers: one(),
            apply_writers: two(),
            writer: WriterLimits::default(),
            readers: default_readers(),
            connect_timeout_ms: default_connect_timeout_ms(),
            acquire_timeout_ms: default_acquire_timeout_ms(),
            statement_timeout_ms: default_statement_timeout_ms(),
            start_wait_ms: default_start_wait_ms(),
            months_ahead: two(),
        }
    }

    /// A relative file of the URL counts from `folder`.
    pub fn relative_to(self, folder: &Path) -> PostgresConfig {
        PostgresConfig { url: self.url.relative_to(folder), ..self }
    }

    /// # Errors
    /// Says which number can't be.
    pub fn check(&self) -> anyhow::Result<()> {
        let above_0 = [
            ("accept_writers", u64::from(self.accept_writers)),
            ("apply_writers", u64::from(self.apply_writers)),
            ("readers", u64::from(self.readers)),
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("acquire_timeout_ms", self.acquire_timeout_ms),
            ("statement_timeout_ms", self.statement_timeout_ms),
        ];
        for (name, number) in above_0 {
            anyhow::ensure!(number > 0, "{name}: must be above 0; nothing may wait without end");
        }
        anyhow::ensure!(self.months_ahead <= 120, "months_ahead: ten years are enough");
        Ok(())
    }

    /// How every connection is made. Where the URL is a file, `watch` follows it: a new password is used for the next
    /// connection, and those that are open stay.
    pub(super) fn follow(&self, watch: &Watch) -> Result<Live<PgConnectOptions>, StoreError> {
        let SecretRef::File(path) = &self.url else { return Ok(self.options()?.into()) };
        let (config, place) = (self.clone(), path.clone());
        let accept = move |_: &[Bytes], _: Option<&Url>, _: OffsetDateTime| match config.options() {
            Ok(options) => Ok(Url(options)),
            Err(error) => Err(CertError::Content { path: place.clone(), reason: error.to_string() }),
        };
        let files = vec![(path.clone(), Content::Secret)];
        let engine = |error: &dyn fmt::Display| StoreError::Engine(format!("store.postgres.url: {error}"));
        let url =
            watch.files("store/postgres/url".to_owned(), files, accept).map_err(|error| engine(&error))?;
        let followed = url.clone();
        let made = watch.derive(&[&url], move || Ok::<_, Infallible>(followed.current().0.clone()));
        made.map_err(|error| engine(&error))
    }

    /// How every connection is made, as the URL is now.
    pub(super) fn options(&self) -> Result<PgConnectOptions, StoreError> {
        let wrong = |why: &str| StoreError::Engine(format!("store.postgres.url: {why}"));
        let url = self.url.load().map_err(|error| wrong(&error.to_string()))?;
        let url = url.as_str();
        let ours = url.starts_with("postgres://") || url.starts_with("postgresql://");
        // The parser's own message may quote the URL, password and all.
        let options = url.parse().ok().filter(|_| ours).ok_or_else(|| wrong("not a postgres:// URL"))?;
        let options = verified(options, self.tls).map_err(|why| wrong(&why))?;
        let statement_timeout_ms = self.statement_timeout_ms.to_string();
        Ok(options.application_name("txn-core").options([
            ("statement_timeout", statement_timeout_ms.as_str()),
            ("idle_in_transaction_session_timeout", statement_timeout_ms.as_str()),
            // Batches of some hundred ids look up rows by key, whatever the planner thinks of a fresh table; and
            // what it thinks dear for that reason is not worth compiling.
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ]))
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// When to give up on a server that neither answers nor ends the statement.
    pub(super) fn answer_timeout(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms.saturating_add(self.connect_timeout_ms))
    }
}

/// The URL as it was accepted last.
struct Url(PgConnectOptions);

impl Subject for Url {
    fn summary(&self) -> String {
        format!("{}:{}", self.0.get_host(), self.0.get_port())
    }
}

fn verified(options: PgConnectOptions, tls: Tls) -> Result<PgConnectOptions, String> {
    let host = options.get_host().to_owned();
    let here = host == "localhost"
        || host.starts_with('/')
        || options.get_socket().is_some()
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match (tls, options.get_ssl_mode()) {
        (Tls::AsUrlSays, _) | (Tls::Verified, PgSslMode::VerifyFull) => Ok(options),
        (Tls::Verified, _) if here => Ok(options),
        // What the parser takes when nothing is said.
        (Tls::Verified, PgSslMode::Prefer) => Ok(options.ssl_mode(PgSslMode::VerifyFull)),
        (Tls::Verified, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Require | PgSslMode::VerifyCa) => {
            Err(format!(
                "sslmode does not prove that {host} is {host}: leave it out or say verify-full, \
                 or set store.postgres.tls: as_url_says"
            ))
        }
    }
}

fn one() -> u32 {
    1
}
fn two() -> u32 {
    2
}
fn default_readers() -> u32 {
    8
}
fn default_connect_timeout_ms() -> u64 {
    2_000
}
fn default_acquire_timeout_ms() -> u64 {
    2_000
}
fn default_statement_timeout_ms() -> u64 {
    5_000
}
fn default_start_wait_ms() -> u64 {
    30_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_has_to_prove_who_it_is() {
        let cases = [
            ("postgres://core@db.bank.internal/payments", Tls::Verified, Ok(PgSslMode::VerifyFull)),
            ("postgres://core@db/p?sslmode=verify-full", Tls::Verified, Ok(PgSslMode::VerifyFull)),
            ("postgres://core@db/p?sslmode=require", Tls::Verified, Err("does not prove")),
            ("postgres://core@db/p?sslmode=disable", Tls::Verified, Err("does not prove")),
            ("postgres://core@db/p?sslmode=disable", Tls::AsUrlSays, Ok(PgSslMode::Disable)),
            ("postgres://core@127.0.0.1/p?sslmode=disable", Tls::Verified, Ok(PgSslMode::Disable)),
            ("postgres://core@localhost/p?sslmode=disable", Tls::Verified, Ok(PgSslMode::Disable)),
        ];
        for (url, tls, want) in cases {
            let got = verified(url.parse().unwrap(), tls).map(|options| options.get_ssl_mode());
            match want {
                Ok(mode) => {
                    assert!(got.as_ref().is_ok_and(|got| *got as i32 == mode as i32), "{url}: {got:?}")
                }
                Err(says) => assert!(got.as_ref().is_err_and(|why| why.contains(says)), "{url}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_secret_is_a_reference_and_is_never_told() {
        assert!(SecretRef::try_from("postgres://core:pw@db/p".to_owned()).is_err());
        let dir = tempfile::tempdir().unwrap();
        certs::file::write_secret(&dir.path().join("url"), "mysql://core:hush@db/p\n").unwrap();
        let config = PostgresConfig::new(SecretRef::File("url".into())).relative_to(dir.path());
        let error = config.options().unwrap_err().to_string();
        assert!(error.contains("not a postgres:// URL") && !error.contains("hush"), "{error}");
        let error =
            PostgresConfig::new(SecretRef::Env("NO_SUCH_NAME".into())).options().unwrap_err().to_string();
        assert!(error.contains("NO_SUCH_NAME"), "{error}");
    }
}
