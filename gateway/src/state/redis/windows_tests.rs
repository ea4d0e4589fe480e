//! Windows that grow while the memory stays.

use super::tests::{T0_MS, redis};
use super::*;

/// An edge that is started again on its Redis, with a window that is wider: what the narrow one took, and has forgotten
/// since, is not taken once more.
#[tokio::test]
async fn a_window_that_grew_takes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = engines::Redis::start(dir.path()).await.unwrap();
    let before = redis(&server.url(), "wider:");
    before.run(&[]).await.unwrap();
    let made_s = |at_s: u64| i64::try_from(T0_MS / 1_000 + at_s).unwrap();
    let () = redis::cmd("SET")
        .arg("wider:since")
        .arg((T0_MS - 10_000_000) * 1_000)
        .query_async(&mut before.link.connection().await.unwrap())
        .await
        .unwrap();
    let nonce = |name: &str, made_at_s: u64, window_s: u64| Op::Remember {
        key: name.into(),
        ttl_ms: window_s * 1_000,
        made_s: made_s(made_at_s),
        ahead_s: 0,
        window_s: Some(window_s),
    };
    let at_us = |at_s: u64| Some((T0_MS + at_s * 1_000) * 1_000);
    let ask = async |redis: &Redis, op: Op, at_s: u64| redis.ask(&[op], at_us(at_s)).await.unwrap()[0];
    assert_eq!(ask(&before, nonce("taken", 0, 100), 0).await, Answer::Remembered);
    drop(before);
    let after = redis(&server.url(), "wider:");
    assert_eq!(ask(&after, nonce("taken", 0, 300), 50).await, Answer::Seen);
    assert_eq!(ask(&after, nonce("fresh", 60, 300), 100).await, Answer::Remembered, "young enough");
    assert_eq!(ask(&after, nonce("taken", 0, 300), 150).await, Answer::TooOld, "forgotten by now");
    assert_eq!(ask(&after, nonce("later", 310, 300), 600).await, Answer::Remembered, "nobody took it before");
}
