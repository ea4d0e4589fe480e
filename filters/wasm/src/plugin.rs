//! One configuration of the module: a policy, and what a worker keeps for it between requests.

use std::cell::RefCell;
use std::sync::Arc;

use filters::admission::Draw;
use filters::compiled::Compiled;
use filters::crypto::Verify;
use filters::filter::{Host, Introspected, OpaqueToken, WouldRefuse};
use filters::flags::{Evaluation, Flags, Seen};
use filters::jwt::{KeySet, Revocations};
use filters::policy::{Keyring, Policy};
use filters::state::{LimitsWhenAway, Memory, Op};

use crate::certificate::Certificates;
use crate::client_keys::{self, ClientKeys};
use crate::counters::Counters;
use crate::envoy::{Answered, Call, Envoy};
use crate::feature_flags::FeatureFlags;
use crate::introspection::{self, Tokens};
use crate::keys::{self, Keys, Refresh, Waiting};
use crate::revoked::Followed;
use crate::trip;
use crate::verify::ByHost;

/// A policy in one worker.
#[derive(Debug)]
pub struct Plugin {
    pub policy: Policy,
    pub cluster: String,
    pub timeout_ms: u64,
    pub limits_when_away: LimitsWhenAway,
    /// Limits that are counted in this worker.
    pub local: RefCell<Memory>,
    pub keys: RefCell<Keys>,
    pub client_keys: RefCell<ClientKeys>,
    pub feature_flags: RefCell<FeatureFlags>,
    /// What is revoked.
    pub revocations: Revocations,
    followed: RefCell<Followed>,
    /// What issuers say of tokens that only they can read.
    tokens: RefCell<Tokens>,
    verifier: ByHost,
    /// The field in which Envoy tells who is at the other end.
    pub peer_field: Option<String>,
    /// The field in which Envoy tells the client's certificate.
    pub certificate_field: Option<String>,
    pub certificates: Certificates,
    /// Random bytes that are fresh still.
    random: RefCell<Vec<u8>>,
    /// Places that requests have left and that the shared state does not know of yet.
    releases: RefCell<Vec<Op>>,
    counters: Counters,
}

/// What becomes of a request that needs fresh keys.
#[derive(Debug)]
pub enum Refreshing {
    /// The state service was asked.
    Asked(Waiting),
    /// The keys are those that the issuer publishes.
    Current,
    /// They cannot be fetched now.
    NotNow { retry_after_s: u64 },
}

/// The configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(pub String);

/// Under which name Envoy's access log finds what limits in shadow would have refused.
pub const WOULD_REFUSE: &str = "torana_would_refuse";
/// Under which name Envoy's access log finds the filter, the code and the route of a refusal. A client cannot write it, as
/// it could a field.
pub const REFUSED: &str = "torana_refused";
/// Under which name Envoy's access log finds the experiment and the variant.
pub const VARIANT: &str = "torana_experiment";
/// Under which name Envoy's access log finds which limit has refused.
pub const LIMIT: &str = "torana_limit";
/// Under which name Envoy's access log finds the client's address, where a trusted proxy tells it.
pub const CLIENT_IP: &str = "torana_client_ip";
/// Under which name Envoy's access log finds what feature flags have said.
pub const FLAGS: &str = "torana_flags";
/// Most limits that a worker counts at once.
const MOST_LOCAL: usize = 50_000;
/// Most places that wait to be given back. Beyond it their leases give them back.
const MOST_RELEASES: usize = 1_000;
/// Most that go with one batch: the state service takes 64 operations, of which a request has at most 26.
const MOST_RELEASES_AT_ONCE: usize = 32;
/// Bytes of randomness that a request takes.
const DRAW_BYTES: usize = 40;
const DRAWN_AT_ONCE: usize = 64;
/// How long the state service may take over keys.
const KEYS_TIMEOUT_MS: u64 = 5_000;

