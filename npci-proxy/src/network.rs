//! Calls to the payment network. Each goes through bulkhead and breaker, is signed, and its answer is believed
//! only if the network signed it for this very request. Nothing is ever sent twice from here, and no payment
//! long after it was asked for: the process may have stood still with the request in a socket's buffer, and
//! whoever waited may have asked the network meanwhile and heard that it knows no such payment.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use certs::{CertError, Live, LiveTls, TlsFiles, Watch, pki::Purpose};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::Semaphore;

use crate::{
    breaker::{Breaker, CallResult, Ticket},
    clock::Clock,
    codec::{Api, Codec, Exchange},
    config,
    freshness::{self, Stale},
    metrics::Metrics,
    pinned,
    problem::{Problem, Sent},
    seal::{Asked, Mark, Signer, Verifier},
};

/// No answer of the façade is anywhere near as large.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub struct Network {
    client: Live<reqwest::Client>,
    url: String,
    codec: Codec,
    signer: Signer,
    verifier: Verifier,
    freshness: freshness::Rules,
    /// When a payment was asked for, seen from the moment that it goes out.
    pay_age: freshness::Rules,
    lanes: [Lane; 3],
    clock: Clock,
    metrics: Metrics,
}

/// One of the three calls: slow payments must not use up what status checks need.
#[derive(Debug)]
struct Lane {
    timeout: Duration,
    max_in_flight: usize,
    slots: Semaphore,
    breaker: Mutex<Breaker>,
}

/// Why there is no answer of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the breaker is open")]
    BreakerOpen { retry_after_ms: i64 },
    #[error("too many calls are under way")]
    TooManyCalls,
    #[error("the network cannot be reached")]
    Unreachable,
    #[error("the network did not answer in time")]
    Timeout,
    #[error("the connection to the network broke")]
    Broken,
    #[error("the network answered with status {0}")]
    Status(u16),
    #[error("the network's answer cannot be believed: {0}")]
    AnswerInvalid(&'static str),
    #[error("the call could not be written")]
    NotWritten,
    #[error("not of now (initiatedAt): {0}")]
    RequestTooOld(Stale),
}

