//! `timeout_ms` is for the whole answer, however it comes: an upstream gains no time by sending a little now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::running::{Recorder, TLS, logged, pki, raw_upstream, serve, until};

/// Longer than any answer may take here; what comes to it never ends.
const LONGEST: Duration = Duration::from_secs(60);

/// Sends what begins an answer, and then a little of the rest, again and again.
async fn drip(asked: String, mut stream: TlsStream<TcpStream>) -> Option<()> {
    let (begins, drop): (&[u8], &[u8]) = match asked.split('/').nth(1).unwrap_or_default() {
        "header" => (b"HTTP/1.1 200 OK\r\nx-long: ", b"x"),
        "chunks" => (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "length" => (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x"),
        "close" => (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b"x"),
        "stalls" => (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx", b""),
        "interim" => (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        _ => (b"", b""),
    };
    stream.write_all(begins).await.ok()?;
    loop {
        stream.write_all(drop).await.ok()?;
        stream.flush().await.ok()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_drips_is_over_in_time() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let port = raw_upstream(folder.path(), move |asked, stream| {
        count.fetch_add(1, Ordering::Relaxed);
        drip(asked, stream)
    })
    .await;
    let policy = format!(
        r#"
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], outlier: {{ failures: 0 }}, tls: {TLS} }} }}
routes:
  - {{ name: drips, methods: [GET], path: "/{{how}}/{{id}}", upstream: u, timeout_ms: 300, retries: 2 }}
  - name: held
    methods: [GET]
    path: "/{{how}}/{{id}}/held"
    upstream: u
    timeout_ms: 300
    filters: {{ signing: {{ to_client: {{ key: acme-1 }} }} }}
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    let trust = certs::Trust::load(&folder.path().join("edge-ca.pem")).unwrap();
    let mut older = certs::client_config(&trust, None, certs::Versions::Tls12And13).unwrap();
    older.alpn_protocols = vec![b"http/1.1".to_vec()];
    let older = certs::client::https(older, certs::client::ClientLimits::default()).unwrap();
    let before = taken.load(Ordering::Relaxed);
    let mut asked = 0;
    for (protocol, http) in [("h1", &older), ("h2", &gateway.http)] {
        for (how, expected) in [
            ("header", (504, "")),
            ("silent", (504, "")),
            ("interim", (504, "")),
            ("chunks", (200, "time_over")),
            ("length", (200, "time_over")),
            ("close", (200, "time_over")),
            ("stalls", (200, "time_over")),
            // What the edge holds until it is whole has not begun.
            ("header/held", (504, "")),
            ("chunks/held", (504, "")),
        ] {
            let (how, held) = how.split_once('/').map_or((how, ""), |(how, _)| (how, "/held"));
            let path = format!("/{how}/{protocol}{held}");
            let told = async {
                let answer = http.get(format!("{}{path}", gateway.url)).send().await.unwrap();
                (answer.status().as_u16(), answer.bytes().await)
            };
            let (status, body) = tokio::time::timeout(LONGEST, told).await.expect(&path);
            assert_eq!(status, expected.0, "{path}");
            match body {
                Ok(body) => {
                    assert_eq!(status, 504, "{path}: the client takes half an answer for a whole one");
                    let problem: Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(problem["code"], "upstream_timeout", "{path}");
                }
                Err(_) => assert_eq!(status, 200, "{path}: the refusal broke off"),
            }
            until(&path, async || !logged(folder.path(), &path).is_empty()).await;
            let route = if held.is_empty() { "drips" } else { "held" };
            let line = (route.to_owned(), expected.0.into(), expected.1.to_owned());
            assert_eq!(logged(folder.path(), &path), [line], "{path}");
            asked += 1;
            assert_eq!(
                taken.load(Ordering::Relaxed),
                before + asked,
                "{path}: there is no time to ask again"
            );
        }
    }
    assert_eq!(gateway.metric("gateway_requests_in_flight ").await, 0.0);
}

/// A connection whose answers were whole in time is the next request's, however late that comes.
#[tokio::test]
async fn an_answer_in_time_leaves_its_connection_alone() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let u = Recorder::start(folder.path(), "u").await;
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }} }}
routes: [{{ name: r, methods: [GET, HEAD], path: /r, upstream: u, timeout_ms: 500 }}]
"#,
        u.port
    );
    let gateway = serve(folder.path(), &policy).await;
    let url = format!("{}/r", gateway.url);
    let mut connections = Vec::new();
    for _ in 0..3 {
        let answer: Value = gateway.http.get(&url).send().await.unwrap().json().await.unwrap();
        connections.push(answer[":peer"].as_str().unwrap().to_owned());
        // By then it is free again, and the time of its answer is over.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(gateway.http.head(&url).send().await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    connections.dedup();
    assert_eq!(connections.len(), 1, "{connections:?}");
}
