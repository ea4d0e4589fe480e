//! Requests written byte by byte, for what no client library would send.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A TLS connection to the edge that speaks HTTP/1.1.
pub async fn connect(port: u16, ca_file: &Path) -> anyhow::Result<TlsStream<TcpStream>> {
    let trust = certs::Trust::load(ca_file)?;
    let tls = certs::client_config(&trust, None, certs::Versions::Tls12And13)?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let connector = TlsConnector::from(Arc::new(tls));
    Ok(connector.connect("localhost".try_into()?, stream).await?)
}

/// Sends `GET target` over HTTP/1.1, exactly so, and reads the whole answer.
pub async fn get(port: u16, ca_file: &Path, target: &str, token: &str) -> anyhow::Result<String> {
    let mut stream = connect(port, ca_file).await?;
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: localhost:{port}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A server that closes without TLS's farewell is an answer all the same.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
