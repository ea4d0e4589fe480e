//! The contract and the faults, on a real broker where there is one, on librdkafka's mock cluster otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;

use certs::pki::{Authority, Leaf};
use engines::{Guard, Kafka};
use rdkafka::ClientConfig;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::timeout;

use rdkafka::producer::FutureProducer;

use super::topics::{Missing, TopicState, align};
use super::*;
use crate::bus::consume::{Consumer, Handler, HandlerError, Retry, header};
use crate::bus::contract::{self, by_key, message, messages, places, read};
use crate::bus::{Delivery, Place};
use crate::metrics::Metrics;

/// Brokers for tests. Topics are each test's own, under a prefix.
pub(crate) struct Cluster {
    kind: Kind,
    _dir: Option<tempfile::TempDir>,
}

enum Kind {
    Real(Kafka),
    /// The client that librdkafka's mock cluster lives in.
    Mock(FutureProducer),
}

impl Cluster {
    pub(crate) async fn start() -> Cluster {
        if !Kafka::is_installed() {
            assert!(std::env::var("REQUIRE_KAFKA").as_deref() != Ok("1"), "no Kafka, and REQUIRE_KAFKA=1");
            return Cluster::mock();
        }
        let dir = tempfile::tempdir().unwrap();
        Cluster { kind: Kind::Real(Kafka::start(dir.path()).await.unwrap()), _dir: Some(dir) }
    }

    fn mock() -> Cluster {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set("bootstrap.servers", "mock");
        Cluster { kind: Kind::Mock(config.create().unwrap()), _dir: None }
    }

    /// One for all tests that run at the same time; it ends with the last of them.
    pub(crate) async fn shared() -> Arc<Cluster> {
        static SHARED: AsyncMutex<Weak<Cluster>> = AsyncMutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Cluster::start().await);
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    pub(crate) fn config(&self, prefix: &str) -> KafkaConfig {
        let brokers = match &self.kind {
            Kind::Real(kafka) => kafka.address().to_string(),
            Kind::Mock(client) => client.client().mock_cluster().unwrap().bootstrap_servers(),
        };
        let prefix = format!("{prefix}.");
        // A machine that runs other tests too may be slow, and that is no failure.
        let delivery_timeout_ms = 60_000;
        KafkaConfig {
            prefix,
            session_timeout_ms: 6_000,
            delivery_timeout_ms,
            ..KafkaConfig::of(vec![brokers])
        }
    }

    /// A bus with its topics made.
    pub(crate) async fn bus(&self, prefix: &str) -> KafkaBus {
        let config = self.config(prefix);
        match &self.kind {
            Kind::Real(_) => drop(align(&config, 1, Missing::Make).await.unwrap()),
            Kind::Mock(client) => {
                let mock = client.client().mock_cluster().unwrap();
                for topic in Topic::ALL {
                    // An error says that it is there.
                    let _made =
                        mock.create_topic(&format!("{prefix}.{}", topic.name()), topic.partitions(), 1);
                }
            }
        }
        let bus = KafkaBus::open(config).await.unwrap();
        until_ready(&bus).await;
        bus
    }

    async fn away(&mut self) {
        match &mut self.kind {
            Kind::Real(kafka) => kafka.stop().await.unwrap(),
            Kind::Mock(client) => client.client().mock_cluster().unwrap().broker_down(1).unwrap(),
        }
    }

    async fn back(&mut self) {
        match &mut self.kind {
            Kind::Real(kafka) => kafka.resume().await.unwrap(),
            Kind::Mock(client) => client.client().mock_cluster().unwrap().broker_up(1).unwrap(),
        }
    }
}

