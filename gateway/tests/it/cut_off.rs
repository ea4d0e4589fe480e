//! Exchanges that end before their answer does: each is counted and logged once, and leaves its place to the next.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use certs::Identity;
use certs::pki::{Authority, Leaf};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream;

use crate::running::{
    ASKS_FOR_WEBSOCKET, Gateway, OPENS_WEBSOCKET, TLS, connect, header, logged, pki, raw_upstream, revoke,
    serve_on, until,
};

/// An upstream that answers as the path says: never, without end, with a WebSocket, or not as much as it promised.
async fn answer(asked: String, mut stream: TlsStream<TcpStream>) -> Option<()> {
    let word = asked.split('/').nth(1).unwrap_or_default();
    let (answer, ends): (&[u8], bool) = match word {
        "plain" => {
            (b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{\":name\":\"u\"}", true)
        }
        "stream" => (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", false),
        "broken" => (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", true),
        "ws" => (OPENS_WEBSOCKET, false),
        _ => (b"", false),
    };
    stream.write_all(answer).await.ok()?;
    stream.flush().await.ok()?;
    if word == "ws" {
        let (mut read, mut write) = tokio::io::split(stream);
        return tokio::io::copy(&mut read, &mut write).await.ok().map(drop);
    }
    if !ends {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    stream.shutdown().await.ok()
}

/// How an exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    HangsUp,
    Revoked,
    /// By the upstream, or by the edge's own bounds.
    ByItself,
}

struct House {
    folder: TempDir,
    gateway: Gateway,
}

impl House {
    async fn start(state: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki(folder.path());
        let port = raw_upstream(folder.path(), answer).await;
        let tls = r#"{ certificate: "file:edge.pem", key: "file:edge.key",
            client_certificates: { ca: "file:partner-ca.pem", crl: "file:partner-ca.crl" } }"#;
        // Leases that no test outlives: a place that comes free was given back.
        let policy = format!(
            r#"{state}
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], outlier: {{ failures: 1 }}, tls: {TLS} }} }}
filters: {{ concurrency: {{ limits: [{{ name: one, by: ip, most: 1, lease_s: 3600 }}] }} }}
routes:
  - {{ name: plain, methods: [GET], path: "/plain/{{id}}", upstream: u }}
  - {{ name: next, methods: [GET], path: "/next/{{id}}", rewrite: /plain/next, upstream: u }}
  - {{ name: silent, methods: [GET], path: "/silent/{{id}}", upstream: u, timeout_ms: 600000 }}
  - name: signed
    methods: [GET]
    path: "/signed/{{id}}"
    rewrite: /silent/signed
    upstream: u
    timeout_ms: 600000
    filters: {{ signing: {{ to_client: {{ key: acme-1 }} }} }}
  - {{ name: stream, methods: [GET], path: "/stream/{{id}}", upstream: u, timeout_ms: 600000 }}
  - {{ name: broken, methods: [GET], path: "/broken/{{id}}", upstream: u }}
  - {{ name: upload, methods: [POST], path: "/upload/{{id}}", upstream: u, timeout_ms: 600000 }}
  - {{ name: ws, methods: [GET], path: "/ws/{{id}}", upstream: u, websocket: {{ idle_timeout_ms: 600000, most_s: 600 }} }}
  - {{ name: unopened, methods: [GET], path: "/unopened/{{id}}", upstream: u, websocket: {{ idle_timeout_ms: 600000 }} }}
  - {{ name: brief, methods: [GET], path: "/brief/{{id}}", rewrite: /ws/brief, upstream: u, websocket: {{ most_s: 3 }} }}
