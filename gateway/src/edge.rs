//! A request's way through the edge: Pingora's phases in, the policy's decisions out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use filters::chain::Refused;
use filters::filter::{Context, Headers, Host, Refusal, Request};
use filters::jwt::KeySet;
use filters::policy::{Match, Policy, RouteRule};
use filters::shape;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;

use crate::access_log;
use crate::exchange::{Exchange, InFlight};
use crate::jwks::KeyStore;
use crate::load::{ListenerFiles, Loaded};
use crate::memory::{Full, Memory};
use crate::metrics::Metrics;
use crate::trace::TraceContext;
use crate::upstream::Upstream;

/// The policy and everything that serves it.
#[derive(Debug)]
pub(crate) struct Edge {
    policy: Policy,
    upstreams: BTreeMap<String, Upstream>,
    keys: Arc<KeyStore>,
    state: Memory,
    metrics: Metrics,
    draining: AtomicBool,
}

/// A listener's way into the edge.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) edge: Arc<Edge>,
    /// For a whole request to arrive.
    pub(crate) request_timeout: Duration,
    /// Between two requests on one connection.
    pub(crate) idle_timeout: Duration,
}

impl Edge {
    /// The edge, and the files of its listeners in the policy's order.
    pub(crate) fn new(loaded: Loaded) -> anyhow::Result<(Arc<Self>, Vec<ListenerFiles>)> {
        let metrics = Metrics::new()?;
        let document = loaded.policy.document();
        let keys = Arc::new(KeyStore::new(&document.issuers, &loaded.folder, metrics.clone())?);
        let upstreams = loaded
            .upstreams
            .iter()
            .filter_map(|(name, files)| {
                let settings = loaded.policy.upstream(name)?;
                Some((name.clone(), Upstream::new(settings, files)))
            })
            .collect();
        let state = Memory::new(document.state.memory.max_entries);
        let draining = AtomicBool::new(false);
        let edge = Self { upstreams, keys, state, metrics, draining, policy: loaded.policy };
        Ok((Arc::new(edge), loaded.listeners))
    }