impl Plugin {
    /// Reads what `gateway envoy` wrote. `env` looks up a variable that Envoy passes on.
    pub fn new(
        configuration: &[u8],
        env: &dyn Fn(&str) -> Option<String>,
        envoy: &dyn Envoy,
    ) -> Result<Self, Unusable> {
        let compiled: Compiled = serde_json::from_slice(configuration).map_err(|why| {
            Unusable(format!("the configuration is not what `gateway envoy` writes: {why}"))
        })?;
        let policy = compiled.read(env).map_err(|mistakes| {
            Unusable(mistakes.iter().map(|m| m.in_file("policy")).collect::<Vec<_>>().join("; "))
        })?;
        let state = &policy.document().state;
        let timeout_ms = state.service.as_ref().map_or(100, |service| service.value.timeout_ms);
        let revocations = Revocations::unknown();
        Ok(Self {
            cluster: compiled.state_cluster,
            timeout_ms,
            limits_when_away: state.limits_when_away,
            local: RefCell::new(Memory::new(MOST_LOCAL, envoy.now_ms())),
            keys: RefCell::new(Keys::new(&policy, envoy)),
            client_keys: RefCell::new(ClientKeys::new(&policy)),
            feature_flags: RefCell::new(FeatureFlags::new(&policy, envoy)),
            followed: RefCell::new(Followed::new(&policy, &revocations, envoy)),
            revocations,
            tokens: RefCell::default(),
            verifier: ByHost::default(),
            peer_field: compiled.peer_field,
            certificate_field: compiled.certificate_field,
            certificates: Certificates::default(),
            random: RefCell::default(),
            releases: RefCell::default(),
            counters: Counters::default(),
            policy,
        })
    }

    /// Asks for keys, now and then; the answer belongs to [`keys_told`](Self::keys_told).
    pub fn ask_for_keys(&self, envoy: &dyn Envoy) -> Option<u32> {
        let keys = self.keys.borrow();
        if keys.is_empty() {
            return None;
        }
        self.get(keys::PATH, keys.etag(), envoy)
    }

    /// Takes the answer to [`ask_for_keys`](Self::ask_for_keys).
    pub fn keys_told(&self, answered: &Answered, envoy: &dyn Envoy) {
        self.keys.borrow_mut().told(answered, envoy);
    }

    /// Asks for the clients' secrets, now and then; the answer belongs to
    /// [`client_keys_told`](Self::client_keys_told).
    pub fn ask_for_client_keys(&self, envoy: &dyn Envoy) -> Option<u32> {
        let keys = self.client_keys.borrow();
        if !keys.are_asked_for() {
            return None;
        }
        self.get(client_keys::PATH, keys.etag(), envoy)
    }

    /// Takes the answer to [`ask_for_client_keys`](Self::ask_for_client_keys).
    pub fn client_keys_told(&self, answered: &Answered, envoy: &dyn Envoy) {
        self.client_keys.borrow_mut().told(answered, &self.policy.document().clients, envoy);
    }

    /// Asks for the feature flags, now and then; the answer belongs to [`flags_told`](Self::flags_told).
    pub fn ask_for_flags(&self, envoy: &dyn Envoy) -> Option<u32> {
        let flags = self.feature_flags.borrow();
        self.get(flags.path()?, flags.etag(), envoy)
    }

    /// Takes the answer to [`ask_for_flags`](Self::ask_for_flags).
    pub fn flags_told(&self, answered: &Answered, envoy: &dyn Envoy) {
        self.feature_flags.borrow_mut().told(answered, &self.policy, envoy);
    }

    /// Asks for what has been revoked since the last time; the answer belongs to
    /// [`revocations_told`](Self::revocations_told).
    pub fn ask_for_revocations(&self, envoy: &dyn Envoy) -> Option<u32> {
        let path = self.followed.borrow().path()?;
        self.get(&path, None, envoy)
    }

