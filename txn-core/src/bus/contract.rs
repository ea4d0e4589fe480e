//! What every bus must hold to, whatever its engine.

use std::time::Duration;

use super::*;

pub(crate) fn message(topic: Topic, key: &str, n: usize) -> Message {
    Message {
        topic,
        key: key.into(),
        event_id: format!("{key}-{n}"),
        headers: vec![("n".into(), n.to_string())],
        payload: format!("{{\"n\":{n},\"note\":\"चाय\"}}"),
    }
}

/// `open` opens the same place again and again; the place is empty at first.
pub(crate) async fn holds<B: Bus>(open: impl AsyncFn() -> B) {
    let bus = open().await;
    let mut first = bus.subscribe("first", Topic::Initiated).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(50), first.next(10)).await;
    assert!(waits.is_err(), "nothing there: it waits");

    let sent: Vec<Message> = (0..20).map(|n| message(Topic::Initiated, ["TORa", "TORb"][n % 2], n)).collect();
    bus.publish(sent.clone()).await.unwrap();
    bus.publish(vec![message(Topic::Debited, "TORa", 0)]).await.unwrap();

    let got = read(&mut first, 20).await;
    for key in ["TORa", "TORb"] {
        let of_key = |all: &[Message]| all.iter().filter(|m| m.key == key).cloned().collect::<Vec<_>>();
        let messages: Vec<Message> = got.iter().map(|d| d.message.clone()).collect();
        assert_eq!(of_key(&messages), of_key(&sent), "in order for each key, untouched, of this topic alone");
    }
    first.done(&got[9]).await.unwrap();

    // A waiting reader is woken.
    let mut second = bus.subscribe("second", Topic::Debited).await.unwrap();
    assert_eq!(read(&mut second, 1).await.len(), 1, "another group has its own position");
    let (woken, published) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(5), second.next(10)),
        bus.publish(vec![message(Topic::Debited, "TORb", 1)])
    );
    published.unwrap();
    assert_eq!(woken.expect("woken").unwrap()[0].message.key, "TORb");
    drop((first, second));
    bus.close().await;
    assert!(matches!(bus.publish(sent).await, Err(BusError::Closed)));

    // After a restart: what was not marked done comes again, what was does not.
    let bus = open().await;
    let mut first = bus.subscribe("first", Topic::Initiated).await.unwrap();
    assert_eq!(read(&mut first, 10).await, got[10..]);
    bus.close().await;
}

async fn read(from: &mut Box<dyn Subscription>, count: usize) -> Vec<Delivery> {
    let mut got = Vec::new();
    while got.len() < count {
        let some = tokio::time::timeout(Duration::from_secs(5), from.next(7)).await;
        got.extend(some.expect("there are more").unwrap());
    }
    got
}
