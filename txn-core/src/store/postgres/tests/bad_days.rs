//! PostgreSQL stopped, crashed and started again under load.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::*;
use crate::store::contract::request;
use crate::txn::{Event, State};

const CLIENTS: usize = 16;

/// Keeps paying until told to stop; a payment that was not accepted is tried again with the same key, as a client
/// does. Gives the payments that were accepted, by key, and how often the store said that it is away.
async fn pay(store: Arc<PostgresStore>, client: usize, stop: Arc<AtomicBool>, log: Arc<Mutex<Log>>) {
    for n in 0.. {
        let key = format!("client-{client}-{n}");
        let mut new = request(&key);
        let first = new.txn.id;
        loop {
            let id = new.txn.id;
            match store.accept(new.clone()).await {
                Ok(Accepted::New) => break log.lock().unwrap().accepted.push((key, id)),
                // It was durable although the answer got lost.
                Ok(Accepted::Replayed(id)) => break log.lock().unwrap().accepted.push((key, id)),
                Ok(Accepted::KeyReused) => panic!("{key}: the same request"),
                Err(StoreError::Unavailable(_) | StoreError::Overloaded) => log.lock().unwrap().away += 1,
                Err(error) => panic!("{first}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            new.txn.id = request("").txn.id;
        }
        let id = log.lock().unwrap().accepted.last().map(|(_, id)| *id).unwrap();
        let input = Apply { txn_id: id, event: Event::Dispatch, at: request("").txn.created_at, inbox: None };
        match store.apply(input).await {
            Ok(Applied::Stepped { .. } | Applied::Ignored { .. }) => log.lock().unwrap().dispatched.push(id),
            Ok(other) => panic!("{other:?}"),
            Err(StoreError::Unavailable(_) | StoreError::Overloaded) => {}
            Err(error) => panic!("{error}"),
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[derive(Debug, Default)]
struct Log {
    accepted: Vec<(String, TxnId)>,
    dispatched: Vec<TxnId>,
    away: usize,
}

impl Log {
    fn count(log: &Mutex<Log>) -> usize {
        log.lock().unwrap().accepted.len()
    }
}

/// Until `enough` more payments were accepted.
async fn more(log: &Mutex<Log>, enough: usize) {
    let before = Log::count(log);
    while Log::count(log) < before + enough {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_once_whatever_becomes_of_the_database() {
    let mut database = Database::migrated().await;
    let store = Arc::new(database.open().await);
    let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Log::default())));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(pay(store.clone(), client, stop.clone(), log.clone()));
    }
    for crash in [false, true] {
        more(&log, 100).await;
        match crash {
            true => database.postgres.kill().await.unwrap(),
            false => database.postgres.stop().await.unwrap(),
        }
        let away = log.lock().unwrap().away;
        while log.lock().unwrap().away < away + CLIENTS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(matches!(
            store.inspect(request("").txn.id).await,
            Err(StoreError::Unavailable(_) | StoreError::Overloaded)
        ));
        database.postgres.resume().await.unwrap();
    }
    more(&log, 100).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    let log = std::mem::take(&mut *log.lock().unwrap());
    let accepted: HashMap<TxnId, &str> = log.accepted.iter().map(|(key, id)| (*id, key.as_str())).collect();
    assert_eq!(accepted.len(), log.accepted.len(), "a payment for each key");
    for (key, id) in &log.accepted {
        assert!(store.inspect(*id).await.unwrap().is_some(), "{key}");
    }
    for id in &log.dispatched {
        let (txn, _) = store.inspect(*id).await.unwrap().unwrap();
        assert_eq!((txn.state, txn.sends), (State::Dispatched, 1));
    }
    let counts = [
        "SELECT count(*) FROM transactions",
        "SELECT count(*) FROM idempotency",
        "SELECT count(*) FROM timers",
        "SELECT count(*) FROM outbox_events",
        "SELECT count(*) FROM txn_history WHERE version = 1",
    ];
    for sql in counts {
        assert_eq!(database.number(sql).await, i64::try_from(accepted.len()).unwrap(), "{sql}");
    }
    store.close().await;
}

/// A request whose commit went through and whose answer got lost is nobody else's when it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_again() {
    let database = Database::migrated().await;
    let store = database.open().await;
    let new = request("lost");
    assert_eq!(store.accept(new.clone()).await.unwrap(), Accepted::New);
    assert_eq!(
        store.accept(new.clone()).await.unwrap(),
        Accepted::New,
        "the very same, as a link tries again"
    );
    let by_the_client = NewTxn { idempotency: new.idempotency.clone(), ..request("") };
    assert_eq!(store.accept(by_the_client).await.unwrap(), Accepted::Replayed(new.txn.id));
    assert_eq!(database.number("SELECT count(*) FROM transactions").await, 1);
    // Cut off while idle, as by a restart that nobody noticed: the next request does not suffer for it.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'txn-core' AND pid <> pg_backend_pid()";
    assert!(database.number(cut).await > 0);
    assert_eq!(store.accept(request("after the cut")).await.unwrap(), Accepted::New);
    let input = Apply { txn_id: new.txn.id, event: Event::Dispatch, at: new.txn.created_at, inbox: None };
    assert!(matches!(store.apply(input).await.unwrap(), Applied::Stepped { .. }));
    store.close().await;
}
