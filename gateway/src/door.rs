//! A listener's way into the edge: Pingora's phases in, the policy's decisions out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use filters::filter::Refusal;
use filters::shape;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;

use crate::access_log;
use crate::edge::{Edge, of_edge};
use crate::exchange::{Exchange, InFlight};
use crate::listener::Clock;
use crate::message::target;
use crate::trace::TraceContext;

/// A listener's way into the edge.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) edge: Arc<Edge>,
    /// For a whole request to arrive.
    pub(crate) request_timeout: Duration,
    /// Between two requests on one connection.
    pub(crate) idle_timeout: Duration,
}

#[async_trait]
impl ProxyHttp for Door {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange {
            started: Instant::now(),
            request_id: request_id(),
            trace: TraceContext::continued(None, rand::random()),
            route: None,
            rule: None,
            context: None,
            refusal: None,
            place: None,
            _in_flight: InFlight::enter(&self.edge.metrics().in_flight),
        }
    }

    async fn early_request_filter(&self, session: &mut Session, _exchange: &mut Exchange) -> Result<()> {
        if let Some(clock) = Clock::of(session.digest()) {
            clock.request_begins();
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let traceparent =
            session.req_header().headers.get("traceparent").and_then(|value| value.to_str().ok());
        exchange.trace = TraceContext::continued(traceparent, rand::random());
        session.set_read_timeout(Some(self.request_timeout));
        session.set_write_timeout(Some(self.request_timeout));
        session.set_keepalive(if self.edge.is_draining() {
            None
        } else {
            Some(self.idle_timeout.as_secs().max(1))
        });
        match self.edge.admit(session, exchange, self.request_timeout).await {
            Ok(()) => Ok(false),
            Err(refused) => {
                self.edge.refuse(session, exchange, refused).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let peer = self.edge.peer(exchange);
        peer.map(Box::new)
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "the route has no upstream"))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let forged: Vec<_> =
            upstream.headers.keys().filter(|name| shape::edge_only(name.as_str())).cloned().collect();
        for name in forged {
            upstream.remove_header(&name);
        }
        // The token has done its work: what the upstream needs of it is in the fields below.
        upstream.remove_header("authorization");
        upstream.remove_header("expect");
        upstream.insert_header("x-request-id", exchange.request_id.as_str())?;
        upstream.insert_header("traceparent", exchange.trace.to_string())?;
        if let Some(context) = &exchange.context {
            upstream.insert_header("x-forwarded-for", context.client_ip.to_string())?;
            upstream.insert_header("x-forwarded-proto", "https")?;
            for (name, value) in &context.upstream {
                upstream.insert_header(*name, value.as_str())?;
            }
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        self.edge.dress(answer, exchange)
    }

    /// A connection that could not be made has carried nothing: any request may go to another one.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        _exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(true);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Exchange,
    ) -> FailToProxy {
        let keep = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if session.response_written().is_some() {
            return keep;
        }
        let Some(refusal) = failure(error) else { return keep };
        let status = refusal.status;
        tracing::warn!(request_id = exchange.request_id, error = %error.etype().as_str(), "upstream failed");
        match self.edge.refuse(session, exchange, of_edge(refusal)).await {
            Ok(()) => FailToProxy { error_code: status, ..keep },
            Err(_) => keep,
        }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, exchange: &mut Exchange) {
        if let Some(clock) = Clock::of(session.digest()) {
            clock.request_ends();
        }
        let status = session.response_written().map_or(0, |answer| answer.status.as_u16());
        let header = session.req_header();
        let (path, _) = target(header);
        let elapsed = exchange.started.elapsed();
        let route = exchange.route.as_deref().unwrap_or("none");
        // Only the methods of HTTP itself are labels: a client can invent others without end.
        let method = match header.method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
            _ => "other",
        };
        let metrics = self.edge.metrics();
        metrics.requests.with_label_values(&[route, method, &status.to_string()]).inc();
        metrics.duration.with_label_values(&[route]).observe(elapsed.as_secs_f64());
        access_log::write(exchange, method, path, status, elapsed.as_secs_f64() * 1_000.0);
    }

    /// What Pingora writes into its own logs about a request.
    fn request_summary(&self, session: &Session, exchange: &Exchange) -> String {
        let header = session.req_header();
        let (path, _) = target(header);
        format!("{} {} {}", header.method, access_log::told(path), exchange.request_id)
    }
}

/// A UUID of version 4: what problems and logs share, so that a person can go from one to the other.
fn request_id() -> String {
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// What a client is told when the upstream failed; `None` when the client itself is gone.
fn failure(error: &Error) -> Option<Refusal> {
    use pingora::ErrorType::{
        ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, ConnectionClosed,
        InvalidCert, ReadError, ReadTimedout, TLSHandshakeFailure, TLSHandshakeTimedout, WriteError,
        WriteTimedout,
    };
    if matches!(error.esource(), pingora::ErrorSource::Downstream) {
        return match error.etype() {
            WriteError | ReadError | ConnectionClosed => None,
            _ => Some(Refusal::new(400, "request_malformed", "The request is not well-formed HTTP.")),
        };
    }
    Some(match error.etype() {
        ConnectTimedout | ConnectRefused | ConnectNoRoute | ConnectError | ConnectProxyFailure
        | InvalidCert | TLSHandshakeFailure | TLSHandshakeTimedout => {
            let detail = "The service cannot be reached. Nothing was done; try again.";
            Refusal::new(503, "upstream_unreachable", detail).header("retry-after", "1")
        }
        ReadTimedout | WriteTimedout => {
            let detail = "The service did not answer in time. Whether it acted is unknown: \
                          ask again with the same Idempotency-Key.";
            Refusal::new(504, "upstream_timeout", detail)
        }
        _ => {
            let detail = "The service broke off. Whether it acted is unknown: \
                          ask again with the same Idempotency-Key.";
            Refusal::new(502, "upstream_failed", detail)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::request_id;

    #[test]
    fn request_ids_are_version_4_uuids() {
        for _ in 0..100 {
            let id = request_id();
            let bytes = id.as_bytes();
            assert_eq!((id.len(), bytes[14]), (36, b'4'), "{id}");
            assert!(b"89ab".contains(&bytes[19]), "{id}");
        }
    }
}
