//! The account at the end: where every payment ended, and everything that is wrong with that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use e2e::{Ledger, Moved};
use serde_json::Value;
use stack::Stack;
use tokio::time::{Instant, sleep};
use txn_core::bus::Topic;
use txn_core::metrics::Metrics;
use txn_core::secret::SecretRef;
use txn_core::store::{HistoryRow, PostgresConfig, PostgresStore, Store};
use txn_core::txn::{Rules, State, Txn, TxnId};

use crate::clients::{Call, Said, Seen, Wanted};
use crate::events::Events;
use crate::inject::{Injected, Window};
use crate::say;

/// The last status check of a payment that was sent when the faults ended, and a margin for a slow machine.
const FINAL_WITHIN: Duration = Duration::from_secs(120);
const EMPTY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Everything found out about a run.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) figures: Vec<(String, String)>,
    pub(crate) violations: Vec<String>,
}

type Payments = BTreeMap<String, (Txn, Vec<HistoryRow>)>;

impl Account {
    /// Waits until every payment has ended and every event has been published, then checks all of it.
    ///
    /// # Errors
    /// When something cannot be read that the account is made of.
    pub(crate) async fn of(stack: &Stack, seen: &Seen, injected: &Injected) -> anyhow::Result<Account> {
        let mut account = Account::default();
        let url = SecretRef::File(stack.dir().join("keys/database.url"));
        let metrics = Arc::new(Metrics::new()?);
        let store = PostgresStore::open(&PostgresConfig::new(url), Rules::default(), metrics).await?;
        let payments = account.wait_until_final(&store, &seen.wanted).await?;
        account.wait_until_published(&store).await?;
        store.close().await;

        account.check_keys(&seen.wanted);
        account.check_books(&Ledger::of(stack).await?, &payments, &seen.wanted);
        account.check_calls(&e2e::calls(stack).await?);
        if let Some(fleet) = stack.fleet() {
            let broker = fleet.kafka.lock().await.address();
            account.check_events(&Events::read(broker).await?, &payments, &seen.wanted);
        }
        account.check_answers(seen, injected);
        account.tell(seen, injected, &payments);
        Ok(account)
    }

    fn figure(&mut self, name: &str, value: impl ToString) {
        self.figures.push((name.to_owned(), value.to_string()));
    }

    /// Every payment that was answered 200, as it ended or as it stands when time is up.
    async fn wait_until_final(&mut self, store: &dyn Store, wanted: &[Wanted]) -> anyhow::Result<Payments> {
        let (began, mut told) = (Instant::now(), Instant::now());
        let mut open: Vec<&str> = answered(wanted).collect();
        let mut payments = Payments::new();
        loop {
            let mut still = Vec::new();
            for txn_id in open {
                let id: Option<TxnId> = txn_id.parse().ok();
                let found = match id {
                    Some(id) => store.inspect(id).await?,
                    None => None,
                };
                let Some((txn, history)) = found else {
                    self.violations.push(format!("{txn_id} was answered 200 and is not stored"));
                    continue;
                };
                if !txn.state.is_final() {
                    still.push(txn_id);
                }
                payments.insert(txn_id.to_owned(), (txn, history));
            }
            open = still;
            if open.is_empty() || began.elapsed() > FINAL_WITHIN {
                break;
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                say(&format!("  {} payments have not ended yet", open.len()))?;
            }
            sleep(LOOK_EVERY).await;
        }
        for txn_id in open {
            let stands =
                payments.get(txn_id).map(|(txn, history)| (txn.state, txn.flagged_at, history.len()));
            self.violations.push(format!("{txn_id} is not final: {stands:?}"));
        }
        self.figure("ended after the last fault", format!("{:.1} s", began.elapsed().as_secs_f64()));
        Ok(payments)
    }

