//! SQLite holds to the contract, and bounds its queue.

use std::path::Path;
use std::sync::Arc;

use super::contract::request;
use super::{Accepted, SqliteStore, Store as _, StoreError, WriterLimits, contract};
use crate::metrics::Metrics;
use crate::txn::Rules;

async fn open(file: &Path, limits: &WriterLimits) -> SqliteStore {
    let metrics = Arc::new(Metrics::new().unwrap());
    SqliteStore::open(file, Rules::default(), limits, metrics).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_holds_to_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("txn.db");
    contract::holds(async || open(&file, &WriterLimits::default()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_what_was_taken_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("txn.db"), &WriterLimits { queue: 2, batch: 1 }).await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = store.clone();
        tasks.spawn(async move { store.accept(request(&format!("k-{n}"))).await });
    }
    let (mut new, mut refused) = (0, 0);
    while let Some(answer) = tasks.join_next().await {
        match answer.unwrap() {
            Ok(Accepted::New) => new += 1,
            Err(StoreError::Overloaded) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(new > 0 && refused > 0, "{new} taken, {refused} refused");
    let lease = store.lease_lanes(uuid::Uuid::nil(), 1_000).await.unwrap();
    assert_eq!(store.unpublished(&lease, 1000).await.unwrap().len(), new);
}
