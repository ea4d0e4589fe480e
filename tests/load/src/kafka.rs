//! Events on their way through a real Kafka that is started for it, everything on the same cores.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use engines::Kafka;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use txn_core::bus::kafka::KafkaConfig;
use txn_core::bus::kafka::topics::{Missing, align};
use txn_core::bus::{Bus, KafkaBus, Topic};
use txn_core::metrics::Metrics;
use txn_core::relay::{Relay, RelayConfig};
use txn_core::store::{SqliteStore, Store, WriterLimits};
use txn_core::txn::Rules;

use crate::say;
use crate::store::{accept, empty_folder, payment, share};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Payments a second.
    #[arg(long, default_value_t = Arguments::default().rate, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds of load that count; two more go before them.
    #[arg(long, default_value_t = Arguments::default().seconds)]
    seconds: u32,
    /// Events that wait when the relay's speed is measured.
    #[arg(long, default_value_t = Arguments::default().backlog)]
    backlog: u32,
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments { rate: 2_000, seconds: 15, backlog: 50_000 }
    }
}

/// Until the first reader has joined its group and everything is warm.
const WARM_UP: Duration = Duration::from_secs(2);
const CLIENTS: u32 = 256;

type Times = Arc<Mutex<HashMap<String, Instant>>>;

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = empty_folder("bench-kafka")?;
    let kafka = Kafka::start(&dir.join("kafka")).await?;
    let config = KafkaConfig::of(vec![kafka.address().to_string()]);
    align(&config, 1, Missing::Make).await?;
    let bus: Arc<dyn Bus> = Arc::new(KafkaBus::open(config).await?);
    let metrics = Arc::new(Metrics::new()?);
    let limits = WriterLimits::default();
    let store = SqliteStore::open(&dir.join("txn.db"), Rules::default(), &limits, metrics.clone()).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let relay = Relay { store: store.clone(), bus: bus.clone(), metrics };

    let (stop, stopped) = watch::channel(false);
    let relaying = tokio::spawn(relay.clone().run(RelayConfig::default(), stopped));
    let latencies = latencies(arguments, &store, &bus).await?;
    stop.send_replace(true);
    relaying.await?;
    say(&format!(
        "COMMIT to consumer through Kafka at {} payments a second: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?} ({})",
        arguments.rate,
        share(&latencies, 0.5),
        share(&latencies, 0.99),
        share(&latencies, 0.999),
        share(&latencies, 1.0),
        latencies.len(),
    ))?;

    accept(&store, CLIENTS, arguments.backlog / CLIENTS).await?;
    let waiting = store.figures().await?.outbox;
    let began = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let relaying = tokio::spawn(relay.run(RelayConfig::default(), stopped));
    while store.figures().await?.outbox > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let elapsed = began.elapsed();
    stop.send_replace(true);
    relaying.await?;
    say(&format!(
        "relay, SQLite to Kafka: {:.0} events a second, each to {} topics",
        waiting as f64 / elapsed.as_secs_f64(),
        Topic::of(txn_core::txn::EventType::TransactionInitiated).len(),
    ))?;
    bus.close().await;
    store.close().await;
    // Dropped, the broker ends.
    drop(kafka);
    Ok(())
}

/// How long after its COMMIT each payment's event was in a consumer's hands, in order of length.
async fn latencies(
    arguments: &Arguments,
    store: &Arc<dyn Store>,
    bus: &Arc<dyn Bus>,
) -> anyhow::Result<Vec<Duration>> {
    let (committed, received) = (Times::default(), Times::default());
    let mut reader = bus.subscribe("bench", Topic::Initiated).await?;
    let reading = tokio::spawn({
        let received = received.clone();
        async move {
            while let Ok(deliveries) = reader.next(256).await {
                let now = Instant::now();
                let places: Vec<_> = deliveries.iter().map(|delivery| delivery.place).collect();
                let keys = deliveries.into_iter().map(|delivery| (delivery.message.key, now));
                received.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
                reader.done(&places).await?;
            }
            anyhow::Ok(())
        }
    });
    // The first event arrives when the reader has joined.
    store.accept(payment("first".to_owned())?).await?;
    let joined = async {
        while received.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), joined).await?;

    let counts_from = Instant::now() + WARM_UP;
    let ends = counts_from + Duration::from_secs(arguments.seconds.into());
    let (began, mut sent, mut tick) = (Instant::now(), 0u32, interval(Duration::from_millis(1)));
    let mut accepting = JoinSet::new();
    while Instant::now() < ends {
        tick.tick().await;
        let due = (began.elapsed().as_secs_f64() * f64::from(arguments.rate)) as u32;
        for number in sent..due {
            let (store, committed) = (store.clone(), committed.clone());
            let new = payment(format!("rate-{number}"))?;
            accepting.spawn(async move {
                let id = new.txn.id.to_string();
                store.accept(new).await?;
                committed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
                anyhow::Ok(())
            });
        }
        sent = due;
    }
    while let Some(accepted) = accepting.join_next().await {
        accepted??;
    }
    let committed = std::mem::take(&mut *committed.lock().unwrap_or_else(PoisonError::into_inner));
    let arrived = async {
        while received.lock().unwrap_or_else(PoisonError::into_inner).len() <= committed.len() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    ensure!(timeout(Duration::from_secs(60), arrived).await.is_ok(), "not every event arrived");
    reading.abort();
    let received = received.lock().unwrap_or_else(PoisonError::into_inner);
    let counted = committed.iter().filter(|(_, at)| **at >= counts_from);
    // One that arrives before its client has heard of the COMMIT took no time.
    let mut latencies: Vec<Duration> =
        counted.filter_map(|(id, at)| Some(received.get(id)?.saturating_duration_since(*at))).collect();
    latencies.sort();
    Ok(latencies)
}