"#
        );
        let gateway = serve_on(folder.path(), &tls.replace('\n', " "), &policy).await;
        Self { folder, gateway }
    }

    async fn knows_the_state(&self) {
        until("the shared state is known", async || self.gateway.metric("gateway_redis_up").await > 0.0)
            .await;
    }

    /// A client's connection, with a certificate of its own of that name.
    async fn connect(&self, name: &str, protocol: &[u8]) -> ClientStream<TcpStream> {
        let at = |name: &str| self.folder.path().join(name);
        let ca = Authority::load(&at("partner-ca.pem"), &at("partner-ca.key")).unwrap();
        ca.issue(&Leaf::new(name, &[name])).unwrap().write(self.folder.path(), name).unwrap();
        let identity = Identity::load(&at(&format!("{name}.pem")), &at(&format!("{name}.key"))).unwrap();
        connect(self.folder.path(), &self.gateway, Some(&identity), protocol).await
    }

    /// The lines of the access log about a path: route, status and what cut it off.
    fn logged(&self, path: &str) -> Vec<(String, u64, String)> {
        logged(self.folder.path(), path)
    }

    /// An exchange of a route is begun, ends like that, and is told of like this.
    async fn check(&self, id: usize, route: &str, end: End, expected: (u64, &str)) {
        let (name, path) = (format!("guest-{id}"), format!("/{route}/{id}"));
        let mut client = self.connect(&name, b"http/1.1").await;
        let (method, more) = match route {
            "upload" => ("POST", "content-type: application/json\r\ncontent-length: 9\r\n\r\n{"),
            "ws" | "brief" | "unopened" => ("GET", ASKS_FOR_WEBSOCKET),
            _ => ("GET", "connection: close\r\n\r\n"),
        };
        let before = self.counted(route, method, expected.0).await;
        let asked = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{more}");
        client.write_all(asked.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        if expected.0 != 0 && route != "upload" {
            header(&mut client).await.unwrap();
            if matches!(route, "ws" | "brief") {
                let mut heard = [0; 2];
                client.write_all(b"hi").await.unwrap();
                client.read_exact(&mut heard).await.unwrap();
                assert_eq!(&heard, b"hi");
            }
        } else {
            until("it is in flight", async || self.gateway.metric("gateway_requests_in_flight ").await > 0.0)
                .await;
        }
        match end {
            End::HangsUp => {
                let _ = client.shutdown().await;
                drop(client);
            }
            End::Revoked => {
                revoke(self.folder.path(), "partner-ca", &name);
                let _ = client.read_to_end(&mut Vec::new()).await;
            }
            End::ByItself => drop(client.read_to_end(&mut Vec::new()).await),
        }
        let what = format!("{route}, {end:?}");
        until(&what, async || !self.logged(&path).is_empty()).await;
        // The place is the next one's at once, and nothing of the last is told later.
        until(&what, async || self.gateway.get(&format!("/next/{id}"), &[]).await.0 == 200).await;
        assert_eq!(self.logged(&path), [(route.to_owned(), expected.0, expected.1.to_owned())], "{what}");
        assert_eq!(self.counted(route, method, expected.0).await, before + 1.0, "{what}");
        // The next one is answered a little before it has ended.
        until(&what, async || self.gateway.metric("gateway_requests_in_flight ").await == 0.0).await;
    }

    async fn counted(&self, route: &str, method: &str, status: u64) -> f64 {
        let labels = format!(r#"{{method="{method}",route="{route}",status="{status}"}}"#);
        self.gateway.metric(&format!("gateway_requests_total{labels}")).await
    }
}

const CASES: [(&str, End, (u64, &str)); 14] = [
    ("silent", End::HangsUp, (0, "client_gone")),
    ("silent", End::Revoked, (0, "client_revoked")),
    // The edge asks for the whole of an answer that it signs.
    ("signed", End::HangsUp, (0, "client_gone")),
    ("signed", End::Revoked, (0, "client_revoked")),
    ("stream", End::HangsUp, (200, "client_gone")),
    ("stream", End::Revoked, (200, "client_revoked")),
    ("broken", End::ByItself, (200, "upstream_broke")),
    ("upload", End::HangsUp, (400, "")),
    ("upload", End::Revoked, (0, "client_revoked")),
    ("unopened", End::HangsUp, (0, "client_gone")),
    // Who has had enough of a WebSocket ends it so.
    ("ws", End::HangsUp, (101, "")),
    ("ws", End::Revoked, (101, "client_revoked")),
    ("brief", End::ByItself, (101, "time_over")),
    ("plain", End::ByItself, (200, "")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_is_told_once_and_holds_nothing() {
    let house = House::start("").await;
    for (id, (route, end, expected)) in CASES.into_iter().enumerate() {
        house.check(id, route, end, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_where_places_are_shared() {
    let redis_folder = tempfile::tempdir().unwrap();
    let redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    let house = House::start(&shared(redis_folder.path(), &redis)).await;
    house.knows_the_state().await;
    for (id, (route, end, expected)) in CASES.into_iter().enumerate() {
        house.check(id, route, end, expected).await;
    }
}

/// What the edge does not wait for as it stops is told of, and holds nothing at the edge that comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_as_the_edge_stops() {
    let redis_folder = tempfile::tempdir().unwrap();
    let redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    for (route, status) in [("silent", 0), ("signed", 0), ("stream", 200), ("ws", 101)] {
        let mut house = House::start(&shared(redis_folder.path(), &redis)).await;
        house.knows_the_state().await;
        let path = format!("/{route}/1");
        let mut client = house.connect("guest", b"http/1.1").await;
        let more = if route == "ws" { ASKS_FOR_WEBSOCKET } else { "\r\n" };
        client
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}").as_bytes())
            .await
            .unwrap();
        client.flush().await.unwrap();
        if status != 0 {
            header(&mut client).await.unwrap();
        }
        until("it is in flight", async || house.gateway.metric("gateway_requests_in_flight ").await > 0.0)
            .await;
        assert_eq!(house.gateway.get("/next/1", &[]).await.0, 429, "{route}: it holds the place");
        let stops = std::process::Command::new("kill").arg(house.gateway.child.id().to_string()).status();
        assert!(stops.unwrap().success());
        let ended = tokio::task::spawn_blocking(move || {
            house.gateway.child.wait().unwrap();
            house
        });
        let house = ended.await.unwrap();
        assert_eq!(house.logged(&path), [(route.to_owned(), status, "edge_stopped".to_owned())], "{route}");
        let next = House::start(&shared(redis_folder.path(), &redis)).await;
        next.knows_the_state().await;
        assert_eq!(next.gateway.get("/next/1", &[]).await.0, 200, "{route}: its place is free");
    }
}

/// Where the edges of a test remember together.
fn shared(folder: &Path, redis: &engines::Redis) -> String {
    let at = folder.join("redis.url");
    certs::file::write_secret(&at, &redis.url()).unwrap();
    format!(r#"state: {{ redis: {{ url: "file:{}", timeout_ms: 5000 }} }}"#, at.display())
}

/// On HTTP/2 requests end apart from their connection and with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_many_is_cut_off_like_a_connection() {
    let house = House::start("").await;
    for (id, route, end, expected) in [
        (0, "silent", End::HangsUp, (0, "client_gone")),
        (1, "silent", End::Revoked, (0, "client_revoked")),
        (2, "stream", End::HangsUp, (200, "client_gone")),
        (3, "stream", End::Revoked, (200, "client_revoked")),
        (4, "signed", End::HangsUp, (0, "client_gone")),
        (5, "signed", End::Revoked, (0, "client_revoked")),
        (6, "upload", End::HangsUp, (0, "client_gone")),
        (7, "upload", End::Revoked, (0, "client_revoked")),
    ] {
        let (name, path) = (format!("guest-{id}"), format!("/{route}/{id}"));
        drop(house.connect(&name, b"h2").await);
        let http = crate::running::client(house.folder.path(), Some(&name));
        let url = format!("{}{path}", house.gateway.url);
        let asked = match route {
            "upload" => {
                let body = reqwest::Body::wrap(Unfinished(Some(Bytes::from_static(b"{"))));
                http.post(url).header("content-type", "application/json").body(body)
            }
            _ => http.get(url),
        };
        let (begun, begins) = tokio::sync::oneshot::channel();
        let asking = tokio::spawn(async move {
            let Ok(answer) = asked.send().await else { return };
            begun.send(()).unwrap();
            let _ = answer.bytes().await;
        });
        match route {
            "stream" => begins.await.unwrap(),
            _ => {
                until("it is in flight", async || {
                    house.gateway.metric("gateway_requests_in_flight ").await > 0.0
                })
                .await;
            }
        }
        match end {
            End::HangsUp => asking.abort(),
            End::Revoked => revoke(house.folder.path(), "partner-ca", &name),
            End::ByItself => {}
        }
        until(&path, async || !house.logged(&path).is_empty()).await;
        until(&path, async || house.gateway.get(&format!("/plain/{id}"), &[]).await.0 == 200).await;
        assert_eq!(house.logged(&path), [(route.to_owned(), expected.0, expected.1.to_owned())]);
    }
    // Whose client is gone is no failure of the upstream's.
    let failed = r#"gateway_refusals_total{code="upstream_failed",filter="edge"}"#;
    assert_eq!(house.gateway.metric(failed).await, 0.0);
}

/// A body of which nothing more comes.
struct Unfinished(Option<Bytes>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}
