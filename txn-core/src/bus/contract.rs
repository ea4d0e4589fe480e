//! What every bus must hold to, whatever its engine.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::consume::{Consumer, Handler, HandlerError, Retry, event, header};
use super::letters::{Replayed, Wanted, find, replay};
use super::*;
use crate::metrics::Metrics;
use crate::store::Trace;
use crate::store::record::{Envelope, EventData};

/// Joining a group takes a second or two on Kafka, and more where other tests run too.
const SOON: Duration = Duration::from_secs(90);

pub(crate) fn message(topic: Topic, key: &str, n: usize) -> Message {
    saying(topic, key, n, "चाय")
}

/// A message whose event gives `word` as its reason.
pub(crate) fn saying(topic: Topic, key: &str, n: usize, word: &str) -> Message {
    let envelope = Envelope {
        v: 1,
        event_id: Uuid::now_v7(),
        event_type: EventType::TransactionInitiated,
        txn_id: key.to_owned(),
        tenant: "acme".to_owned(),
        at: UnixMs::now().to_string(),
        trace: Trace { request_id: Some("r-1".to_owned()), traceparent: None },
        data: EventData {
            version: u32::try_from(n).unwrap(),
            status: "PENDING".to_owned(),
            from_vpa: "alice@torana".to_owned(),
            to_vpa: "bob@torana".to_owned(),
            amount: "150.75".to_owned(),
            code: None,
            rrn: None,
            reason: Some(word.to_owned()),
        },
    };
    Message {
        topic,
        key: key.into(),
        event_id: format!("{key}-{n}"),
        headers: vec![("n".into(), n.to_string())],
        payload: serde_json::to_string(&envelope).unwrap().into(),
    }
}

