//! Services of plain HTTP behind both data planes: by address and by name, with odd responses, and with large bodies.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::on_both;

/// What the service answers, by the last segment of the path.
const ANSWERS: [(&str, &str); 10] = [
    ("fine", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    ("switches", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    ("body-of-204", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello"),
    ("chunks-of-204", "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    ("empty-204", "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"),
    ("twice", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"),
    ("list", "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok"),
    ("contradiction", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"),
    (
        "fields",
        "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-internal\r\nkeep-alive: timeout=5\r\nproxy-connection: \
         keep-alive\r\nx-internal: 1\r\nx-kept: 2\r\ncontent-length: 2\r\n\r\nok",
    ),
    ("body", ""),
];

/// Starts the service on a port of its own.
async fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

/// Answers one request, and closes. Of a request for `body` it counts the bytes of the body, chunks unpacked.
async fn answer(mut stream: TcpStream) -> Option<()> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(read.get(..end)?).to_ascii_lowercase();
    let path = head.split(' ').nth(1)?;
    let (_, text) = ANSWERS.iter().find(|(name, _)| path.ends_with(name))?;
    if text.is_empty() {
        let is_chunked = head.contains("transfer-encoding: chunked");
        let length =
            head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let is_whole = |body: &[u8]| match (is_chunked, length) {
            (true, _) => body.ends_with(b"0\r\n\r\n"),
            (false, length) => body.len() >= length.unwrap_or(0),
        };
        while !is_whole(read.get(end + 4..)?) {
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        }
        let count = read.get(end + 4..)?.iter().filter(|byte| **byte == b'x').count();
        let counted = json!({ "upstream": "plain", "count": count }).to_string();
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{counted}", counted.len());
        stream.write_all(text.as_bytes()).await.ok()?;
    } else {
        stream.write_all(text.as_bytes()).await.ok()?;
    }
    stream.shutdown().await.ok()
}

/// Routes to the service: by address, by name, and with bodies that are forwarded as they arrive.
fn policy(service: SocketAddr) -> String {
    format!(
        r#"
upstreams:
  plain: {{ addresses: ["{service}"], tls: "off", outlier: {{ failures: 0 }} }}
  named: {{ addresses: ["localhost:{}"], tls: "off", outlier: {{ failures: 0 }} }}
routes:
  - {{ name: plain, methods: [GET], path: "/plain/{{name}}", upstream: plain }}
  - {{ name: named, methods: [GET], path: "/named/{{name}}", upstream: named }}
  - {{ name: stream, methods: [POST], path: "/stream/{{name}}", upstream: plain, filters: {{ shape: {{ max_body_bytes: 500000, content_types: [text/plain] }} }} }}
"#,
        service.port()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_service_is_reached_by_address_and_by_name() {
    let service = service().await;
    on_both(&policy(service), async |edge| {
        for route in ["plain", "named"] {
            edge.get(&format!("/{route}/fine")).await.is("200 -");
        }
        let fields = edge.get("/plain/fields").await.is("200 -").fields;
        assert_eq!(fields.get("x-kept"), Some(&vec!["2".to_owned()]), "{}", edge.name());
        for name in ["keep-alive", "proxy-connection", "x-internal"] {
            assert_eq!(fields.get(name), None, "{}", edge.name());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_read_in_two_ways_becomes_502() {
    let service = service().await;
    on_both(&policy(service), async |edge| {
        for (name, verdict) in [
            ("fine", "200 -"),
            ("empty-204", "204 -"),
            ("switches", "502 upstream_failed"),
            ("body-of-204", "502 upstream_failed"),
            ("chunks-of-204", "502 upstream_failed"),
            ("twice", "502 upstream_failed"),
            ("list", "502 upstream_failed"),
            ("contradiction", "502 upstream_failed"),
        ] {
            let told = edge.get(&format!("/plain/{name}")).await;
            assert_eq!(told.verdict, verdict, "{} {name}", edge.name());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_are_forwarded_as_they_arrive() {
    let service = service().await;
    on_both(&policy(service), async |edge| {
        for framing in ["length", "chunked"] {
            for (length, verdict, count) in
                [(400_000, "200 plain", json!(400_000)), (600_000, "413 body_too_large", Value::Null)]
            {
                let mut fields = json!({ "content-type": "text/plain" });
                if framing == "chunked" {
                    fields["transfer-encoding"] = json!("chunked");
                }
                let step =
                    json!({ "method": "POST", "target": "/stream/body", "headers": fields, "long_body": length });
                let told = edge.send(step).await;
                let at = format!("{} {framing} {length}", edge.name());
                assert_eq!((told.verdict.as_str(), &told.body["count"]), (verdict, &count), "{at}");
            }
        }
    })
    .await;
}
