//! Apache Kafka: one broker that is its own controller (KRaft), as `tests/run install` fetched it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::{Program, Signal, ports};

const JARS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/kafka/lib");
/// A cluster's id is any UUID in base64.
const CLUSTER_ID: &str = "VG9yYW5hIHRlc3RzIQAAAA";
/// What the broker says once it takes requests; its port is open before that.
const STARTED: &str = "Kafka Server started";
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// A broker. Topics are not made by themselves: who needs one says so.
#[derive(Debug)]
pub struct Kafka {
    dir: PathBuf,
    broker: SocketAddr,
    guarded: Option<SocketAddr>,
    /// None while it is stopped.
    program: Option<Program>,
}

/// What a broker asks of those who come over TLS, at an address of their own.
#[derive(Debug)]
pub struct Guard {
    /// PEM: its private key (PKCS#8) and its certificate.
    pub identity: PathBuf,
    /// PEM: who signs its clients' certificates.
    pub client_ca: PathBuf,
    /// Who may log in with SCRAM-SHA-512, and the password.
    pub user: (&'static str, &'static str),
}

impl Kafka {
    /// Whether the jars are there. Where Maven Central cannot be reached they are not.
    pub fn is_installed() -> bool {
        Path::new(JARS).is_dir()
    }

    /// Starts a new broker on free loopback ports, with its data and its log in `dir`; ready when this returns.
    ///
    /// # Errors
    /// When the jars or Java are missing, or the broker does not start: with its last words.
    pub async fn start(dir: &Path) -> anyhow::Result<Kafka> {
        Kafka::start_with(dir, None).await
    }

    /// The same, but that it listens at [`Kafka::guarded`] besides: TLS with client certificates, and SASL.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn start_guarded(dir: &Path, guard: &Guard) -> anyhow::Result<Kafka> {
        Kafka::start_with(dir, Some(guard)).await
    }

    async fn start_with(dir: &Path, guard: Option<&Guard>) -> anyhow::Result<Kafka> {
        if !Kafka::is_installed() {
            bail!("no Kafka in {JARS}: `tests/run install` fetches it");
        }
        std::fs::create_dir_all(dir)?;
        let (broker, controller) = (ports::v4()?, ports::v4()?);
        let guarded = guard.map(|guard| Ok::<_, anyhow::Error>((ports::v4()?, guard))).transpose()?;
        std::fs::write(dir.join("server.properties"), properties(dir, broker, controller, guarded))?;
        let guarded = guarded.map(|(address, _)| address);
        let mut kafka = Kafka { dir: dir.to_owned(), broker, guarded, program: None };
        let user = guard.map(|Guard { user: (name, password), .. }| {
            ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={name},password={password}]")]
        });
        let formatted = Command::new("java")
            .args(kafka.arguments("kafka.tools.StorageTool"))
            .args(["format", "--ignore-formatted", "--cluster-id", CLUSTER_ID, "--config"])
            .arg(kafka.dir.join("server.properties"))
            .args(user.iter().flatten())
            .stdin(Stdio::null())
            .output()
            .context("cannot start java")?;
        if !formatted.status.success() {
            bail!("Kafka's data could not be laid out: {}", String::from_utf8_lossy(&formatted.stderr));
        }
        kafka.resume().await?;
        Ok(kafka)
    }

    /// Where clients connect; the same as long as it lives.
    pub fn address(&self) -> SocketAddr {
        self.broker
    }

    /// Where clients connect who show a certificate and log in, if it has such a place.
    pub fn guarded(&self) -> Option<SocketAddr> {
        self.guarded
    }

    /// The broker's process; none while it is stopped.
    pub fn id(&self) -> Option<u32> {
        self.program.as_ref().map(Program::id)
    }

    /// Stops it in order; [`Kafka::resume`] goes on with the same data.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.program.take() {
            Some(program) => program.end(Signal::SIGTERM, STOPS_WITHIN).await,
            None => Ok(()),
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        // Dropped, it is killed.
        self.program = None;
    }

    /// Starts it again after [`Kafka::stop`] or [`Kafka::kill`], on the same ports; ready when this returns.
    ///
    /// # Errors
    /// When the broker does not start: with its last words.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let log = self.dir.join("kafka.log");
        let said = || std::fs::read_to_string(&log).unwrap_or_default().matches(STARTED).count();
        let before = said();
        let mut arguments = self.arguments("kafka.Kafka");
        arguments.push(self.dir.join("server.properties").display().to_string());
        let mut program = Program::start("kafka", Path::new("java"), arguments, None, &log)?;
        program.ready(STARTS_WITHIN, async || said() > before).await?;
        self.program = Some(program);
        Ok(())
    }

    /// Quick to start and small, where a server in earnest would be quick to serve.
    fn arguments(&self, class: &str) -> Vec<String> {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut arguments = text(&["-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        arguments.extend(text(&[
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-cp",
        ]));
        arguments.extend([format!("{JARS}/*"), class.to_owned()]);
        arguments
    }
}

/// The short session: after a crash the controller takes a broker back only once its old session has run out.
fn properties(
    dir: &Path,
    broker: SocketAddr,
    controller: SocketAddr,
    guarded: Option<(SocketAddr, &Guard)>,
) -> String {
    let (mut more, mut guarded_too) = (String::new(), String::new());
    if let Some((address, guard)) = guarded {
        guarded_too = format!(",GUARDED://{address}");
        more = format!(
            "ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.guarded.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.guarded.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
",
            guard.identity.display(),
            guard.client_ca.display()
        );
    }
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{broker},CONTROLLER://{controller}{guarded_too}
advertised.listeners=PLAINTEXT://{broker}{guarded_too}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:SASL_SSL
log.dirs={}
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
offsets.topic.num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.index.size.max.bytes=1048576
num.network.threads=2
num.io.threads=4
{more}",
        dir.join("data").display()
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_broker_starts_crashes_and_comes_back_on_its_port() {
        if !Kafka::is_installed() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut kafka = Kafka::start(dir.path()).await.unwrap();
        let address = kafka.address();
        assert!(TcpStream::connect(address).is_ok());
        kafka.kill();
        assert!(TcpStream::connect(address).is_err());
        kafka.resume().await.unwrap();
        assert!(TcpStream::connect(address).is_ok());
        kafka.stop().await.unwrap();
        assert!(TcpStream::connect(address).is_err());
    }
}
