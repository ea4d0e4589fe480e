//! The core's own figures on a PostgreSQL that is started for it: durable as by default, on the same machine as
//! everything that drives it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use certs::{ClientAuth, Identity, Trust, Versions};
use engines::Postgres;
use parity::wire::parse;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use txn_core::api::{Api, router};
use txn_core::bus::{Bus, BusError, Message, Subscription, Topic, Visit};
use txn_core::config::Config;
use txn_core::metrics::Metrics;
use txn_core::network::Network;
use txn_core::notify::Hub;
use txn_core::orchestrator::{Bounds, Orchestrator};
use txn_core::relay::{Relay, RelayConfig};
use txn_core::secret::SecretRef;
use txn_core::store::postgres::migrate;
use txn_core::store::{CredBlock, PostgresConfig, PostgresStore, Store, Trace};
use txn_core::txn::{Event, Rules, Txn, UnixMs};
use uuid::Uuid;

use crate::cost::cpu_with_children_us;
use crate::store::{accept, empty_folder, share, sqlite};
use crate::{kafka, pgbench, say, whole};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Connections over which payments come.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Connections of the store that accept payments.
    #[arg(long, default_value_t = 1)]
    accept_writers: u32,
    /// Clients with which pgbench is tried; the best counts.
    #[arg(long, value_delimiter = ',', default_values_t = [8, 16, 32, 64])]
    pgbench_clients: Vec<u32>,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Pgbench, Part::Http, Part::Postgres, Part::Sqlite, Part::Relay, Part::Kafka, Part::Whole])]
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What a single-payment statement gets.
    Pgbench,
    /// Payments accepted over HTTP.
    Http,
    /// The store on PostgreSQL alone.
    Postgres,
    /// The store on SQLite alone.
    Sqlite,
    /// The outbox's way to a bus that takes everything.
    Relay,
    /// `tests/bench kafka`.
    Kafka,
    /// `tests/bench whole`.
    Whole,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let dir = empty_folder("bench-core")?;
    // Logs are part of what a payment costs.
    let log = Mutex::new(std::fs::File::create(dir.join("txn-core.log"))?);
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(log).init();
    let postgres = Postgres::start(&dir).await?;
    postgres.create_database("bench").await?;
    let url = dir.join("url");
    certs::file::write_secret(&url, &postgres.url("bench"))?;
    let config = PostgresConfig {
        accept_writers: arguments.accept_writers,
        ..PostgresConfig::new(SecretRef::File(url))
    };
    migrate(&config).await?;
    say(&format!("{:<58} {:>10} {:>9} {:>9}  {:>9}", "", "a second", "p50", "p99", "CPU each"))?;
    let server = postgres.id().context("it runs")?;

    let mut best: f64 = 0.0;
    if arguments.parts.contains(&Part::Pgbench) {
        for clients in &arguments.pgbench_clients {
            empty(&postgres, &dir).await?;
            let before = cpu_with_children_us(&[std::process::id(), server])?;
            let tps = pgbench::run(&postgres, &dir, *clients, arguments.seconds).await?;
            let payments = (tps * f64::from(arguments.seconds)) as u64;
            let cpu_us = (cpu_with_children_us(&[std::process::id(), server])? - before) / payments.max(1);
            best = best.max(tps);
            let what = format!("pgbench, one prepared statement a payment, {clients} clients");
            line(&what, tps, &[], Some(cpu_us))?;
        }
    }
    if arguments.parts.contains(&Part::Http) {
        empty(&postgres, &dir).await?;
        over_http(&dir, &config, &arguments, server, best).await?;
    }
    if arguments.parts.contains(&Part::Postgres) {
        empty(&postgres, &dir).await?;
        let store = open(&config).await?;
        let (a_second, latencies) = accept(&store, 512, 400).await?;
        line("PostgreSQL, the store alone, 512 callers", a_second, &latencies, None)?;
        store.close().await;
    }
    if arguments.parts.contains(&Part::Sqlite) {
        let (a_second, latencies) = sqlite(&dir, 512, 400).await?;
        line("SQLite, the store alone, 512 callers", a_second, &latencies, None)?;
    }
    if arguments.parts.contains(&Part::Relay) {
        empty(&postgres, &dir).await?;
        relay(&config).await?;
    }
    drop(postgres);
    if arguments.parts.contains(&Part::Kafka) {
        kafka::run(&kafka::Arguments::default()).await?;
    }
    if arguments.parts.contains(&Part::Whole) {
        whole::run(&whole::Arguments::default()).await?;
    }
    Ok(())
}

