//! One policy and everything that serves it: what becomes of a request before an upstream hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::Watch;
use filters::admission::{Admission, asks_for_websocket};
use filters::chain::Refused;
use filters::failure::Failure;
use filters::filter::{Host, Introspected};
use filters::flags::Flags;
use filters::jwt::{KeySet, Revocations};
use filters::policy::{Keyring, Policy, RouteRule};
use filters::state::Answer;
use pingora::Result as Answered;
use pingora::http::RequestHeader;
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;

use crate::client_keys::ClientKeys;
use crate::exchange::{Exchange, Streamed};
use crate::flags::FeatureFlags;
use crate::gate::Standing;
use crate::issuers::Issuers;
use crate::jwks::Refetch;
use crate::load::{ListenerFiles, Loaded};
use crate::message::{Sender, read_body, request, target};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::revoke::Operators;
use crate::upstream::Upstream;
use crate::upstream::deadline::Deadline;
use crate::upstream::failure::Cause;
use crate::upstream::mirror::{self, Copy};

/// One policy and everything that serves it. Another policy is another edge.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) policy: Policy,
    upstreams: BTreeMap<String, Arc<Upstream>>,
    /// Upstreams that get no requests, and why.
    disabled: BTreeMap<String, String>,
    pub(crate) issuers: Issuers,
    client_keys: ClientKeys,
    flags: FeatureFlags,
    operators: Operators,
    pub(crate) standing: Standing,
    watch: Arc<Watch>,
    version: String,
}

impl Edge {
    /// The edge, and the files of its listeners in the policy's order. What the edge `before` it knows of issuers' keys,
    /// and of upstreams that stay, it knows too.
    pub(crate) fn new(
        loaded: Loaded,
        standing: &Standing,
        before: Option<&Self>,
    ) -> anyhow::Result<(Self, Vec<ListenerFiles>)> {
        let Loaded { policy, listeners, upstreams: files, disabled, folder, watch, version } = loaded;
        watch.include(Arc::clone(&standing.watch));
        let document = policy.document();
        let issuers_before = before.map(|before| &before.issuers);
        let issuers = Issuers::new(document, &folder, &standing.metrics, &watch, issuers_before)?;
        let operators = Operators::new(document, &folder, document.admin.address.ip().is_loopback())?;
        let keys_before = before.map(|before| before.client_keys.clone());
        let client_keys = ClientKeys::follow(document, &folder, &watch, keys_before)?;
        let mut upstreams = BTreeMap::new();
        for (name, files) in &files {
            if let Some(settings) = policy.upstream(name) {
                let before = before.and_then(|before| before.upstreams.get(name));
                let upstream = Upstream::new(name, settings, files, &watch, before.map(Arc::as_ref))?;
                upstreams.insert(name.clone(), Arc::new(upstream));
            }
        }
        let disabled: BTreeMap<String, String> = disabled
            .into_iter()
            .map(|(name, why)| {
                (name, why.iter().map(|why| why.message.as_str()).collect::<Vec<_>>().join("; "))
            })
            .collect();
        for (upstream, why) in &disabled {
            tracing::error!(
                upstream,
                why,
                "the upstream is disabled: its routes answer 503 until the file is replaced"
            );
        }
        let flags = FeatureFlags::follow(&policy, &folder, &watch)?;
        let standing = standing.clone();
        let edge = Self {
            policy,
            upstreams,
            disabled,
            issuers,
            client_keys,
            flags,
            operators,
            standing,
            watch,
            version,
        };
        Ok((edge, listeners))
    }

