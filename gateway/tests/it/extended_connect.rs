//! WebSockets over HTTP/2 (RFC 8441) through a real gateway.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::running::{Gateway, TLS, connect, logged, pki, raw_upstream, serve, until};

const LONGEST: Duration = Duration::from_secs(30);

/// Opens the WebSocket and repeats what comes, unless the path says otherwise.
async fn answer(asked: String, mut stream: TlsStream<TcpStream>) -> Option<()> {
    let field = |name: &str| {
        let mut lines = asked.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let is_upgrade = asked.starts_with("GET ") && field("upgrade").as_deref() == Some("websocket");
    let key = field("sec-websocket-key").filter(|_| is_upgrade)?;
    let hash =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let accept = if asked.contains("/wrong-key") { "AAAA".to_owned() } else { STANDARD.encode(hash) };
    if asked.contains("/refused") {
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await.ok()?;
        return stream.shutdown().await.ok();
    }
    let opens = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: chat\r\n\r\n"
    );
    stream.write_all(opens.as_bytes()).await.ok()?;
    stream.flush().await.ok()?;
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await.ok()?;
    write.shutdown().await.ok()
}

async fn start(folder: &TempDir) -> Gateway {
    pki(folder.path());
    let port = raw_upstream(folder.path(), answer).await;
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], outlier: {{ failures: 0 }}, tls: {TLS} }} }}
routes:
  - {{ name: plain, methods: [GET], path: /plain, upstream: u }}
  - {{ name: closed, methods: [GET], path: /closed, upstream: u, websocket: {{}}, filters: {{ api_key: {{}} }} }}
  - {{ name: short, methods: [GET], path: /short, upstream: u, websocket: {{ most_s: 1 }} }}
  - {{ name: ws, methods: [GET], path: "/{{word}}", upstream: u, websocket: {{}} }}
clients: {{ c: {{ api_keys: [{{ id: k, sha256: "{}" }}] }} }}
"#,
        "0".repeat(64)
    );
    serve(folder.path(), &policy).await
}

type Client = h2::client::SendRequest<Bytes>;

/// A connection over HTTP/2 that has read the gateway's settings.
async fn client(folder: &TempDir, gateway: &Gateway) -> Client {
    let stream = connect(folder.path(), gateway, None, b"h2").await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let client = client.ready().await.unwrap();
    until("the settings have come", async || client.is_extended_connect_protocol_enabled()).await;
    client
}

async fn ask(
    client: &mut Client,
    method: Method,
    path: &str,
    protocol: Option<&'static str>,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    let mut request =
        Request::builder().method(method).uri(format!("https://localhost{path}")).body(()).unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let (response, sends) = client.send_request(request, false).unwrap();
    (timeout(LONGEST, response).await.unwrap().unwrap(), sends)
}

async fn hear(response: &mut Response<RecvStream>, length: usize) -> Vec<u8> {
    let mut heard = Vec::new();
    while heard.len() < length {
        let bytes = timeout(LONGEST, response.body_mut().data()).await.unwrap().unwrap().unwrap();
        response.body_mut().flow_control().release_capacity(bytes.len()).unwrap();
        heard.extend_from_slice(&bytes);
    }
    heard
}

/// Waits until the stream has ended, with nothing more in it.
async fn ended(response: &mut Response<RecvStream>) {
    while let Some(Ok(bytes)) = timeout(LONGEST, response.body_mut().data()).await.unwrap() {
        assert!(bytes.is_empty(), "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_are_open_on_one_connection_beside_requests() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(&folder).await;
    let mut client = client(&folder, &gateway).await;
    let mut open = Vec::new();
    for number in 0..3 {
        let (response, sends) = ask(&mut client, Method::CONNECT, "/talk", Some("websocket")).await;
        assert_eq!(response.status(), StatusCode::OK, "{number}");
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        open.push((response, sends));
    }
    // More than a window, both ways.
    let long = Bytes::from(vec![b'x'; 200_000]);
    for (response, sends) in &mut open {
        sends.send_data(long.clone(), false).unwrap();
        assert_eq!(hear(response, long.len()).await, long);
    }
    let (refused, _) = ask(&mut client, Method::GET, "/nowhere/else", None).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    for (mut response, mut sends) in open {
        sends.send_data(Bytes::from_static(b"bye"), false).unwrap();
        assert_eq!(hear(&mut response, 3).await, b"bye");
        sends.send_data(Bytes::new(), true).unwrap();
        ended(&mut response).await;
    }
    until("all have ended", async || logged(folder.path(), "/talk").len() == 3).await;
    assert_eq!(logged(folder.path(), "/talk"), [(); 3].map(|()| ("ws".to_owned(), 200, String::new())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_opened_has_a_response_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(&folder).await;
    let mut client = client(&folder, &gateway).await;
    for (method, path, protocol, status) in [
        (Method::CONNECT, "/refused", Some("websocket"), 403),
        (Method::CONNECT, "/wrong-key", Some("websocket"), 502),
        (Method::CONNECT, "/closed", Some("websocket"), 401),
        (Method::CONNECT, "/plain", Some("websocket"), 400),
        (Method::CONNECT, "/none/such", Some("websocket"), 404),
        (Method::CONNECT, "/talk", Some("connect-udp"), 405),
        (Method::CONNECT, "/talk", Some("websocket"), 200),
    ] {
        let (response, _sends) = ask(&mut client, method.clone(), path, protocol).await;
        assert_eq!(response.status(), status, "{method} {path} {protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_ends_after_its_time_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(&folder).await;
    let mut client = client(&folder, &gateway).await;
    let (mut response, _sends) = ask(&mut client, Method::CONNECT, "/short", Some("websocket")).await;
    assert_eq!(response.status(), StatusCode::OK);
    ended(&mut response).await;
    until("it is logged", async || !logged(folder.path(), "/short").is_empty()).await;
    assert_eq!(logged(folder.path(), "/short"), [("short".to_owned(), 200, "time_over".to_owned())]);
    let (response, _sends) = ask(&mut client, Method::CONNECT, "/talk", Some("websocket")).await;
    assert_eq!(response.status(), StatusCode::OK);
}
