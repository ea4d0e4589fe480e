//! Two stores on one database, as two processes have them.

use std::collections::{HashMap, HashSet};

use tokio::task::JoinSet;

use super::*;
use crate::store::contract::{callback, request};
use crate::txn::{ReportResult, Stage, State};

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_are_one_store() {
    let database = Database::migrated().await;
    let stores = [Arc::new(database.open().await), Arc::new(database.open().await)];
    one_key_is_one_payment(&stores).await;
    one_payment_changes_step_by_step(&stores).await;
    timers_are_claimed_by_one(&stores).await;
    lanes_are_shared(&stores).await;
    for store in stores {
        store.close().await;
    }
}

type Two = [Arc<PostgresStore>; 2];

/// The same keys from both sides at once, in batches that overlap in every order.
async fn one_key_is_one_payment(stores: &Two) {
    let mut tasks = JoinSet::new();
    for n in 0..600 {
        let store = stores[n % 2].clone();
        let new = request(&format!("race-{}", n * 7 % 100));
        tasks.spawn(
            async move { (new.idempotency.key.clone(), new.txn.id, store.accept(new).await.unwrap()) },
        );
    }
    let (mut made, mut answered): (HashMap<String, TxnId>, Vec<(String, TxnId)>) = Default::default();
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            (key, id, Accepted::New) => assert_eq!(made.insert(key, id), None, "made twice"),
            (key, _, Accepted::Replayed(first)) => answered.push((key, first)),
            (key, _, Accepted::KeyReused) => panic!("{key}: the same request"),
        }
    }
    assert_eq!((made.len(), answered.len()), (100, 500));
    for (key, first) in answered {
        assert_eq!(made[&key], first);
    }
}

/// Every event has one version of its own, and nothing that one process decided is undone by the other.
async fn one_payment_changes_step_by_step(stores: &Two) {
    let ids: Vec<TxnId> = (0..20).map(|n| request(&format!("steps-{n}")).txn.id).collect();
    for (n, id) in ids.iter().enumerate() {
        let mut new = request(&format!("steps-{n}"));
        new.txn.id = *id;
        stores[0].accept(new).await.unwrap();
    }
    let mut tasks = JoinSet::new();
    for (n, id) in ids.iter().copied().cycle().take(ids.len() * 8).enumerate() {
        let store = stores[(n / ids.len()) % 2].clone();
        let event = callback(Stage::Debit, ReportResult::Success, "00");
        // Every message comes twice, once to each process.
        let message = format!("m-{}", n / ids.len() / 2);
        let at = request("").txn.created_at.plus(10);
        let input =
            Apply { txn_id: id, event, at, inbox: Some(("network-callback", format!("{id}:{message}"))) };
        tasks.spawn(async move { store.apply(input).await.unwrap() });
    }
    let (mut stepped, mut seen) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            Applied::Stepped { .. } => stepped += 1,
            Applied::SeenBefore => seen += 1,
            Applied::Ignored { .. } => {}
            Applied::UnknownTxn => panic!("there it is"),
        }
    }
    assert_eq!((stepped, seen), (ids.len(), ids.len() * 4));
    for id in ids {
        let (txn, history) = stores[1].inspect(id).await.unwrap().unwrap();
        let versions: Vec<u32> = history.iter().map(|row| row.version).collect();
        assert_eq!((txn.state, txn.version, versions), (State::Debited, 5, vec![1, 2, 3, 4, 5]));
    }
}

async fn timers_are_claimed_by_one(stores: &Two) {
    let now = request("").txn.created_at.plus(200_000);
    let (mut claimed, mut tasks) = (HashSet::new(), JoinSet::new());
    for n in 0..60 {
        let store = stores[n % 2].clone();
        tasks.spawn(async move { store.claim_due(WakeKind::Send, now, 30_000, 5).await.unwrap() });
    }
    while let Some(some) = tasks.join_next().await {
        for id in some.unwrap() {
            assert!(claimed.insert(id), "claimed twice");
        }
    }
    assert_eq!(claimed.len(), 100, "those of the payments that nothing has happened to");
}