    /// The first digits of the policy file's SHA-256.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Who follows the certificates.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    pub(crate) fn flags(&self) -> &FeatureFlags {
        &self.flags
    }

    /// Who may revoke tokens.
    pub(crate) fn operators(&self) -> &Operators {
        &self.operators
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.standing.metrics
    }

    /// What keeps the edge from serving every route.
    pub(crate) fn missing(&self) -> Vec<String> {
        let keys = self.issuers.keys.missing().into_iter().map(|issuer| format!("keys of issuer {issuer}"));
        let draining = self.standing.is_draining().then(|| "draining".to_owned());
        let state = &self.standing.state;
        let unheard = (!state.is_known()).then(|| "first word of the shared state".to_owned());
        let revoked = (!state.revoked().list().is_known()).then(|| "list of what is revoked".to_owned());
        keys.chain(unheard).chain(revoked).chain(draining).collect()
    }

    /// The upstream's next address for this request, while there is time. It begins when the first one is asked for; a
    /// WebSocket has its own bounds.
    pub(crate) fn peer(&self, exchange: &mut Exchange) -> Result<HttpPeer, Failure> {
        let time = self.time(exchange).filter(|_| exchange.websocket.is_none());
        if let (Some(time), None) = (time, &exchange.deadline) {
            exchange.deadline = Some(Deadline::new(time, self.idle(exchange)));
        }
        if exchange.is_overdue() {
            return Err(Failure::UpstreamTimeout);
        }
        if let Some(deadline) = &exchange.deadline {
            deadline.heard();
        }
        let left = exchange.deadline.as_ref().map(|deadline| match exchange.is_multiplexed() {
            // No socket can be shut there, so each read is bounded.
            true => deadline.left(),
            false => deadline.total_left(),
        });
        // If it was a trial of which nothing is known, that may be this one's now.
        exchange.address = None;
        let next = exchange.upstream.as_ref().and_then(|upstream| upstream.peer(left));
        let (tried, mut peer) = next.ok_or(Failure::UpstreamUnreachable)?;
        self.standing.sockets.know(&mut peer);
        exchange.address = Some(tried);
        Ok(peer)
    }

    /// The upstream has answered, whatever it was.
    pub(crate) fn answered(&self, exchange: &mut Exchange) {
        let (Some(upstream), Some(tried)) = (&exchange.upstream, &mut exchange.address) else { return };
        if let Some(address) = upstream.answered(tried) {
            let (name, route) = (&upstream.name, self.route(exchange));
            tracing::info!(upstream = name, %address, route, "serves again: it has answered");
        }
    }

    /// The upstream did not answer the request at the address that was tried last.
    pub(crate) fn failed(&self, exchange: &mut Exchange) {
        let (Some(upstream), Some(tried)) = (&exchange.upstream, exchange.address.take()) else { return };
        if let Some(address) = upstream.failed(tried) {
            let (name, route) = (&upstream.name, self.route(exchange));
            tracing::warn!(upstream = name, %address, route, "left out for a while: it does not answer");
            self.metrics().ejections.with_label_values(&[name, &address.to_string()]).inc();
        }
    }

    /// No connection to the address that was tried last could be made, or none that may be used.
    pub(crate) fn unconnected(&self, exchange: &mut Exchange, error: &Error) {
        let cause = Cause::of_connecting(error);
        exchange.upstream_failure = Some(cause);
        if let (Some(upstream), Some(tried)) = (&exchange.upstream, &exchange.address) {
            upstream.unconnected(tried, cause, error);
        }
        self.failed(exchange);
    }

    /// A connection broke after it had been made: TLS 1.3 tells a client only then that its certificate is refused, and a
    /// server of another protocol answers something else.
    pub(crate) fn broke(&self, exchange: &mut Exchange, error: &Error) {
        let Some(cause) = Cause::of_tls(&error.to_string()).or_else(|| Cause::of_response(error)) else {
            return;
        };
        exchange.upstream_failure = Some(cause);
        if let (Some(upstream), Some(tried)) = (&exchange.upstream, &exchange.address) {
            upstream.unconnected(tried, cause, error);
        }
    }

    /// What `/config` tells of each upstream.
    pub(crate) fn upstreams(&self) -> serde_json::Value {
        let disabled = self.disabled.iter();
        let disabled = disabled.map(|(name, why)| (name.clone(), serde_json::json!({ "disabled": why })));
        let serving = self.upstreams.iter().map(|(name, upstream)| (name.clone(), upstream.report()));
        serving.chain(disabled).collect()
    }

    /// Upstreams that get no requests because a certificate or CA of theirs has expired, and why.
    pub(crate) fn disabled(&self) -> &BTreeMap<String, String> {
        &self.disabled
    }

    /// Whether a request may be sent again that may have arrived: it is safe, the policy says so, and few are.
    pub(crate) fn repeats(&self, exchange: &mut Exchange) -> bool {
        let most = self.rule(exchange).map_or(0, |rule| rule.retries);
        let upstream = exchange.upstream.as_ref().filter(|_| exchange.repeats.len() < most as usize);
        let Some(repeat) = upstream.and_then(|upstream| upstream.repeat()) else { return false };
        exchange.repeats.push(repeat);
        self.metrics().repeats.inc();
        true
    }

    /// Whether the request may go out on a connection that has been made for it, for what the revocation lists say.
    pub(crate) fn believes(&self, exchange: &Exchange, digest: Option<&Digest>) -> Answered<()> {
        match (&exchange.upstream, &exchange.address) {
            (Some(upstream), Some(tried)) => upstream.believes(tried, digest),
            (_, _) => Error::e_explain(ErrorType::InternalError, "a connection without an address"),
        }
    }

    /// Every upstream that is probed, by name.
    pub(crate) fn probed(&self) -> Vec<(String, Arc<Upstream>)> {
        let probed = self.upstreams.iter().filter(|(_, upstream)| upstream.settings.health.is_some());
        probed.map(|(name, upstream)| (name.clone(), Arc::clone(upstream))).collect()
    }

    /// Every upstream with a name that must be looked up.
    pub(crate) fn with_names(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.values().filter(|upstream| upstream.has_names()).cloned().collect()
    }

    /// Sends a copy of the request, with the fields that go to the upstream, if its route has a mirror.
    pub(crate) fn copy(&self, header: &RequestHeader, exchange: &mut Exchange) {
        let Some(body) = exchange.copy.take() else { return };
        let mirror = self.rule(exchange).and_then(|rule| rule.mirror.as_ref());
        let (Some(mirror), Some(timeout)) = (mirror, self.time(exchange)) else { return };
        let Some(upstream) = self.upstreams.get(&mirror.upstream) else { return };
        let (path, query) = target(header);
        let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let copy =
            Copy { method: header.method.clone(), target, fields: header.headers.clone(), body, timeout };
        mirror::send(upstream, copy, &self.metrics().copies);
    }

    /// Whether the upstream's answer is decided on before any of it leaves.
    pub(crate) fn reads_answer(&self, exchange: &Exchange) -> bool {
        exchange.admission.as_ref().is_some_and(|admission| admission.reads_answer(&self.policy))
    }

    /// The name of the route that serves the request, once known.
    pub(crate) fn route(&self, exchange: &Exchange) -> Option<&str> {
        self.rule(exchange).map(|rule| rule.name.as_str())
    }

    pub(crate) fn rule(&self, exchange: &Exchange) -> Option<&RouteRule> {
        exchange.admission.as_ref()?.rule(&self.policy)
    }

    /// How long the upstream that serves the request may take for the whole answer.
    fn time(&self, exchange: &Exchange) -> Option<Duration> {
        let (position, _) = exchange.admission.as_ref()?.share(&self.policy)?;
        self.rule(exchange)?.timeouts_ms.get(position).copied().map(Duration::from_millis)
    }

    /// How long neither side may send a byte, if the route bounds that.
    fn idle(&self, exchange: &Exchange) -> Option<Duration> {
        self.rule(exchange)?.idle_timeout_ms.map(Duration::from_millis)
    }

    /// Everything that is decided before the upstream is spoken to. Gives the body, as far as it was read.
    pub(crate) async fn admit(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        time: Duration,
    ) -> Result<Bytes, Refused> {
        let (Some(admission), Some(sender)) = (&mut exchange.admission, Sender::of(session)) else {
            return Err(Failure::Malformed.into());
        };
        self.head(session.req_header(), &sender, admission).await?;
        let asked = asks_for_websocket(&request(session.req_header(), &sender));
        exchange.websocket = admission.rule(&self.policy).filter(|_| asked).and_then(|rule| rule.websocket);
        exchange.streamed = admission.streams(&self.policy).map(Streamed::new);
        let body = match (exchange.websocket, &exchange.streamed) {
            // What follows is not its body.
            (Some(_), _) => Bytes::new(),
            (None, Some(_)) => {
                if !session.as_mut().is_body_empty() {
                    admission.body_begins(&self.policy, &request(session.req_header(), &sender))?;
                }
                Bytes::new()
            }
            (None, None) => match tokio::time::timeout(time, read_body(session)).await {
                Ok(body) => body?,
                Err(_) => return Err(Failure::RequestTimeout.into()),
            },
        };
        if exchange.streamed.is_none() || exchange.websocket.is_some() {
            admission.body(&self.policy, &request(session.req_header(), &sender), &body, &Now(self))?;
        }
        // A place in the upstream's bulkhead comes before anything is spent in shared state.
        let share = admission.share(&self.policy).map(|(_, share)| share.upstream.as_str());
        let upstream = share.and_then(|name| self.upstreams.get(name)).ok_or(Failure::UpstreamUnreachable)?;
        upstream.known().await;
        if !upstream.serves() {
            exchange.upstream_failure = upstream.is_unresolved().then_some(Cause::NameUnresolved);
            return Err(Failure::UpstreamUnreachable.into());
        }
        exchange.upstream = Some(Arc::clone(upstream));
        let place = match exchange.websocket {
            Some(_) => upstream.enter_websocket(),
            None => upstream.enter(),
        };
        exchange.place = Some(place.ok_or(Failure::UpstreamOverloaded)?);
        let answers = self.standing.state.ask_for_places(admission.batch(&self.policy)).await;
        if answers.as_ref().is_ok_and(|answers| answers.contains(&Answer::NotCounted)) {
            self.metrics().uncounted.inc();
        }
        let decided = admission.answered(&self.policy, answers);
        for shadow in &admission.context().would_refuse {
            self.metrics().would_refuse.with_label_values(&[shadow.filter, shadow.limit.as_str()]).inc();
        }
        decided?;
        exchange.fields =
            admission.forward(&self.policy, &request(session.req_header(), &sender), &Now(self))?;
        exchange.admitted = true;
        let mirror = admission.rule(&self.policy).and_then(|rule| rule.mirror.as_ref());
        exchange.copy =
            mirror.filter(|mirror| rand::random_range(0..100) < mirror.percent).map(|_| body.clone());
        Ok(body)
    }

    /// Decides on the header; once more if the first answer rested on keys that may be old, or on a token of which only
    /// its issuer knows anything.
    async fn head(
        &self,
        header: &RequestHeader,
        sender: &Sender,
        admission: &mut Admission,
    ) -> Result<(), Refused> {
        let first = match admission.head(&self.policy, &request(header, sender), &Now(self)) {
            Ok(()) => return Ok(()),
            Err(first) => first,
        };
        let knows_more = match (&first.refusal.stale_keys, &first.refusal.opaque_token) {
            (Some(stale), _) => match self.issuers.keys.refresh_unknown(&stale.issuer).await {
                Refetch::Current => true,
                Refetch::NotNow { retry_after_s } => return Err(first.without_new_keys(retry_after_s)),
            },
            (None, Some(token)) => self.issuers.introspection.ask(&token.issuer, &token.text).await.is_some(),
            (None, None) => false,
        };
        match knows_more {
            true => admission.head(&self.policy, &request(header, sender), &Now(self)),
            false => Err(first),
        }
    }
}

/// The world, as one request's filters see it.
pub(crate) struct Now<'e>(pub(crate) &'e Edge);

impl Host for Now<'_> {
    fn now_ms(&self) -> u64 {
        now_ms()
    }

    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.0.issuers.keys.keys(issuer)
    }

    fn keyring(&self) -> Option<Arc<Keyring>> {
        Some(self.0.client_keys.current())
    }

    fn introspected(&self, issuer: &str, token: &str) -> Option<Introspected> {
        self.0.issuers.introspection.known(issuer, token)
    }

    fn flags(&self) -> Option<Arc<Flags>> {
        self.0.flags.current()
    }

    fn revocations(&self) -> Option<&Revocations> {
        Some(self.0.standing.state.revoked().list())
    }
}
