//! The configuration file: what an operator writes, checked before anything starts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use certs::TlsFiles;
use serde::Deserialize;

use crate::audit::AuditConfig;
use crate::bus::Retention;
use crate::bus::consume::Retry;
use crate::bus::kafka::KafkaConfig;
use crate::relay::RelayConfig;
use crate::roles::Roles;
use crate::store::{PostgresConfig, WriterLimits};
use crate::timers::{Housekeeping, TimerConfig};
use crate::txn::{Rules, UnixMs};

/// Everything `txn-core` is told. `config.example.yaml` explains each line.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Three capital letters: the prefix of every transaction id.
    pub psp: String,
    /// What this instance does; all by default.
    #[serde(default)]
    pub roles: Roles,
    /// Where services call, over mutual TLS.
    pub listen: SocketAddr,
    /// Health, readiness and metrics, over plain HTTP: a loopback address.
    pub admin: SocketAddr,
    pub tls: TlsFiles,
    #[serde(default)]
    pub peers: Peers,
    pub network: NetworkConfig,
    pub store: StoreConfig,
    pub bus: BusConfig,
    #[serde(default)]
    pub rules: Rules,
    #[serde(default)]
    pub limits: Limits,
    /// What is particular to one tenant.
    #[serde(default)]
    pub tenants: BTreeMap<String, Tenant>,
    #[serde(default)]
    pub timers: TimerConfig,
    #[serde(default)]
    pub relay: RelayConfig,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub housekeeping: Housekeeping,
    #[serde(default)]
    pub audit: AuditConfig,
    #[serde(default = "default_drain_timeout_ms")]
    pub drain_timeout_ms: u64,
}

/// Whose certificate may call what: a DNS name in its SANs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    pub api: String,
    pub callbacks: String,
}

impl Default for Peers {
    fn default() -> Self {
        Peers {
            api: "gateway.torana.internal".to_owned(),
            callbacks: "npci-proxy.torana.internal".to_owned(),
        }
    }
}

/// How npci-proxy is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// `https://host:port`; the host has to be in its certificate.
    pub url: String,
    /// For a whole call. Longer than the proxy's own, so that the proxy answers first.
    #[serde(default = "default_network_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Payments being sent at once; the others wait in the bus.
    #[serde(default = "default_max_sends")]
    pub max_sends: u32,
    /// Status checks at once.
    #[serde(default = "default_max_inquiries")]
    pub max_inquiries: u32,
}

/// Where payments live.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreConfig {
    Sqlite(SqliteConfig),
    Postgres(Box<PostgresConfig>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    pub file: PathBuf,
    #[serde(default)]
    pub writer: WriterLimits,
}

/// How events travel.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusConfig {
    Local(LocalBusConfig),
    Kafka(Box<KafkaConfig>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalBusConfig {
    pub file: PathBuf,
    #[serde(default)]
    pub retention: Retention,
}

/// What any payment must keep to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// UPI: person to person ₹1,00,000.
    pub amount_max_paise: u64,
    pub max_connections: usize,
    /// Clients that wait on a WebSocket.
    pub max_subscribers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { amount_max_paise: 10_000_000, max_connections: 1024, max_subscribers: 10_000 }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenant {
    /// In the place of `limits.amount_max_paise`.
    pub amount_max_paise: Option<u64>,
    pub duplicates: Duplicates,
}

/// What a repeated request gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// The first answer again.
    #[default]
    Replay,
    /// 409, always.
    Conflict,
}

fn default_drain_timeout_ms() -> u64 {
    10_000
}
fn default_network_timeout_ms() -> u64 {
    20_000
}
fn default_connect_timeout_ms() -> u64 {
    2_000
}
fn default_max_sends() -> u32 {
    64
}
fn default_max_inquiries() -> u32 {
    16
}

