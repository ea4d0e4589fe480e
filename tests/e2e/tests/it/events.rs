//! A payment's statuses on a WebSocket, through the edge: asked for as any request is, then left alone.

use std::time::Duration;

use e2e::{options, pay, raw, start};
use serde_json::Value;
use stack::{Payment, Stack};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const TEXT: u8 = 0x1;

struct Socket(TlsStream<TcpStream>);

impl Socket {
    /// Asks for a WebSocket; gives the status and, if it is open, the socket.
    async fn ask(stack: &Stack, path: &str, token: Option<&str>) -> (u16, Socket) {
        let port: u16 = stack.edge_url().rsplit(':').next().unwrap().parse().unwrap();
        let mut stream = raw::connect(port, &stack.dir().join("pki/edge-ca.pem")).await.unwrap();
        let authorization =
            token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{authorization}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        // The key's answer is that of RFC 6455 section 1.3.
        let accepted = head.contains(&"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_lowercase());
        assert_eq!(status == 101, accepted, "{head}");
        (status, Socket(stream))
    }

    /// The next frame of this kind; others are passed over.
    async fn frame(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            let kind = self.0.read_u8().await.unwrap() & 0x0f;
            let len = match self.0.read_u8().await.unwrap() {
                126 => self.0.read_u16().await.unwrap().into(),
                len => usize::from(len),
            };
            let mut payload = vec![0; len];
            self.0.read_exact(&mut payload).await.unwrap();
            if kind == wanted {
                return payload;
            }
        }
    }

    /// A ping there and back.
    async fn answers(&mut self) {
        self.0.write_all(&[0x80 | PING, 0x80, 0, 0, 0, 0]).await.unwrap();
        self.frame(PONG).await;
    }
}

#[tokio::test]
async fn statuses_come_as_they_are_and_the_socket_stays() -> anyhow::Result<()> {
    let stack = start(options("events")?).await?;
    let alice = stack.alice()?;
    let (id, _) = pay(&stack, alice, &Payment::new("alice@torana", "bob@torana", "2.00")).await?;
    let path = format!("/v1/transactions/{id}/events");

    let (status, _) = Socket::ask(&stack, &path, None).await;
    assert_eq!(status, 401, "who asks is asked who he is");
    let (status, _) = Socket::ask(&stack, "/v1/transactions/nonsense/events", Some(&alice.token)).await;
    assert_eq!(status, 404, "the core is asked, and its refusal comes back");
    let (status, _) = Socket::ask(&stack, &format!("/v1/transactions/{id}"), Some(&alice.token)).await;
    assert_eq!(status, 400, "where the policy has none, nothing is upgraded");

    let (status, mut socket) = Socket::ask(&stack, &path, Some(&alice.token)).await;
    assert_eq!(status, 101);
    let told: Value = serde_json::from_slice(&socket.frame(TEXT).await)?;
    assert_eq!((&told["status"], &told["txnId"]), (&"COMPLETED".into(), &id.into()));
    socket.answers().await;
    // Longer than the listener lets a request take to arrive: what was a request is one no more.
    tokio::time::sleep(Duration::from_secs(12)).await;
    socket.answers().await;
    drop(socket);
    stack.stop().await;
    Ok(())
}
