//! The same service with its payments on PostgreSQL, which goes away and comes back.

use std::time::Duration;

use serde_json::Value;
use txn_core::config::Config;
use txn_core::server::migrate;

use crate::house::{House, QUICK, accepted, as_alice, status};

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_the_answer_is_503_and_nothing_is_lost() {
    let mut house = House::build(QUICK).await;
    let mut postgres = engines::Postgres::start(&house.dir.path().join("data")).await.unwrap();
    postgres.create_database("payments").await.unwrap();
    certs::file::write_secret(&house.dir.path().join("url"), &postgres.url("payments")).unwrap();
    house.store = "{postgres: {url: 'file:url', acquire_timeout_ms: 250}}".to_owned();
    migrate(&Config::parse(&house.config(), house.dir.path()).unwrap()).await.unwrap();
    house.answers(&[accepted()], &[status("FINAL", "SUCCESS", "00")]);
    let core = house.start().await;
    let before = house.send(&core, "before").await;
    house.ends(&core, &before, "COMPLETED").await;

    postgres.stop().await.unwrap();
    let found = as_alice(
        house
            .client("gateway")
            .get(format!("https://localhost:{}/v1/transactions/{before}", core.address.port())),
    );
    let mut refused = vec![found.send().await.unwrap()];
    for _ in 0..20 {
        refused.push(house.try_send(&core, "meanwhile").await);
    }
    for answer in refused {
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        let problem: Value = answer.json().await.unwrap();
        assert!(
            ["store_unavailable", "overloaded"].contains(&problem["code"].as_str().unwrap()),
            "{problem}"
        );
    }
    let readiness = format!("http://{}/readiness", core.admin);
    assert_eq!(reqwest::get(&readiness).await.unwrap().status(), 503);

    postgres.resume().await.unwrap();
    let mut answer = house.try_send(&core, "meanwhile").await;
    for _ in 0..200 {
        if answer.status() == 200 {
            break;
        }
        assert_eq!(answer.status(), 503);
        tokio::time::sleep(Duration::from_millis(25)).await;
        answer = house.try_send(&core, "meanwhile").await;
    }
    let meanwhile = answer.json::<Value>().await.unwrap()["txnId"].as_str().unwrap().to_owned();
    house.ends(&core, &meanwhile, "COMPLETED").await;
    assert_eq!(house.send(&core, "meanwhile").await, meanwhile);
    assert_eq!(house.send(&core, "before").await, before);
    assert_eq!(reqwest::get(&readiness).await.unwrap().status(), 200);
    assert_eq!(house.calls("initiate").len(), 2);
    core.stop.send(()).unwrap();
    core.task.await.unwrap().unwrap();
}