impl Config {
    /// Reads and checks a file; relative paths in it count from its folder.
    ///
    /// # Errors
    /// Says what is wrong, with line and column where the YAML is.
    pub fn load(file: &Path) -> anyhow::Result<Config> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        Config::parse(&text, folder).with_context(|| format!("in {}", file.display()))
    }

    /// As [`Config::load`], from text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, folder: &Path) -> anyhow::Result<Config> {
        // Without the lines around it: they may hold a secret that should not be there.
        let mut config: Config =
            serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))?;
        config.tls = config.tls.relative_to(folder);
        match &mut config.store {
            StoreConfig::Sqlite(sqlite) => sqlite.file = folder.join(&sqlite.file),
            StoreConfig::Postgres(postgres) => **postgres = postgres.clone().relative_to(folder),
        }
        match &mut config.bus {
            BusConfig::Local(local) => local.file = folder.join(&local.file),
            BusConfig::Kafka(kafka) => **kafka = kafka.clone().relative_to(folder),
        }
        config.audit.folder = folder.join(&config.audit.folder);
        config.check()?;
        Ok(config)
    }

    /// The same with other roles: what the command line says counts more than the file.
    ///
    /// # Errors
    /// When this store or bus belongs to a process that has all roles.
    pub fn with_roles(self, roles: Roles) -> anyhow::Result<Config> {
        let config = Config { roles, ..self };
        config.check()?;
        Ok(config)
    }

    /// The most that this tenant's users may pay at once.
    pub fn amount_max_paise(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).and_then(|t| t.amount_max_paise).unwrap_or(self.limits.amount_max_paise)
    }

    pub fn duplicates(&self, tenant: &str) -> Duplicates {
        self.tenants.get(tenant).map(|t| t.duplicates).unwrap_or_default()
    }

    fn check(&self) -> anyhow::Result<()> {
        self.psp.parse::<crate::txn::PspCode>().context("psp")?;
        ensure!(self.network.url.starts_with("https://"), "network.url: only https:// is spoken");
        ensure!(
            self.admin.ip().is_loopback(),
            "admin: {} is not a loopback address, and it has no authentication",
            self.admin
        );
        ensure!(
            self.rules.send_settles_within_ms > self.network.timeout_ms,
            "rules.send_settles_within_ms ({}) must be more than network.timeout_ms ({}): a status check that \
             overtakes its payment would take it for one that never arrived",
            self.rules.send_settles_within_ms,
            self.network.timeout_ms
        );
        let first_check_ms = UnixMs(0).until(self.rules.first_check_unanswered(UnixMs(0)));
        ensure!(
            self.rules.send_starts_within_ms < first_check_ms,
            "rules.send_starts_within_ms ({}) must be less than the time of the first status check ({first_check_ms})",
            self.rules.send_starts_within_ms
        );
        ensure!(
            self.rules.status_checks_ms.is_sorted() && !self.rules.status_checks_ms.is_empty(),
            "rules.status_checks_ms: at least one, in ascending order"
        );
        ensure!(
            self.housekeeping.idempotency_keep_ms >= 24 * 3_600_000,
            "housekeeping.idempotency_keep_ms: at least a day (86400000): a client that tries again after its key was \
             forgotten pays twice"
        );
        for (name, ms) in
            [("timers.tick_ms", self.timers.tick_ms), ("housekeeping.every_ms", self.housekeeping.every_ms)]
        {
            ensure!(ms > 0, "{name}: above 0, or it would never rest");
        }
        ensure!(
            self.timers.batch > 0 && self.timers.lease_ms > 0,
            "timers: batch and lease_ms must be above 0, or nothing would ever be claimed"
        );
        ensure!(
            self.network.max_sends > 0 && self.network.max_inquiries > 0,
            "network: max_… must be above 0"
        );
        match &self.store {
            StoreConfig::Sqlite(_) => {}
            StoreConfig::Postgres(postgres) => postgres.check().context("store.postgres")?,
        }
        ensure!(
            self.relay.lease_ms >= 1_000 && self.relay.batch > 0,
            "relay: lease_ms of at least 1000 and batch above 0; a shorter lease is lost to any pause"
        );
        match &self.bus {
            BusConfig::Local(local) => ensure!(
                self.housekeeping.inbox_keep_ms > local.retention.keep_ms,
                "housekeeping.inbox_keep_ms must be more than bus.local.retention.keep_ms: a message that is kept \
                 longer than its inbox row could act twice"
            ),
            BusConfig::Kafka(kafka) => {
                kafka.check().context("bus.kafka")?;
                // A relay begins to publish in the first third of its lease.
                let rest_ms = self.relay.lease_ms - self.relay.lease_ms / 3;
                ensure!(
                    kafka.delivery_timeout_ms <= rest_ms,
                    "bus.kafka.delivery_timeout_ms must be at most {rest_ms}, two thirds of relay.lease_ms: what is \
                     delivered later may be published by the next holder of the lease as well, and come after newer \
                     events of its payment"
                );
                ensure!(
                    self.housekeeping.inbox_keep_ms > kafka.keeps_ms(),
                    "housekeeping.inbox_keep_ms must be more than {}: bus.kafka.retention_ms, or the 7 days of the \
                     dead letters, and a day that Kafka may take to delete a segment; a message that is kept longer \
                     than its inbox row could act twice",
                    kafka.keeps_ms()
                );
            }
        }
        let of_one_process = [
            ("store.sqlite", matches!(self.store, StoreConfig::Sqlite(_))),
            ("bus.local", matches!(self.bus, BusConfig::Local(_))),
        ];
        let of_one_process = of_one_process.into_iter().find(|(_, is)| *is);
        if let Some((engine, _)) = of_one_process {
            ensure!(
                self.roles.are_all(),
                "roles: {engine} belongs to one process, which has all roles ({}), and not {} alone; a fleet needs a \
                 store and a bus that processes share",
                Roles::default(),
                self.roles
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretRef;

    const EXAMPLE: &str = include_str!("../config.example.yaml");

    #[test]
    fn the_example_is_a_configuration_and_its_defaults_are_the_defaults() {
        let config = Config::parse(EXAMPLE, Path::new("/etc/torana")).unwrap();
        assert_eq!(config.tls.key, Path::new("/etc/torana/pki/txn-core.key"));
        assert_eq!(config.rules, Rules::default());
        assert_eq!(config.timers, TimerConfig::default());
        assert_eq!(config.retry, Retry::default());
        assert_eq!(config.housekeeping, Housekeeping::default());
        assert_eq!(config.relay, RelayConfig::default());
        assert_eq!(config.roles, Roles::default());
        assert_eq!(config.audit.folder, Path::new("/etc/torana").join(AuditConfig::default().folder));
        let StoreConfig::Sqlite(sqlite) = &config.store else { panic!("{:?}", config.store) };
        assert_eq!(sqlite.writer, WriterLimits::default());
        assert_eq!(
            (config.amount_max_paise("acme"), config.amount_max_paise("other")),
            (50_000_000, 10_000_000)
        );
        assert_eq!(config.duplicates("acme"), Duplicates::Conflict);
    }

    /// The example with the lines of its other engine in the place of the first.
    fn example_of_a_fleet() -> String {
        let mut text = String::new();
        let mut embedded = false;
        for line in EXAMPLE.lines() {
            let begins = ["  local:", "  sqlite:"].contains(&line);
            embedded = begins || embedded && line.starts_with("    ");
            if !embedded {
                text += line.strip_prefix("# ").filter(|_| line.starts_with("#   ")).unwrap_or(line);
                text += "\n";
            }
        }
        text
    }

    #[test]
    fn the_example_of_a_fleet_is_one_too_and_its_defaults_are_the_defaults() {
        let config = Config::parse(&example_of_a_fleet(), Path::new("/etc/torana")).unwrap();
        let StoreConfig::Postgres(postgres) = &config.store else { panic!("{:?}", config.store) };
        let url = SecretRef::File("/etc/torana/secrets/database-url".into());
        assert_eq!(**postgres, PostgresConfig::new(url));
        let BusConfig::Kafka(kafka) = &config.bus else { panic!("{:?}", config.bus) };
        let brokers = ["kafka-1.internal:9092", "kafka-2.internal:9092"].map(str::to_owned);
        let tls = kafka.tls.clone().unwrap();
        assert_eq!(tls.ca, Path::new("/etc/torana/pki/kafka-ca.pem"));
        let registry = kafka.schema_registry.clone().unwrap();
        assert_eq!(registry.timeout_ms, 2_000);
        let plain = KafkaConfig { tls: None, sasl: None, schema_registry: None, ..(**kafka).clone() };
        assert_eq!(plain, KafkaConfig::of(brokers.into()));
    }

    #[test]
    fn roles_other_than_all_need_engines_that_processes_share() {
        let config = Config::parse(EXAMPLE, Path::new("")).unwrap();
        let error = config.with_roles("api,relay".parse().unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("store.sqlite belongs to one process") && error.contains("api,relay"),
            "{error}"
        );
    }

    #[test]
    fn what_is_refused() {
        let fleet = [
            ("inbox_keep_ms: 1209600000", "inbox_keep_ms: 691200000", "act twice"),
            ("kafka-1.internal:9092", "kafka-1.internal", "not host:port"),
            ("prefix: \"\"", "prefix: a/b", "prefix"),
            ("mechanism: SCRAM-SHA-512", "mechanism: SCRAM", "SCRAM"),
            ("password: file:secrets/kafka-password", "password: hunter2", "never inline"),
            ("      key: pki/kafka-client.key", "", "go together"),
            ("url: https://schemas.internal:8081", "url: http://schemas.internal:8081", "https:// only"),
            ("      username: txn-core          # of the", "      # of the", "go together"),
            ("retention_ms: 604800000", "retention_ms: 1", "at least an hour"),
            ("delivery_timeout_ms: 3000", "delivery_timeout_ms: 0", "delivery_timeout_ms"),
            ("delivery_timeout_ms: 3000", "delivery_timeout_ms: 3335", "at most 3334"),
        ];
        let example = example_of_a_fleet();
        for (good, bad, says) in fleet {
            assert!(example.contains(good), "{good}");
            let error = Config::parse(&example.replacen(good, bad, 1), Path::new("")).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{bad}: {error:#}");
        }
        let cases = [
            (
                "roles: [api, orchestrator, relay, notify, audit]",
                "roles: [api, relays]",
                "`relays` is no role",
            ),
            ("roles: [api, orchestrator, relay, notify, audit]", "roles: [audit]", "belongs to one process"),
            ("psp: TOR", "psp: tor", "three capital letters"),
            ("url: https://", "url: http://", "only https"),
            ("admin: 127.0.0.1", "admin: 0.0.0.0", "loopback"),
            ("timeout_ms: 20000", "timeout_ms: 40000", "overtakes"),
            ("[90000, 900000, 5400000]", "[900000, 90000]", "ascending"),
            ("send_starts_within_ms: 5000", "send_starts_within_ms: 90000", "first status check"),
            ("send_within_ms:", "reconcile_every_ms: 1000\n  send_within_ms:", "reconcile_every_ms"),
            ("psp: TOR", "psp: TOR\npsb: TOR", "psb"),
            ("duplicates: conflict", "duplicates: maybe", "maybe"),
            ("inbox_keep_ms: 1209600000", "inbox_keep_ms: 1", "act twice"),
            ("lease_ms: 5000                # after", "lease_ms: 10                # after", "any pause"),
        ];
        let of_a_fleet = [
            ("url: file:secrets/database-url", "url: postgres://core:hush@db/payments", "never inline"),
            ("tls: verified", "tls: maybe", "maybe"),
            ("readers: 8", "readers: 0", "readers"),
            ("statement_timeout_ms: 5000", "statement_timeout_ms: 0", "statement_timeout_ms"),
            ("readers: 8", "readers: 8\n    readerz: 8", "readerz"),
        ];
        let fleet = example_of_a_fleet();
        let cases = cases.map(|case| (EXAMPLE, case)).into_iter();
        for (example, (good, bad, says)) in cases.chain(of_a_fleet.map(|case| (fleet.as_str(), case))) {
            assert!(example.contains(good), "{good}");
            let error = Config::parse(&example.replacen(good, bad, 1), Path::new("")).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{bad}: {error:#}");
            assert!(!format!("{error:#}").contains("hush"), "{error:#}");
        }
        let error = Config::parse("psp: TOR\nlisten: [", Path::new("")).unwrap_err();
        assert!(format!("{error:#}").contains("line"), "{error:#}");
    }
}