    /// Takes the answer to [`ask_for_revocations`](Self::ask_for_revocations).
    pub fn revocations_told(&self, answered: &Answered, envoy: &dyn Envoy) {
        if self.followed.borrow_mut().told(answered, &self.revocations, envoy) {
            envoy.tick_soon();
        }
    }

    /// Whether something is missing that requests are decided with.
    pub fn lacks_keys(&self, now_ms: u64) -> bool {
        self.keys.borrow().missing(now_ms) > 0
            || !self.revocations.is_known()
            || !self.client_keys.borrow().ring().is_whole()
            || self.feature_flags.borrow().are_missing()
    }

    /// Has the state service fetch an issuer's keys, for a token that they do not verify. The answer belongs to
    /// [`keys_refreshed`](Self::keys_refreshed).
    pub fn refresh(&self, issuer: &str, envoy: &dyn Envoy) -> Refreshing {
        let mut keys = self.keys.borrow_mut();
        match keys.refresh(issuer, envoy.now_ms()) {
            Refresh::Ask(known_as, waiting) => {
                match self.post(keys::REFRESH_PATH, known_as.as_bytes(), KEYS_TIMEOUT_MS, envoy) {
                    Some(_) => Refreshing::Asked(waiting),
                    None => Refreshing::NotNow { retry_after_s: 1 },
                }
            }
            Refresh::Current => Refreshing::Current,
            Refresh::NotNow { retry_after_s } => Refreshing::NotNow { retry_after_s },
        }
    }

    /// Takes the answer to [`refresh`](Self::refresh). `Err`: the keys could not be fetched; seconds until the next try.
    pub fn keys_refreshed(
        &self,
        issuer: &str,
        answered: &Answered,
        now_ms: u64,
        envoy: &dyn Envoy,
    ) -> Result<(), u64> {
        self.keys.borrow_mut().refreshed(issuer, answered, now_ms, envoy)
    }

    /// Has the state service ask an issuer about a token that only it can read.
    pub fn introspect(&self, token: &OpaqueToken, envoy: &dyn Envoy) -> Option<u32> {
        let issuer = self.policy.document().issuers.get(&*token.issuer)?;
        let body = introspection::question(&issuer.value.known_as(), &token.text)?;
        self.post(introspection::PATH, &body, KEYS_TIMEOUT_MS, envoy)
    }

    /// Takes the answer to [`introspect`](Self::introspect).
    pub fn introspected(&self, token: &OpaqueToken, answered: &Answered, now_ms: u64) {
        self.tokens.borrow_mut().told(token, answered, now_ms);
    }

    /// Random numbers for a request; `None` when there are none: then no request can be told from another. Bytes are drawn
    /// for many at once: each draw is a call.
    pub fn draw(&self, envoy: &dyn Envoy) -> Option<Draw> {
        let mut random = self.random.borrow_mut();
        if random.len() < DRAW_BYTES {
            random.resize(DRAW_BYTES * DRAWN_AT_ONCE, 0);
            if !envoy.random(&mut random) {
                random.clear();
                return None;
            }
        }
        let first = random.len().saturating_sub(DRAW_BYTES);
        let mut bytes = random.drain(first..);
        let mut number =
            |length: usize| bytes.by_ref().take(length).fold(0u128, |all, byte| all << 8 | u128::from(byte));
        let (request_id, trace_id) = (number(16), number(16));
        Some(Draw { request_id, trace_id, span_id: u64::try_from(number(8)).unwrap_or(1) })
    }

    /// Sends a batch.
    pub fn ask_state(&self, body: &[u8], envoy: &dyn Envoy) -> Option<u32> {
        self.post(trip::PATH, body, self.timeout_ms, envoy)
    }

    /// Tells what limits in shadow would have refused: in a counter each, and in Envoy's access log.
    pub fn note_shadows(&self, would_refuse: &[WouldRefuse], envoy: &dyn Envoy) {
        if would_refuse.is_empty() {
            return;
        }
        for WouldRefuse { filter, limit } in would_refuse {
            self.counters.count(format!("torana_would_refuse.{filter}.{limit}"), envoy);
        }
        let all: Vec<String> = would_refuse.iter().map(ToString::to_string).collect();
        envoy.note(WOULD_REFUSE, &all.join(" "));
    }

