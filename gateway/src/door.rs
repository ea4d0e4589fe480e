//! A listener's way into the edge: Pingora's phases in, the policy's decisions out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use filters::admission::{Admission, Draw, path_ambiguous};
use filters::chain::Refused;
use filters::failure::Failure;
use filters::shape;
use filters::upstream::UpstreamFields;
use http::{Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::watch;

use crate::access_log;
use crate::compression::Compressions;
use crate::connection::Connection;
use crate::exchange::{Asked, Cut, Exchange, InFlight};
use crate::extended_connect::is_extended_connect;
use crate::framing::Flaw;
use crate::gate::Gate;
use crate::message::{Sender, asks_for_close, normalize, request, target};
use crate::response;
use crate::upstream::failure::Cause;
use crate::whole::TRIES;

/// A listener's way into the edge.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) gate: Arc<Gate>,
    /// For a whole request to arrive.
    pub(crate) request_timeout: Duration,
    /// Between two requests on one connection.
    pub(crate) idle_timeout: Duration,
    /// True once its listener has other settings: connections end after their answer.
    pub(crate) retired: watch::Receiver<bool>,
}

#[async_trait]
impl ProxyHttp for Door {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        let edge = self.gate.edge();
        Exchange {
            started: Instant::now(),
            asked: None,
            status: 0,
            cut: Arc::default(),
            admission: None,
            refusal: None,
            limit: None,
            admitted: false,
            fields: UpstreamFields::default(),
            upstream: None,
            deadline: None,
            streamed: None,
            address: None,
            websocket: None,
            unconnected: 0,
            upstream_failure: None,
            repeats: Vec::new(),
            copy: None,
            place: None,
            _in_flight: InFlight::enter(&edge.metrics().in_flight),
            edge,
        }
    }

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        modules.add_module(Box::new(Compressions));
    }

    async fn early_request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        if let Some(connection) = Connection::of(session.digest()) {
            connection.clock.request_begins();
            exchange.cut = Arc::clone(&connection.cut);
        }
        normalize(session.req_header_mut())?;
        exchange.asked = Some(Asked::by(session.req_header()));
        let Some(sender) = Sender::of(session) else {
            return Error::e_explain(ErrorType::InternalError, "the connection has no IP address");
        };
        let header = session.req_header();
        let traceparent = request(header, &sender).headers.one("traceparent").ok().flatten();
        exchange.admission = Some(Admission::new(sender.peer(), traceparent, draw()));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        session.set_read_timeout(Some(self.request_timeout));
        session.set_write_timeout(Some(self.request_timeout));
        let edge = Arc::clone(&exchange.edge);
        let ends = edge.standing.is_draining() || *self.retired.borrow();
        let ends = ends || asks_for_close(session.req_header());
        // Pingora keeps no connection whose request had two framings.
        let keeps = session.as_downstream().get_keepalive().filter(|_| !ends);
        session.set_keepalive(keeps.map(|_| self.idle_timeout.as_secs().max(1)));
        if session.req_header().method == Method::CONNECT {
            // What follows its header is of no known length.
            session.set_keepalive(None);
        }
        if is_old(session.req_header().version) {
            session.set_keepalive(None);
            edge.refuse(session, exchange, Failure::HttpVersion.into()).await?;
            return Ok(true);
        }
        let flaw = Connection::of(session.digest()).and_then(|connection| connection.messages.take_flaw());
        if let Some(flaw) = flaw {
            session.set_keepalive(None);
            let refused = match flaw {
                Flaw::Framing => shape::framing_ambiguous(),
                Flaw::Target => path_ambiguous(),
                Flaw::Line => Failure::Malformed.into(),
            };
            edge.refuse(session, exchange, refused).await?;
            return Ok(true);
        }
        let refused = match edge.admit(session, exchange, self.request_timeout).await {
            Ok(body) if edge.reads_answer(exchange) => match edge.carry(session, exchange, body).await {
                Ok(Some(answer)) => return edge.pass_on(session, exchange, answer).await.map(|()| true),
                Ok(None) => return Ok(gone(session, exchange)),
                Err(refused) => refused,
            },
            Ok(_) => {
                let Some(websocket) = exchange.websocket else {
                    if exchange.streamed.is_some() {
                        edge.begin_stream(session, exchange).await?;
                    }
                    return Ok(false);
                };
                session.set_write_timeout(Some(Duration::from_millis(websocket.idle_timeout_ms)));
                // The client may listen for as long as the upstream has something to say.
                session.set_read_timeout(None);
                // Over HTTP/2 the connection serves other requests too.
                if let Some(connection) = Connection::of(session.digest())
                    && !is_extended_connect(session.req_header())
                {
                    connection.clock.ends_within(Duration::from_secs(websocket.most_s));
                }
                let asked = session.req_header().clone();
                let answer = tokio::select! {
                    answer = edge.ask_for_websocket(asked, exchange, websocket) => answer,
                    // Whoever sends before it is opened, after the header, has lost a byte by now: it is gone too.
                    _ = session.as_downstream_mut().read_body_or_idle(true) => {
                        return Ok(gone(session, exchange));
                    }
                };
                match answer {
                    Ok(answer) => {
                        let passed = edge.pass_websocket(session, exchange, answer, websocket).await;
                        return passed.map(|()| true);
                    }
                    Err(failure) => failure.into(),
                }
            }
            Err(refused) => refused,
        };
        edge.refuse(session, exchange, refused).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let peer = Arc::clone(&exchange.edge).peer(exchange);
        peer.map(Box::new).map_err(|failure| match failure {
            Failure::UpstreamTimeout => overdue(),
            _ => Error::explain(ErrorType::ConnectNoRoute, "no address of the upstream serves"),
        })
    }

    /// Before anything of the request leaves.
    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        fd: std::os::fd::RawFd,
        digest: Option<&Digest>,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let edge = Arc::clone(&exchange.edge);
        if let Some(streamed) = &mut exchange.streamed {
            streamed.restart();
        }
        // A connection of HTTP/2 carries others' requests too: there each piece of the answer is looked at.
        if !exchange.is_multiplexed() {
            let (Some(deadline), Some(socket)) = (&mut exchange.deadline, edge.standing.sockets.get(fd))
            else {
                return Error::e_explain(ErrorType::InternalError, "a connection that nothing would end");
            };
            deadline.shuts(socket);
        }
        edge.believes(exchange, digest).map_err(|mut error| {
            edge.unconnected(exchange, &error);
            exchange.unconnected += 1;
            error.set_retry(exchange.unconnected < TRIES);
            error
        })
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _ends: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if let Some(deadline) = &exchange.deadline {
            deadline.heard();
        }
        let length = body.as_ref().map_or(0, Bytes::len);
        match exchange.streamed.as_mut().is_none_or(|streamed| streamed.may_forward(length)) {
            true => Ok(()),
            false => Err(too_large()),
        }
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.dress(upstream)?;
        if exchange.is_multiplexed() {
            // Pingora leaves out what is of one connection. gRPC servers take a request without it for one by way of a
            // proxy that loses trailers.
            let kind = upstream.headers.get(http::header::CONTENT_TYPE);
            if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                upstream.insert_header("te", "trailers")?;
            }
        }
        Arc::clone(&exchange.edge).copy(upstream, exchange);
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let edge = Arc::clone(&exchange.edge);
        edge.answered(exchange);
        if let Some(deadline) = &exchange.deadline {
            deadline.heard();
        }
        if let Some(why) = response::defect(answer.status, &answer.headers) {
            return Error::e_explain(ErrorType::InvalidHTTPHeader, why).map_err(|error| error.into_up());
        }
        edge.answer(session, answer, exchange)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        ends: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<Duration>> {
        let is_multiplexed = exchange.is_multiplexed();
        match exchange.deadline.as_mut() {
            Some(deadline) if ends => deadline.is_met(),
            Some(deadline) if deadline.total_left().is_zero() && is_multiplexed => return Err(overdue()),
            Some(deadline) => deadline.heard(),
            None => {}
        }
        Ok(None)
    }

    /// A connection that could not be made has carried nothing: any request may go to another one.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        Arc::clone(&exchange.edge).unconnected(exchange, &error);
        exchange.unconnected += 1;
        error.set_retry(exchange.unconnected < TRIES);
        error
    }

    /// The connection had stood: the request may have arrived. It is sent again if it can do no harm: when the policy lets
    /// it, or when the connection was an old one, which the upstream may have closed just then.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        exchange: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        let of_upstream = matches!(error.esource(), pingora::ErrorSource::Upstream);
        if of_upstream && exchange.is_overdue() {
            return overdue();
        }
        if of_upstream {
            Arc::clone(&exchange.edge).broke(exchange, &error);
        }
        let is_safe = is_safe(session.req_header());
        let is_whole = !session.as_ref().retry_buffer_truncated() && session.response_written().is_none();
        if !is_safe || !is_whole {
            if of_upstream && reused && broke(&error) {
                // It says nothing of the upstream, which may have closed it just then.
                exchange.address = None;
            }
            error.set_retry(false);
            return error;
        }
        error.retry.decide_reuse(reused);
        if of_upstream && reused && broke(&error) {
            // The upstream may have closed an idle connection just then, which says nothing of it. rustls reports a bare
            // FIN, without close_notify, as an error of which Pingora knows nothing.
            error.set_retry(true);
        }
        if of_upstream && broke(&error) && !error.retry() {
            let edge = Arc::clone(&exchange.edge);
            // The same address may take the next one: what failed is said of it all the same.
            edge.failed(exchange);
            error.set_retry(edge.repeats(exchange));
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Exchange,
    ) -> FailToProxy {
        let keep = FailToProxy { error_code: 0, can_reuse_downstream: false };
        // After an interim answer (1xx) the one that counts can still be ours.
        if session.response_written().is_some_and(|answer| !answer.status.is_informational()) {
            return keep;
        }
        let edge = Arc::clone(&exchange.edge);
        let refused = match (&exchange.streamed, failure(error)) {
            (Some(streamed), _) if is_too_large(error) => shape::streamed_too_much(streamed.most),
            (_, None) => return keep,
            (_, Some(failure)) => {
                if matches!(failure, Failure::UpstreamTimeout | Failure::UpstreamFailed) {
                    edge.failed(exchange);
                }
                Refused::from(failure)
            }
        };
        let status = refused.refusal.status;
        // Pingora closes the client's connection after an error here, whatever is answered, so the answer says so.
        session.set_keepalive(None);
        let request_id = exchange.admission.as_ref().map(Admission::request_id);
        let cause = exchange.upstream_failure.map(Cause::name);
        let upstream = exchange.upstream.as_ref().map(|upstream| upstream.name.as_str());
        if refused.refusal.status >= 500 {
            tracing::warn!(request_id, upstream, error = %error.etype().as_str(), cause, "upstream failed");
        }
        match edge.refuse(session, exchange, refused).await {
            Ok(()) => FailToProxy { error_code: status, ..keep },
            Err(_) => keep,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Exchange) {
        if let Some(connection) = Connection::of(session.digest()) {
            connection.clock.request_ends();
        }
        exchange.status = session.response_written().map_or(0, |answer| answer.status.as_u16());
        let broke = error.filter(|_| exchange.refusal.is_none() || exchange.status == 0);
        let cut = broke.map(|error| match (exchange.cut.get(), error.esource()) {
            (Some(cut), _) => *cut,
            (None, _) if is_too_large(error) => Cut::BodyTooLarge,
            (None, _) if is_of_client(error) && is_timeout(error) => Cut::TimeOver,
            (None, _) if is_of_client(error) => Cut::ClientGone,
            (None, pingora::ErrorSource::Upstream) if is_timeout(error) => Cut::TimeOver,
            (None, pingora::ErrorSource::Upstream) => Cut::UpstreamBroke,
            (None, _) => Cut::EdgeFailed,
        });
        if let Some(told) = exchange.end(cut) {
            // The next request of this connection finds the place free.
            let _ = told.await;
        }
    }

    /// What Pingora writes into its own logs about a request.
    fn request_summary(&self, session: &Session, exchange: &Exchange) -> String {
        let header = session.req_header();
        let (path, _) = target(header);
        let request_id = exchange.admission.as_ref().map_or("-", Admission::request_id);
        format!("{} {} {request_id}", header.method, access_log::told(path))
    }
}