    pub(crate) fn keys(&self) -> Arc<KeyStore> {
        Arc::clone(&self.keys)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn state_entries(&self) -> usize {
        self.state.len()
    }

    pub(crate) fn in_flight(&self) -> i64 {
        self.metrics.in_flight.get()
    }

    /// From now on connections are closed after their answer, and the edge is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What keeps the edge from serving every route.
    pub(crate) fn missing(&self) -> Vec<String> {
        let keys = self.keys.missing().into_iter().map(|issuer| format!("keys of issuer {issuer}"));
        let draining = self.draining.load(Ordering::Relaxed).then(|| "draining".to_owned());
        keys.chain(draining).collect()
    }

    fn rule(&self, exchange: &Exchange) -> Option<&RouteRule> {
        self.policy.rules().get(exchange.rule?)
    }

    /// Everything that is decided before the upstream is spoken to.
    async fn admit(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        time: Duration,
    ) -> Result<(), Refused> {
        let peer = session.client_addr().and_then(|addr| addr.as_inet()).map(|addr| addr.ip());
        let Some(peer) = peer else {
            return Err(of_edge(Refusal::new(400, "peer_unknown", "The connection has no address.")));
        };
        let position = self.find(session.req_header())?;
        exchange.rule = Some(position);
        let Some(rule) = self.policy.rules().get(position) else { return Err(of_edge(not_found())) };
        exchange.route = Some(rule.name.as_str().into());
        let context = self.head(session.req_header(), peer, rule).await;
        let (mut context, headed) = context;
        if let Err(refused) = headed {
            exchange.context = Some(context);
            return Err(refused);
        }
        let decided = self.whole(session, peer, rule, &mut context, time).await;
        exchange.context = Some(context);
        exchange.place = decided?;
        Ok(())
    }

    fn find(&self, header: &RequestHeader) -> Result<usize, Refused> {
        let (path, _) = target(header);
        if !shape::unambiguous(path) {
            let detail =
                "Send the path plainly: no empty or dot segments, no encoded characters, no parameters.";
            return Err(of_edge(Refusal::new(400, "path_ambiguous", detail)));
        }
        match self.policy.route(header.method.as_str(), path) {
            Match::Route(rule) => Ok(rule),
            Match::NotFound => Err(of_edge(not_found())),
            Match::MethodNotAllowed(methods) => {
                let refusal = Refusal::new(405, "method_not_allowed", "This path has no such method.");
                Err(of_edge(refusal.header("allow", methods.join(", "))))
            }
        }
    }

    /// Decides on the header; once more with fresh keys if the first answer rested on keys that may be old.
    async fn head(
        &self,
        header: &RequestHeader,
        peer: std::net::IpAddr,
        rule: &RouteRule,
    ) -> (Context, Result<(), Refused>) {
        let decide = || {
            let mut context = Context::new(peer);
            let decided = rule.chain.head(&request(header, peer), &Now(self), &mut context);
            (context, decided)
        };
        let first = decide();
        let stale = match &first.1 {
            Err(refused) => refused.refusal.stale_keys.clone(),
            Ok(()) => None,
        };
        match stale {
            Some(issuer) if self.keys.refresh_unknown(&issuer).await => decide(),
            Some(_) | None => first,
        }
    }

    /// Decides on the body and asks shared state, holding a place in the upstream's bulkhead before anything
    /// is spent there.
    async fn whole(
        &self,
        session: &mut Session,
        peer: std::net::IpAddr,
        rule: &RouteRule,
        context: &mut Context,
        time: Duration,
    ) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, Refused> {
        let body = match tokio::time::timeout(time, read_body(session)).await {
            Ok(body) => body?,
            Err(_) => {
                let detail = "The request did not arrive in time.";
                return Err(of_edge(Refusal::new(408, "request_timeout", detail)));
            }
        };
        rule.chain.body(&request(session.req_header(), peer), &body, &Now(self), context)?;
        let place = match self.upstreams.get(&rule.upstream) {
            Some(upstream) => upstream.enter().ok_or_else(|| {
                let detail = "The service is at its limit. Nothing was done; try again.";
                of_edge(Refusal::new(503, "upstream_overloaded", detail).header("retry-after", "1"))
            })?,
            None => return Err(of_edge(not_found())),
        };
        let batch = rule.chain.batch(context);
        if !batch.is_empty() {
            let answers = self.state.run(&batch, now_ms()).map_err(|Full| {
                let detail = "The edge cannot remember more at the moment. Nothing was done; try again.";
                of_edge(Refusal::new(503, "state_full", detail).header("retry-after", "1"))
            })?;
            rule.chain.answered(&answers, context)?;
        }
        Ok(Some(place))
    }

    fn note_refusal(&self, exchange: &mut Exchange, code: &'static str, filter: Option<&'static str>) {
        exchange.refusal = Some((code, filter));
        self.metrics.refusals.with_label_values(&[filter.unwrap_or("edge"), code]).inc();
    }

    /// Sends a refusal and everything that belongs on an answer of this route.
    async fn refuse(&self, session: &mut Session, exchange: &mut Exchange, refused: Refused) -> Result<()> {
        let filter = (!refused.filter.is_empty()).then_some(refused.filter);
        self.note_refusal(exchange, refused.refusal.code, filter);
        let body = Bytes::from(refused.refusal.problem(&exchange.request_id));
        let mut header = ResponseHeader::build(refused.refusal.status, Some(16))?;
        header.insert_header("content-type", "application/problem+json")?;
        header.insert_header("content-length", body.len())?;
        for (name, value) in refused.refusal.headers {
            header.insert_header(name, value)?;
        }
        self.dress(&mut header, exchange)?;
        // A small body is read first, so that the connection can be kept. A large one is answered at once and
        // read a little longer: closing on a client that still writes would cost it the answer.
        let whole = session.is_body_done() || (is_small(session.req_header()) && drain(session).await);
        if !whole {
            session.set_keepalive(None);
        }
        session.write_response_header(Box::new(header), false).await?;
        session.write_response_body(Some(body), true).await?;
        if !whole {
            drain(session).await;
        }
        Ok(())
    }

    /// The fields of every answer, whoever gives it.
    fn dress(&self, header: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
        header.insert_header("x-request-id", exchange.request_id.as_str())?;
        header.remove_header("server");
        if let (Some(rule), Some(context)) = (self.rule(exchange), &exchange.context) {
            for (name, value) in rule.chain.response(context) {
                header.insert_header(name.into_owned(), value)?;
            }
        }
        Ok(())
    }
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
            _in_flight: InFlight::enter(&self.edge.metrics.in_flight),
        }
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let traceparent =
            session.req_header().headers.get("traceparent").and_then(|value| value.to_str().ok());
        exchange.trace = TraceContext::continued(traceparent, rand::random());
        session.set_read_timeout(Some(self.request_timeout));
        session.set_keepalive(if self.edge.draining.load(Ordering::Relaxed) {
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
        let peer = self.edge.rule(exchange).and_then(|rule| {
            let upstream = self.edge.upstreams.get(&rule.upstream)?;
            upstream.peer(Duration::from_millis(rule.timeout_ms))
        });
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
        let metrics = &self.edge.metrics;
        metrics.requests.with_label_values(&[route, method, &status.to_string()]).inc();
        metrics.duration.with_label_values(&[route]).observe(elapsed.as_secs_f64());
        access_log::write(exchange, method, path, status, elapsed.as_secs_f64() * 1_000.0);
    }

    /// What Pingora writes into its own logs about a request.
    fn request_summary(&self, session: &Session, exchange: &Exchange) -> String {
        let header = session.req_header();
        let (path, _) = target(header);
        format!("{} {} {}", header.method, access_log::masked(path), exchange.request_id)
    }
}

/// The world, as one request's filters see it.
struct Now<'e>(&'e Edge);