    /// Tells what feature flags have said of a request: in a counter each, and in Envoy's access log.
    pub fn note_flags(&self, seen: &Seen, envoy: &dyn Envoy) {
        let mut all = Vec::new();
        for (flag, Evaluation { variant, reason }) in seen.said() {
            let said = variant.as_deref().unwrap_or(reason.name());
            self.counters.count(format!("torana_flag.{flag}.{said}"), envoy);
            all.push(format!("{flag}={}", variant.as_deref().unwrap_or_default()));
        }
        if !all.is_empty() {
            envoy.note(FLAGS, &all.join(" "));
        }
    }

    /// Counts an answer to a request that is part of an experiment.
    pub fn count_variant(&self, (experiment, variant): (&str, &str), status: u16, envoy: &dyn Envoy) {
        self.counters.count(format!("torana_experiment.{experiment}.{variant}.{status}"), envoy);
    }

    /// Keeps places that a request has left, to be told with the next batch, or soon without one.
    pub fn left(&self, held: Vec<Op>, envoy: &dyn Envoy) {
        if held.is_empty() {
            return;
        }
        // A place is here if it was taken while the state was away. Giving back needs no room.
        let _ = self.local.borrow_mut().run(&held, envoy.now_ms());
        envoy.tick_soon();
        let mut releases = self.releases.borrow_mut();
        let room = MOST_RELEASES.saturating_sub(releases.len());
        releases.extend(held.into_iter().take(room));
    }

    /// Places to tell of with a batch that is about to leave.
    pub fn releases(&self) -> Vec<Op> {
        let mut releases = self.releases.borrow_mut();
        let first = releases.len().saturating_sub(MOST_RELEASES_AT_ONCE);
        releases.split_off(first)
    }

    /// Tells of places while no request does.
    pub fn flush_releases(&self, envoy: &dyn Envoy) {
        let releases = self.releases();
        if let (false, Ok(body)) = (releases.is_empty(), serde_json::to_vec(&releases))
            && self.ask_state(&body, envoy).is_none()
        {
            self.releases.borrow_mut().extend(releases);
        }
    }

    /// Asks the state service for something, unless that is as it was told.
    fn get(&self, path: &str, if_none_match: Option<&str>, envoy: &dyn Envoy) -> Option<u32> {
        let Self { cluster, .. } = self;
        envoy.call(&Call {
            cluster,
            method: "GET",
            path,
            if_none_match,
            body: &[],
            timeout_ms: KEYS_TIMEOUT_MS,
        })
    }

    /// Has the state service do something.
    fn post(&self, path: &str, body: &[u8], timeout_ms: u64, envoy: &dyn Envoy) -> Option<u32> {
        let Self { cluster, .. } = self;
        envoy.call(&Call { cluster, method: "POST", path, if_none_match: None, body, timeout_ms })
    }
}

/// The world of one decision.
#[derive(Debug)]
pub struct Now<'p> {
    pub plugin: &'p Plugin,
    pub now_ms: u64,
}

impl Host for Now<'_> {
    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.plugin.keys.borrow().get(issuer, self.now_ms)
    }

    fn keyring(&self) -> Option<Arc<Keyring>> {
        Some(self.plugin.client_keys.borrow().ring())
    }

    fn introspected(&self, issuer: &str, token: &str) -> Option<Introspected> {
        self.plugin.tokens.borrow().get(issuer, token, self.now_ms)
    }

    fn flags(&self) -> Option<Arc<Flags>> {
        self.plugin.feature_flags.borrow().current()
    }

    fn revocations(&self) -> Option<&Revocations> {
        Some(&self.plugin.revocations)
    }

    fn verifier(&self) -> &dyn Verify {
        &self.plugin.verifier
    }
}
