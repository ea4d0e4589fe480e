//! A client that sends the bytes of a case as they stand: it frames nothing and corrects nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::mint::{AUTHORITY, Sent};

const LONGEST: Duration = Duration::from_secs(15);

/// An answer, as it came.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// The bytes of a request.
pub fn bytes(sent: &Sent) -> Vec<u8> {
    let mut bytes = format!("{} {} HTTP/1.1\r\n", sent.method, sent.target).into_bytes();
    for (name, value) in sent.framing().iter().chain(&sent.headers) {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    let chunked = |(name, value): &(String, Vec<u8>)| name == "transfer-encoding" && value == b"chunked";
    if sent.headers.iter().any(chunked) {
        if !sent.body.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", sent.body.len()).as_bytes());
            bytes.extend_from_slice(&sent.body);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
    } else {
        bytes.extend_from_slice(&sent.body);
    }
    bytes
}

/// Sends bytes over TLS from an address, and reads the answer to its end. `None`: the connection was closed
/// without one.
///
/// # Errors
/// When there is no connection, or no answer in time.
pub async fn exchange(
    to: SocketAddr,
    from: IpAddr,
    tls: &Arc<rustls::ClientConfig>,
    request: &[u8],
) -> anyhow::Result<Option<Raw>> {
    tokio::time::timeout(LONGEST, async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0)).with_context(|| format!("cannot send from {from}"))?;
        let stream = socket.connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
        let name = ServerName::try_from(AUTHORITY)?;
        let mut stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        // An edge may answer and close before it has read everything.
        let _ = stream.write_all(request).await;
        let _ = stream.flush().await;
        let mut read = Vec::new();
        loop {
            if let Some(answer) = parse(&read)? {
                return Ok(Some(answer));
            }
            let mut chunk = [0; 16 * 1024];
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) if read.is_empty() => return Ok(None),
                Ok(0) | Err(_) => bail!("the answer broke off: {}", read.escape_ascii()),
                Ok(length) => read.extend_from_slice(&chunk[..length]),
            }
        }
    })
    .await
    .context("no answer in time")?
}

/// Sends the parts over one connection, each after the response to the one before it. Gives the statuses of all responses,
/// until the other side closes.
///
/// # Errors
/// When there is no connection, or it is not closed in time.
pub async fn converse(
    to: SocketAddr,
    tls: &Arc<rustls::ClientConfig>,
    parts: &[&[u8]],
) -> anyhow::Result<Vec<u16>> {
    tokio::time::timeout(LONGEST, async {
        let stream = tokio::net::TcpStream::connect(to).await?;
        let name = ServerName::try_from(AUTHORITY)?;
        let mut stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        let (mut statuses, mut read) = (Vec::new(), Vec::new());
        let mut is_open = true;
        for (number, part) in parts.iter().enumerate() {
            let _ = stream.write_all(part).await;
            let _ = stream.flush().await;
            let is_last = number + 1 == parts.len();
            let mut has_response = false;
            while is_open && (is_last || !has_response) {
                let mut chunk = [0; 16 * 1024];
                match stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => is_open = false,
                    Ok(length) => read.extend_from_slice(&chunk[..length]),
                }
                while let Some((response, length)) = first_response(&read)? {
                    statuses.push(response.status);
                    read.drain(..length);
                    has_response = true;
                }
            }
        }
        Ok(statuses)
    })
    .await
    .context("the connection was not closed in time")?
}

/// The first response in `read`, and how many bytes it has.
fn first_response(read: &[u8]) -> anyhow::Result<Option<(Raw, usize)>> {
    // Parsing is quadratic, and the responses are short.
    for end in 1..=read.len() {
        if let Ok(Some(response)) = parse(&read[..end]) {
            return Ok(Some((response, end)));
        }
    }
    Ok(None)
}

/// The answer in `read`; `None` while some of it is missing.
///
/// # Errors
/// When it is none that HTTP/1.1 knows.
pub fn parse(read: &[u8]) -> anyhow::Result<Option<Raw>> {
    let Some(end) = find(read, b"\r\n\r\n") else { return Ok(None) };
    let (head, rest) = (&read[..end], &read[end + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let status = std::str::from_utf8(lines.next().unwrap_or_default())?;
    let status: u16 = status.split(' ').nth(1).context("no status")?.parse()?;
    if status == 100 {
        return parse(rest);
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = find(line, b":").context("a field without a colon")?;
        let name = std::str::from_utf8(&line[..colon])?.to_ascii_lowercase();
        fields.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
    let field =
        |name: &str| fields.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_slice());
    // Whatever length it tells is another answer's.
    if matches!(status, 204 | 304) {
        return Ok(Some(Raw { status, fields, body: Vec::new() }));
    }
    let body = match (field("content-length"), field("transfer-encoding")) {
        (Some(length), None) => {
            let length: usize = std::str::from_utf8(length)?.parse()?;
            rest.get(..length).map(<[u8]>::to_vec)
        }
        (None, Some(b"chunked")) => unchunk(rest)?,
        framing => bail!("an answer framed by {framing:?}"),
    };
    Ok(body.map(|body| Raw { status, fields, body }))
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(None) };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16)?;
        rest = &rest[end + 2..];
        let Some(chunk) = rest.get(..length + 2) else { return Ok(None) };
        if length == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..length]);
        rest = &rest[length + 2..];
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}
