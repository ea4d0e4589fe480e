//! A request as Pingora holds it, and its body.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::certificate::Certificate;
use filters::failure::Failure;
use filters::filter::{Headers, Request};
use filters::shape;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::connection::Connection;

/// The path and the query exactly as they were sent. A target that is not text is none that we route.
pub(crate) fn target(header: &RequestHeader) -> (&str, Option<&str>) {
    let raw = std::str::from_utf8(header.raw_path()).unwrap_or("");
    match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    }
}

/// The other end of a request's connection.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    peer: IpAddr,
    certificate: Option<Arc<Certificate>>,
}

impl Sender {
    pub(crate) fn of(session: &Session) -> Option<Self> {
        let peer = session.client_addr()?.as_inet()?.ip();
        let certificate = Connection::of(session.digest()).and_then(Connection::certificate);
        Some(Self { peer, certificate })
    }

    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }
}

pub(crate) fn request<'r>(header: &'r RequestHeader, sender: &'r Sender) -> Request<'r> {
    let headers: Headers<'_> =
        header.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let (path, query) = target(header);
    let authority = match header.uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.one("host").ok().flatten().unwrap_or_default(),
    };
    Request {
        method: header.method.as_str(),
        scheme: "https",
        authority,
        path,
        query,
        headers,
        peer: sender.peer,
        certificate: sender.certificate.as_deref(),
    }
}

/// Has a client that asked for it send its body.
pub(crate) async fn invite_body(session: &mut Session) -> Result<(), Failure> {
    if expects_continue(session.req_header()) && session.write_continue_response().await.is_err() {
        return Err(Failure::BodyIncomplete);
    }
    Ok(())
}

/// Reads the whole body, at most what the edge holds. Pingora keeps a copy for the upstream.
pub(crate) async fn read_body(session: &mut Session) -> Result<Bytes, Failure> {
    session.enable_retry_buffering();
    invite_body(session).await?;
    let mut body = BytesMut::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > shape::Config::MOST_BODY_BYTES => {
                return Err(Failure::BodyTooLarge);
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(_) => return Err(Failure::BodyIncomplete),
        }
    }
}

/// Whether the body is known to be no larger than one that is read anyway.
pub(crate) fn is_small(header: &RequestHeader) -> bool {
    let length = header.headers.get("content-length").and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<usize>().ok());
    length.is_some_and(|length| length <= shape::Config::MOST_BODY_BYTES) && !expects_continue(header)
}

/// Reads what is left of a refused body and throws it away; tells whether that was all of it.
pub(crate) async fn drain(session: &mut Session) -> bool {
    const MOST_BYTES: usize = 1024 * 1024;
    const LONGEST: Duration = Duration::from_secs(1);
    let drained = tokio::time::timeout(LONGEST, async {
        let mut read = 0;
        while read < MOST_BYTES {
            match session.read_request_body().await {
                Ok(Some(chunk)) => read += chunk.len(),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    });
    drained.await.unwrap_or(false)
}

fn expects_continue(header: &RequestHeader) -> bool {
    header.headers.get("expect").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
