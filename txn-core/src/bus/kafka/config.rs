//! What an operator says about Kafka.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use serde::Deserialize;

use crate::bus::avro::RegistryConfig;
use crate::secret::SecretRef;

/// Where Kafka is, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port` of some brokers; the others are found through them.
    pub brokers: Vec<String>,
    /// Topics and groups begin with it: several deployments may share a cluster.
    #[serde(default)]
    pub prefix: String,
    /// A message that is not on all in-sync replicas by then is an error, and is published again.
    #[serde(default = "default_delivery_timeout_ms")]
    pub delivery_timeout_ms: u64,
    /// A reader that is not heard of for so long loses its partitions to the others.
    #[serde(default = "default_session_timeout_ms")]
    pub session_timeout_ms: u64,
    /// Messages that wait for a broker; a publisher waits for room.
    #[serde(default = "default_queue_messages")]
    pub queue_messages: u32,
    /// How long topics keep messages; `txn-core topics` sets it.
    #[serde(default = "default_retention_ms")]
    pub retention_ms: u64,
    /// Plain text without it: for loopback and closed networks.
    pub tls: Option<KafkaTls>,
    pub sasl: Option<Sasl>,
    /// Without it schemas have ids of our own.
    pub schema_registry: Option<RegistryConfig>,
}

/// TLS towards brokers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaTls {
    /// Who may have signed the brokers' certificates.
    pub ca: PathBuf,
    /// Ours, where brokers ask for one.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// A name and a password for brokers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    pub password: SecretRef,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

const DAY_MS: u64 = 24 * 3_600_000;
/// A broker deletes whole segments, whose newest message is old enough: topics begin one at least so often.
pub(super) const SEGMENT_MS: u64 = DAY_MS;
/// Of the dead letter queue: what the design says.
pub(super) const DEAD_LETTERS_KEPT_MS: u64 = 7 * DAY_MS;

/// Within what is left of a relay's lease when it publishes, or another publishes the same meanwhile.
fn default_delivery_timeout_ms() -> u64 {
    3_000
}
fn default_session_timeout_ms() -> u64 {
    10_000
}
fn default_queue_messages() -> u32 {
    20_000
}
fn default_retention_ms() -> u64 {
    7 * DAY_MS
}

impl KafkaConfig {
    /// With every default.
    pub fn of(brokers: Vec<String>) -> KafkaConfig {
        KafkaConfig {
            brokers,
            prefix: String::new(),
            delivery_timeout_ms: default_delivery_timeout_ms(),
            session_timeout_ms: default_session_timeout_ms(),
            queue_messages: default_queue_messages(),
            retention_ms: default_retention_ms(),
            tls: None,
            sasl: None,
            schema_registry: None,
        }
    }

    /// The same, relative paths counted from `folder`.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> KafkaConfig {
        if let Some(tls) = &mut self.tls {
            tls.ca = folder.join(&tls.ca);
            tls.certificate = tls.certificate.take().map(|file| folder.join(file));
            tls.key = tls.key.take().map(|file| folder.join(file));
        }
        if let Some(sasl) = &mut self.sasl {
            sasl.password = sasl.password.relative_to(folder);
        }
        self.schema_registry = self.schema_registry.map(|registry| registry.relative_to(folder));
        self
    }

    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.brokers.is_empty(), "brokers: none is named");
        for broker in &self.brokers {
            let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            ensure!(
                port.is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
                "brokers: `{broker}` is not host:port"
            );
        }
        ensure!(
            self.prefix.len() <= 64
                && self.prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')),
            "prefix: at most 64 letters, digits and . _ -"
        );
        ensure!(
            (1_000..=300_000).contains(&self.delivery_timeout_ms),
            "delivery_timeout_ms: from 1000 to 300000"
        );
        ensure!(
            (1_000..=300_000).contains(&self.session_timeout_ms),
            "session_timeout_ms: from 1000 to 300000 (brokers take none below 6000 unless they are told to)"
        );
        ensure!((1_000..=1_000_000).contains(&self.queue_messages), "queue_messages: from 1000 to 1000000");
        ensure!(self.retention_ms >= 3_600_000, "retention_ms: at least an hour");
        if let Some(tls) = &self.tls {
            ensure!(tls.certificate.is_some() == tls.key.is_some(), "tls: certificate and key go together");
        }
        if let Some(sasl) = &self.sasl {
            ensure!(
                self.tls.is_some() || sasl.mechanism != Mechanism::Plain,
                "sasl: PLAIN sends the password as it is: not without tls"
            );
        }
        if let Some(registry) = &self.schema_registry {
            registry.check().context("schema_registry")?;
        }
        Ok(())
    }

    /// The longest that a message may come again after it was published.
    pub fn keeps_ms(&self) -> u64 {
        self.retention_ms.max(DEAD_LETTERS_KEPT_MS).saturating_add(SEGMENT_MS)
    }

    /// What every connection needs.
    ///
    /// # Errors
    /// A password that cannot be read.
    pub(super) fn client(&self) -> anyhow::Result<ClientConfig> {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "txn-core")
            .set("allow.auto.create.topics", "false")
            .set("log.connection.close", "false")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            .set("topic.metadata.refresh.interval.ms", "10000");
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), None) => "ssl",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            client.set("ssl.ca.location", tls.ca.display().to_string());
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                client.set("ssl.certificate.location", certificate.display().to_string());
                client.set("ssl.key.location", key.display().to_string());
            }
        }
        if let Some(sasl) = &self.sasl {
            let mechanism = match sasl.mechanism {
                Mechanism::Plain => "PLAIN",
                Mechanism::ScramSha256 => "SCRAM-SHA-256",
                Mechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client.set("sasl.mechanism", mechanism).set("sasl.username", &sasl.username);
            client.set("sasl.password", sasl.password.load().context("sasl.password")?.as_str());
        }
        Ok(client)
    }

    /// What readers need besides.
    pub(super) fn consumer(&self, group: &str) -> anyhow::Result<ClientConfig> {
        let mut client = self.client()?;
        client
            .set("group.id", format!("{}{group}", self.prefix))
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", (self.session_timeout_ms / 4).to_string())
            // Few partitions move when a reader comes or goes.
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.offset.store", "false")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "16384");
        Ok(client)
    }
}
