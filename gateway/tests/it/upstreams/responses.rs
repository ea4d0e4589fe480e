//! Responses that must not be passed on as they are, and connections that an upstream closes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{SERVER_NAME, routes};
use crate::running::{connect, header, pki, raw_upstream, serve};

/// A server of plain HTTP that answers a path with these bytes, and closes.
async fn scripted(answers: &[(&'static str, &'static str)]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: HashMap<&str, &str> = answers.iter().copied().collect();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let asked = header(&mut stream).await?;
                let path = asked.split(' ').nth(1)?;
                let answer = answers.get(path.rsplit('/').next()?)?;
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    port
}

const ANSWERS: [(&str, &str); 8] = [
    ("fine", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    ("switches", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    ("body-of-204", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello"),
    ("chunks-of-204", "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    ("empty-204", "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"),
    ("twice", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"),
    ("list", "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok"),
    ("contradiction", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"),
];

#[tokio::test]
async fn what_can_be_read_in_two_ways_becomes_502() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let port = scripted(&ANSWERS).await;
    // The answer of the second is held until it is whole.
    let policy = routes(&[(
        "passed",
        format!("addresses: [\"127.0.0.1:{port}\"], tls: off, outlier: {{ failures: 0 }}"),
    )]);
    let policy = format!(
        "clients: {{ edge: {{ hmac_keys: [{{ id: edge-1, secret: \"env:ACME_SECRET\" }}] }} }}\n{policy}  - {{ name: held, \
         methods: [GET], path: \"/held/{{*rest}}\", upstream: passed, timeout_ms: 5000, filters: {{ signing: {{ \
         to_client: {{ client: edge }} }} }} }}\n"
    );
    let gateway = serve(folder.path(), &policy).await;
    for route in ["passed", "held"] {
        for (name, expected) in [
            ("fine", 200),
            ("empty-204", 204),
            ("switches", 502),
            ("body-of-204", 502),
            ("chunks-of-204", 502),
            ("twice", 502),
            ("list", 502),
            ("contradiction", 502),
        ] {
            let answer = gateway.http.get(format!("{}/{route}/{name}", gateway.url)).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), expected, "{route} {name}");
            if expected == 204 {
                assert!(!answer.headers().contains_key("transfer-encoding"), "{:?}", answer.headers());
            }
        }
    }
}

/// A response to HEAD has the length of GET's (RFC 9110 section 8.6), also where the edge holds and signs the response.
#[tokio::test]
async fn a_response_to_head_keeps_the_length_that_the_upstream_names() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let answers = [
        ("sized", "HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n"),
        ("unsized", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
    ];
    let port = scripted(&answers).await;
    let policy = routes(&[(
        "passed",
        format!("addresses: [\"127.0.0.1:{port}\"], tls: off, outlier: {{ failures: 0 }}"),
    )]);
    let policy = format!(
        "clients: {{ edge: {{ hmac_keys: [{{ id: edge-1, secret: \"env:ACME_SECRET\" }}] }} }}\n{policy}  - {{ name: held, \
         methods: [GET], path: \"/held/{{*rest}}\", upstream: passed, timeout_ms: 5000, filters: {{ signing: {{ \
         to_client: {{ client: edge }} }} }} }}\n"
    );
    let gateway = serve(folder.path(), &policy).await;
    for route in ["passed", "held"] {
        for (name, expected) in [("sized", Some("21")), ("unsized", None)] {
            let mut stream = connect(folder.path(), &gateway, None, b"http/1.1").await;
            let request = format!("HEAD /{route}/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let response = header(&mut stream).await.unwrap().to_ascii_lowercase();
            assert_eq!(response.split(' ').nth(1), Some("200"), "{route} {name}: {response}");
            let length = response.lines().find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(length, expected, "{route} {name}: {response}");
        }
    }
}

#[tokio::test]
async fn fields_of_the_upstreams_connection_are_not_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let answer = "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-internal\r\nkeep-alive: timeout=5\r\n\
        proxy-connection: keep-alive\r\nx-internal: 1\r\nx-kept: 2\r\ncontent-length: 2\r\n\r\nok";
    let port = scripted(&[("fields", answer)]).await;
    let gateway = serve(
        folder.path(),
        &routes(&[("u", format!("addresses: [\"127.0.0.1:{port}\"], tls: off, outlier: {{ failures: 0 }}"))]),
    )
    .await;
    let answer = gateway.http.get(format!("{}/u/fields", gateway.url)).send().await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    let names = answer.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect::<Vec<_>>();
    let over_h2 = names.join("\n");
    let mut stream = connect(folder.path(), &gateway, None, b"http/1.1").await;
    stream.write_all(b"GET /u/fields HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let over_h1 = header(&mut stream).await.unwrap().to_ascii_lowercase();
    for told in [over_h2, over_h1] {
        for name in ["keep-alive", "proxy-connection", "x-internal"] {
            let is_there = told.lines().any(|line| line.starts_with(&format!("{name}:")));
            assert!(!is_there, "{name}: {told}");
        }
        assert!(told.contains("x-kept"), "{told}");
    }
}

/// An upstream that keeps its first connection after a response, and closes it without `close_notify` on the next
/// request. Tells how many requests it has seen.
async fn closes_reused(folder: &std::path::Path) -> (u16, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let port = raw_upstream(folder, move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n").await.ok()?;
            stream.write_all(b"{\":name\": \"upstream\"}").await.ok()?;
            stream.flush().await.ok()?;
            header(&mut stream).await?;
            count.fetch_add(1, Ordering::Relaxed);
            // What a killed process leaves behind: a FIN, and nothing of TLS.
            drop(stream);
            Some(())
        }
    })
    .await;
    (port, seen)
}

#[tokio::test]
async fn a_get_survives_an_old_connection_that_ends_with_a_bare_fin() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    for (method, expected) in [("GET", (200, 3)), ("POST", (502, 2))] {
        let (port, seen) = closes_reused(folder.path()).await;
        let tls = format!(
            "{{ server_name: {SERVER_NAME}, ca: \"file:internal-ca.pem\", certificate: \"file:gateway.pem\", key: \
             \"file:gateway.key\" }}"
        );
        // One failure would leave the address out.
        let settings = format!("addresses: [\"127.0.0.1:{port}\"], tls: {tls}, outlier: {{ failures: 1 }}");
        let gateway = serve(folder.path(), &routes(&[("u", settings)])).await;
        let url = format!("{}/u/x", gateway.url);
        assert_eq!(
            gateway.http.get(&url).send().await.unwrap().text().await.unwrap(),
            "{\":name\": \"upstream\"}"
        );
        let second = gateway.http.request(method.parse().unwrap(), &url).send().await.unwrap();
        assert_eq!((second.status().as_u16(), seen.load(Ordering::Relaxed)), expected, "{method}");
        assert_eq!(
            gateway.http.get(&url).send().await.unwrap().status(),
            200,
            "it is not left out: {method}"
        );
    }
}

/// A client knows from the response whether its connection stays.
#[tokio::test]
async fn a_failure_of_the_upstream_says_whether_the_connection_closes() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let port = scripted(&ANSWERS).await;
    let policy = routes(&[
        ("u", format!("addresses: [\"127.0.0.1:{port}\"], tls: off, outlier: {{ failures: 0 }}")),
        ("away", "addresses: [\"127.0.0.1:1\"], tls: off, outlier: { failures: 0 }".to_owned()),
        (
            "left-out",
            "addresses: [\"127.0.0.1:1\"], tls: off, outlier: { failures: 1, eject_ms: 600000 }".to_owned(),
        ),
    ]);
    let gateway = serve(folder.path(), &policy).await;
    let left_out = format!("{}/left-out/x", gateway.url);
    assert_eq!(gateway.http.get(left_out).send().await.unwrap().status(), 503);
    for (path, expected, closes) in [
        ("/u/twice", "502", true),
        ("/away/x", "503", true),
        // No connection was tried for it.
        ("/left-out/x", "503", false),
        ("/u/fine", "200", false),
    ] {
        let mut stream = connect(folder.path(), &gateway, None, b"http/1.1").await;
        let asked = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nbody");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let answer = header(&mut stream).await.unwrap_or_default();
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{path}: {answer}");
        let lower = answer.to_ascii_lowercase();
        assert_eq!(lower.contains("connection: close"), closes, "{path}: {answer}");
        let (_, rest) = lower.split_once("content-length: ").unwrap();
        let length: usize = rest.split("\r\n").next().unwrap().parse().unwrap();
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if closes {
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1)), "{path}: the connection goes on");
        } else {
            stream.write_all(asked.as_bytes()).await.unwrap();
            assert!(header(&mut stream).await.is_some(), "{path}: the connection is closed");
        }
    }
}