/// A broker knows of new topics a moment after they are made.
async fn until_ready(bus: &KafkaBus) {
    let mut ready = bus.ready().await;
    for _ in 0..100 {
        if ready.is_ok() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
        ready = bus.ready().await;
    }
    ready.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_kafka_has_given_up_is_replaced() {
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    let cluster = Cluster::mock();
    let bus = cluster.bus("fatal").await;
    let one = |n| vec![message(Topic::Initiated, "TOR1", n)];
    bus.publish(one(1)).await.unwrap();
    let Kind::Mock(client) = &cluster.kind else { panic!("a mock") };
    let mock = client.client().mock_cluster().unwrap();
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    mock.request_errors(RDKafkaApiKey::Produce, &[lost]);
    let error = bus.publish(one(2)).await.unwrap_err();
    assert!(matches!(error, BusError::Engine(_)), "{error}");
    bus.publish(one(2)).await.unwrap();
    bus.ready().await.unwrap();
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_holds_to_the_contract() {
    let cluster = Cluster::shared().await;
    contract::holds(async || cluster.bus("contract").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_quick_tries_then_later_then_dead_on_kafka() {
    let cluster = Cluster::shared().await;
    let bus = Arc::new(cluster.bus("retries").await);
    contract::retries(bus.clone()).await;
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_kafka() {
    let cluster = Cluster::shared().await;
    let bus = cluster.bus("letters").await;
    contract::dead_letters(&bus).await;
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_read_reaches_the_dead_letters_byte_for_byte() {
    let cluster = Cluster::shared().await;
    let bus = Arc::new(cluster.bus("unreadable").await);
    let garbage = [
        ("a", &b"\xff\xfe not avro"[..], "Confluent wire format"),
        ("b", &b"\0\0\0\0\x07body"[..], "schema 7 is unknown"),
        ("c", &b""[..], "Confluent wire format"),
        // Our schema, and then an end where there should be none.
        ("d", &b"\0\x54\x4f\0\x01\x0a"[..], "poison"),
    ];
    for (key, bytes, _) in garbage {
        let name = bus.topic(Topic::Initiated);
        let record = FutureRecord::to(&name).key(key).payload(bytes);
        bus.producer.current().unwrap().send(record, Duration::from_secs(10)).await.unwrap();
    }
    let consumer = consumer(bus.clone(), Arc::new(Slow::default()));
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(consumer.run(Topic::Initiated, stopped));
    let mut dead = bus.subscribe("reader", Topic::DeadLetter).await.unwrap();
    let letters: BTreeMap<String, Message> = read(&mut *dead, 4)
        .await
        .into_iter()
        .map(|letter| (letter.message.key.clone(), letter.message))
        .collect();
    for (key, bytes, says) in garbage {
        let letter = &letters[key];
        assert_eq!(letter.payload.wire().map(|wire| &wire[..]), Some(bytes), "{key}");
        let reason = letter.header(header::REASON).unwrap();
        assert!(reason.contains(says), "{key}: {reason}");
        assert_eq!(letter.header(header::ORIGIN), Some(Topic::Initiated.name()));
    }
    stop.send(true).unwrap();
    running.await.unwrap();
    drop(dead);
    bus.close().await;
}

/// Takes its time, and remembers.
#[derive(Debug, Default)]
struct Slow {
    handled: Mutex<Vec<Message>>,
    takes: Duration,
}

#[async_trait]
impl Handler for Slow {
    async fn handle(&self, delivery: &Delivery) -> Result<(), HandlerError> {
        if let Err(why) = delivery.message.payload.event() {
            return Err(HandlerError::Poison(why.to_owned()));
        }
        sleep(self.takes).await;
        self.handled.lock().unwrap().push(delivery.message.clone());
        Ok(())
    }
}

fn consumer(bus: Arc<KafkaBus>, handler: Arc<dyn Handler>) -> Consumer {
    let metrics = Arc::new(Metrics::new().unwrap());
    Consumer { bus, group: "test", handler, retry: Retry { batch: 20, ..Retry::default() }, metrics }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Two instances, one of which comes late and one of which goes early, under a steady stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_shares_the_partitions_and_loses_nothing_when_members_come_and_go() {
    let cluster = Cluster::shared().await;
    let buses = [Arc::new(cluster.bus("group").await), Arc::new(cluster.bus("group").await)];
    let slow = || Arc::new(Slow { takes: Duration::from_millis(5), ..Slow::default() });
    let handlers = [slow(), slow()];
    let members = [0, 1].map(|n| consumer(buses[n].clone(), handlers[n].clone()));
    let count = |n: usize| handlers[n].handled.lock().unwrap().len();
    // A stream that goes on until both have had their turn.
    let (enough, mut had_enough) = watch::channel(false);
    let publishing = tokio::spawn({
        let bus = buses[0].clone();
        async move {
            let mut sent = 0;
            while !*had_enough.borrow_and_update() {
                let some = sent..sent + 30;
                sent = some.end;
                let some = some.map(|n| message(Topic::Initiated, &format!("TOR{}", n % 100), n));
                bus.publish(some.collect()).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
            sent
        }
    });
    let (stop_first, first_stopped) = watch::channel(false);
    let (stop_second, second_stopped) = watch::channel(false);
    let [first, second] = members;
    let first = tokio::spawn(first.run(Topic::Initiated, first_stopped));
    until("the first handles some", || count(0) > 100).await;
    let second = tokio::spawn(second.run(Topic::Initiated, second_stopped));
    until("both handle some", || count(1) > 100).await;
    stop_first.send(true).unwrap();
    first.await.unwrap();
    enough.send(true).unwrap();
    let sent = publishing.await.unwrap();
    let all = || {
        let handled = handlers.iter().flat_map(|handler| handler.handled.lock().unwrap().clone());
        handled.map(|message| message.event_id).collect::<HashSet<_>>().len()
    };
    until("every message was handled by one of them", || all() == sent).await;
    stop_second.send(true).unwrap();
    second.await.unwrap();
    // In its order for each key by each of them; what both handled came again with a moved partition.
    for handler in &handlers {
        let handled = handler.handled.lock().unwrap().clone();
        for (key, messages) in by_key(handled) {
            let mut newest = Vec::new();
            for message in messages {
                let n: usize = message.header("n").unwrap().parse().unwrap();
                if newest.last().is_none_or(|last| n > *last) {
                    newest.push(n);
                } else {
                    assert!(newest.contains(&n) || newest[0] > n, "{key}: {n} after {newest:?}");
                }
            }
        }
    }
    for bus in buses {
        bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_follow_what_is_done_and_no_further() {
    let cluster = Cluster::shared().await;
    let bus = cluster.bus("offsets").await;
    let sent: Vec<Message> = (0..200).map(|n| message(Topic::Initiated, &format!("TOR{n}"), n)).collect();
    bus.publish(sent.clone()).await.unwrap();
    let mut first = bus.subscribe("test", Topic::Initiated).await.unwrap();
    let got = read(&mut *first, 200).await;
    assert!(got.iter().map(|delivery| delivery.place.partition).max() > Some(20), "over all partitions");
    let done = places(&got[..120]);
    first.done(&done).await.unwrap();

    // Another member takes half the partitions; what the first says of them now moves nothing.
    let mut second = bus.subscribe("test", Topic::Initiated).await.unwrap();
    let mut again = timeout(Duration::from_secs(30), async {
        loop {
            // A group is rebalanced while its members fetch.
            let some = tokio::select! {
                some = second.next(200) => some.unwrap(),
                _ = first.next(200) => continue,
            };
            break some;
        }
    })
    .await
    .unwrap();
    while let Ok(some) = timeout(Duration::from_secs(2), second.next(200)).await {
        again.extend(some.unwrap());
    }
    let taken: BTreeSet<i32> = again.iter().map(|delivery| delivery.place.partition).collect();
    assert!(!taken.is_empty() && taken.len() < 30, "{taken:?}");
    let mut newest: BTreeMap<i32, i64> = BTreeMap::new();
    for place in &done {
        let offset = newest.entry(place.partition).or_insert(place.offset);
        *offset = place.offset.max(*offset);
    }
    for delivery in &again {
        let done = newest.get(&delivery.place.partition).copied();
        assert!(done.is_none_or(|done| delivery.place.offset > done), "{:?} was done", delivery.place);
    }
    first.done(&places(&got)).await.unwrap();
    drop((first, second));
    bus.close().await;

    let bus = cluster.bus("offsets").await;
    let mut third = bus.subscribe("test", Topic::Initiated).await.unwrap();
    // What the second was given and never did, in the same order, and nothing that was done.
    let mut rest = Vec::new();
    let given: Vec<Place> = places(&again);
    while !given.iter().all(|place| rest.iter().any(|delivery: &Delivery| delivery.place == *place)) {
        rest.extend(timeout(Duration::from_secs(30), third.next(200)).await.unwrap().unwrap());
    }
    assert!(rest.iter().all(|delivery| !done.contains(&delivery.place)));
    rest.retain(|delivery| given.contains(&delivery.place));
    assert_eq!(by_key(messages(&rest)), by_key(messages(&again)));
    drop(third);
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_waited_for_and_nothing_is_lost() {
    let mut cluster = Cluster::start().await;
    let patient = cluster.bus("away").await;
    let config = KafkaConfig { delivery_timeout_ms: 5_000, ..cluster.config("away") };
    let bus = Arc::new(KafkaBus::open(config).await.unwrap());
    let handler = Arc::new(Slow::default());
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(consumer(bus.clone(), handler.clone()).run(Topic::Initiated, stopped));
    let count = || handler.handled.lock().unwrap().len();
    patient.publish((0..10).map(|n| message(Topic::Initiated, "TORa", n)).collect()).await.unwrap();
    patient.close().await;
    until("the first are handled", || count() == 10).await;

    cluster.away().await;
    let later: Vec<Message> = (10..20).map(|n| message(Topic::Initiated, "TORa", n)).collect();
    let error = bus.publish(later.clone()).await.unwrap_err();
    assert!(matches!(&error, BusError::Engine(_)), "{error}");
    assert!(bus.ready().await.is_err());
    let again = tokio::spawn({
        let (bus, later) = (bus.clone(), later.clone());
        async move {
            while bus.publish(later.clone()).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    sleep(Duration::from_secs(1)).await;
    cluster.back().await;
    again.await.unwrap();
    until("those published later are handled", || {
        handler.handled.lock().unwrap().iter().any(|message| message.event_id == "TORa-19")
    })
    .await;
    bus.ready().await.unwrap();
    // Once or more, and each for the first time in its order.
    let mut first_times = Vec::new();
    for message in handler.handled.lock().unwrap().iter() {
        if !first_times.contains(&message.event_id) {
            first_times.push(message.event_id.clone());
        }
    }
    let expected: Vec<String> = (0..20).map(|n| format!("TORa-{n}")).collect();
    assert_eq!(first_times, expected);
    stop.send(true).unwrap();
    running.await.unwrap();
    bus.close().await;
}

/// A cluster that wants TLS, a certificate of ours and a password; and who comes without one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_guarded_cluster_takes_those_who_have_everything() {
    if !Kafka::is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (ours, theirs) = (Authority::create("ours").unwrap(), Authority::create("theirs").unwrap());
    for (name, ca) in [("ours", &ours), ("theirs", &theirs)] {
        std::fs::write(file(&format!("{name}-ca.pem")), ca.certificate_pem()).unwrap();
        ca.issue(&Leaf::new("txn-core", &["txn-core.test"])).unwrap().write(dir.path(), name).unwrap();
    }
    let broker = ours.issue(&Leaf::new("broker", &["127.0.0.1"])).unwrap();
    std::fs::write(file("broker.pem"), format!("{}{}", *broker.key_pem, broker.certificate_pem)).unwrap();
    certs::file::write_secret(&file("password"), "correct horse\n").unwrap();
    certs::file::write_secret(&file("wrong"), "battery staple\n").unwrap();
    let guard = Guard {
        identity: file("broker.pem"),
        client_ca: file("ours-ca.pem"),
        user: ("txn-core", "correct horse"),
    };
    let kafka = Kafka::start_guarded(&file("kafka"), &guard).await.unwrap();

    let tls = |ca: &str, identity: &str| KafkaTls {
        ca: file(ca),
        certificate: Some(file(&format!("{identity}.pem"))),
        key: Some(file(&format!("{identity}.key"))),
    };
    let sasl = |password: &str| Sasl {
        mechanism: Mechanism::ScramSha512,
        username: "txn-core".to_owned(),
        password: crate::secret::SecretRef::File(file(password)),
    };
    let config = |tls: KafkaTls, sasl: Option<Sasl>| {
        let brokers = vec![kafka.guarded().unwrap().to_string()];
        let config =
            KafkaConfig { tls: Some(tls), sasl, prefix: "guarded.".into(), ..KafkaConfig::of(brokers) };
        config.check().unwrap();
        config
    };
    let good = config(tls("ours-ca.pem", "ours"), Some(sasl("password")));
    align(&good, 1, Missing::Make).await.unwrap();
    let bus = KafkaBus::open(good).await.unwrap();
    until_ready(&bus).await;
    bus.publish((0..20).map(|n| message(Topic::Initiated, "TOR1", n)).collect()).await.unwrap();
    let mut reader = bus.subscribe("reader", Topic::Initiated).await.unwrap();
    assert_eq!(read(&mut *reader, 20).await.len(), 20);
    drop(reader);
    bus.close().await;

    let anonymous = KafkaTls { ca: file("ours-ca.pem"), certificate: None, key: None };
    for (who, config) in [
        ("no certificate", config(anonymous, Some(sasl("password")))),
        ("a certificate of others", config(tls("ours-ca.pem", "theirs"), Some(sasl("password")))),
        ("no password", config(tls("ours-ca.pem", "ours"), None)),
        ("a wrong password", config(tls("ours-ca.pem", "ours"), Some(sasl("wrong")))),
        ("a broker that we do not trust", config(tls("theirs-ca.pem", "ours"), Some(sasl("password")))),
    ] {
        let bus = KafkaBus::open(config).await.unwrap();
        assert!(bus.ready().await.is_err(), "{who}");
        bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_once_and_never_changed() {
    let cluster = Cluster::shared().await;
    let Kind::Real(_) = &cluster.kind else { return };
    let config = cluster.config("topics");
    let states = async |config: &KafkaConfig, missing| {
        align(config, 1, missing).await.unwrap().into_iter().map(|found| found.state).collect::<Vec<_>>()
    };
    assert_eq!(states(&config, Missing::Report).await, vec![TopicState::Missing; 7]);
    assert_eq!(states(&config, Missing::Make).await, vec![TopicState::Made; 7]);
    // A broker says so a moment after it has made them.
    let mut again = Vec::new();
    for _ in 0..50 {
        again = states(&config, Missing::Report).await;
        if !again.contains(&TopicState::Missing) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(again, vec![TopicState::AsWanted; 7]);
    let longer = KafkaConfig { retention_ms: 86_400_000, ..config };
    let found = align(&longer, 3, Missing::Make).await.unwrap();
    for finding in &found {
        let TopicState::Differs(differs) = &finding.state else { panic!("{finding:?}") };
        let retention = finding.topic.ends_with("dlq")
            || differs.contains(&"retention.ms: 604800000, not 86400000".into());
        assert!(retention && differs.contains(&"replicas: 1, not 3".into()), "{finding:?}");
        assert!(differs.contains(&"min.insync.replicas: 1, not 2".into()), "{finding:?}");
    }
}
