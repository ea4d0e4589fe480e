//! What of a request is for the client's connection alone.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::routes;
use crate::running::{connect, header, pki, serve};

/// A server of plain HTTP that answers with the header that it has received.
async fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let received = header(&mut stream).await?;
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{received}", received.len());
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    port
}

/// RFC 9110 section 7.6.1. A client may name fields of its own only: what the edge says of a request stays.
#[tokio::test]
async fn fields_that_the_clients_connection_names_are_not_forwarded() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let port = mirror().await;
    let policy = routes(&[("passed", format!("addresses: [\"127.0.0.1:{port}\"], tls: off"))]);
    let policy = format!(
        "clients: {{ edge: {{ hmac_keys: [{{ id: edge-1, secret: \"env:ACME_SECRET\" }}] }} }}\n{policy}  - {{ name: held, \
         methods: [GET], path: \"/held/{{*rest}}\", upstream: passed, timeout_ms: 5000, filters: {{ signing: {{ \
         to_client: {{ client: edge }} }} }} }}\n  - {{ name: ws, methods: [GET], path: \"/ws/{{*rest}}\", upstream: passed, \
         timeout_ms: 5000, websocket: {{}} }}\n"
    );
    let gateway = serve(folder.path(), &policy).await;
    for (route, upgrade) in [("passed", ""), ("held", ""), ("ws", "upgrade: websocket\r\n")] {
        let mut stream = connect(folder.path(), &gateway, None, b"http/1.1").await;
        let request = format!(
            "GET /{route}/x HTTP/1.1\r\nhost: localhost\r\nconnection: X-Own, upgrade,x-other\r\n\
             connection: x-request-id\r\n{upgrade}x-own: 1\r\nx-other: 2\r\nx-kept: 3\r\n\r\n"
        );
        let request = if upgrade.is_empty() { request.replace("upgrade,", "") } else { request };
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = header(&mut stream).await.unwrap().to_ascii_lowercase();
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut received = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut received).await.unwrap();
        let received = String::from_utf8(received).unwrap().to_ascii_lowercase();
        let names: Vec<_> =
            received.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
        for (name, expected) in
            [("x-own", false), ("x-other", false), ("x-kept", true), ("x-request-id", true), ("host", true)]
        {
            assert_eq!(names.contains(&name), expected, "{route} {name}: {received}");
        }
    }
}