    async fn wait_until_published(&mut self, store: &dyn Store) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let waiting = store.figures().await?.outbox;
            if waiting == 0 {
                return Ok(());
            }
            if began.elapsed() > EMPTY_WITHIN {
                self.violations.push(format!("{waiting} events wait in the outbox"));
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn check_keys(&mut self, wanted: &[Wanted]) {
        for one in wanted.iter().filter(|one| one.txn_ids.len() > 1) {
            self.violations.push(format!("the key {} got {:?}", one.key, one.txn_ids));
        }
    }

    /// Final states and amounts as the simulated banks have them.
    fn check_books(&mut self, ledger: &Ledger, payments: &Payments, wanted: &[Wanted]) {
        if let Err(error) = ledger.check() {
            self.violations.push(format!("the banks' books: {error:#}"));
        }
        let moved = ledger.moved();
        for one in wanted {
            for (txn_id, (txn, _)) in one.txn_ids.iter().filter_map(|id| payments.get_key_value(id)) {
                let books = moved.get(txn_id.as_str());
                let (says, means) = (books.map_or("FAILED", Moved::status), in_books(txn.state));
                if means != Some(says) {
                    let state = txn.state;
                    self.violations.push(format!("{txn_id} is {state:?} and the books say {says}"));
                }
                let amounts = books.into_iter().flat_map(|moved| [&moved.debits, &moved.credits]).flatten();
                if amounts.into_iter().any(|paise| *paise != one.amount_paise) {
                    self.violations.push(format!("{txn_id} moved {books:?}, not {} paise", one.amount_paise));
                }
            }
        }
    }

    /// The network's rules: a payment is sent once, and asked about three times at most.
    fn check_calls(&mut self, calls: &Value) {
        let payments = calls.get("transactions").and_then(Value::as_object).into_iter().flatten();
        let mut most = 0;
        for (txn_id, calls) in payments {
            let count = |call: &str| calls.get(call).and_then(Value::as_u64).unwrap_or_default();
            let (sent, asked) = (count("initiate"), count("status"));
            most = most.max(asked);
            if sent > 1 || asked > 3 {
                self.violations.push(format!("{txn_id} was sent {sent} times and asked about {asked} times"));
            }
        }
        self.figure("most status checks of one payment", most);
    }

    fn check_events(&mut self, events: &Events, payments: &Payments, wanted: &[Wanted]) {
        for (txn_id, (_, history)) in payments {
            self.violations.extend(events.check(txn_id, history));
        }
        // A key without an answer may have brought a payment; no key two.
        let unknown = events.payments(Topic::Initiated).into_iter().filter(|id| !payments.contains_key(*id));
        let (unknown, unanswered) =
            (unknown.count(), wanted.iter().filter(|one| one.txn_ids.is_empty()).count());
        if unknown > unanswered {
            self.violations.push(format!("{unknown} payments nobody was told of, for {unanswered} keys"));
        }
        let letters = events.count(Topic::DeadLetter);
        if letters + events.unreadable > 0 {
            let unreadable = events.unreadable;
            self.violations.push(format!("{letters} dead letters, {unreadable} unreadable messages"));
        }
        let published: usize = [Topic::Initiated, Topic::Debited, Topic::Completed, Topic::Audit]
            .into_iter()
            .chain([Topic::Notification])
            .map(|topic| events.count(topic))
            .sum();
        self.figure("events on the bus", published);
        self.figure("of them more than once", events.duplicates());
        self.figure("messages sent round for another try", events.count(Topic::RetryDelayed));
    }

    /// What the API said while it could not do what it was asked.
    fn check_answers(&mut self, seen: &Seen, injected: &Injected) {
        let mut inside = [0, 0];
        for attempt in &seen.attempts {
            let within =
                |windows: &[Window]| windows.iter().any(|window| window.holds(attempt.began, attempt.ended));
            // No other fault lasts meanwhile that could keep an edge from answering.
            let refused =
                attempt.answer.as_ref().is_some_and(|said| said.status == 503 && said.retry_after.is_some());
            let away = [
                ("PostgreSQL", within(&injected.postgres)),
                // What is not signed asks for no nonce, and its limits are counted locally then.
                ("Redis", within(&injected.redis) && attempt.call == Call::Send),
            ];
            for ((engine, _), count) in away.iter().zip(&mut inside).filter(|((_, inside), _)| *inside) {
                *count += 1;
                if !refused {
                    self.violations.push(format!(
                        "{:?} was answered {:?} while {engine} was away",
                        attempt.call, attempt.answer
                    ));
                }
            }
        }
        let [postgres, redis] = inside;
        for (engine, windows, count) in
            [("PostgreSQL", &injected.postgres, postgres), ("Redis", &injected.redis, redis)]
        {
            if count == 0 && !windows.is_empty() {
                self.violations.push(format!("nobody asked for anything while {engine} was away"));
            }
        }
        self.figure("answers while PostgreSQL was away, all 503 with Retry-After or a violation", postgres);
        self.figure("answers while Redis was away, likewise", redis);
    }

    fn tell(&mut self, seen: &Seen, injected: &Injected, payments: &Payments) {
        self.figure("faults injected", injected.faults);
        if payments.is_empty() {
            self.violations.push("no payment was accepted".to_owned());
        }
        self.figure("payments wanted", seen.wanted.len());
        self.figure("accepted", payments.len());
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        let mut longest_ms = 0;
        for (txn, history) in payments.values() {
            *ends.entry(txn.state.status().name()).or_default() += 1;
            if let Some(end) = history.iter().find(|row| row.applied && row.state.is_final()) {
                longest_ms = longest_ms.max(txn.created_at.until(end.at));
            }
        }
        for (status, count) in ends {
            self.figure(&format!("ended {status}"), count);
        }
        self.figure("longest from acceptance to the end", format!("{:.1} s", longest_ms as f64 / 1000.0));
        let refused = seen.wanted.iter().filter_map(|one| one.refused.as_ref()).count();
        self.figure("refused for good", refused);
        let open = |one: &&Wanted| one.refused.is_none() && one.txn_ids.is_empty();
        self.figure("given up without an answer", seen.wanted.iter().filter(open).count());
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for attempt in &seen.attempts {
            *answers.entry(name(attempt.answer.as_ref())).or_default() += 1;
        }
        for (answer, count) in answers {
            self.figure(&format!("answers: {answer}"), count);
        }
    }
}

fn answered(wanted: &[Wanted]) -> impl Iterator<Item = &str> {
    wanted.iter().flat_map(|one| &one.txn_ids).map(String::as_str)
}

fn name(said: Option<&Said>) -> String {
    said.map_or("none".to_owned(), |said| format!("{} {}", said.status, said.code).trim_end().to_owned())
}

/// How the books look when a payment has ended so.
fn in_books(state: State) -> Option<&'static str> {
    match state {
        // Deemed: the payee's bank did credit, only nobody could say so in time.
        State::Completed | State::Deemed => Some("COMPLETED"),
        State::Failed | State::Declined | State::Expired => Some("FAILED"),
        State::Reversed => Some("REVERSED"),
        State::Created | State::Dispatched | State::Accepted | State::Debited => None,
    }
}
