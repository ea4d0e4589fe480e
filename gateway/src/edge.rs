//! The policy and everything that serves it: what becomes of a request before an upstream hears of it, and of a
//! refusal on its way back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use filters::chain::Refused;
use filters::filter::{Context, Host, Refusal};
use filters::jwt::KeySet;
use filters::policy::{Match, Policy, RouteRule};
use filters::shape;
use pingora::Result as Answered;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::OwnedSemaphorePermit;

use crate::exchange::Exchange;
use crate::jwks::KeyStore;
use crate::load::{ListenerFiles, Loaded};
use crate::memory::{Full, Memory};
use crate::message::{drain, is_small, read_body, request, target};
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// The policy and everything that serves it.
#[derive(Debug)]
pub(crate) struct Edge {
    policy: Policy,
    upstreams: BTreeMap<String, Upstream>,
    keys: Arc<KeyStore>,
    state: Memory,
    metrics: Metrics,
    started_ms: u64,
    draining: AtomicBool,
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
        let edge =
            Self { upstreams, keys, state, metrics, started_ms: now_ms(), draining, policy: loaded.policy };
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

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on connections are closed after their answer, and the edge is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What keeps the edge from serving every route.
    pub(crate) fn missing(&self) -> Vec<String> {
        let keys = self.keys.missing().into_iter().map(|issuer| format!("keys of issuer {issuer}"));
        let draining = self.is_draining().then(|| "draining".to_owned());
        keys.chain(draining).collect()
    }

    /// The upstream's next address for this request; `None` before a route is found.
    pub(crate) fn peer(&self, exchange: &Exchange) -> Option<HttpPeer> {
        let rule = self.rule(exchange)?;
        self.upstreams.get(&rule.upstream)?.peer(Duration::from_millis(rule.timeout_ms))
    }

    fn rule(&self, exchange: &Exchange) -> Option<&RouteRule> {
        self.policy.rules().get(exchange.rule?)
    }

    /// Everything that is decided before the upstream is spoken to.
    pub(crate) async fn admit(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        time: Duration,
    ) -> Result<(), Refused> {
        let peer = session.client_addr().and_then(|addr| addr.as_inet()).map(|addr| addr.ip());
        let Some(peer) = peer else {
            return Err(of_edge(Refusal::new(400, "peer_unknown", "The connection has no address.")));
        };
        exchange.context = Some(Context::new(peer));
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
        peer: IpAddr,
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
        peer: IpAddr,
        rule: &RouteRule,
        context: &mut Context,
        time: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, Refused> {
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
    pub(crate) async fn refuse(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        refused: Refused,
    ) -> Answered<()> {
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
    pub(crate) fn dress(&self, header: &mut ResponseHeader, exchange: &Exchange) -> Answered<()> {
        header.insert_header("x-request-id", exchange.request_id.as_str())?;
        header.remove_header("server");
        let chain = self.rule(exchange).map_or(self.policy.everywhere(), |rule| &rule.chain);
        if let Some(context) = &exchange.context {
            for (name, value) in chain.response(context) {
                header.insert_header(name.into_owned(), value)?;
            }
        }
        Ok(())
    }
}

/// The world, as one request's filters see it.
struct Now<'e>(&'e Edge);

impl Host for Now<'_> {
    fn now_ms(&self) -> u64 {
        now_ms()
    }

    fn remembers_since_ms(&self) -> u64 {
        self.0.started_ms
    }

    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.0.keys.keys(issuer)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn not_found() -> Refusal {
    Refusal::new(404, "route_not_found", "There is nothing here.")
}

pub(crate) fn of_edge(refusal: Refusal) -> Refused {
    Refused { filter: "", refusal }
}
