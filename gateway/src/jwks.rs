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
use tokio::sync::{Mutex, Semaphore};

use self::source::{Source, Stamp};
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
    /// When the last fetch began that a token caused. Locked while any fetch runs, so that there is one at a time.
    fetching: Mutex<Option<Duration>>,
    /// Bounds the requests that wait for a fetch.
    waiting: Semaphore,
    /// Since when each key is held, by its id.
    first_seen: std::sync::Mutex<BTreeMap<String, OffsetDateTime>>,
}

#[derive(Debug)]
struct Held {
    keys: Arc<KeySet>,
    /// As they were published.
    text: String,
    since: Duration,
    /// Of the file that they were read from.
    stamp: Option<Stamp>,
    /// The same moment by the clock, Unix milliseconds, for those who have another clock.
    fetched_ms: u64,
}

/// Most requests that wait for one issuer's keys at once. Further ones are refused with 503.
const MOST_WAITING: usize = 1_024;

/// Whether the keys are up to date for the request that needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refetch {
    /// They were fetched after the request arrived, or their file has not changed.
    Current,
    /// They cannot be fetched now: a token caused a fetch a moment ago, or the fetch failed.
    NotNow {
        /// Seconds until a token may cause the next fetch; at least 1.
        retry_after_s: u64,
    },
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

    /// Whether the keys came from a file that is still the same.
    async fn file_is_unchanged(&self, now: Duration) -> bool {
        let Some(stamp) = self.held(now).and_then(|held| held.stamp) else { return false };
        self.source.stamp().await == Some(stamp)
    }

    /// Until a token may cause the next fetch, after the one that began `at`.
    fn not_before(&self, at: Duration, now: Duration) -> Refetch {
        let left = self.unknown_kid_refresh.saturating_sub(now.saturating_sub(at));
        let whole = u64::from(left.subsec_nanos() > 0);
        Refetch::NotNow { retry_after_s: left.as_secs().saturating_add(whole).max(1) }
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
                waiting: Semaphore::new(MOST_WAITING),
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
            let Some(keys) = self.issuers.get(name) else { continue };
            let _fetching = keys.fetching.lock().await;
            if self.keys(name).is_none() {
                self.fetch(name, keys).await;
            }
        }
    }

    /// The issuer's keys, unless they are older than the policy lets them serve.
    pub(crate) fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.issuers.get(issuer)?.held(self.clock.now()).map(|held| Arc::clone(&held.keys))
    }

    /// What every issuer that has usable keys has published and when it was fetched, by what it is known as, as JSON, and
    /// an entity tag of that.
    pub(crate) fn published(&self) -> (String, String) {
        let body = self.published_with(None);
        let tag: String = filters::crypto::sha256(body.as_bytes())
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (format!("\"{tag}\""), body)
    }

    /// The same JSON, for a worker that asked for a fetch: `retry_after_s` when it was not possible.
    pub(crate) fn published_with(&self, retry_after_s: Option<u64>) -> String {
        #[derive(serde::Serialize)]
        struct Published<'k> {
            issuers: BTreeMap<&'k str, Fetched>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_s: Option<u64>,
        }
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
            Some((known_as.as_str(), Fetched { fetched_ms: held.fetched_ms, jwks }))
        });
        let published = Published { issuers: issuers.collect(), retry_after_s };
        serde_json::to_string(&published).unwrap_or_default()
    }

    /// Issuers without usable keys.
    pub(crate) fn missing(&self) -> Vec<&str> {
        self.issuers.keys().map(String::as_str).filter(|issuer| self.keys(issuer).is_none()).collect()
    }

    /// Fetches an issuer's keys for a token that they do not verify, at a bounded rate. Requests that come together wait
    /// for the same fetch. Fetches that no token causes do not use up the rate.
    pub(crate) async fn refresh_unknown(&self, issuer: &str) -> Refetch {
        const SOON: Refetch = Refetch::NotNow { retry_after_s: 1 };
        let Some(keys) = self.issuers.get(issuer) else { return SOON };
        let Ok(_waits) = keys.waiting.try_acquire() else { return SOON };
        let asked = self.clock.now();
        if keys.file_is_unchanged(asked).await {
            return Refetch::Current;
        }
        let mut last = keys.fetching.lock().await;
        if keys.current.load().as_ref().is_some_and(|held| held.since >= asked) {
            // Another request, or the refresh in the background, has fetched them meanwhile.
            return Refetch::Current;
        }
        let now = self.clock.now();
        match *last {
            // The fetch that this request has waited for has failed.
            Some(at) if at >= asked => keys.not_before(at, now),
            Some(at) if now.saturating_sub(at) < keys.unknown_kid_refresh => keys.not_before(at, now),
            Some(_) | None => {
                *last = Some(now);
                match self.fetch(issuer, keys).await {
                    true => Refetch::Current,
                    false => keys.not_before(now, self.clock.now()),
                }
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
        let _fetching = keys.fetching.lock().await;
        *failures = if self.fetch(issuer, keys).await { 0 } else { failures.saturating_add(1) };
        match *failures {
            0 => keys.refresh,
            n => Duration::from_millis(250 << n.min(8)).min(keys.refresh),
        }
    }

    async fn fetch(&self, issuer: &str, keys: &Keys) -> bool {
        let stamp = keys.source.stamp().await;
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
                let held = Held { keys: Arc::new(set), text, since, stamp, fetched_ms };
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