impl Host for Now<'_> {
    fn now_ms(&self) -> u64 {
        now_ms()
    }

    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.0.keys.keys(issuer)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A UUID of version 4: what problems and logs share, so that a person can go from one to the other.
fn request_id() -> String {
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// The path and the query exactly as they were sent. A target that is not text is none that we route.
fn target(header: &RequestHeader) -> (&str, Option<&str>) {
    let raw = std::str::from_utf8(header.raw_path()).unwrap_or("");
    match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    }
}

fn request(header: &RequestHeader, peer: std::net::IpAddr) -> Request<'_> {
    let headers: Headers<'_> =
        header.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let (path, query) = target(header);
    let authority = match header.uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.one("host").ok().flatten().unwrap_or_default(),
    };
    Request { method: header.method.as_str(), scheme: "https", authority, path, query, headers, peer }
}

/// Reads the whole body, at most what the edge holds. Pingora keeps a copy for the upstream.
async fn read_body(session: &mut Session) -> Result<Bytes, Refused> {
    session.enable_retry_buffering();
    if expects_continue(session.req_header()) && session.write_continue_response().await.is_err() {
        return Err(incomplete());
    }
    let mut body = BytesMut::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > shape::Config::MOST_BODY_BYTES => {
                let detail = format!("A body has at most {} bytes.", shape::Config::MOST_BODY_BYTES);
                return Err(of_edge(Refusal::new(413, "body_too_large", detail)));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(_) => return Err(incomplete()),
        }
    }
}

/// Whether the body is known to be no larger than one that is read anyway.
fn is_small(header: &RequestHeader) -> bool {
    let length = header.headers.get("content-length").and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<usize>().ok());
    length.is_some_and(|length| length <= shape::Config::MOST_BODY_BYTES) && !expects_continue(header)
}

/// Reads what is left of a refused body and throws it away; tells whether that was all of it.
async fn drain(session: &mut Session) -> bool {
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

fn incomplete() -> Refused {
    of_edge(Refusal::new(400, "body_incomplete", "The body did not arrive whole."))
}

fn not_found() -> Refusal {
    Refusal::new(404, "route_not_found", "There is nothing here.")
}

fn of_edge(refusal: Refusal) -> Refused {
    Refused { filter: "", refusal }
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
