//! A request as Pingora holds it, and its body.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::certificate::Certificate;
use filters::failure::Failure;
use filters::filter::{Headers, Request};
use filters::shape;
use http::header::{CONNECTION, COOKIE};
use http::{HeaderValue, Version};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::proxy::Session;

use crate::connection::Connection;
use crate::extended_connect::into_upgrade;

/// The path and the query exactly as they were sent. A target that is not text is none that we route.
pub(crate) fn target(header: &RequestHeader) -> (&str, Option<&str>) {
    let raw = std::str::from_utf8(header.raw_path()).unwrap_or("");
    match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    }
}

/// Gives a request the one form that filters read and the upstream receives:
/// - A target in absolute form becomes its path and query (RFC 9112 section 3.2.2). Pingora has compared its authority with
///   `Host`.
/// - An extended CONNECT for a WebSocket becomes a GET with `Upgrade` (RFC 8441).
/// - The `cookie` fields of HTTP/2 become one (RFC 9113 section 8.2.3).
pub(crate) fn normalize(header: &mut RequestHeader) -> pingora::Result<()> {
    if let Some(target) = origin_form(header.raw_path()) {
        header.set_raw_path(&target)?;
    }
    into_upgrade(header)?;
    if header.version == Version::HTTP_2 {
        let crumbs: Vec<&[u8]> = header.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if crumbs.len() > 1 {
            let cookie = crumbs.join(b"; ".as_slice());
            header.insert_header(COOKIE, cookie.as_slice())?;
        }
    }
    Ok(())
}

/// The path and the query of a target in absolute form. `None`: it has another form, or another scheme.
fn origin_form(target: &[u8]) -> Option<Vec<u8>> {
    let RawTargetAuthority::Absolute { scheme, path_and_query, .. } = raw_target_authority(target) else {
        return None;
    };
    let has_path = path_and_query.starts_with(b"/");
    let root: &[u8] = if has_path { b"" } else { b"/" };
    scheme.eq_ignore_ascii_case(b"https").then(|| [root, path_and_query].concat())
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
    let headers = headers.beyond_connection();
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
            Err(_) => {
                ends(session);
                return Err(Failure::BodyIncomplete);
            }
        }
    }
}

/// The connection ends after this request's response: where the next request would begin is not known. Pingora calls a body
/// done that could not be read.
fn ends(session: &mut Session) {
    session.set_keepalive(None);
}

/// Whether the client wants the connection to end: any of several `Connection` fields may say so (RFC 9112 section 9.6).
/// Pingora reads the first.
pub(crate) fn asks_for_close(header: &RequestHeader) -> bool {
    let fields = header.headers.get_all(CONNECTION).iter();
    let mut options = fields.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
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
                Err(_) => {
                    ends(session);
                    return false;
                }
            }
        }
        false
    });
    drained.await.unwrap_or(false)
}

fn expects_continue(header: &RequestHeader) -> bool {
    header.headers.get("expect").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_in_absolute_form() {
        for (target, expected) in [
            ("https://edge.test/v1/vpa/a%40b?x=1", Some("/v1/vpa/a%40b?x=1")),
            ("HTTPS://edge.test/", Some("/")),
            ("https://edge.test", Some("/")),
            ("https://edge.test?x=1", Some("/?x=1")),
            ("http://edge.test/v1", None),
            ("ftp://edge.test/v1", None),
            ("/v1/https://edge.test/", None),
            ("/v1", None),
            ("*", None),
        ] {
            let found = origin_form(target.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{target}");
        }
    }

    #[test]
    fn any_connection_field_may_ask_for_the_end() {
        for (fields, expected) in [
            ([].as_slice(), false),
            (&["keep-alive"], false),
            (&["closed"], false),
            (&["close"], true),
            (&["keep-alive, Close"], true),
            (&["keep-alive", "close"], true),
            (&["upgrade", "x , close"], true),
        ] {
            let mut header = RequestHeader::build("GET", b"/", None).unwrap();
            for field in fields {
                header.append_header(CONNECTION, *field).unwrap();
            }
            assert_eq!(asks_for_close(&header), expected, "{fields:?}");
        }
    }

    #[test]
    fn cookies_of_http_2_are_one_field() {
        for (version, sent, expected) in [
            (Version::HTTP_2, ["a=1", "b=2"].as_slice(), ["a=1; b=2"].as_slice()),
            (Version::HTTP_2, &["a=1; b=2", "c=3"], &["a=1; b=2; c=3"]),
            (Version::HTTP_2, &["a=1"], &["a=1"]),
            (Version::HTTP_2, &[], &[]),
            (Version::HTTP_11, &["a=1", "b=2"], &["a=1", "b=2"]),
        ] {
            let mut header = RequestHeader::build_no_case("GET", b"/", None).unwrap();
            header.set_version(version);
            for cookie in sent {
                header.append_header(COOKIE, *cookie).unwrap();
            }
            normalize(&mut header).unwrap();
            let cookies: Vec<&[u8]> =
                header.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
            let expected: Vec<&[u8]> = expected.iter().map(|cookie| cookie.as_bytes()).collect();
            assert_eq!(cookies, expected, "{version:?} {sent:?}");
        }
    }
}
