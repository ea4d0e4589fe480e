//! Upstreams that are slow, full, or hang up.

use parity::forced::{OLD_CONNECTION, UNCONNECTED};
use parity::scripted::Act::{Answer, HangUp, StayOpen, Wait};

use super::on_both;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_one_is_given_up_after_its_time_and_asked_once() {
    let policy = "
upstreams: { slow: { addresses: [$A] } }
routes:
  - { name: slow, methods: [GET, POST], path: /slow, upstream: slow, timeout_ms: 300 }
  - { name: again, methods: [GET], path: /again, upstream: slow, timeout_ms: 300, retries: 2 }
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for (method, path) in [("GET", "/slow"), ("POST", "/slow"), ("GET", "/again")] {
            edge.a.requests.tell(&[], Wait);
            let answer = if method == "POST" { edge.post(path).await } else { edge.get(path).await };
            told.push(answer.is("504 upstream_timeout"));
            assert_eq!(edge.a.requests.taken().len(), 1, "{}: {method} {path}", edge.name());
            // The others are served.
            edge.a.requests.tell(&[], Answer(200));
            told.push(edge.get(path).await.is("200 a"));
        }
        told
    })
    .await;
}

/// A route's own time counts before that of its upstream. Where several upstreams serve a route, each has its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_upstream_has_its_own_time() {
    let policy = "
upstreams:
  quick: { addresses: [$A], timeout_ms: 300, outlier: { failures: 0 } }
  slow: { addresses: [$B], timeout_ms: 60000, outlier: { failures: 0 } }
routes:
  - { name: own, methods: [GET, POST], path: /own, upstream: quick }
  - { name: less, methods: [GET], path: /less, upstream: slow, timeout_ms: 300 }
  - { name: more, methods: [GET], path: /more, upstream: quick, timeout_ms: 60000 }
  - { name: both, methods: [GET], path: /both, upstreams: [{ upstream: quick }, { upstream: slow }] }
";
    on_both(policy, async |edge| {
        const OVER: &str = "504 upstream_timeout";
        edge.a.requests.tell(&[], Wait);
        edge.b.requests.tell(&[], Wait);
        let mut told = vec![
            edge.get("/own").await.is(OVER),
            edge.post("/own").await.is(OVER),
            edge.get("/less").await.is(OVER),
        ];

        // As long as another one's time takes, and longer.
        edge.a.requests.tell(&[], Wait);
        let (longer, over) = tokio::join!(edge.get("/more"), async {
            edge.until("it is there", async || edge.a.requests.taken().len() == 1).await;
            let over = edge.get("/own").await.is(OVER);
            edge.a.requests.tell(&[], Answer(200));
            over
        });
        told.extend([longer.is("200 a"), over]);

        let mut seen = Vec::new();
        edge.until("both have served it", async || {
            edge.a.requests.tell(&[], Wait);
            edge.b.requests.tell(&[], Wait);
            let (either, ()) = tokio::join!(edge.get("/both"), async {
                let is_there = async || {
                    let taken = [&edge.a, &edge.b].map(|served| served.requests.taken().len());
                    taken.iter().sum::<usize>() == 1
                };
                edge.until("it is there", is_there).await;
                edge.get("/own").await.is(OVER);
                edge.b.requests.tell(&[], Answer(200));
            });
            seen.push(either.verdict);
            seen.sort_unstable();
            seen.dedup();
            seen.len() > 1
        })
        .await;
        assert_eq!(seen, ["200 b", OVER], "{}", edge.name());
        told
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_the_policy_says_are_in_flight() {
    let policy = "
upstreams: { small: { addresses: [$A], max_in_flight: 2 } }
routes: [{ name: small, methods: [GET, POST], path: /small, upstream: small, timeout_ms: 60000 }]
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[], Wait);
        let held = async { tokio::join!(edge.get("/small"), edge.get("/small")) };
        let meanwhile = async {
            edge.wait_at_a(2).await;
            let refused = [edge.get("/small").await, edge.post("/small").await];
            let refused = refused.map(|told| told.is("503 upstream_overloaded"));
            assert_eq!(edge.a.requests.taken().len(), 2, "{}: nothing more has arrived", edge.name());
            edge.a.requests.tell(&[], Answer(200));
            refused
        };
        let ((one, other), refused) = tokio::join!(held, meanwhile);
        let held = [one.is("200 a"), other.is("200 a")];
        // Their places are free again, both.
        edge.until("it is served again", async || edge.get("/small").await.verdict == "200 a").await;
        edge.a.requests.tell(&[], Wait);
        let again = async { tokio::join!(edge.get("/small"), edge.post("/small")) };
        let meanwhile = async {
            edge.wait_at_a(2).await;
            edge.a.requests.tell(&[], Answer(200));
        };
        let ((one, other), ()) = tokio::join!(again, meanwhile);
        (refused, held, [one.is("200 a"), other.is("200 a")])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_safe_is_sent_again_as_often_as_the_policy_says() {
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 0 } } }
routes:
  - { name: once, methods: [GET, POST], path: /once, upstream: one }
  - { name: again, methods: [GET], path: /again, upstream: one, retries: 1 }
  - { name: thrice, methods: [GET], path: /thrice, upstream: one, retries: 2 }
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for (method, path, hang_ups, verdict, asked) in [
            ("GET", "/again", 1, "200 a", 2),
            ("GET", "/again", 2, "502 upstream_failed", 2),
            ("GET", "/thrice", 2, "200 a", 3),
            ("GET", "/thrice", 3, "502 upstream_failed", 3),
            ("GET", "/once", 1, "502 upstream_failed", 1),
            ("POST", "/once", 1, "502 upstream_failed", 1),
        ] {
            edge.a.requests.tell(&vec![HangUp; hang_ups], Answer(200));
            let answer = if method == "POST" { edge.post(path).await } else { edge.get(path).await };
            let what = format!("{}: {method} {path}, {hang_ups}", edge.name());
            assert_eq!((answer.verdict.as_str(), edge.a.requests.taken().len()), (verdict, asked), "{what}");
            told.push(answer);
        }
        told
    })
    .await;
}

