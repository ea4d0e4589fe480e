//! Addresses that are left out, and come back.

use std::time::{Duration, Instant};

use parity::forced::{NONCE_SPENT, TRIAL};
use parity::plane::Kind;
use parity::scripted::Act::{Answer, HangUp, Wait};
use parity::scripted::Scripted;
use serde_json::json;

use super::{Edge, on_both};

const A: &str = "200 a";
const B: &str = "200 b";
const NONE: &str = "503 upstream_unreachable";

impl Edge<'_> {
    /// How often the first address has been left out so far, the only one of the upstream that ever is.
    async fn left_out(&self, upstream: &str) -> u64 {
        self.times_left_out(upstream, &self.a).await
    }

    async fn times_left_out(&self, upstream: &str, scripted: &Scripted) -> u64 {
        let (path, name) = match self.kind {
            Kind::Gateway => {
                let labels = format!("address=\"{}\",upstream=\"{upstream}\"", scripted.address);
                ("metrics", format!("gateway_ejections_total{{{labels}}} "))
            }
            Kind::Envoy => {
                ("stats", format!("cluster.{upstream}.outlier_detection.ejections_enforced_total: "))
            }
        };
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let text = http.get(format!("http://{}/{path}", self.plane.admin())).send().await.unwrap();
        let text = text.text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |value| value.parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_refuses_connections_is_left_out() {
    let policy = "
upstreams: { pair: { addresses: [$A, $B], outlier: { failures: 2, eject_ms: 600000 } } }
routes: [{ name: pair, methods: [GET, POST], path: /pair, upstream: pair }]
";
    on_both(policy, async |edge| {
        assert_eq!(edge.served_by("/pair").await, [A, B], "{}", edge.name());
        edge.a.stop().await;
        edge.until("it is left out", async || {
            edge.get("/pair").await.is(B);
            edge.post("/pair").await.is(B);
            edge.left_out("pair").await == 1
        })
        .await;
        // Its time is not over, although it is there again.
        edge.a.listen().await.unwrap();
        edge.a.requests.tell(&[], Answer(200));
        assert_eq!(edge.served_by("/pair").await, [B], "{}", edge.name());
        assert!(edge.a.requests.taken().is_empty(), "{}", edge.name());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_left_out_comes_back() {
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 1, eject_ms: 1000 } } }
routes: [{ name: one, methods: [GET], path: /one, upstream: one }]
";
    on_both(policy, async |edge| {
        edge.a.stop().await;
        let mut told = Vec::new();
        edge.until("it is left out", async || {
            told = vec![edge.get("/one").await.is(NONE)];
            edge.left_out("one").await >= 1
        })
        .await;
        edge.a.listen().await.unwrap();
        edge.until("it comes back", async || edge.get("/one").await.verdict == A).await;
        // And stays.
        told.push(edge.get("/one").await.is(A));
        told
    })
    .await;
}

/// Whatever is answered is no failure, and answers are counted from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_is_left_out() {
    const FAILURES: usize = 3;
    let policy = "
upstreams:
  slow: { addresses: [$A], outlier: { failures: 3, eject_ms: 600000 } }
  broken: { addresses: [$B], outlier: { failures: 3, eject_ms: 600000 } }
routes:
  - { name: slow, methods: [GET, POST], path: /slow, upstream: slow, timeout_ms: 300 }
  - { name: broken, methods: [GET, POST], path: /broken, upstream: broken }
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for (path, upstream, served, act, verdict) in [
            ("/slow", "slow", &edge.a, Wait, "504 upstream_timeout"),
            ("/broken", "broken", &edge.b, HangUp, "502 upstream_failed"),
        ] {
            for status in [500, 502, 503, 504] {
                served.requests.tell(&[], Answer(status));
                let answered = [edge.get(path).await, edge.post(path).await];
                assert!(answered.iter().all(|told| told.verdict.starts_with(&status.to_string())));
                // One less than would do.
                served.requests.tell(&[], act);
                told.push(edge.get(path).await.is(verdict));
                told.push(edge.post(path).await.is(verdict));
            }
            served.requests.tell(&[], Answer(503));
            told.push(edge.get(path).await);
            assert_eq!(edge.times_left_out(upstream, served).await, 0, "{}: {path}", edge.name());
            served.requests.tell(&[], act);
            for _ in 0..FAILURES {
                told.push(edge.get(path).await.is(verdict));
            }
            assert_eq!(served.requests.taken().len(), FAILURES, "{}: {path}", edge.name());
            let out = async || edge.times_left_out(upstream, served).await == 1;
            edge.until("it is left out", out).await;
            edge.until("nothing is sent there", async || edge.get(path).await.verdict == NONE).await;
            told.push(edge.get(path).await.is(NONE));
        }
        told
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_fails_the_request_that_tries_it() {
    const EJECTED: Duration = Duration::from_secs(2);
    let policy = "
upstreams: { one: { addresses: [$A], outlier: { failures: 3, eject_ms: 2000 } } }
routes: [{ name: one, methods: [GET], path: /one, upstream: one }]
";
    on_both(policy, async |edge| {
        const FAILED: &str = "502 upstream_failed";
        edge.a.requests.tell(&[], HangUp);
        for _ in 0..3 {
            edge.get("/one").await.is(FAILED);
        }
        edge.until("it is left out", async || edge.get("/one").await.verdict == NONE).await;
        edge.until("one request tries it", async || {
            let began = Instant::now();
            if edge.get("/one").await.verdict != FAILED {
                return false;
            }
            let next = edge.get("/one").await;
            // So late it would be the next one that tries it.
            let in_time = began.elapsed() < EJECTED;
            if in_time {
                next.is(TRIAL.of(edge.kind).unwrap_or(NONE));
            }
            in_time
        })
        .await;
    })
    .await;
}

/// What is refused for want of an address, or of a place, may be sent again as it was signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_spends_no_nonce() {
    let policy = "
upstreams:
  one:
    addresses: [$A]
    max_in_flight: 1
    outlier: { failures: 0 }
    health: { path: /health, interval_ms: 20, unhealthy_after: 1, healthy_after: 1 }
routes:
  - { name: open, methods: [GET], path: /open, upstream: one, timeout_ms: 60000 }
  - name: signed
    methods: [GET]
    path: /signed
    upstream: one
    filters: { signature: { signer: client, components: [\"@method\"] }, nonce: {} }
";
    on_both(policy, async |edge| {
        let signed = async |nonce: &str| {
            let components = ["@method", "@path", "@query"];
            let sign = json!({
                "key": "partner", "created": 0, "nonce": nonce, "digest": false, "components": components,
            });
            edge.send(json!({ "target": "/signed", "sign": sign })).await
        };
        let serves = async || edge.get("/open").await.verdict == A;
        let again = NONCE_SPENT.of(edge.kind).unwrap_or(A);

        edge.a.probes.tell(&[], Answer(503));
        edge.until("no address serves", async || edge.get("/open").await.verdict == NONE).await;
        let mut told = vec![signed("0123456789abcdef").await.is(NONE)];
        edge.a.probes.tell(&[], Answer(200));
        edge.until("it serves again", serves).await;
        edge.until("it is sent", async || signed("0123456789abcdef").await.verdict == again).await;

        edge.a.requests.tell(&[], Wait);
        let (held, refused) = tokio::join!(edge.get("/open"), async {
            edge.wait_at_a(1).await;
            let refused = signed("fedcba9876543210").await.is("503 upstream_overloaded");
            edge.a.requests.tell(&[], Answer(200));
            refused
        });
        told.extend([held.is(A), refused]);
        edge.until("there is room again", serves).await;
        edge.until("it is sent", async || signed("fedcba9876543210").await.verdict == again).await;
        told
    })
    .await;
}

/// A probe waits while it is looked what those before it have done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_leave_an_address_out_and_take_it_back() {
    let policy = "
upstreams:
  probed:
    addresses: [$A, $B]
    outlier: { failures: 0 }
    health: { path: /health, interval_ms: 20, timeout_ms: 60000, unhealthy_after: 3, healthy_after: 2 }
routes: [{ name: probed, methods: [GET], path: /probed, upstream: probed }]
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        let (a, b) = (&edge.a.probes, &edge.b.probes);
        for (probes, statuses, serve) in [
            (a, &[200][..], &[A, B][..]),
            (a, &[503, 503], &[A, B]),
            // What has been found is forgotten.
            (a, &[200, 503, 503], &[A, B]),
            (a, &[503], &[B]),
            (b, &[503, 503, 503], &[NONE]),
            (a, &[200], &[NONE]),
            (a, &[503, 200], &[NONE]),
            (a, &[200], &[A]),
            (b, &[200, 200], &[A, B]),
        ] {
            probes.tell(&statuses.iter().copied().map(Answer).collect::<Vec<_>>(), Wait);
            edge.until("the next probe waits", async || probes.waiting() == 1).await;
            assert_eq!(edge.served_by("/probed").await, serve, "{}: {statuses:?}", edge.name());
            if serve == [NONE] {
                told.push(edge.get("/probed").await.is(NONE));
            }
        }
        told
    })
    .await;
}
