//! HTTP/2 upstreams, with TLS and without, and what gRPC needs of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use super::nginx::Nginx;
use super::{SERVER_NAME, routes};
use crate::running::{connect, pki, serve, until};

/// Frames, one after the other.
struct Frames(std::collections::VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// What comes of a body, and its trailers.
async fn collect(mut body: Incoming) -> (Vec<u8>, Option<HeaderMap>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame.unwrap().into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (data, trailers)
}

/// Answers as a gRPC service does: the message that it was sent, and the status in trailers.
async fn echo(request: Request<Incoming>) -> Result<Response<Frames>, std::convert::Infallible> {
    let te = request.headers().get("te").cloned();
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let (message, _) = collect(request.into_body()).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-authority", authority.parse().unwrap());
    let frames = [Frame::data(message.into()), Frame::trailers(trailers)];
    let mut response = Response::new(Frames(frames.into()));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if te != Some(HeaderValue::from_static("trailers")) {
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
    }
    Ok(response)
}

/// A gRPC service without TLS; the number of connections that it was made.
async fn service() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new()).http2_only();
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
            });
        }
    });
    (port, connections)
}

#[tokio::test]
async fn trailers_of_a_response_arrive() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let (port, connections) = service().await;
    let settings = format!("addresses: [\"127.0.0.1:{port}\"], tls: off, protocol: h2c");
    let gateway = serve(folder.path(), &routes(&[("grpc", settings)])).await;
    let stream = connect(folder.path(), &gateway, None, b"h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for size in [0, 5, 60_000] {
        let message = Bytes::from(vec![7; size]);
        let request = Request::post("https://localhost/grpc/torana.Test/Echo")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Frames([Frame::data(message.clone())].into()))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let (data, trailers) = collect(response.into_body()).await;
        assert_eq!(data, message);
        let trailers = trailers.expect("the response has trailers");
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-authority"], "localhost");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1, "requests share a connection");
}

#[tokio::test]
async fn an_ordinary_server_of_http_2_is_an_upstream() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let nginx = Nginx::start(folder.path(), "").await;
    let tls = format!("{{ server_name: {SERVER_NAME}, ca: \"file:internal-ca.pem\" }}");
    let policy = routes(&[
        (
            "h2c",
            format!(
                "addresses: [\"127.0.0.1:{}\"], tls: off, protocol: h2c, health: {{ path: / }}",
                nginx.h2c
            ),
        ),
        (
            "h2",
            format!(
                "addresses: [\"127.0.0.1:{}\"], tls: {tls}, protocol: h2, health: {{ path: / }}",
                nginx.tls
            ),
        ),
        ("http1", format!("addresses: [\"127.0.0.1:{}\"], tls: {tls}", nginx.tls)),
    ]);
    let gateway = serve(folder.path(), &policy).await;
    for (route, expected) in [("h2c", "HTTP/2.0"), ("h2", "HTTP/2.0"), ("http1", "HTTP/1.1")] {
        for method in ["GET", "POST"] {
            let url = format!("{}/{route}/x", gateway.url);
            // Without a body: this nginx answers before it has read one, resets the stream (NO_ERROR), and Pingora then
            // fails with what it had not sent yet.
            let answer = gateway.http.request(method.parse().unwrap(), url).send().await.unwrap();
            let answer: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(answer["protocol"], expected, "{route} {method}: {answer}");
            let host = gateway.url.trim_start_matches("https://");
            assert_eq!(answer["host"], host, "{route} {method}");
        }
    }
    for (name, port) in [("h2c", nginx.h2c), ("h2", nginx.tls)] {
        let line = format!("gateway_upstream_healthy{{address=\"127.0.0.1:{port}\",upstream=\"{name}\"}} ");
        until("it is probed over HTTP/2", async || gateway.metric(&line).await == 1.0).await;
    }
}

/// The time for a whole answer ends one request, and not the others of its connection.
#[tokio::test]
async fn a_slow_answer_ends_alone() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let slow = "location /slow/ { limit_rate 1k; alias FOLDER/; }"
        .replace("FOLDER", &folder.path().display().to_string());
    std::fs::write(folder.path().join("big"), vec![b'x'; 200_000]).unwrap();
    let nginx = Nginx::start(folder.path(), &slow).await;
    let policy = format!(
        "filters: {{ headers: {{}} }}\nupstreams: {{ u: {{ addresses: [\"127.0.0.1:{}\"], tls: off, protocol: h2c }} }}\nroutes:\n  \
         - {{ name: slow, methods: [GET], path: \"/slow/{{*rest}}\", upstream: u, timeout_ms: 1500 }}\n  \
         - {{ name: fast, methods: [GET], path: \"/fast/{{*rest}}\", upstream: u, timeout_ms: 30000 }}\n",
        nginx.h2c
    );
    let gateway = serve(folder.path(), &policy).await;
    let slow = gateway.http.get(format!("{}/slow/big", gateway.url)).send().await.unwrap();
    assert_eq!(slow.status(), 200);
    let body = tokio::time::timeout(Duration::from_secs(20), slow.bytes()).await.expect("it is cut off");
    assert!(body.is_err(), "a part of the answer is not the whole");
    assert_eq!(gateway.get("/fast/x", &[]).await, (200, "nginx".to_owned()));
}