/// Follows the files of a way to another process, which is called as the host of `url` is.
pub fn tls_to(name: &str, url: &str, files: &TlsFiles, watch: &Watch) -> Result<LiveTls, CertError> {
    let live = files.watch(watch, name, Purpose::Client)?;
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    live.connects(watch, name, host);
    Ok(live)
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("network.url must be https://host:port and nothing after it")]
    Url,
    #[error("network.tls: {0}")]
    Certificates(#[from] certs::CertError),
    #[error("network: {0}")]
    Pins(#[from] pinned::PinError),
}

impl Network {
    pub fn new(
        config: &config::Network,
        signer: Signer,
        verifier: Verifier,
        freshness: freshness::Rules,
        clock: Clock,
        metrics: Metrics,
        watch: &Watch,
    ) -> Result<Network, NetworkError> {
        let LiveTls { identity, trust } = tls_to("network", &config.url, &config.tls, watch)?;
        let pins = config.spki_pins.clone();
        let limits = certs::client::ClientLimits {
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            ..certs::client::ClientLimits::default()
        };
        let client = watch.derive(&[&identity.clone(), &trust.clone()], move || {
            let tls = pinned::client_config(&identity.current(), &trust.current(), &pins)?;
            Ok::<_, pinned::PinError>(certs::client::https(tls, limits)?)
        })?;
        let lane = |timeout_ms, max_in_flight| Lane {
            timeout: Duration::from_millis(timeout_ms),
            max_in_flight,
            slots: Semaphore::new(max_in_flight),
            breaker: Mutex::new(Breaker::new(config.breaker)),
        };
        let (pay, status, validate) = (config.pay, config.status, config.validate);
        Ok(Network {
            client,
            url: base_url(&config.url).ok_or(NetworkError::Url)?,
            codec: Codec::Json,
            signer,
            verifier,
            freshness,
            pay_age: freshness::Rules { window_ms: pay.max_age_ms, ..freshness },
            lanes: [
                lane(pay.timeout_ms, pay.max_in_flight),
                lane(status.timeout_ms, status.max_in_flight),
                lane(validate.timeout_ms, validate.max_in_flight),
            ],
            clock,
            metrics,
        })
    }

    /// One call, one attempt.
    pub async fn call<E: Exchange>(&self, request: &E, request_id: &str) -> Result<E::Answer, CallError> {
        let started = Instant::now();
        let answer = self.guarded(request, request_id).await;
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(error) => error.name(),
        };
        self.metrics.call(E::API, outcome, started.elapsed().as_secs_f64());
        if let Err(error) = &answer {
            tracing::warn!(api = E::API.name(), request_id, outcome, %error, "call to the network failed");
        }
        answer
    }

    /// Whether payments would be sent at this moment.
    pub fn breaker_state(&self, api: Api) -> crate::breaker::State {
        lock(&self.lane(api).breaker).state()
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    async fn guarded<E: Exchange>(&self, request: &E, request_id: &str) -> Result<E::Answer, CallError> {
        let lane = self.lane(E::API);
        let _slot = lane.slots.try_acquire().map_err(|_| CallError::TooManyCalls)?;
        let _in_flight = InFlight::enter(self, E::API);
        let admitted = lock(&lane.breaker).admit(self.clock.now_ms());
        let ticket =
            admitted.map_err(|refused| CallError::BreakerOpen { retry_after_ms: refused.retry_after_ms })?;
        let mut settle = Settle { network: self, api: E::API, ticket, result: CallResult::Abandoned };
        let answer = self.exchange(request, request_id, lane.timeout).await;
        settle.result = match &answer {
            Ok(_) => CallResult::Success,
            Err(error) => error.for_breaker(),
        };
        answer
    }

    async fn exchange<E: Exchange>(
        &self,
        request: &E,
        request_id: &str,
        timeout: Duration,
    ) -> Result<E::Answer, CallError> {
        let (method, path) = ("POST", E::API.path());
        let body = self.codec.request(request).map_err(|_| CallError::NotWritten)?;
        let mark = Mark::fresh(self.clock.now_ms());
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert("x-request-id", value);
        }
        self.signer
            .sign_request((method, path), &mut headers, &body, &mark)
            .map_err(|_| CallError::NotWritten)?;

        let url = format!("{}{path}", self.url);
        // The last thing before the bytes leave; from here on only the connect timeout can hold them up.
        if let Some(asked_at) = request.asked_at() {
            let checked = self.pay_age.check_ms(asked_at.unix_ms, self.clock.now_ms());
            checked.map_err(CallError::RequestTooOld)?;
        }
        let sent = self.client.current().post(url).headers(headers).body(body).timeout(timeout).send().await;
        let failed = |error: reqwest::Error| {
            let failure = CallError::of(&error);
            let cause = certs::client::cause(error);
            tracing::warn!(api = E::API.name(), request_id, cause, "no answer from the network");
            failure
        };
        let mut response = sent.map_err(failed)?;
        let status = response.status().as_u16();
        if response.status().is_server_error() {
            // From a machine in front of the network, perhaps: it need not be signed to be bad news.
            return Err(CallError::Status(status));
        }
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_MAX_BYTES {
                return Err(CallError::AnswerInvalid("too large"));
            }
            body.extend_from_slice(&chunk);
        }

        let asked = Asked { method, path, nonce: &mark.nonce };
        let now_ms = self.clock.now_ms();
        let answered = self.verifier.verify_answer(asked, status, &headers, &body, now_ms).map_err(|broken| {
            tracing::warn!(api = E::API.name(), request_id, %broken, "the network's answer does not verify");
            CallError::AnswerInvalid("signature")
        })?;
        self.freshness
            .check(answered.created_s, now_ms)
            .map_err(|_| CallError::AnswerInvalid("not fresh"))?;
        if status != StatusCode::OK.as_u16() {
            return Err(CallError::Status(status));
        }
        self.codec.answer(request, &body).map_err(|error| {
            tracing::warn!(api = E::API.name(), request_id, %error, "the network's answer has a wrong shape");
            CallError::AnswerInvalid("shape")
        })
    }

    fn lane(&self, api: Api) -> &Lane {
        let [pay, status, validate] = &self.lanes;
        match api {
            Api::Pay => pay,
            Api::Status => status,
            Api::Validate => validate,
        }
    }
}

impl CallError {
    fn of(error: &reqwest::Error) -> CallError {
        if error.is_connect() {
            CallError::Unreachable
        } else if error.is_timeout() {
            CallError::Timeout
        } else {
            CallError::Broken
        }
    }

