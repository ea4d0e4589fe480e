//! Requests whose answer is decided on before any of it leaves: Pingora passes an answer on as it comes, so here the
//! edge asks the upstream itself and holds the answer, within bounds, until it is whole.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::chain::Refused;
use filters::failure::Failure;
use filters::filter::Headers;
use filters::upstream::MOST_ANSWER_BYTES;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{ErrorType, Result as Answered};

use crate::answer::send;
use crate::door::{broke, failure, is_safe};
use crate::edge::{Edge, Now};
use crate::exchange::Exchange;
use crate::message::{Sender, request};
use crate::response::{self, Framing};
use crate::upstream::HOP;
use crate::upstream::deadline::Deadline;

/// Connections that are tried before the upstream counts as unreachable; as many as Envoy tries.
pub(crate) const TRIES: u32 = 3;

/// Connections of our own to upstreams, kept for reuse as Pingora's are.
pub(crate) struct Connections(Connector);

impl Connections {
    pub(crate) fn new() -> Self {
        Self(Connector::new(None))
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

/// An upstream's whole answer.
#[derive(Debug)]
pub(crate) struct Whole {
    status: StatusCode,
    /// Without those of its connection.
    fields: HeaderMap,
    body: Bytes,
}

/// A connection to an upstream.
pub(crate) struct Reached {
    pub(crate) session: HttpSession,
    peer: HttpPeer,
    /// Whether it carried other requests before: the upstream may have closed it just now.
    pub(crate) reused: bool,
}

impl Edge {
    /// Asks the upstream, and decides on its answer; `None` once the client is gone, who waits for none.
    pub(crate) async fn carry(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        body: Bytes,
    ) -> Result<Option<Whole>, Refused> {
        let sender = Sender::of(session).ok_or(Failure::Malformed)?;
        let answer = {
            let asking = self.ask_upstream(session.req_header().clone(), exchange, body);
            tokio::pin!(asking);
            tokio::select! {
                answer = &mut asking => answer?,
                watched = session.as_downstream_mut().read_body_or_idle(true) => match watched {
                    // It sends more, of which a byte is read by now: this is answered, and nothing after it.
                    Err(error) if *error.etype() == ErrorType::ConnectError => {
                        session.set_keepalive(None);
                        asking.await?
                    }
                    Ok(_) | Err(_) => return Ok(None),
                },
            }
        };
        let admission = exchange.admission.as_mut().ok_or(Failure::Malformed)?;
        let headers: Headers<'_> =
            answer.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let told = (answer.status.as_u16(), headers, answer.body.as_ref());
        admission.answer(&self.policy, &request(session.req_header(), &sender), told, &Now(self))?;
        Ok(Some(answer))
    }

    /// Asks, and holds the answer. What may have arrived is not sent again, unless it is safe and its connection was an
    /// old one, which the upstream may have closed just then.
    async fn ask_upstream(
        &self,
        mut header: RequestHeader,
        exchange: &mut Exchange,
        body: Bytes,
    ) -> Result<Whole, Failure> {
        exchange.dress(&mut header).map_err(|_| Failure::Malformed)?;
        self.copy(&header, exchange);
        alone(&mut header, body.len()).map_err(|_| Failure::Malformed)?;
        for attempt in 1..=TRIES {
            let Reached { mut session, peer, reused } = self.reach(exchange).await?;
            let left = exchange.deadline.as_ref().map_or(Duration::ZERO, Deadline::total_left);
            let answer = tokio::time::timeout(left, talk(&mut session, header.clone(), body.clone())).await;
            let failure = match answer {
                Ok(Ok(answer)) => {
                    self.answered(exchange);
                    let idle_timeout = peer.options.idle_timeout;
                    self.standing.connections.0.release_http_session(session, &peer, idle_timeout).await;
                    return Ok(answer);
                }
                Ok(Err(NotAnswered { failure: failure @ Failure::AnswerTooLarge, .. })) => {
                    self.answered(exchange);
                    return Err(failure);
                }
                Ok(Err(NotAnswered { broke: true, .. })) if reused && is_safe(&header) && attempt < TRIES => {
                    continue;
                }
                Ok(Err(NotAnswered { failure, error, .. })) => {
                    if let Some(error) = error {
                        self.broke(exchange, &error);
                    }
                    failure
                }
                Err(_) => Failure::UpstreamTimeout,
            };
            self.failed(exchange);
            return Err(failure);
        }
        Err(Failure::UpstreamFailed)
    }

    /// The first address to which a connection can be made.
    pub(crate) async fn reach(&self, exchange: &mut Exchange) -> Result<Reached, Failure> {
        for _ in 0..TRIES {
            let peer = self.peer(exchange)?;
            let reached = self.standing.connections.0.get_http_session(&peer).await;
            let believed = reached.and_then(|(session, reused)| {
                self.believes(exchange, session.digest()).map(|()| (session, reused))
            });
            match believed {
                Ok((session, reused)) => return Ok(Reached { session, peer, reused }),
                Err(error) => self.unconnected(exchange, &error),
            }
        }
        Err(Failure::UpstreamUnreachable)
    }

    /// Sends the answer on, with the fields of every answer.
    pub(crate) async fn pass_on(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        answer: Whole,
    ) -> Answered<()> {
        let Whole { status, fields, body } = answer;
        let mut header = ResponseHeader::build(status, Some(fields.len() + 8))?;
        for (name, value) in &fields {
            header.append_header(name, value)?;
        }
        // A response to HEAD has the length of GET's body, if the upstream names it (RFC 9110 section 8.6).
        let is_head = session.req_header().method == Method::HEAD;
        if !is_head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            header.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        self.dress(&mut header, exchange)?;
        exchange.status = status.as_u16();
        send(session, header, body).await
    }
}

/// Makes of the header one that stands alone on a connection of HTTP/1.1.
pub(crate) fn alone(header: &mut RequestHeader, length: usize) -> Answered<()> {
    let framed = header.headers.contains_key(header::CONTENT_LENGTH);
    for name in HOP.iter().filter(|name| **name != header::HOST) {
        header.remove_header(*name);
    }
    if framed || length > 0 {
        header.insert_header(header::CONTENT_LENGTH, length)?;
    }
    header.set_version(Version::HTTP_11);
    Ok(())
}

/// Why an upstream has not answered, and whether that is because the connection broke.
pub(crate) struct NotAnswered {
    pub(crate) failure: Failure,
    pub(crate) broke: bool,
    pub(crate) error: Option<Box<pingora::Error>>,
}

impl NotAnswered {
    pub(crate) fn by(error: Box<pingora::Error>) -> Self {
        let broke = broke(&error);
        let error = error.into_up();
        Self { failure: failure(&error).unwrap_or(Failure::UpstreamFailed), broke, error: Some(error) }
    }
}

impl From<Failure> for NotAnswered {
    fn from(failure: Failure) -> Self {
        Self { failure, broke: false, error: None }
    }
}

async fn talk(session: &mut HttpSession, header: RequestHeader, body: Bytes) -> Result<Whole, NotAnswered> {
    let failed = NotAnswered::by;
    let is_head = header.method == Method::HEAD;
    session.write_request_header(Box::new(header)).await.map_err(failed)?;
    if !body.is_empty() {
        session.write_request_body(body, true).await.map_err(failed)?;
    }
    session.finish_request_body().await.map_err(failed)?;
    // Interim answers (1xx) come before the one that counts.
    let header = loop {
        session.read_response_header().await.map_err(failed)?;
        let Some(header) = session.response_header() else { return Err(Failure::UpstreamFailed.into()) };
        if let Some(why) = response::defect(header.status, &header.headers) {
            tracing::warn!(why, "an upstream's answer is not passed on");
            return Err(Failure::UpstreamFailed.into());
        }
        if !header.status.is_informational() {
            break header;
        }
    };
    let status = header.status;
    let mut header = header.clone();
    let length = header.headers.get(header::CONTENT_LENGTH).filter(|_| is_head).cloned();
    response::strip_hop_by_hop(&mut header, Framing::Goes);
    if let Some(length) = length {
        header.insert_header(header::CONTENT_LENGTH, length).map_err(failed)?;
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = session.read_response_body().await.map_err(failed)? {
        if whole.len() + chunk.len() > MOST_ANSWER_BYTES {
            return Err(Failure::AnswerTooLarge.into());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Whole { status, fields: header.headers.clone(), body: whole.freeze() })
}
