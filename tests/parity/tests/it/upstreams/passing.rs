//! Who is asked, who gets a copy, and what passes through a WebSocket.

use std::sync::Arc;

use parity::mint::AUTHORITY;
use parity::outcome::{FieldMap, upstream_fields};
use parity::plane::Kind;
use parity::scripted::Act::{Answer, HangUp, OpenWebSocket, Wait};
use parity::scripted::Taken;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Edge, on_both};

const MARKER: &str = "x-torana-mirror";

fn fields(taken: &Taken) -> FieldMap {
    upstream_fields(taken.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_the_request_with_a_mark() {
    let policy = "
upstreams: { u1: { addresses: [$A] }, u2: { addresses: [$B] } }
routes: [{ name: copied, methods: [GET, POST], path: '/copied/{id}', upstream: u1, mirror: { upstream: u2 } }]
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for (method, body) in [("GET", ""), ("POST", "{\"amount\":100}")] {
            edge.a.requests.tell(&[], Answer(200));
            edge.b.requests.tell(&[], Answer(500));
            let headers = json!({ "accept": "application/json", "x-harmless": "kept", MARKER: "forged" });
            let step =
                json!({ "method": method, "target": "/copied/7?b=2", "headers": headers, "body": body });
            let answer = edge.send(step).await.is("200 a");
            edge.until("the copy arrives", async || !edge.b.requests.taken().is_empty()).await;
            let [original] = edge.a.requests.taken().try_into().unwrap();
            let [copy] = edge.b.requests.taken().try_into().unwrap();
            for taken in [&original, &copy] {
                let what = (taken.method.as_str(), taken.target.as_str(), taken.body.as_slice());
                assert_eq!(what, (method, "/copied/7?b=2", body.as_bytes()), "{}", edge.name());
            }
            assert_eq!(original.field(MARKER), None, "{}", edge.name());
            assert_eq!(copy.field("x-request-id"), original.field("x-request-id"), "{}", edge.name());
            let mut expected = fields(&original);
            expected.insert(MARKER.to_owned(), vec!["1".to_owned()]);
            let mut copied = fields(&copy);
            match edge.kind {
                Kind::Gateway => {}
                // To copies Envoy adds what it adds to requests of its own, see the README.
                Kind::Envoy => {
                    let for_whom = &copied["x-forwarded-for"][0];
                    let (client, _own) = for_whom.split_once(',').unwrap();
                    let client = client.to_owned();
                    copied.insert("x-forwarded-for".to_owned(), vec![client]);
                    assert_eq!(copied.remove("x-envoy-internal"), Some(vec!["true".to_owned()]));
                }
            }
            assert_eq!(copied, expected, "{}", edge.name());
            told.push((answer, fields(&original)));
        }
        told
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gets_a_copy_delays_and_fails_nothing() {
    let policy = "
upstreams: { u1: { addresses: [$A] }, u2: { addresses: [$B] } }
routes: [{ name: copied, methods: [GET, POST], path: /copied, upstream: u1, timeout_ms: 60000, mirror: { upstream: u2 } }]
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for act in [Wait, HangUp] {
            edge.b.requests.tell(&[], act);
            told.push(edge.get("/copied").await.is("200 a"));
            told.push(edge.post("/copied").await.is("200 a"));
            edge.until("the copies arrive", async || edge.b.requests.taken().len() == 2).await;
        }
        edge.b.stop().await;
        for _ in 0..4 {
            told.push(edge.get("/copied").await.is("200 a"));
        }
        told
    })
    .await;
}

/// A canary that gets copies too: those that it keeps, and those that it hangs up on, are no requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_take_nothing_from_requests_to_the_same_upstream() {
    const COPIES: usize = 3;
    let policy = "
upstreams: { u1: { addresses: [$A] }, canary: { addresses: [$B], max_in_flight: 2, outlier: { failures: 1 } } }
routes:
  - { name: copied, methods: [GET], path: /copied, upstream: u1, timeout_ms: 60000, mirror: { upstream: canary } }
  - { name: canary, methods: [GET, POST], path: /canary, upstream: canary }
";
    on_both(policy, async |edge| {
        let mut told = Vec::new();
        for act in [Wait, HangUp] {
            edge.b.requests.tell(&[act; COPIES], Answer(200));
            for _ in 0..COPIES {
                told.push(edge.get("/copied").await.is("200 a"));
            }
            edge.until("the copies arrive", async || edge.b.requests.taken().len() == COPIES).await;
            told.push(edge.get("/canary").await.is("200 b"));
            told.push(edge.post("/canary").await.is("200 b"));
        }
        told
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_shared_by_weight() {
    let policy = "
upstreams: { u1: { addresses: [$A] }, u2: { addresses: [$B] } }
routes:
  - { name: shared, methods: [GET], path: /shared, upstreams: [{ upstream: u1, weight: 3 }, { upstream: u2, weight: 1 }] }
";
    on_both(policy, async |edge| {
        for _ in 0..120 {
            let told = edge.get("/shared").await;
            assert!(["200 a", "200 b"].contains(&told.verdict.as_str()), "{told:?}");
        }
        // Of 120 some 30: none, or half of them, come once in 10^9.
        let (a, b) = (edge.a.requests.taken().len(), edge.b.requests.taken().len());
        assert!(a + b == 120 && 0 < b && b < a, "{}: {a} and {b}", edge.name());
    })
    .await;
}

/// Asks for a WebSocket.
fn websocket(token: &Value) -> Value {
    let headers = json!({
        "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    });
    json!({ "target": "/ws", "headers": headers, "token": token })
}

impl Edge<'_> {
    /// The connection, once an answer has come, and the header of that.
    async fn open(&self, step: &Value) -> (TlsStream<TcpStream>, String) {
        let stream = TcpStream::connect(self.plane.address()).await.unwrap();
        let name = ServerName::try_from(AUTHORITY).unwrap();
        let mut stream =
            TlsConnector::from(Arc::clone(&self.world.client)).connect(name, stream).await.unwrap();
        stream.write_all(&self.bytes(step)).await.unwrap();
        stream.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap().to_lowercase())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_opens_for_whoever_may() {
    let policy = "
upstreams: { u1: { addresses: [$A], outlier: { failures: 0 } } }
routes: [{ name: ws, methods: [GET], path: /ws, upstream: u1, websocket: {}, filters: { jwt: {} } }]
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[], OpenWebSocket);
        let mut refused = Vec::new();
        for (token, verdict) in
            [(Value::Null, "401 token_missing"), (json!({ "key": "stranger" }), "401 token_signature")]
        {
            refused.push(edge.send(websocket(&token)).await.is(verdict));
        }
        assert!(edge.a.requests.taken().is_empty(), "{}: nobody else has asked", edge.name());

        let (mut stream, told) = edge.open(&websocket(&json!({}))).await;
        assert!(told.starts_with("http/1.1 101 "), "{}: {told}", edge.name());
        assert!(told.contains("\r\nupgrade: websocket\r\n"), "{}: {told}", edge.name());
        for said in ["hello", "and again"] {
            stream.write_all(said.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut heard = vec![0; said.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, said.as_bytes(), "{}", edge.name());
        }
        let [taken] = edge.a.requests.taken().try_into().unwrap();
        // What its upstream closes is closed.
        edge.a.stop().await;
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "{}", edge.name());
        (refused, fields(&taken))
    })
    .await;
}

/// One that is open ends when the token that opened it is revoked, and no other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_ends_with_its_token() {
    let policy = "
upstreams: { u1: { addresses: [$A], outlier: { failures: 0 } } }
routes:
  - name: ws
    methods: [GET]
    path: /ws
    upstream: u1
    websocket: {}
    filters: { jwt: {}, concurrency: { limits: [{ name: three, by: route, most: 3, lease_s: 3600 }] } }
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[], OpenWebSocket);
        let opened = async |id: &str| {
            let (stream, told) = edge.open(&websocket(&json!({ "claims": { "jti": id } }))).await;
            assert!(told.starts_with("http/1.1 101 "), "{}: {told}", edge.name());
            stream
        };
        let [mut first, mut then, mut other] =
            [opened("t-1").await, opened("t-2").await, opened("t-3").await];
        // By the end of the second one everybody has looked at the list again.
        for (id, revoked) in [("t-1", &mut first), ("t-2", &mut then)] {
            edge.plane.revoke(json!({ "token": id }).as_object().unwrap()).await.unwrap();
            let ends = tokio::time::timeout(super::LONGEST, revoked.read_u8()).await;
            assert!(ends.expect("it ends").is_err(), "{}: nothing but its end comes", edge.name());
        }
        other.write_all(b"still here").await.unwrap();
        other.flush().await.unwrap();
        let mut heard = [0; 10];
        other.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here", "{}", edge.name());
        // Their places are free. What does not open is no WebSocket, whatever becomes of its token.
        edge.a.requests.tell(&[], Answer(403));
        edge.until("the places are free", async || {
            let asked = edge.send(websocket(&json!({ "claims": { "jti": "t-4" } }))).await;
            asked.verdict == "403 a"
        })
        .await;
    })
    .await;
}

