//! Bodies that are forwarded as they arrive, and silence that ends a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::running::{Gateway, connect, logged, pki, serve, until};

const MIB: usize = 1024 * 1024;
const LIMIT: usize = 16 * MIB;

/// A body that is sent piece by piece.
struct Frames(mpsc::Receiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

fn body() -> (mpsc::Sender<Frame<Bytes>>, Frames) {
    let (sends, receives) = mpsc::channel(1);
    (sends, Frames(receives))
}

/// The next piece of a body.
async fn next(body: &mut Incoming) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

async fn whole(mut body: Incoming) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(frame) = next(&mut body).await {
        whole.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
    }
    whole
}

/// What an upstream has received so far of all bodies.
#[derive(Clone, Debug)]
struct Received {
    bytes: watch::Sender<usize>,
    cut_off: Arc<AtomicUsize>,
}

impl Received {
    async fn at_least(&self, bytes: usize) {
        let mut watched = self.bytes.subscribe();
        let arrives = watched.wait_for(|received| *received >= bytes);
        tokio::time::timeout(std::time::Duration::from_secs(60), arrives).await.expect("it arrives").unwrap();
    }
}

/// Counts a body, and answers with its length. `/echo` sends each piece back as it comes, and trailers at the end. `/events`
/// sends one event and then nothing.
async fn answer(request: Request<Incoming>, received: Received) -> Result<Response<Frames>, Infallible> {
    let path = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut incoming = request.into_body();
    let (sends, frames) = body();
    let mut response = Response::new(frames);
    if path == "echo" {
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        tokio::spawn(async move {
            while let Some(Ok(frame)) = next(&mut incoming).await {
                let Ok(data) = frame.into_data() else { continue };
                received.bytes.send_modify(|bytes| *bytes += data.len());
                sends.send(Frame::data(data)).await.ok()?;
            }
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            sends.send(Frame::trailers(trailers)).await.ok()
        });
        return Ok(response);
    }
    if path == "events" {
        sends.send(Frame::data(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
        tokio::spawn(async move {
            sends.closed().await;
            received.cut_off.fetch_add(1, Ordering::Relaxed);
        });
        return Ok(response);
    }
    let mut length = 0;
    while let Some(frame) = next(&mut incoming).await {
        let Ok(frame) = frame else {
            received.cut_off.fetch_add(1, Ordering::Relaxed);
            return Ok(response);
        };
        let data = frame.into_data().unwrap_or_default();
        length += data.len();
        received.bytes.send_modify(|bytes| *bytes += data.len());
    }
    sends.send(Frame::data(length.to_string().into())).await.unwrap();
    Ok(response)
}

async fn upstream() -> (u16, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = Received { bytes: watch::Sender::new(0), cut_off: Arc::default() };
    let of_all = received.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let received = of_all.clone();
            tokio::spawn(async move {
                let served = service_fn(move |request| answer(request, received.clone()));
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), served).await
            });
        }
    });
    (port, received)
}

fn policy(port: u16) -> String {
    let kinds = "[application/octet-stream, application/grpc]";
    let shape = format!("shape: {{ max_body_bytes: {LIMIT}, content_types: {kinds} }}");
    let mut text = format!(
        "upstreams:\n  h1: {{ addresses: [\"127.0.0.1:{port}\"], tls: off, outlier: {{ failures: 0 }} }}\n  h2c: {{ addresses: \
         [\"127.0.0.1:{port}\"], tls: off, protocol: h2c, outlier: {{ failures: 0 }} }}\nroutes:\n"
    );
    for upstream in ["h1", "h2c"] {
        text.push_str(&format!(
            "  - {{ name: up-{upstream}, methods: [POST], path: \"/{upstream}/{{what}}\", upstream: {upstream}, timeout_ms: \
             60000, filters: {{ {shape} }} }}\n  - {{ name: silent-{upstream}, methods: [GET], path: \
             \"/{upstream}/silent/events\", upstream: {upstream}, timeout_ms: 0, idle_timeout_ms: 300 }}\n"
        ));
    }
    text
}

struct Client {
    gateway: Gateway,
    folder: tempfile::TempDir,
    received: Received,
}