/// Whether it is older than HTTP/1.1. Responses to HTTP/1.0 need a framing of their own: no chunks, no 1xx.
fn is_old(version: Version) -> bool {
    matches!(version, Version::HTTP_09 | Version::HTTP_10)
}

/// The client is gone before it was answered: nothing more is to be done.
fn gone(session: &mut Session, exchange: &mut Exchange) -> bool {
    session.set_keepalive(None);
    let cut = exchange.cut.get().copied().unwrap_or(Cut::ClientGone);
    drop(exchange.end(Some(cut)));
    true
}

/// The upstream has had all its time.
fn overdue() -> Box<Error> {
    Error::explain(ErrorType::ReadTimedout, "the whole answer was not there in time").into_up()
}

/// The client has sent more than its route allows.
fn too_large() -> Box<Error> {
    Error::explain(ErrorType::HTTPStatus(413), "the body is larger than the route allows").into_down()
}

fn is_too_large(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::HTTPStatus(413))
}

/// Whether a request may be sent twice (RFC 9110, section 9.2.1).
pub(crate) fn is_safe(header: &RequestHeader) -> bool {
    matches!(header.method.as_str(), "GET" | "HEAD" | "OPTIONS")
}

/// Whether a connection ended before what was awaited of it had come.
pub(crate) fn broke(error: &Error) -> bool {
    use pingora::ErrorType::{ConnectionClosed, ReadError, WriteError};
    matches!(error.etype(), ConnectionClosed | ReadError | WriteError)
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
}

