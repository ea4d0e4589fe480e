//! What is on Kafka, held against the payments' histories: every event once or more, in order, none missing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;

use anyhow::Context as _;
use txn_core::bus::kafka::{KafkaBus, KafkaConfig};
use txn_core::bus::{Bus as _, Delivery, Topic};
use txn_core::store::HistoryRow;
use txn_core::store::record::Envelope;
use txn_core::txn::{EventType, State};

/// One topic's events of every payment, as they came first, without those that came again.
#[derive(Debug, Default)]
struct Log {
    of_payments: BTreeMap<String, Vec<(u32, EventType)>>,
    duplicates: usize,
}

/// The topics as they are now.
#[derive(Debug)]
pub(crate) struct Events {
    topics: BTreeMap<&'static str, Log>,
    pub(crate) unreadable: usize,
}

/// Where the life of a payment is told. What waits for another try, and dead letters, are copies.
const TOLD: [Topic; 5] =
    [Topic::Initiated, Topic::Debited, Topic::Completed, Topic::Audit, Topic::Notification];

impl Events {
    /// # Errors
    /// When Kafka does not answer.
    pub(crate) async fn read(broker: std::net::SocketAddr) -> anyhow::Result<Events> {
        let bus = KafkaBus::open(KafkaConfig::of(vec![broker.to_string()])).await?;
        let (mut topics, mut unreadable) = (BTreeMap::new(), 0);
        for topic in Topic::ALL {
            let (mut log, mut seen) = (Log::default(), HashSet::new());
            let mut visit = |delivery: Delivery| {
                let message = delivery.message;
                let envelope = message.payload.event().ok();
                match envelope.and_then(|json| serde_json::from_str::<Envelope>(json).ok()) {
                    None => unreadable += 1,
                    Some(event) if seen.insert(event.event_id) => {
                        let events = log.of_payments.entry(event.txn_id).or_default();
                        events.push((event.data.version, event.event_type));
                    }
                    Some(_) => log.duplicates += 1,
                }
                ControlFlow::Continue(())
            };
            bus.scan(topic, &mut visit).await.with_context(|| format!("reading {}", topic.name()))?;
            topics.insert(topic.name(), log);
        }
        bus.close().await;
        Ok(Events { topics, unreadable })
    }

    /// Payments of a topic.
    pub(crate) fn payments(&self, topic: Topic) -> BTreeSet<&str> {
        self.log(topic).into_iter().flat_map(|log| log.of_payments.keys()).map(String::as_str).collect()
    }

    /// Events that came more than once, over all topics.
    pub(crate) fn duplicates(&self) -> usize {
        self.topics.values().map(|log| log.duplicates).sum()
    }

    /// Different events of a topic.
    pub(crate) fn count(&self, topic: Topic) -> usize {
        self.log(topic).map_or(0, |log| log.of_payments.values().map(Vec::len).sum())
    }

    /// What is wrong with a payment's events.
    pub(crate) fn check(&self, txn_id: &str, history: &[HistoryRow]) -> Vec<String> {
        let expected = announced(history);
        TOLD.into_iter().filter_map(|topic| self.check_topic(topic, txn_id, &expected)).collect()
    }

    fn check_topic(&self, topic: Topic, txn_id: &str, expected: &[(u32, EventType)]) -> Option<String> {
        let expected = expected.iter().filter(|(_, event)| Topic::of(*event).contains(&topic));
        let expected: Vec<(u32, EventType)> = expected.copied().collect();
        let found = self.log(topic).and_then(|log| log.of_payments.get(txn_id));
        let found = found.map(Vec::as_slice).unwrap_or_default();
        // What calls for a person is no step of a payment's life; it is told to the audit alone.
        let aside = [EventType::TransactionUnresolved, EventType::TransactionConflict].map(EventType::name);
        let steps: Vec<(u32, EventType)> =
            found.iter().filter(|(_, event)| !aside.contains(&event.name())).copied().collect();
        let ordered = found.is_sorted_by(|one, next| one.0 < next.0);
        (!ordered || steps != expected)
            .then(|| format!("{txn_id} on {}: {found:?}, expected {expected:?}", topic.name()))
    }

    fn log(&self, topic: Topic) -> Option<&Log> {
        self.topics.get(topic.name())
    }
}

/// The events that a payment's history must have brought, by version. Said here once more, and not asked of the core:
/// what it forgot to announce would be forgotten here too.
fn announced(history: &[HistoryRow]) -> Vec<(u32, EventType)> {
    let (mut events, mut before) = (Vec::new(), None);
    for row in history.iter().filter(|row| row.applied) {
        let event = match row.state {
            State::Created if before.is_none() => Some(EventType::TransactionInitiated),
            State::Created | State::Dispatched | State::Accepted => None,
            State::Debited => Some(EventType::TransactionDebited),
            State::Completed => Some(EventType::TransactionCompleted),
            State::Failed => Some(EventType::TransactionFailed),
            State::Declined => Some(EventType::TransactionDeclined),
            State::Expired => Some(EventType::TransactionExpired),
            State::Deemed => Some(EventType::TransactionDeemed),
            State::Reversed => Some(EventType::TransactionReversed),
        };
        if before != Some(row.state) {
            events.extend(event.map(|event| (row.version, event)));
        }
        before = Some(row.state);
    }
    events
}

#[cfg(test)]
mod tests {
    use txn_core::txn::UnixMs;

    use super::*;

    fn row(version: u32, state: State, applied: bool) -> HistoryRow {
        HistoryRow { version, at: UnixMs(0), state, event: String::new(), reason: None, applied }
    }

    #[test]
    fn missing_strange_and_misplaced_events_are_found() {
        use EventType::{TransactionCompleted as Completed, TransactionInitiated as Initiated};
        let history = [
            row(1, State::Created, true),
            row(2, State::Dispatched, true),
            row(3, State::Accepted, true),
            row(4, State::Accepted, true),
            row(5, State::Completed, true),
            row(6, State::Completed, false),
        ];
        let whole: &[(Topic, &[(u32, EventType)])] = &[
            (Topic::Initiated, &[(1, Initiated)]),
            (Topic::Completed, &[(5, Completed)]),
            (Topic::Notification, &[(5, Completed)]),
            (Topic::Audit, &[(1, Initiated), (5, Completed), (6, EventType::TransactionConflict)]),
        ];
        let wrong = |changed: Option<(Topic, &[(u32, EventType)])>| {
            let mut topics: BTreeMap<&'static str, Log> = BTreeMap::new();
            for (topic, events) in whole.iter().copied().chain(changed) {
                let of_payments = BTreeMap::from([("t".to_owned(), events.to_vec())]);
                topics.insert(topic.name(), Log { of_payments, duplicates: 0 });
            }
            Events { topics, unreadable: 0 }.check("t", &history).len()
        };
        assert_eq!(wrong(None), 0);
        let cases: [(Topic, &[(u32, EventType)]); 4] = [
            (Topic::Completed, &[]),
            (Topic::Debited, &[(3, EventType::TransactionDebited)]),
            (Topic::Audit, &[(5, Completed), (1, Initiated)]),
            (Topic::Initiated, &[(1, Initiated), (1, Initiated)]),
        ];
        for case in cases {
            assert_eq!(wrong(Some(case)), 1, "{case:?}");
        }
    }
}