impl Client {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki(folder.path());
        let (port, received) = upstream().await;
        let gateway = serve(folder.path(), &policy(port)).await;
        Self { gateway, folder, received }
    }

    /// Sends a request with a body of which its length is not known, over HTTP/1.1 or HTTP/2.
    async fn post(&self, protocol: &[u8], path: &str, frames: Frames) -> Response<Incoming> {
        self.try_post(protocol, path, frames).await.unwrap()
    }

    async fn try_post(
        &self,
        protocol: &[u8],
        path: &str,
        frames: Frames,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let stream = connect(self.folder.path(), &self.gateway, None, protocol).await;
        let uri = format!("https://localhost{path}");
        let kind = if path.ends_with("echo") { "application/grpc" } else { "application/octet-stream" };
        let request = Request::post(if protocol == b"h2" { &uri } else { path })
            .header("content-type", kind)
            .header("host", "localhost")
            .body(frames)
            .unwrap();
        if protocol == b"h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return sender.send_request(request).await;
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    }
}

const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"h2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_is_forwarded_as_it_arrives() {
    let client = Client::start().await;
    for (protocol, upstream) in PROTOCOLS.into_iter().flat_map(|one| [(one, "h1"), (one, "h2c")]) {
        let before = *client.received.bytes.borrow();
        let (sends, frames) = body();
        let path = format!("/{upstream}/count");
        let answer = client.post(protocol, &path, frames);
        let sent = async {
            sends.send(Frame::data(Bytes::from(vec![1; 1024]))).await.unwrap();
            // The upstream has the first bytes before the client has sent the others.
            client.received.at_least(before + 1024).await;
            for _ in 1..LIMIT / MIB {
                sends.send(Frame::data(Bytes::from(vec![1; MIB]))).await.unwrap();
            }
            drop(sends);
        };
        let (answer, ()) = tokio::join!(answer, sent);
        assert_eq!(answer.status(), 200, "{path}");
        let told = whole(answer.into_body()).await;
        assert_eq!(told, (LIMIT - MIB + 1024).to_string().into_bytes(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_holds_for_a_body_without_a_length() {
    let client = Client::start().await;
    for (count, (protocol, upstream)) in
        PROTOCOLS.into_iter().flat_map(|one| [(one, "h1"), (one, "h2c")]).enumerate()
    {
        let (sends, frames) = body();
        let path = format!("/{upstream}/count");
        let answer = client.post(protocol, &path, frames);
        let sent = async {
            for _ in 0..=LIMIT / MIB {
                // The gateway stops reading once the limit is passed.
                if sends.send(Frame::data(Bytes::from(vec![1; MIB]))).await.is_err() {
                    break;
                }
            }
            drop(sends);
        };
        let (answer, ()) = tokio::join!(answer, sent);
        assert_eq!(answer.status(), 413, "{path}");
        let told = whole(answer.into_body()).await;
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(told["code"], "body_too_large");
        assert_eq!(told["detail"], format!("A body here has at most {LIMIT} bytes."));
        until("the upstream's request is cut off", async || {
            client.received.cut_off.load(Ordering::Relaxed) == count + 1
        })
        .await;
    }
}

/// A gRPC stream in both directions: each message is answered before the next one is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bidirectional_stream_flows_both_ways() {
    let client = Client::start().await;
    let (sends, frames) = body();
    let (mut told, mut answer) = (0, None);
    let begins = async { answer = Some(client.post(b"h2", "/h2c/echo", frames).await) };
    // The header of the response comes before any message was sent.
    tokio::time::timeout(std::time::Duration::from_secs(60), begins).await.expect("the response begins");
    let mut answer = answer.unwrap().into_body();
    for message in 0..20_u8 {
        sends.send(Frame::data(Bytes::from(vec![message; 10_000]))).await.unwrap();
        let mut got = 0;
        while got < 10_000 {
            let data = next(&mut answer).await.unwrap().unwrap().into_data().unwrap();
            assert!(data.iter().all(|byte| *byte == message));
            got += data.len();
        }
        told += got;
    }
    drop(sends);
    let trailers = loop {
        match next(&mut answer).await.expect("trailers").unwrap().into_trailers() {
            Ok(trailers) => break trailers,
            Err(data) => assert!(data.into_data().unwrap().is_empty()),
        }
    };
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(told, 200_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_stream_without_a_total_time() {
    let client = Client::start().await;
    for (count, upstream) in ["h1", "h2c"].into_iter().enumerate() {
        let path = format!("/{upstream}/silent/events");
        let answer = client.gateway.http.get(format!("{}{path}", client.gateway.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let ends = tokio::time::timeout(std::time::Duration::from_secs(60), answer.bytes());
        assert!(ends.await.expect("it ends").is_err(), "{path}: it is cut off");
        until("the upstream's stream ends", async || {
            client.received.cut_off.load(Ordering::Relaxed) == count + 1
        })
        .await;
        until("it is logged", async || !logged(client.folder.path(), &path).is_empty()).await;
        let line = (format!("silent-{upstream}"), 200, "time_over".to_owned());
        assert_eq!(logged(client.folder.path(), &path), [line]);
    }
}