/// `open` opens the same place again and again; the place is empty at first.
pub(crate) async fn holds<B: Bus>(open: impl AsyncFn() -> B) {
    let bus = open().await;
    bus.ready().await.unwrap();
    let mut first = bus.subscribe("first", Topic::Initiated).await.unwrap();
    let waits = timeout(Duration::from_millis(50), first.next(10)).await;
    assert!(waits.is_err(), "nothing there: it waits");

    let sent: Vec<Message> = (0..20).map(|n| message(Topic::Initiated, ["TORa", "TORb"][n % 2], n)).collect();
    bus.publish(sent.clone()).await.unwrap();
    bus.publish(vec![message(Topic::Debited, "TORa", 0)]).await.unwrap();

    let got = read(&mut *first, 20).await;
    assert_eq!(
        by_key(messages(&got)),
        by_key(sent.clone()),
        "in order for each key, untouched, of this topic alone"
    );
    first.done(&places(&got[..10])).await.unwrap();

    // A waiting reader is woken.
    let mut second = bus.subscribe("second", Topic::Debited).await.unwrap();
    assert_eq!(read(&mut *second, 1).await.len(), 1, "another group has its own position");
    let mut watcher = bus.watch(Topic::Debited).await.unwrap();
    let (woken, published) =
        tokio::join!(timeout(SOON, second.next(10)), bus.publish(vec![message(Topic::Debited, "TORb", 1)]));
    published.unwrap();
    assert_eq!(woken.expect("woken").unwrap()[0].message.key, "TORb");
    // A watcher sees what came after it, and is in nobody's way.
    let seen = read(&mut *watcher, 1).await;
    assert_eq!(seen[0].message.key, "TORb");
    watcher.done(&places(&seen)).await.unwrap();

    let mut scanned = Vec::new();
    let all = |delivery: Delivery| {
        scanned.push(delivery.message);
        ControlFlow::Continue(())
    };
    bus.scan(Topic::Initiated, &mut { all }).await.unwrap();
    assert_eq!(by_key(scanned), by_key(sent.clone()), "all that is there, done or not");
    let mut count = 0;
    let two = |_| {
        count += 1;
        if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    bus.scan(Topic::Initiated, &mut { two }).await.unwrap();
    assert_eq!(count, 2);
    bus.scan(Topic::DeadLetter, &mut |_| panic!("an empty topic")).await.unwrap();

    drop((first, second, watcher));
    bus.close().await;
    assert!(matches!(bus.publish(sent).await, Err(BusError::Closed)));
    assert!(matches!(bus.subscribe("first", Topic::Initiated).await, Err(BusError::Closed)));

    // After a restart: what was not marked done comes again, what was does not.
    let bus = open().await;
    let mut first = bus.subscribe("first", Topic::Initiated).await.unwrap();
    let again = read(&mut *first, 10).await;
    assert_eq!(by_key(messages(&again)), by_key(messages(&got[10..])));
    let more = timeout(Duration::from_millis(300), first.next(10)).await;
    assert!(more.is_err(), "and nothing else: {more:?}");
    drop(first);
    bus.close().await;
}

pub(crate) async fn read(from: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut got = Vec::new();
    while got.len() < count {
        got.extend(timeout(SOON, from.next(7)).await.expect("there are more").unwrap());
    }
    got
}

pub(crate) fn places(deliveries: &[Delivery]) -> Vec<Place> {
    deliveries.iter().map(|delivery| delivery.place).collect()
}

pub(crate) fn messages(deliveries: &[Delivery]) -> Vec<Message> {
    deliveries.iter().map(|delivery| delivery.message.clone()).collect()
}

pub(crate) fn by_key(messages: Vec<Message>) -> HashMap<String, Vec<Message>> {
    let mut keys: HashMap<String, Vec<Message>> = HashMap::new();
    for message in messages {
        keys.entry(message.key.clone()).or_default().push(message);
    }
    keys
}

/// Fails as the event's reason says: `pass`, `poison`, `outage`, or so many times.
#[derive(Default)]
struct Scripted {
    seen: Mutex<Vec<String>>,
}

#[async_trait]
impl Handler for Scripted {
    async fn handle(&self, delivery: &Delivery) -> Result<(), HandlerError> {
        let message = &delivery.message;
        let event = event(message)?;
        let mut seen = self.seen.lock().unwrap();
        seen.push(message.event_id.clone());
        let tries = seen.iter().filter(|id| **id == message.event_id).count();
        match event.data.reason.unwrap().as_str() {
            "pass" => Ok(()),
            "poison" => Err(HandlerError::Poison("carol@torana cannot be paid".into())),
            "outage" if tries < 3 => Err(HandlerError::Unavailable("store".into())),
            "outage" => Ok(()),
            fails if tries > fails.parse().unwrap() => Ok(()),
            _ => Err(HandlerError::Failed("not yet".into())),
        }
    }
}

/// Three quick tries, then later, then dead with the reason and where it came from.
pub(crate) async fn retries(bus: Arc<dyn Bus>) {
    let handler = Arc::new(Scripted::default());
    let consumer = Consumer {
        bus: bus.clone(),
        group: "test",
        handler: handler.clone(),
        retry: Retry { quick: 3, quick_base_ms: 1, delayed: 2, delay_ms: 20, batch: 10 },
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(consumer.run(Topic::Initiated, stopped));
    let cases = [
        ("a", "pass", 1),
        ("b", "poison", 1),
        ("c", "outage", 3),
        // One try and three quick ones a round.
        ("d", "3", 4),
        ("e", "5", 6),
        ("f", "1000", 12),
    ];
    bus.publish(cases.iter().map(|(key, word, _)| saying(Topic::Initiated, key, 0, word)).collect())
        .await
        .unwrap();

    let mut dead = bus.subscribe("reader", Topic::DeadLetter).await.unwrap();
    let mut letters = messages(&read(&mut *dead, 2).await);
    letters.sort_by(|a, b| a.key.cmp(&b.key));
    let [poisoned, worn_out] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((poisoned.key.as_str(), worn_out.key.as_str()), ("b", "f"));
    let expected = [
        (poisoned, "poison: c***@torana cannot be paid", "1", "1"),
        (worn_out, "failed: not yet", "12", "3"),
    ];
    for (letter, reason, attempts, round) in expected {
        for (name, value) in [
            (header::REASON, reason),
            (header::ATTEMPTS, attempts),
            (header::ROUND, round),
            (header::GROUP, "test"),
            (header::ORIGIN, "upi.transaction.initiated"),
            ("n", "0"),
        ] {
            assert_eq!(letter.header(name), Some(value), "{} {name}", letter.key);
        }
        for name in [header::ORIGIN_PARTITION, header::ORIGIN_OFFSET] {
            assert!(letter.header(name).is_some_and(|text| text.parse::<i64>().is_ok()), "{name}");
        }
        assert!(letter.header(header::FAILED_AT).and_then(UnixMs::parse).is_some());
        let names: BTreeSet<&str> = letter.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), letter.headers.len(), "each header once");
    }
    assert!(worn_out.payload.event().unwrap().contains("1000"));
    let tries_of = |key: &str| {
        let id = format!("{key}-0");
        handler.seen.lock().unwrap().iter().filter(|seen| **seen == id).count()
    };
    // Those on other partitions, and the one behind the outage, may be done later.
    let all_tried = async {
        while !cases.iter().all(|(key, _, tries)| tries_of(key) == *tries) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(SOON, all_tried).await;
    let found = cases.map(|(key, word, _)| (key, word, tries_of(key)));
    assert_eq!(found, cases, "in time: {}", in_time.is_ok());
    stop.send(true).unwrap();
    running.await.unwrap();
}

/// Letters are found by what is known of them, and go back to where they came from once.
pub(crate) async fn dead_letters(bus: &dyn Bus) {
    let letter = |key: &str, group: &str, reason: &str| {
        let headers = [
            ("n", "0"),
            (header::GROUP, group),
            (header::ORIGIN, Topic::Debited.name()),
            (header::REASON, reason),
            (header::ROUND, "6"),
            (header::FAILED_AT, "2026-11-24T10:00:00.000Z"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Message { headers, ..message(Topic::DeadLetter, key, 0) }
    };
    let sent = vec![
        letter("TOR1", "a", "failed: x"),
        letter("TOR2", "a", "poison: y"),
        letter("TOR3", "b", "poison: z"),
    ];
    bus.publish(sent.clone()).await.unwrap();
    let keys = async |wanted: Wanted| {
        let found = find(bus, &wanted, 10).await.unwrap();
        let mut keys: Vec<String> = found.letters.into_iter().map(|letter| letter.message.key).collect();
        keys.sort();
        keys
    };
    let text = |text: &str| Some(text.to_owned());
    let cases: [(Wanted, &[&str]); 7] = [
        (Wanted::default(), &["TOR1", "TOR2", "TOR3"]),
        (Wanted { group: text("a"), ..Wanted::default() }, &["TOR1", "TOR2"]),
        (Wanted { reason: text("poison"), ..Wanted::default() }, &["TOR2", "TOR3"]),
        (Wanted { key: text("TOR3"), ..Wanted::default() }, &["TOR3"]),
        (Wanted { topic: Some(Topic::Debited), ..Wanted::default() }, &["TOR1", "TOR2", "TOR3"]),
        (Wanted { topic: Some(Topic::Initiated), ..Wanted::default() }, &[]),
        (Wanted { since: UnixMs::parse("2026-11-24T10:00:00.001Z"), ..Wanted::default() }, &[]),
    ];
    for (wanted, expected) in cases {
        let what = format!("{wanted:?}");
        assert_eq!(keys(wanted).await, expected, "{what}");
    }
    let two = find(bus, &Wanted::default(), 2).await.unwrap();
    assert_eq!((two.letters.len(), two.more), (2, true));

    let mut origin = bus.watch(Topic::Debited).await.unwrap();
    let second = Wanted { key: text("TOR2"), ..Wanted::default() };
    let found = find(bus, &second, 10).await.unwrap().letters.remove(0);
    assert_eq!(replay(bus, &found, UnixMs::now()).await.unwrap(), Topic::Debited);
    let back = read(&mut *origin, 1).await.remove(0).message;
    assert_eq!((&back.payload, &back.event_id), (&sent[1].payload, &sent[1].event_id));
    let names: Vec<&str> = back.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["n", "x-replayed-from"], "it begins anew, and says where it was");
    assert_eq!(keys(Wanted::default()).await, ["TOR1", "TOR3"], "not again by mistake");
    let all = Wanted { replayed: Replayed::Included, ..Wanted::default() };
    assert_eq!(keys(all).await, ["TOR1", "TOR2", "TOR3"]);
}