fn draw() -> Draw {
    Draw { request_id: rand::random(), trace_id: rand::random(), span_id: rand::random() }
}

/// Whether it is the client's connection that broke. Pingora does not say so of an answer that cannot be written; of
/// upstreams it says it always.
fn is_of_client(error: &Error) -> bool {
    use pingora::ErrorType::{WriteError, WriteTimedout};
    match error.esource() {
        pingora::ErrorSource::Downstream => true,
        pingora::ErrorSource::Unset => matches!(error.etype(), WriteError | WriteTimedout),
        pingora::ErrorSource::Upstream | pingora::ErrorSource::Internal => false,
    }
}

/// What a client is told when the upstream failed; `None` when the client itself is gone.
pub(crate) fn failure(error: &Error) -> Option<Failure> {
    use pingora::ErrorType::{
        ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, ConnectionClosed,
        InvalidCert, ReadError, ReadTimedout, TLSHandshakeFailure, TLSHandshakeTimedout, WriteError,
        WriteTimedout,
    };
    if is_of_client(error) {
        return match error.etype() {
            WriteError | WriteTimedout | ReadError | ConnectionClosed => None,
            ReadTimedout => Some(Failure::RequestTimeout),
            _ => Some(Failure::Malformed),
        };
    }
    Some(match error.etype() {
        ConnectTimedout | ConnectRefused | ConnectNoRoute | ConnectError | ConnectProxyFailure
        | InvalidCert | TLSHandshakeFailure | TLSHandshakeTimedout => Failure::UpstreamUnreachable,
        ReadTimedout | WriteTimedout => Failure::UpstreamTimeout,
        _ => Failure::UpstreamFailed,
    })
}