/// WebSockets have limits of their own, and take nothing from requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_have_their_own_limits() {
    let policy = "
upstreams: { u1: { addresses: [$A], max_in_flight: 1, max_websockets: 4, outlier: { failures: 0 } } }
routes:
  - { name: ws, methods: [GET], path: /ws, upstream: u1, websocket: { max_per_user: 2, max_per_tenant: 3 }, filters: { jwt: {} } }
  - { name: pay, methods: [GET], path: /pay, upstream: u1 }
";
    on_both(policy, async |edge| {
        let of =
            |user: &str, tenant: &str| websocket(&json!({ "claims": { "sub": user, "tenant": tenant } }));
        let mut open = Vec::new();
        let mut verdicts = Vec::new();
        // Whose, of which tenant, and what becomes of it.
        for (user, tenant, expected) in [
            ("alice", "acme", "opens"),
            ("alice", "acme", "opens"),
            ("alice", "acme", "429 websockets_limited"),
            ("bob", "acme", "opens"),
            ("carol", "acme", "429 websockets_limited"),
            ("alice", "umbrella", "opens"),
            ("dave", "umbrella", "503 upstream_overloaded"),
        ] {
            match expected {
                "opens" => {
                    edge.a.requests.tell(&[], OpenWebSocket);
                    let (stream, head) = edge.open(&of(user, tenant)).await;
                    assert!(head.starts_with("http/1.1 101 "), "{} {user} of {tenant}: {head}", edge.name());
                    open.push(stream);
                }
                refused => verdicts.push(edge.send(of(user, tenant)).await.is(refused)),
            }
        }
        edge.a.requests.tell(&[], Answer(200));
        for _ in 0..3 {
            verdicts.push(edge.get("/pay").await.is("200 a"));
        }
        // What ends frees its places.
        drop(open);
        edge.a.requests.tell(&[], Answer(403));
        edge.until("the places are free", async || edge.send(of("carol", "acme")).await.verdict == "403 a")
            .await;
        verdicts
    })
    .await;
}