    fn name(self) -> &'static str {
        match self {
            CallError::BreakerOpen { .. } => "breaker_open",
            CallError::TooManyCalls => "too_many_calls",
            CallError::Unreachable => "unreachable",
            CallError::Timeout => "timeout",
            CallError::Broken => "broken",
            CallError::Status(_) => "status",
            CallError::AnswerInvalid(_) => "answer_invalid",
            CallError::NotWritten => "not_written",
            CallError::RequestTooOld(_) => "request_too_old",
        }
    }

    fn for_breaker(self) -> CallResult {
        match self {
            CallError::Unreachable | CallError::Timeout | CallError::Broken | CallError::AnswerInvalid(_) => {
                CallResult::Failure
            }
            CallError::Status(status) if status >= 500 => CallResult::Failure,
            CallError::Status(_) => CallResult::Success,
            CallError::BreakerOpen { .. }
            | CallError::TooManyCalls
            | CallError::NotWritten
            | CallError::RequestTooOld(_) => CallResult::Abandoned,
        }
    }

    /// Whether the network may have seen the call.
    pub fn sent(self) -> Sent {
        match self {
            CallError::BreakerOpen { .. }
            | CallError::TooManyCalls
            | CallError::Unreachable
            | CallError::NotWritten
            | CallError::RequestTooOld(_) => Sent::No,
            CallError::Timeout | CallError::Broken | CallError::Status(_) | CallError::AnswerInvalid(_) => {
                Sent::Unknown
            }
        }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Problem {
        let problem = match error {
            CallError::BreakerOpen { retry_after_ms } => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "network_unavailable")
                    .retry_after_ms(retry_after_ms)
            }
            CallError::TooManyCalls | CallError::Unreachable | CallError::NotWritten => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "network_unavailable").retry_after_ms(1_000)
            }
            CallError::RequestTooOld(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "request_too_old"),
            CallError::Timeout => Problem::new(StatusCode::GATEWAY_TIMEOUT, "network_timeout"),
            CallError::Broken | CallError::Status(_) => {
                Problem::new(StatusCode::BAD_GATEWAY, "network_error")
            }
            CallError::AnswerInvalid(_) => Problem::new(StatusCode::BAD_GATEWAY, "network_answer_invalid"),
        };
        problem.detail(error.to_string()).sent(error.sent())
    }
}

/// Gives the ticket back even if the caller goes away in the middle of the call.
struct Settle<'a> {
    network: &'a Network,
    api: Api,
    ticket: Ticket,
    result: CallResult,
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        let mut breaker = lock(&self.network.lane(self.api).breaker);
        breaker.settle(self.network.clock.now_ms(), self.ticket, self.result);
        self.network.metrics.breaker(self.api, breaker.state());
    }
}

struct InFlight<'a>(&'a Network, Api);

impl<'a> InFlight<'a> {
    fn enter(network: &'a Network, api: Api) -> InFlight<'a> {
        let entered = InFlight(network, api);
        entered.tell(0);
        entered
    }

    fn tell(&self, leaving: usize) {
        let lane = self.0.lane(self.1);
        let used = lane.max_in_flight.saturating_sub(lane.slots.available_permits());
        self.0.metrics.in_flight(self.1, used.saturating_sub(leaving));
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.tell(1);
    }
}

/// `https://host:port` without a slash at its end, or nothing.
pub fn base_url(text: &str) -> Option<String> {
    let url = reqwest::Url::parse(text).ok()?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let anonymous = url.username().is_empty() && url.password().is_none();
    let secure = url.scheme() == "https" && url.has_host();
    (bare && anonymous && secure).then(|| url.as_str().trim_end_matches('/').to_owned())
}

fn lock(breaker: &Mutex<Breaker>) -> MutexGuard<'_, Breaker> {
    // The breaker's own code does not panic; whoever held the lock left it whole.
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, expected) in [
            ("https://localhost:9443", Some("https://localhost:9443")),
            ("https://localhost:9443/", Some("https://localhost:9443")),
            ("https://npci.network.test:443", Some("https://npci.network.test")),
            ("http://localhost:9443", None),
            ("https://localhost/upi", None),
            ("https://localhost?x", None),
            ("https://u:p@localhost", None),
            ("localhost:9443", None),
        ] {
            assert_eq!(base_url(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn every_failure_says_whether_money_may_have_moved() {
        let check = |error: CallError, status: u16, code: &str, sent: Sent| {
            let problem = Problem::from(error);
            assert_eq!((problem.status.as_u16(), problem.code, problem.sent), (status, code, Some(sent)));
        };
        check(CallError::BreakerOpen { retry_after_ms: 5 }, 503, "network_unavailable", Sent::No);
        check(CallError::TooManyCalls, 503, "network_unavailable", Sent::No);
        check(CallError::Unreachable, 503, "network_unavailable", Sent::No);
        check(CallError::NotWritten, 503, "network_unavailable", Sent::No);
        check(CallError::RequestTooOld(Stale::TooOld), 503, "request_too_old", Sent::No);
        check(CallError::Timeout, 504, "network_timeout", Sent::Unknown);
        check(CallError::Broken, 502, "network_error", Sent::Unknown);
        check(CallError::Status(503), 502, "network_error", Sent::Unknown);
        check(CallError::Status(401), 502, "network_error", Sent::Unknown);
        check(CallError::AnswerInvalid("signature"), 502, "network_answer_invalid", Sent::Unknown);
    }
}