/// The CPU time is that of client, core and database together: what counts on a machine that is saturated, and
/// what others on the machine disturb least.
fn line(what: &str, a_second: f64, latencies: &[Duration], cpu_us: Option<u64>) -> anyhow::Result<()> {
    let ms = |at: f64| match latencies {
        [] => String::new(),
        _ => format!("{:.1} ms", share(latencies, at).as_secs_f64() * 1000.0),
    };
    let cpu = cpu_us.map(|us| format!("{us} us")).unwrap_or_default();
    say(&format!("{what:<58} {a_second:>10.0} {:>9} {:>9}  {cpu:>9}", ms(0.5), ms(0.99)))
}

/// As after `migrate`, with nothing left to do in the background.
async fn empty(postgres: &Postgres, dir: &Path) -> anyhow::Result<()> {
    let sql = "TRUNCATE transactions, txn_history, idempotency, outbox_events, inbox, timers, cred_blocks";
    let psql = postgres.binaries().join("psql");
    let url = postgres.url("bench");
    let arguments = ["-Xq", "-d", &url, "-c", sql, "-c", "CHECKPOINT"];
    engines::Program::run("psql", &psql, arguments, None, &dir.join("psql.log")).await
}

async fn open(config: &PostgresConfig) -> anyhow::Result<Arc<dyn Store>> {
    let metrics = Arc::new(Metrics::new()?);
    Ok(Arc::new(PostgresStore::open(config, Rules::default(), metrics).await?))
}

/// Nothing here is sent to a network.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Network for Nobody {
    async fn initiate(&self, _: &Txn, _: Option<&CredBlock>, _: &Trace) -> Event {
        Event::OutcomeUnknown { sending: 1, reason: "nobody".to_owned() }
    }
    async fn inquire(&self, _: &Txn) -> Event {
        Event::CheckUnanswered { reason: "nobody".to_owned() }
    }
}

/// The service's own router behind mutual TLS, and clients that wait for each answer.
async fn over_http(
    dir: &Path,
    config: &PostgresConfig,
    arguments: &Arguments,
    server: u32,
    best: f64,
) -> anyhow::Result<()> {
    certs::pki::init(dir, true)?;
    let api_config = Config::parse(
        "psp: TOR\nlisten: 127.0.0.1:0\nadmin: 127.0.0.1:0\n\
         tls: {certificate: txn-core.pem, key: txn-core.key, ca: internal-ca.pem}\n\
         network: {url: 'https://localhost:1'}\nstore: {sqlite: {file: none}}\nbus: {local: {file: none}}\n",
        dir,
    )?;
    let (store, metrics) = (open(config).await?, Arc::new(Metrics::new()?));
    let bounds = Bounds { sends: 1, inquiries: 1, send_starts_within_ms: 5_000 };
    let api = Arc::new(Api {
        psp: api_config.psp.parse()?,
        orchestrator: Orchestrator::new(store.clone(), Arc::new(Nobody), metrics.clone(), bounds),
        config: api_config,
        store: store.clone(),
        hub: Hub::new(0),
        metrics,
        in_flight: Mutex::default(),
    });
    let identity =
        |name: &str| Identity::load(&dir.join(format!("{name}.pem")), &dir.join(format!("{name}.key")));
    let trust = Trust::load(&dir.join("internal-ca.pem"))?;
    let tls = certs::server_config(
        &identity("txn-core")?,
        ClientAuth::Required(trust.clone()),
        Versions::Tls13Only,
        &[b"http/1.1"],
    )?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let limits = certs::serve::Limits::default();
    let serving =
        tokio::spawn(certs::serve::serve(listener, tls, router(api), limits, std::future::pending()));
    let client = Arc::new(certs::client_config(&trust, Some(&identity("gateway")?), Versions::Tls13Only)?);
    let mut streams = Vec::new();
    for _ in 0..arguments.connections {
        streams.push(connect(address, &client).await?);
    }

    let seconds = Duration::from_secs(u64::from(arguments.seconds));
    let warm = Duration::from_secs(2);
    let (streams, ..) = pay(streams, warm, None).await?;
    let before = cpu_with_children_us(&[std::process::id(), server])?;
    let (streams, a_second, latencies) = pay(streams, seconds, None).await?;
    let cpu_us = (cpu_with_children_us(&[std::process::id(), server])? - before)
        / u64::try_from(latencies.len().max(1))?;
    let what = format!("PostgreSQL, accepted over HTTP, {} connections", arguments.connections);
    line(&what, a_second, &latencies, Some(cpu_us))?;
    if best > 0.0 {
        say(&format!("    {:.2} times pgbench at its best", a_second / best))?;
    }
    let half = a_second / 2.0;
    let (_, a_second, latencies) = pay(streams, seconds, Some(half)).await?;
    line("    at half that rate", a_second, &latencies, None)?;
    serving.abort();
    store.close().await;
    Ok(())
}