async fn lanes_are_shared(stores: &Two) {
    let (one, two, three) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let lanes =
        async |store: &Arc<PostgresStore>, relay| store.lease_lanes(relay, 60_000).await.unwrap().lanes;
    let all = usize::from(LANES);
    assert_eq!(lanes(&stores[0], one).await.len(), all, "alone");
    assert_eq!(lanes(&stores[1], two).await.len(), 0, "nothing is free yet");
    assert_eq!(lanes(&stores[0], one).await.len(), all / 2, "room for the other");
    let of_two = lanes(&stores[1], two).await;
    assert_eq!(of_two.len(), all / 2);
    let of_one = lanes(&stores[0], one).await;
    assert!(of_one.iter().all(|lane| !of_two.contains(lane)), "{of_one:?} and {of_two:?}");

    // Both read all of theirs, and nobody takes out what is not his.
    let lease = async |store: &Arc<PostgresStore>, relay| store.lease_lanes(relay, 60_000).await.unwrap();
    let (lease_one, lease_two) = (lease(&stores[0], one).await, lease(&stores[1], two).await);
    let rows_of_one = stores[0].unpublished(&lease_one, 32_000).await.unwrap();
    let rows_of_two = stores[1].unpublished(&lease_two, 32_000).await.unwrap();
    assert!(!rows_of_one.is_empty() && !rows_of_two.is_empty());
    let waiting = stores[0].figures().await.unwrap().outbox;
    assert_eq!(i64::try_from(rows_of_one.len() + rows_of_two.len()).unwrap(), waiting);
    stores[0].published(&lease_one, &rows_of_two).await.unwrap();
    assert_eq!(stores[0].figures().await.unwrap().outbox, waiting, "not his to take out");
    stores[0].published(&lease_one, &rows_of_one).await.unwrap();
    assert_eq!(stores[0].unpublished(&lease_one, 32_000).await.unwrap(), []);

    // One that gives its lanes back leaves them to the other at once; a third has its share.
    stores[0].return_lanes(one).await.unwrap();
    assert_eq!(lanes(&stores[1], two).await.len(), all);
    assert_eq!(lanes(&stores[0], three).await.len(), 0);
    assert_eq!(lanes(&stores[1], two).await.len(), all / 2);
    // One that dies is waited for no longer than its lease.
    assert_eq!(stores[0].lease_lanes(three, 1).await.unwrap().lanes.len(), all / 2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(lanes(&stores[1], two).await.len(), all);
    stores[1].return_lanes(two).await.unwrap();
}

/// A transaction that began to write long before others and commits after them is not missed, though everything
/// that could be seen meanwhile was published.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_is_not_missed() {
    let database = Database::migrated().await;
    let store = database.open().await;
    let mut late = database.config.options().unwrap().connect().await.unwrap();
    let insert =
        "INSERT INTO outbox_events (event_id, aggregate_id, created_at, lane, psp, event_type, payload)
        SELECT gen_random_uuid(), gen_random_uuid(), now(), lane, 'TOR', 'TransactionInitiated', 'late'
        FROM generate_series(0, 31) AS lane";
    sqlx::query("BEGIN").execute(&mut late).await.unwrap();
    sqlx::query(insert).execute(&mut late).await.unwrap();
    let lease = store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
    let publish_all = async || {
        let mut payloads = Vec::new();
        loop {
            let rows = store.unpublished(&lease, 1_000).await.unwrap();
            if rows.is_empty() {
                return payloads;
            }
            store.published(&lease, &rows).await.unwrap();
            payloads.extend(rows.into_iter().map(|row| row.payload));
        }
    };
    for n in 0..100 {
        store.accept(request(&format!("early-{n}"))).await.unwrap();
    }
    assert_eq!(publish_all().await.len(), 100);
    sqlx::query("COMMIT").execute(&mut late).await.unwrap();
    assert_eq!(publish_all().await, vec!["late"; usize::from(LANES)]);
    // One that is undone leaves nothing to wait for.
    sqlx::query("BEGIN").execute(&mut late).await.unwrap();
    sqlx::query(insert).execute(&mut late).await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut late).await.unwrap();
    store.accept(request("after")).await.unwrap();
    assert_eq!(publish_all().await.len(), 1);
    store.close().await;
}
