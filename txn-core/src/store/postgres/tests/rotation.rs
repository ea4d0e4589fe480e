//! Connections that must be given up while the store is open: other credentials, and a server that was demoted.

use certs::Watch;

use super::*;
use crate::store::contract::request;

/// The file names another user, and the one before may no longer connect. Both the writers and the pool go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_url_is_used_without_a_restart() {
    let database = Database::migrated().await;
    let mut admin = database.config.options().unwrap().connect().await.unwrap();
    for user in ["before", "after"] {
        let sql = format!("CREATE ROLE {user} SUPERUSER LOGIN");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
    }
    let SecretRef::File(file) = &database.config.url else { panic!("the test's URL is in a file") };
    let url = std::fs::read_to_string(file).unwrap();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let written =
        |user: &str| certs::file::write_secret(file, &format!("{scheme}://{user}@{place}")).unwrap();

    written("before");
    let watch = Watch::new("test");
    let metrics = Arc::new(Metrics::new().unwrap());
    let store =
        PostgresStore::open_and_follow(&database.config, Rules::default(), metrics, &watch).await.unwrap();
    assert!(matches!(store.accept(request("one")).await.unwrap(), Accepted::New));
    store.figures().await.unwrap();

    written("after");
    watch.look(OffsetDateTime::now_utc());
    // From now on only the new credentials open a connection.
    for sql in [
        "ALTER ROLE before NOLOGIN",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'before'",
    ] {
        sqlx::query(sql).execute(&mut admin).await.unwrap();
    }
    assert!(matches!(store.accept(request("two")).await.unwrap(), Accepted::New));
    store.figures().await.unwrap();
    let users: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name = 'txn-core' AND usename IN ('before', 'after')")
            .fetch_all(&mut admin)
            .await
            .unwrap();
    assert_eq!(users, ["after"]);
    store.close().await;
}

/// A demoted server keeps its connections and refuses writes on them (SQLSTATE 25006). A setting of the
/// database does the same: it holds for a connection as long as that lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_read_only_is_given_up() {
    let database = Database::migrated().await;
    let mut admin = database.config.options().unwrap().connect().await.unwrap();
    let store = database.open().await;
    let relay = Uuid::now_v7();
    store.lease_lanes(relay, 1_000).await.unwrap();

    for sql in [
        "ALTER DATABASE payments SET default_transaction_read_only = on",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'txn-core' AND pid <> pg_backend_pid()",
    ] {
        sqlx::query(sql).execute(&mut admin).await.unwrap();
    }
    // The pool notices that its connections are gone, and makes others, which are read-only.
    let refused = async || match store.lease_lanes(relay, 1_000).await {
        Err(StoreError::Unavailable(why)) => why.contains("read-only"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a read-only database leases no lanes"),
    };
    while !refused().await {}

    // Connections that are open now stay read-only for as long as they live.
    sqlx::query("SET default_transaction_read_only = off").execute(&mut admin).await.unwrap();
    sqlx::query("ALTER DATABASE payments RESET default_transaction_read_only")
        .execute(&mut admin)
        .await
        .unwrap();
    store.lease_lanes(relay, 1_000).await.unwrap();
    store.close().await;
}
