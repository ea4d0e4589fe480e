//! Issuers' public keys: fetched in the background, kept when a fetch fails, fetched early at a bounded rate
//! when a token names a key that is not known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use certs::file::Content;
use certs::report::{Key, KeyKind};
use certs::{Live, TrustFiles, Watch};
use filters::jwt::KeySet;
use filters::policy::{At, Issuer, Jwks, Reference};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use crate::load;
use crate::metrics::Metrics;

/// A key set is a few kilobytes; more is somebody's mistake or somebody's attack.
const MOST_BYTES: usize = 256 * 1024;

/// The keys of all issuers.
#[derive(Debug)]
pub(crate) struct KeyStore {
    issuers: BTreeMap<String, Keys>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Keys {
    /// What the policy says of them.
    settings: Jwks,
    source: Source,
    refresh: Duration,
    stale: Duration,
    unknown_kid_refresh: Duration,
    current: ArcSwapOption<Held>,
    /// When the last fetch began; held while one runs, so that there is one at a time.
    fetching: Mutex<Option<Instant>>,
    /// Since when each key is held, by its id.
    first_seen: std::sync::Mutex<BTreeMap<String, OffsetDateTime>>,
}

#[derive(Debug)]
struct Held {
    keys: Arc<KeySet>,
    /// As they were published.
    text: String,
    since: Instant,
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
    fn held(&self) -> Option<Arc<Held>> {
        self.current.load_full().filter(|held| held.since.elapsed() < self.stale)
    }
}

#[derive(Debug)]
enum Source {
    Url { url: String, client: Live<reqwest::Client> },
    File(PathBuf),
}

/// By what a change of a file shows.
type Stamp = (u64, u64, i64, i64);

impl Source {
    async fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let Self::File(path) = self else { return None };
        let meta = tokio::fs::metadata(path).await.ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Waits so long; for a file that changes, no longer than that takes.
    async fn pause(&self, pause: Duration, before: Option<Stamp>) {
        const LOOK: Duration = Duration::from_millis(250);
        if matches!(self, Self::Url { .. }) {
            return tokio::time::sleep(pause).await;
        }
        let began = Instant::now();
        while let Some(left) = pause.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(LOOK)).await;
            if self.stamp().await != before {
                return;
            }
        }
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
        let mut store = BTreeMap::new();
        for (name, At { value: issuer, .. }) in issuers {
            let jwks = &issuer.jwks;
            let source = match (&jwks.url, &jwks.file) {
                (_, Some(Reference::File(path))) => Source::File(folder.join(path)),
                (Some(url), _) => Source::Url {
                    url: url.clone(),
                    client: client(name, jwks, folder, watch).with_context(|| format!("issuer {name}"))?,
                },
                (None, _) => anyhow::bail!("issuer {name} has no source of keys"),
            };
            let keys = Keys {
                settings: jwks.clone(),
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
        Ok(Self { issuers: store, metrics })
    }

    /// Takes over what another holds of issuers whose keys come from the same place.
    pub(crate) fn inherit(&self, other: &Self) {
        for (name, issuer) in &self.issuers {
            let Some(before) = other.issuers.get(name) else { continue };
            if before.settings == issuer.settings {
                issuer.current.store(before.current.load_full());
                let seen = before.first_seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                *issuer.first_seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            }
        }
    }

    /// Fetches the keys of every issuer that has none.
    pub(crate) async fn fetch_missing(&self) {
        for name in self.missing() {
            self.refresh_unknown(name).await;
        }
    }

    /// The issuer's keys, unless they are older than the policy lets them serve.
    pub(crate) fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        self.issuers.get(issuer)?.held().map(|held| Arc::clone(&held.keys))
    }

