//! Issuers' public keys: fetched in the background, kept when a fetch fails, fetched early at a bounded rate
//! when a token names a key that is not known.

mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use certs::Watch;
use certs::report::{Key, KeyKind};
use filters::jwt::KeySet;
use filters::policy::{At, Issuer};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use self::source::Source;
use crate::metrics::Metrics;
use crate::now_ms;

/// The keys of all issuers.
#[derive(Debug)]
pub(crate) struct KeyStore {
    issuers: BTreeMap<String, Keys>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

/// A clock that does not step back.
pub(crate) trait Clock: std::fmt::Debug + Send + Sync {
    /// Since any moment.
    fn now(&self) -> Duration;
}

/// The system's.
#[derive(Debug)]
struct Steady(Instant);

impl Clock for Steady {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[derive(Debug)]
struct Keys {
    /// What the policy says of them.
    settings: Issuer,
    source: Source,
    refresh: Duration,
    stale: Duration,
    unknown_kid_refresh: Duration,
    current: ArcSwapOption<Held>,
    /// When the last fetch began; held while one runs, so that there is one at a time.
    fetching: Mutex<Option<Duration>>,
    /// Since when each key is held, by its id.
    first_seen: std::sync::Mutex<BTreeMap<String, OffsetDateTime>>,
}

#[derive(Debug)]
struct Held {
    keys: Arc<KeySet>,
    /// As they were published.
    text: String,
    since: Duration,
    /// The same moment by the clock, Unix milliseconds, for those who have another clock.
    fetched_ms: u64,
}

/// Keys as Envoy's workers are told of them.
#[derive(serde::Serialize)]
struct Fetched {
    fetched_ms: u64,
    jwks: Box<serde_json::value::RawValue>,
}

/// Reads a file of keys once.
pub(crate) fn read(path: &Path) -> anyhow::Result<KeySet> {
    let bytes = source::read_file(path)?;
    KeySet::parse(&bytes).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
}

impl Keys {
    /// Notes which keys are there. One that was gone and comes back is a new one.
    fn see(&self, set: &KeySet) {
        let mut seen = self.first_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = set.iter().map(|key| key.kid.clone().unwrap_or_default());
        let now = OffsetDateTime::now_utc();
        *seen = ids.map(|id| (id.clone(), seen.get(&id).copied().unwrap_or(now))).collect();
    }

    /// The keys, unless they are older than the policy lets them serve.
    fn held(&self, now: Duration) -> Option<Arc<Held>> {
        self.current.load_full().filter(|held| now.saturating_sub(held.since) < self.stale)
    }
}

impl KeyStore {
    /// Every key that is held, for who asks which there are.
    pub(crate) fn report(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        for (owner, issuer) in &self.issuers {
            let seen = issuer.first_seen.lock().unwrap_or_else(PoisonError::into_inner);
            keys.extend(seen.iter().map(|(id, since)| Key {
                kind: KeyKind::Jwks,
                owner: owner.clone(),
                id: id.clone(),
                not_before: None,
                not_after: None,
                first_seen: Some(*since),
                next_rotation: None,
            }));
        }
        keys
    }

    pub(crate) fn new(
        issuers: &BTreeMap<String, At<Issuer>>,
        folder: &Path,
        metrics: Metrics,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        Self::with_clock(issuers, folder, metrics, watch, Arc::new(Steady(Instant::now())))
    }

    fn with_clock(
        issuers: &BTreeMap<String, At<Issuer>>,
        folder: &Path,
        metrics: Metrics,
        watch: &Watch,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let mut store = BTreeMap::new();
        for (name, At { value: issuer, .. }) in issuers {
            let Some(jwks) = &issuer.jwks else { continue };
            let source = Source::new(name, (issuer, jwks), folder, watch)?;
            let keys = Keys {
                settings: issuer.clone(),
                source,
                refresh: Duration::from_secs(jwks.refresh_s),
                stale: Duration::from_secs(jwks.stale_s),
                unknown_kid_refresh: Duration::from_secs(jwks.unknown_kid_refresh_s),
                current: ArcSwapOption::empty(),
                fetching: Mutex::new(None),
                first_seen: std::sync::Mutex::default(),
            };
            store.insert(name.clone(), keys);
        }
        Ok(Self { issuers: store, metrics, clock })
    }

    /// What takes over from this one: it knows what this one holds of issuers that the policy says the same of, and since
    /// when.
    pub(crate) fn successor(
        &self,
        issuers: &BTreeMap<String, At<Issuer>>,
        folder: &Path,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        let (metrics, clock) = (self.metrics.clone(), Arc::clone(&self.clock));
        let store = Self::with_clock(issuers, folder, metrics, watch, clock)?;
        for (name, issuer) in &store.issuers {
            let Some(before) = self.issuers.get(name) else { continue };
            if before.settings == issuer.settings {
                issuer.current.store(before.current.load_full());
                let seen = before.first_seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                *issuer.first_seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            }
        }
        Ok(store)
    }

