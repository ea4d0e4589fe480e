//! Statuses on a WebSocket, to whom they concern and to nobody else.

use certs::Versions;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::house::{House, QUICK, Running, accepted, identity, status};

/// A WebSocket as the gateway passes it through, byte by byte.
struct Socket(TlsStream<TcpStream>);

impl Socket {
    /// Asks to be told; gives the status line and the socket.
    async fn ask(house: &House, core: &Running, txn_id: &str, subject: &str, vpa: &str) -> (String, Socket) {
        let (identity, trust) = identity(house.dir.path(), "gateway");
        let tls = certs::client_config(&trust, Some(&identity), Versions::Tls13Only).unwrap();
        let stream = TcpStream::connect(core.address).await.unwrap();
        let connector = TlsConnector::from(std::sync::Arc::new(tls));
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let request = format!(
            "GET /v1/transactions/{txn_id}/events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             x-torana-tenant: acme\r\nx-torana-subject: {subject}\r\nx-torana-vpa: {vpa}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        (head.lines().next().unwrap().to_owned(), Socket(stream))
    }

    /// The next frame: its kind and what it says. Pings are passed over.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let kind = self.0.read_u8().await.unwrap() & 0x0f;
            let len = match self.0.read_u8().await.unwrap() {
                126 => self.0.read_u16().await.unwrap().into(),
                len => usize::from(len),
            };
            let mut payload = vec![0; len];
            self.0.read_exact(&mut payload).await.unwrap();
            if kind != 9 {
                return (kind, payload);
            }
        }
    }

    async fn update(&mut self) -> Value {
        let (kind, payload) = self.frame().await;
        assert_eq!(kind, 1, "{payload:?}");
        serde_json::from_slice(&payload).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_each_status_and_others_learn_nothing() {
    let house = House::build(QUICK).await;
    house.answers(&[accepted()], &[status("FINAL", "PENDING", "01")]);
    let core = house.start().await;
    let id = house.send(&core, "k-1").await;
    house.until("initiated", |house| !house.calls("initiate").is_empty()).await;
    for (who, subject, vpa) in [("the payer", "user-1", ""), ("the payee", "user-2", "bob@torana")] {
        let (line, mut socket) = Socket::ask(&house, &core, &id, subject, vpa).await;
        assert!(line.contains(" 101 "), "{who}: {line}");
        assert_eq!(socket.update().await["status"], "PENDING", "{who}");
    }
    for (subject, vpa, txn_id) in [
        ("user-2", "mallory@torana", id.as_str()),
        ("user-1", "", "TOR00000000000070008000000000000000"),
        ("user-1", "", "nonsense"),
    ] {
        let (line, _) = Socket::ask(&house, &core, txn_id, subject, vpa).await;
        assert!(line.contains(" 404 "), "{subject}: {line}");
    }

    let (_, mut socket) = Socket::ask(&house, &core, &id, "user-1", "").await;
    assert_eq!(socket.update().await["status"], "PENDING");
    house.callback(&core, &id, "DEBIT", "SUCCESS", "00").await;
    let debited = socket.update().await;
    assert_eq!((&debited["status"], &debited["txnId"]), (&"DEBITED".into(), &id.clone().into()));
    house.callback(&core, &id, "FINAL", "SUCCESS", "00").await;
    let completed = socket.update().await;
    assert_eq!(completed["status"], "COMPLETED");
    assert!(completed["version"].as_u64() > debited["version"].as_u64());
    // A stop says goodbye: try again elsewhere.
    core.stop.send(()).unwrap();
    let (kind, payload) = socket.frame().await;
    assert_eq!((kind, payload.get(..2)), (8, Some(&1013u16.to_be_bytes()[..])), "{payload:?}");
    core.task.await.unwrap().unwrap();
}