/// One that is open ends when the token that opened it expires, unless the route says otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_ends_when_its_token_expires() {
    let policy = "
upstreams: { u1: { addresses: [$A], outlier: { failures: 0 } } }
routes:
  - { name: ws, methods: [GET], path: /ws, upstream: u1, websocket: {}, filters: { jwt: {} } }
  - { name: long, methods: [GET], path: /long, upstream: u1, websocket: { outlives_token: true }, filters: { jwt: {} } }
";
    on_both(policy, async |edge| {
        edge.a.requests.tell(&[], OpenWebSocket);
        let now_ms = edge.world.epoch_ms;
        let expires = |seconds: u64| json!({ "exp": now_ms / 1_000 + seconds });
        let opened = async |target: &str, claims: Value| {
            let mut asked = websocket(&json!({ "claims": claims }));
            asked["target"] = json!(target);
            let (stream, told) = edge.open(&asked).await;
            assert!(told.starts_with("http/1.1 101 "), "{}: {told}", edge.name());
            stream
        };
        let mut long = opened("/long", expires(60)).await;
        let mut later = opened("/ws", expires(600)).await;
        let mut short = opened("/ws", expires(60)).await;
        edge.plane.at(now_ms + 61_000).unwrap();
        let ends = tokio::time::timeout(super::LONGEST, short.read_u8()).await;
        assert!(ends.expect("it ends").is_err(), "{}: nothing but its end comes", edge.name());
        for stream in [&mut long, &mut later] {
            stream.write_all(b"still here").await.unwrap();
            stream.flush().await.unwrap();
            let mut heard = [0; 10];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"still here", "{}", edge.name());
        }
    })
    .await;
}
