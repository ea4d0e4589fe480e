//! Migrations and months.

use super::*;
use crate::store::contract::{callback, request};
use crate::txn::{Event, ReportResult, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn tables_change_only_when_somebody_says_so() {
    let database = Database::start().await;
    let error = database.try_open().await.unwrap_err().to_string();
    assert!(error.contains("version 0 and 1 is needed: run `txn-core migrate`"), "{error}");
    // Two at once, and once more.
    let (one, two) = tokio::join!(migrate(&database.config), migrate(&database.config));
    one.unwrap();
    two.unwrap();
    migrate(&database.config).await.unwrap();
    database.open().await.close().await;
    // A newer program has been here.
    let newer = "INSERT INTO _sqlx_migrations SELECT 9, 'later', now(), true, '\\x00', 1 RETURNING version";
    assert_eq!(database.number(newer).await, 9);
    migrate(&database.config).await.unwrap();
    database.open().await.close().await;
}

fn at(text: &str) -> UnixMs {
    UnixMs::parse(text).unwrap()
}

/// A payment made at this time.
fn made(key: &str, created_at: UnixMs) -> NewTxn {
    let mut new = request(key);
    new.txn.id = TxnId::fresh(new.txn.id.psp(), created_at);
    new.txn.created_at = created_at;
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn months_are_made_looked_into_and_dropped() {
    let database = Database::migrated().await;
    let store = Arc::new(database.open().await);
    let partitions = Partitions::of(&database.config).unwrap();
    let months =
        async || partitions.list().await.unwrap().iter().map(|p| p.month.to_string()).collect::<Vec<_>>();
    let ahead = months().await;
    assert_eq!(ahead.len(), 3, "this month and two more: {ahead:?}");
    assert_eq!(partitions.ensure(Month::of(UnixMs::now()), 2).await.unwrap(), []);

    // Nobody made these ahead. Payments of one batch may lie on both sides of midnight.
    let (old, new) =
        (made("old", at("2019-12-31T23:59:59.999Z")), made("new", at("2020-01-01T00:00:00.000Z")));
    let (one, two) = tokio::join!(store.accept(old.clone()), store.accept(new.clone()));
    assert_eq!((one.unwrap(), two.unwrap()), (Accepted::New, Accepted::New));
    assert_eq!(months().await[..2], ["2019-12", "2020-01"]);
    for (table, key) in [("2019-12", &old), ("2020-01", &new)] {
        assert!(store.inspect(key.txn.id).await.unwrap().is_some(), "{table}");
    }
    // Whoever has an id looks into one month and no other.
    let plan: String = {
        let mut db = database.config.options().unwrap().connect().await.unwrap();
        let sql = "EXPLAIN (FORMAT JSON) SELECT * FROM transactions WHERE txn_id = gen_random_uuid() \
                   AND created_at = '2020-01-01 00:00:00+00'";
        let plan: sqlx::postgres::PgRow = sqlx::query(sql).fetch_one(&mut db).await.unwrap();
        sqlx::Row::try_get_unchecked(&plan, 0).unwrap()
    };
    assert!(plan.contains("transactions_y2020m01") && !plan.contains("transactions_y2019m12"), "{plan}");

    // What is unfinished stays.
    let december = Month::of(old.txn.created_at);
    let error = partitions.drop(december).await.unwrap_err().to_string();
    assert!(error.contains("2019-12: payments in it are unfinished"), "{error}");
    let event = callback(Stage::Final, ReportResult::Failure, "Z9");
    let input = Apply { txn_id: old.txn.id, event, at: old.txn.created_at.plus(10), inbox: None };
    assert!(matches!(store.apply(input).await.unwrap(), Applied::Stepped { .. }));
    partitions.drop(december).await.unwrap();
    assert_eq!(months().await[0], "2020-01");
    assert_eq!(store.inspect(old.txn.id).await.unwrap(), None);
    assert!(store.inspect(new.txn.id).await.unwrap().is_some());
    let late = Apply { txn_id: old.txn.id, event: Event::CheckDue, at: UnixMs::now(), inbox: None };
    assert!(matches!(store.apply(late).await.unwrap(), Applied::UnknownTxn));
    let history = database.number("SELECT count(*) FROM pg_class WHERE relname LIKE '%y2019m12%'").await;
    assert_eq!(history, 0, "the history goes with its payments");
    partitions.drop(december).await.unwrap();
    // Dropped halfway by a process that died: it is still listed, and the next one ends it.
    let mut db = database.config.options().unwrap().connect().await.unwrap();
    let detach = "ALTER TABLE transactions DETACH PARTITION transactions_y2020m01";
    sqlx::query(detach).execute(&mut db).await.unwrap();
    sqlx::query("UPDATE transactions_y2020m01 SET status = 'FAILED'").execute(&mut db).await.unwrap();
    assert_eq!(months().await[0], "2020-01");
    partitions.drop(Month::of(new.txn.created_at)).await.unwrap();
    assert_eq!(months().await, ahead);
    store.close().await;
}

#[test]
fn months_are_counted_across_years() {
    let november = Month::of(at("2026-11-30T23:59:59.999Z"));
    let cases =
        [(0, "2026-11"), (1, "2026-12"), (2, "2027-01"), (14, "2028-01"), (-11, "2025-12"), (-10, "2026-01")];
    for (months, want) in cases {
        assert_eq!(november.plus(months).to_string(), want);
    }
}