async fn connect(to: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(TlsConnector::from(tls.clone()).connect(ServerName::try_from("localhost")?, stream).await?)
}

static KEYS: AtomicU32 = AtomicU32::new(0);

/// Pays for so long, as fast as answers come or at a rate; then a latency counts from when its request was due.
async fn pay(
    streams: Vec<TlsStream<TcpStream>>,
    how_long: Duration,
    rate: Option<f64>,
) -> anyhow::Result<(Vec<TlsStream<TcpStream>>, f64, Vec<Duration>)> {
    let began = Instant::now();
    let connections = streams.len() as f64;
    let mut tasks = JoinSet::new();
    for (number, mut stream) in streams.into_iter().enumerate() {
        let every = rate.map(|rate| Duration::from_secs_f64(connections / rate));
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut due = began + every.unwrap_or_default().mul_f64(number as f64 / connections);
            while began.elapsed() < how_long {
                if every.is_some() {
                    tokio::time::sleep_until(due.into()).await;
                } else {
                    due = Instant::now();
                }
                one(&mut stream).await?;
                latencies.push(due.elapsed());
                due += every.unwrap_or_default();
            }
            anyhow::Ok((stream, latencies))
        });
    }
    let (mut streams, mut latencies) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (stream, some) = done??;
        streams.push(stream);
        latencies.extend(some);
    }
    let a_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort();
    Ok((streams, a_second, latencies))
}

async fn one(stream: &mut TlsStream<TcpStream>) -> anyhow::Result<()> {
    let key = format!("key-{}", KEYS.fetch_add(1, Ordering::Relaxed));
    let body = format!(
        "{{\"fromVPA\":\"alice@torana\",\"toVPA\":\"bob@torana\",\"amount\":150.75,\"txnNote\":\"Lunch\",\
         \"deviceId\":\"device-1\",\"idempotencyKey\":\"{key}\"}}"
    );
    let request = format!(
        "POST /v1/transactions/send HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nidempotency-key: {key}\r\nx-torana-tenant: acme\r\nx-torana-subject: user-1\r\n\
         x-torana-device: device-1\r\nx-torana-vpa: alice@torana\r\nx-request-id: {key}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut read = Vec::with_capacity(1024);
    let answer = loop {
        if let Some(answer) = parse(&read)? {
            break answer;
        }
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await?;
        ensure!(length > 0, "the core closed a connection");
        read.extend_from_slice(chunk.get(..length).unwrap_or_default());
    };
    ensure!(answer.status == 200, "{} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

/// Takes everything at once: what is measured is the way out of the store.
#[derive(Debug, Default)]
struct Sink {
    messages: AtomicU32,
}

#[async_trait]
impl Bus for Sink {
    async fn publish(&self, messages: Vec<Message>) -> Result<(), BusError> {
        self.messages.fetch_add(u32::try_from(messages.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        Ok(())
    }
    async fn subscribe(&self, _: &'static str, _: Topic) -> Result<Box<dyn Subscription>, BusError> {
        Err(BusError::Closed)
    }
    async fn watch(&self, _: Topic) -> Result<Box<dyn Subscription>, BusError> {
        Err(BusError::Closed)
    }
    async fn scan(&self, _: Topic, _: &mut Visit) -> Result<(), BusError> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), BusError> {
        Ok(())
    }
    async fn purge(&self, _: UnixMs) -> Result<u64, BusError> {
        Ok(0)
    }
    async fn close(&self) {}
}

async fn relay(config: &PostgresConfig) -> anyhow::Result<()> {
    let store = open(config).await?;
    accept(&store, 512, 200).await?;
    let sink = Arc::new(Sink::default());
    let relay = Relay { store: store.clone(), bus: sink.clone(), metrics: Arc::new(Metrics::new()?) };
    let batch = RelayConfig::default().batch;
    let lease = store.lease_lanes(Uuid::new_v4(), 600_000).await?;
    let began = Instant::now();
    let mut events = 0;
    loop {
        match relay.relay_some(&lease, batch).await? {
            0 => break,
            some => events += some,
        }
    }
    let a_second = events as f64 / began.elapsed().as_secs_f64();
    ensure!(sink.messages.load(Ordering::Relaxed) > 0, "nothing came");
    line(&format!("PostgreSQL, events relayed by one instance ({events})"), a_second, &[], None)?;
    store.close().await;
    Ok(())
}