/// A share of few requests would be none, so three at once there may always be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_repeated_at_once_than_the_budget_says() {
    const AT_ONCE: usize = 3;
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 0 }, retry_budget_percent: 20 } }
routes: [{ name: again, methods: [GET], path: /again, upstream: one, retries: 1, timeout_ms: 60000 }]
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[HangUp, Wait].repeat(AT_ONCE), HangUp);
        let again = async |count: usize| {
            // One after the other, so that what hangs up and what waits alternate.
            if count > 0 {
                edge.wait_at_a(count).await;
            }
            edge.get("/again").await
        };
        let meanwhile = async {
            edge.wait_at_a(AT_ONCE).await;
            let refused = edge.get("/again").await.is("502 upstream_failed");
            let asked = edge.a.requests.taken().len();
            assert_eq!(asked, 2 * AT_ONCE + 1, "{}: it was sent once", edge.name());
            edge.a.requests.tell(&[], Answer(200));
            refused
        };
        let (one, two, three, refused) = tokio::join!(again(0), again(1), again(2), meanwhile);
        let held = [one, two, three].map(|told| told.is("200 a"));
        // They are over, and make room for others.
        edge.until("it is sent again", async || {
            edge.a.requests.tell(&[HangUp], Answer(200));
            edge.get("/again").await.verdict == "200 a"
        })
        .await;
        (held, refused)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_nothing_is_no_repeat() {
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 0 }, retry_budget_percent: 0 } }
routes: [{ name: again, methods: [GET], path: /again, upstream: one, retries: 2 }]
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[HangUp], Answer(200));
        let mut told = vec![edge.get("/again").await.is("502 upstream_failed")];
        assert_eq!(edge.a.requests.taken().len(), 1, "{}: it was sent once", edge.name());
        // What has not been sent is no repeat.
        edge.a.breaks(2);
        told.push(edge.get("/again").await.is("200 a"));
        told
    })
    .await;
}

/// A connection that could not be made has carried nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_has_not_been_sent_is_tried_three_times() {
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 0 } } }
routes:
  - { name: once, methods: [GET, POST], path: /once, upstream: one }
  - { name: again, methods: [GET], path: /again, upstream: one, retries: 1 }
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for (broken, verdict) in [(2, "200 a"), (3, "503 upstream_unreachable")] {
            edge.a.breaks(broken);
            told.push(edge.get("/once").await.is(verdict));
            edge.a.breaks(broken);
            told.push(edge.post("/once").await.is(verdict));
        }
        edge.a.breaks(2);
        edge.get("/again").await.is(UNCONNECTED.of(edge.kind).unwrap_or("200 a"));
        told
    })
    .await;
}

/// The upstream may have closed it just then, before it got the request or after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_that_breaks() {
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 0 } } }
routes: [{ name: once, methods: [GET, POST], path: /once, upstream: one }]
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for method in ["GET", "POST"] {
            // The gateway keeps a connection a moment after it has passed the answer on.
            edge.until("a connection is used again", async || {
                edge.a.requests.tell(&[StayOpen, HangUp], Answer(200));
                edge.get("/once").await.is("200 a");
                let answer =
                    if method == "POST" { edge.post("/once").await } else { edge.get("/once").await };
                let taken = edge.a.requests.taken();
                if !taken[1].on_old {
                    return false;
                }
                let (verdict, asked) = match (method, OLD_CONNECTION.of(edge.kind)) {
                    ("GET", None) => ("200 a", 3),
                    ("GET", Some(verdict)) => (verdict, 2),
                    (_, _) => ("502 upstream_failed", 2),
                };
                let what = format!("{}: {method}", edge.name());
                assert_eq!((answer.verdict.as_str(), taken.len()), (verdict, asked), "{what}");
                told.extend((method == "POST").then_some(answer));
                true
            })
            .await;
        }
        told
    })
    .await;
}
