//! Addresses that are left out, and come back.

use parity::plane::Kind;
use parity::scripted::Act::{Answer, Wait};

use super::{Edge, on_both};

const A: &str = "200 a";
const B: &str = "200 b";
const NONE: &str = "503 upstream_unreachable";

impl Edge<'_> {
    /// How many addresses of the upstream have been left out so far.
    async fn left_out(&self, upstream: &str) -> u64 {
        let (path, name) = match self.kind {
            Kind::Gateway => {
                let labels = format!("address=\"{}\",upstream=\"{upstream}\"", self.a.address);
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
