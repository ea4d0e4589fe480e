//! What a payment costs does not grow with the payments that there are: the planner finds its rows by keys, also in
//! plans that it made when there was next to nothing.

use tokio::task::JoinSet;

use super::*;
use crate::store::contract::{callback, request};
use crate::txn::{Event, ReportResult, Stage};

/// Rows that statements have looked at so far. A connection tells what it read when it closes at the latest.
const LOOKED_AT: &str = "SELECT (sum(seq_tup_read) + sum(idx_tup_fetch))::bigint FROM pg_stat_user_tables";

const CROWD: u32 = 3_000;
const ONE_BY_ONE: u32 = 60;
/// Rows in a few tables, each found a few times: some thirty. One statement that looked through one table for each
/// of those that come one by one would make it hundreds.
const OF_EACH: i64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_looks_at_its_own_rows_however_many_there_are() {
    let database = Database::migrated().await;
    let store = Arc::new(database.open().await);
    // So often that the plans are made for good.
    for n in 0..10 {
        live(&store, &format!("early-{n}")).await;
    }
    let mut crowd = JoinSet::new();
    for n in 0..CROWD {
        let store = store.clone();
        crowd.spawn(async move { live(&store, &format!("crowd-{n}")).await });
    }
    while let Some(lived) = crowd.join_next().await {
        lived.unwrap();
    }
    for n in 0..ONE_BY_ONE {
        let id = live(&store, &format!("late-{n}")).await;
        assert!(store.find("acme", id).await.unwrap().is_some());
    }
    store.close().await;
    let payments = i64::from(10 + CROWD + ONE_BY_ONE);
    assert_eq!(database.number("SELECT count(*) FROM inbox").await, 3 * payments);
    let looked_at = database.number(LOOKED_AT).await;
    assert!(looked_at < payments * OF_EACH, "{} rows were looked at for a payment", looked_at / payments);
}

/// From accepted to completed.
async fn live(store: &PostgresStore, key: &str) -> TxnId {
    let new = request(key);
    let id = new.txn.id;
    assert_eq!(store.accept(new).await.unwrap(), Accepted::New);
    let events = [
        Event::Dispatch,
        callback(Stage::Debit, ReportResult::Success, "00"),
        callback(Stage::Final, ReportResult::Success, "00"),
    ];
    for (n, event) in events.into_iter().enumerate() {
        let inbox = Some(("orchestrator", format!("{key}-{n}")));
        let applied = store.apply(Apply { txn_id: id, event, at: UnixMs::now(), inbox }).await.unwrap();
        assert!(matches!(applied, Applied::Stepped { .. }), "{applied:?}");
    }
    id
}
