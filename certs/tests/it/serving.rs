//! Bounds and draining of a listener, over real loopback sockets.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pki::{Pki, Server, get_url, listen_within};
use certs::client::{ClientLimits, https, https_to};
use certs::serve::Limits;
use certs::{ClientAuth, Versions, client_config, server_config};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const BOUND: Duration = Duration::from_millis(300);

async fn listen(pki: &Pki, limits: Limits) -> Server {
    let alpn: [&[u8]; 2] = [b"h2", b"http/1.1"];
    listen_within(server_config(&pki.server, ClientAuth::Off, Versions::Tls13Only, &alpn).unwrap(), limits)
        .await
}

fn client(pki: &Pki) -> reqwest::Client {
    let tls = client_config(&pki.trust(), None, Versions::Tls13Only).unwrap();
    https(tls, ClientLimits::default()).unwrap()
}

/// Waits until the server hangs up, and no longer than some multiple of the bound.
async fn hung_up(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut rest = Vec::new();
    match timeout(10 * BOUND, stream.read_to_end(&mut rest)).await.expect("the server hangs up") {
        Ok(_) => {}
        Err(e) => assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{e}"),
    }
}

#[tokio::test]
async fn slow_and_broken_handshakes_hold_nobody_up() {
    let pki = Pki::new();
    let clumsy = async |handshake_timeout| {
        let server = listen(&pki, Limits { handshake_timeout, ..Limits::default() }).await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
            let mut broken = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
            broken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        (server, silent)
    };
    // After them this would be answered in an hour.
    let (server, _silent) = clumsy(Duration::from_secs(3_600)).await;
    assert_eq!(get_url(&client(&pki), server.port, "/who").await.unwrap(), "nobody");
    let (_server, silent) = clumsy(BOUND).await;
    for stream in silent {
        hung_up(stream).await;
    }
}

/// The cause of a failed call is in the log of the caller, without the URL.
#[tokio::test]
async fn a_failed_call_names_its_cause() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = listen(&pki, Limits::default()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tls = client_config(&pki.trust(), None, Versions::Tls13Only).unwrap();
    let address = ([127, 0, 0, 1], server.port).into();
    let renamed = https_to(tls, ClientLimits::default(), "other.test", address).unwrap();
    for (client, host, port, cause) in [
        (client(&pki), "localhost", closed, "Connection refused"),
        (client(&other), "localhost", server.port, "invalid peer certificate"),
        (renamed, "other.test", server.port, "certificate not valid for name"),
    ] {
        let error = client.get(format!("https://{host}:{port}/secret")).send().await.unwrap_err();
        let text = certs::client::cause(error);
        assert!(text.contains(cause) && !text.contains("/secret"), "{text}");
    }
}

#[tokio::test]
async fn over_the_bound_connections_wait_for_a_place() {
    let pki = Pki::new();
    let limits = Limits { max_connections: 1, handshake_timeout: BOUND, ..Limits::default() };
    let server = listen(&pki, limits).await;
    let _silent = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let started = Instant::now();
    assert_eq!(get_url(&client(&pki), server.port, "/who").await.unwrap(), "nobody");
    assert!(started.elapsed() >= BOUND * 9 / 10, "the place came free with the handshake's end");
}

#[tokio::test]
async fn an_unfinished_head_is_cut_off() {
    let pki = Pki::new();
    let server = listen(&pki, Limits { header_read_timeout: BOUND, ..Limits::default() }).await;
    let tls = client_config(&pki.trust(), None, Versions::Tls13Only).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    for sent in ["", "GET /who HTTP/1.1\r\nHost: lo"] {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        hung_up(stream).await;
    }
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight() {
    let pki = Pki::new();
    let server = listen(&pki, Limits::default()).await;
    let client = client(&pki);
    let in_flight = tokio::spawn({
        let client = client.clone();
        let port = server.port;
        async move { get_url(&client, port, "/slow").await }
    });
    sleep(Duration::from_millis(150)).await;
    server.stop.send(()).unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(("127.0.0.1", server.port)).await.is_err(), "nobody new is let in");
    assert_eq!(in_flight.await.unwrap().unwrap(), "finished");
    timeout(Duration::from_secs(2), server.done).await.expect("drained").unwrap().unwrap();
}

#[tokio::test]
async fn draining_ends_when_its_time_is_up() {
    let pki = Pki::new();
    let server = listen(&pki, Limits { drain_timeout: Duration::from_millis(50), ..Limits::default() }).await;
    let client = client(&pki);
    let port = server.port;
    let in_flight = tokio::spawn(async move { get_url(&client, port, "/slow").await });
    // Neither does a handshake that never ends hold it up.
    let silent = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    sleep(Duration::from_millis(150)).await;
    server.stop.send(()).unwrap();
    timeout(Duration::from_millis(200), server.done).await.expect("in time").unwrap().unwrap();
    assert!(in_flight.await.unwrap().is_err());
    hung_up(silent).await;
}