    /// Fetches the keys of every issuer that has none.
    pub(crate) async fn fetch_missing(&self) {
        for name in self.missing() {
            self.refresh_unknown(name).await;
        }
    }

    /// The issuer's keys, unless they are older than the policy lets them serve.
    pub(crate) fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.issuers.get(issuer)?.held(self.clock.now()).map(|held| Arc::clone(&held.keys))
    }

    /// What every issuer that has usable keys has published and when it was fetched, by what it is known as, as JSON, and
    /// an entity tag of that.
    pub(crate) fn published(&self) -> (String, String) {
        let mut latest: BTreeMap<String, Arc<Held>> = BTreeMap::new();
        for issuer in self.issuers.values() {
            let Some(held) = issuer.held(self.clock.now()) else { continue };
            // Under two names it is one issuer still.
            let told = latest.entry(issuer.settings.known_as()).or_insert_with(|| Arc::clone(&held));
            if held.since > told.since {
                *told = held;
            }
        }
        let issuers = latest.iter().filter_map(|(known_as, held)| {
            // What was parsed as a key set is JSON.
            let jwks = serde_json::from_str::<Box<serde_json::value::RawValue>>(&held.text).ok()?;
            Some((known_as, Fetched { fetched_ms: held.fetched_ms, jwks }))
        });
        let issuers: BTreeMap<_, _> = issuers.collect();
        let body = serde_json::json!({ "issuers": issuers }).to_string();
        let tag: String = filters::crypto::sha256(body.as_bytes())
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (format!("\"{tag}\""), body)
    }

    /// Issuers without usable keys.
    pub(crate) fn missing(&self) -> Vec<&str> {
        self.issuers.keys().map(String::as_str).filter(|issuer| self.keys(issuer).is_none()).collect()
    }

    /// A token named a key that is not known: fetch again, unless that was tried a moment ago. Returns
    /// whether there may be other keys now. Requests that come together wait for the same fetch.
    pub(crate) async fn refresh_unknown(&self, issuer: &str) -> bool {
        let Some(keys) = self.issuers.get(issuer) else { return false };
        let asked = self.clock.now();
        let mut last = keys.fetching.lock().await;
        if keys.current.load().as_ref().is_some_and(|held| held.since >= asked) {
            // Whoever fetched meanwhile has asked for us too.
            return true;
        }
        match *last {
            Some(at) if at >= asked => true,
            Some(at) if self.clock.now().saturating_sub(at) < keys.unknown_kid_refresh => false,
            Some(_) | None => {
                *last = Some(self.clock.now());
                self.fetch(issuer, keys).await
            }
        }
    }

    /// Keeps every issuer's keys fresh until the process ends.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        let issuers: Vec<String> = self.issuers.keys().cloned().collect();
        let mut tasks = tokio::task::JoinSet::new();
        for issuer in issuers {
            let store = Arc::clone(&self);
            tasks.spawn(async move { store.keep_issuer_fresh(&issuer).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn keep_issuer_fresh(&self, issuer: &str) {
        let Some(keys) = self.issuers.get(issuer) else { return };
        let mut failures: u32 = 0;
        loop {
            let stamp = keys.source.stamp().await;
            let pause = self.refresh(issuer, keys, &mut failures).await;
            // Spread, so that a fleet does not ask in step.
            keys.source.pause(pause.mul_f64(rand::random_range(0.9..1.0)), stamp).await;
        }
    }

    /// Fetches once, and tells how long until the next time. A failing source is asked again soon, then less and less
    /// often, never less than when it works.
    async fn refresh(&self, issuer: &str, keys: &Keys, failures: &mut u32) -> Duration {
        let mut last = keys.fetching.lock().await;
        *last = Some(self.clock.now());
        *failures = if self.fetch(issuer, keys).await { 0 } else { failures.saturating_add(1) };
        match *failures {
            0 => keys.refresh,
            n => Duration::from_millis(250 << n.min(8)).min(keys.refresh),
        }
    }

    async fn fetch(&self, issuer: &str, keys: &Keys) -> bool {
        let fetched = keys
            .source
            .read()
            .await
            .and_then(|bytes| Ok((KeySet::parse(&bytes)?, String::from_utf8(bytes)?)));
        let outcome = match fetched {
            Ok((set, text)) => {
                self.metrics.jwks_keys.with_label_values(&[issuer]).set(set.len() as i64);
                keys.see(&set);
                let (since, fetched_ms) = (self.clock.now(), now_ms());
                let held = Held { keys: Arc::new(set), text, since, fetched_ms };
                keys.current.store(Some(Arc::new(held)));
                "ok"
            }
            Err(error) => {
                let still_served = self.keys(issuer).is_some();
                tracing::warn!(issuer, still_served, error = format!("{error:#}"), "keys not refreshed");
                "error"
            }
        };
        self.metrics.jwks_fetches.with_label_values(&[issuer, outcome]).inc();
        outcome == "ok"
    }
}

#[cfg(test)]
mod tests;