    /// What every issuer that has usable keys has published, as JSON, and an entity tag of that.
    pub(crate) fn published(&self) -> (String, String) {
        let issuers = self.issuers.iter().filter_map(|(name, issuer)| {
            let held = issuer.held()?;
            // What was parsed as a key set is JSON.
            Some((name, serde_json::from_str::<Box<serde_json::value::RawValue>>(&held.text).ok()?))
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
        let asked = Instant::now();
        let mut last = keys.fetching.lock().await;
        match *last {
            Some(at) if at >= asked => true,
            Some(at) if at.elapsed() < keys.unknown_kid_refresh => false,
            Some(_) | None => {
                *last = Some(Instant::now());
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
            {
                let mut last = keys.fetching.lock().await;
                *last = Some(Instant::now());
                failures = if self.fetch(issuer, keys).await { 0 } else { failures.saturating_add(1) };
            }
            // A failing source is asked again soon, then less and less often, never less than when it works.
            let pause = match failures {
                0 => keys.refresh,
                n => Duration::from_millis(250 << n.min(8)).min(keys.refresh),
            };
            // Spread, so that a fleet does not ask in step.
            keys.source.pause(pause.mul_f64(rand::random_range(0.9..1.0)), stamp).await;
        }
    }

    async fn fetch(&self, issuer: &str, keys: &Keys) -> bool {
        let fetched = read(&keys.source)
            .await
            .and_then(|bytes| Ok((KeySet::parse(&bytes)?, String::from_utf8(bytes)?)));
        let outcome = match fetched {
            Ok((set, text)) => {
                self.metrics.jwks_keys.with_label_values(&[issuer]).set(set.len() as i64);
                keys.see(&set);
                let held = Held { keys: Arc::new(set), text, since: Instant::now() };
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

fn client(name: &str, jwks: &Jwks, folder: &Path, watch: &Watch) -> anyhow::Result<Live<reqwest::Client>> {
    let timeout = Duration::from_millis(jwks.timeout_ms);
    let limits = certs::client::ClientLimits { connect_timeout: timeout, timeout, ..Default::default() };
    match &jwks.ca {
        Some(Reference::File(path)) => {
            let crl = match &jwks.crl {
                Some(Reference::File(path)) => Some(folder.join(path)),
                Some(Reference::Env(_)) => anyhow::bail!("`jwks.crl` must be a `file:`"),
                None => None,
            };
            let files = TrustFiles { ca: folder.join(path), crl, stale: load::stale_crl(jwks.stale_crl) };
            let trust = watch.trust(format!("issuer/{name}/ca"), files)?;
            watch.connects(certs::Client {
                name: format!("issuer/{name}"),
                server_name: None,
                identity: None,
                trust: trust.clone(),
            });
            let trusted = trust.clone();
            Ok(watch.derive(&[&trust], move || {
                let tls = certs::client_config(&trusted.current(), None, certs::Versions::Tls12And13)?;
                certs::client::https(tls, limits)
            })?)
        }
        Some(Reference::Env(_)) => anyhow::bail!("`jwks.ca` must be a `file:`"),
        None => Ok(reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout)
            .timeout(timeout)
            .build()?
            .into()),
    }
}

async fn read(source: &Source) -> anyhow::Result<Vec<u8>> {
    match source {
        Source::File(path) => {
            let path = path.clone();
            // Bounded, and from nothing but a file: a pipe or a device would be read for ever.
            let bytes =
                tokio::task::spawn_blocking(move || certs::file::read(&path, Content::Public)).await??;
            anyhow::ensure!(bytes.len() <= MOST_BYTES, "the file is larger than {MOST_BYTES} bytes");
            Ok(bytes.to_vec())
        }
        Source::Url { url, client } => {
            let mut answer = client.current().get(url).send().await?.error_for_status()?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await? {
                anyhow::ensure!(
                    body.len() + chunk.len() <= MOST_BYTES,
                    "{url} answers more than {MOST_BYTES} bytes"
                );
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        }
    }
}

#[cfg(test)]
mod tests {
    use filters::policy::{Algorithm, Issuer};

    use super::*;

    fn keys(kid: &str) -> String {
        // The public key of RFC 7517 appendix A.1.
        format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"{kid}","alg":"ES256",
            "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}}]}}"#
        )
    }

    fn store(folder: &Path, unknown_kid_refresh_s: u64, stale_s: u64) -> KeyStore {
        let jwks = Jwks {
            url: None,
            file: Some(Reference::File("jwks.json".into())),
            ca: None,
            crl: None,
            stale_crl: filters::policy::StaleCrl::Refuse,
            refresh_s: 3_600,
            stale_s,
            unknown_kid_refresh_s,
            timeout_ms: 1_000,
        };
        let issuer = Issuer {
            issuer: "https://issuer.test".into(),
            audiences: vec!["a".into()],
            algorithms: vec![Algorithm::ES256],
            jwks,
            leeway_s: 0,
        };
        let issuers = BTreeMap::from([("main".to_owned(), At::nowhere(issuer))]);
        KeyStore::new(&issuers, folder, Metrics::new().unwrap(), &Watch::new("test")).unwrap()
    }

    fn has(store: &KeyStore, kid: &str) -> bool {
        store.keys("main").is_some_and(|keys| keys.find(Some(kid), Algorithm::ES256).is_some())
    }

    #[tokio::test]
    async fn unknown_keys_are_looked_for_at_a_bounded_rate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        std::fs::write(&file, keys("old")).unwrap();
        let store = store(folder.path(), 3_600, 3_600);
        assert_eq!(store.missing(), ["main"]);
        assert!(store.refresh_unknown("main").await);
        assert!(store.missing().is_empty() && has(&store, "old"));

        std::fs::write(&file, keys("new")).unwrap();
        assert!(!store.refresh_unknown("main").await, "asked again within the bound");
        assert!(has(&store, "old") && !has(&store, "new"));
        assert!(!store.refresh_unknown("nobody").await);
    }

    #[tokio::test]
    async fn the_last_good_keys_serve_while_a_refresh_fails_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        for garbage in ["", "{}", "<html>", &"x".repeat(MOST_BYTES + 1)] {
            std::fs::write(&file, keys("good")).unwrap();
            let store = store(folder.path(), 0, 3_600);
            assert!(store.refresh_unknown("main").await);
            std::fs::write(&file, garbage).unwrap();
            assert!(!store.refresh_unknown("main").await, "{} bytes were keys", garbage.len());
            assert!(has(&store, "good"));
            std::fs::remove_file(&file).unwrap();
            assert!(!store.refresh_unknown("main").await);
            assert!(has(&store, "good"));
        }
        // Endless, and of no size.
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        let endless = store(folder.path(), 0, 3_600);
        assert!(!endless.refresh_unknown("main").await);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, keys("good")).unwrap();
        let store = store(folder.path(), 0, 0);
        assert!(store.refresh_unknown("main").await);
        assert!(!has(&store, "good"), "stale at once");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again_and_old_keys_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        std::fs::write(&file, keys("old")).unwrap();
        let store = Arc::new(store(folder.path(), 3_600, 3_600));
        let running = tokio::spawn(Arc::clone(&store).keep_fresh());
        while !has(&store, "old") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told = store.report();
        assert_eq!((told.len(), told[0].id.as_str(), told[0].kind), (1, "old", KeyKind::Jwks));
        let both = keys("old").replace("]}", &format!(",{}", keys("new").trim_start_matches(r#"{"keys":["#)));
        std::fs::write(folder.path().join("next"), both).unwrap();
        std::fs::rename(folder.path().join("next"), &file).unwrap();
        while !has(&store, "new") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(has(&store, "old"), "both while one takes over");
        let since =
            |id: &str| store.report().into_iter().find(|key| key.id == id).and_then(|key| key.first_seen);
        assert_eq!(since("old"), told[0].first_seen, "an old key does not become a new one");
        std::fs::write(&file, keys("new")).unwrap();
        while has(&store, "old") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(since("old"), None);
        running.abort();
    }

    #[tokio::test]
    async fn keys_are_kept_fresh_in_the_background() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        let store = Arc::new(store(folder.path(), 3_600, 3_600));
        let running = tokio::spawn(Arc::clone(&store).keep_fresh());
        // The source fails at first and is asked again soon.
        while store.metrics.jwks_fetches.with_label_values(&["main", "error"]).get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::write(&file, keys("late")).unwrap();
        while !has(&store, "late") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.abort();
    }
}
