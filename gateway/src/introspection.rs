//! Tokens that only their issuer can read (RFC 7662): it is asked about each, and its answer counts for a while.
//!
//! Requests with the same token wait for one question. Tokens are known here by their hash alone. An issuer that cannot
//! be asked, or says what cannot be understood, has said nothing: the request is refused, and the next one asks again.
//!
//! Whoever sends tokens that do not count takes nothing from whoever sends good ones: what is remembered of them has a
//! bound of its own, and some questions are kept for tokens that have counted before.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::client::ClientLimits;
use certs::pki::Purpose;
use certs::{IdentityFiles, Live, Must, Reader, TrustFiles, Versions, Watch};
use filters::crypto::sha256;
use filters::filter::Introspected;
use filters::policy::{At, Introspection as Settings, Issuer, Reference};
use tokio::sync::{OnceCell, Semaphore};
use zeroize::Zeroizing;

use crate::load;
use crate::metrics::Metrics;
use crate::now_ms;

/// The longest answer, bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Most tokens that do not count that are remembered of an issuer; each takes some 100 bytes.
const MOST_INACTIVE: usize = 4_096;
/// One question in so many is kept for tokens that have counted before.
const KEPT_ONE_IN: usize = 4;

type Hash = [u8; 32];
type Question = Arc<OnceCell<Option<Answer>>>;

/// Every issuer that is asked.
#[derive(Debug)]
pub(crate) struct Introspection {
    issuers: BTreeMap<String, Asked>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Asked {
    settings: Settings,
    folder: PathBuf,
    client: Live<reqwest::Client>,
    /// Of the policy before too, if that said the same of the issuer.
    known: Arc<Mutex<Known>>,
    /// Questions under way, by token.
    asking: Mutex<HashMap<Hash, Question>>,
    places: Semaphore,
    /// Of those places, the ones for tokens of which nobody knows whether they ever counted.
    for_strangers: Semaphore,
}

/// What an issuer has said, and until when that counts, Unix milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) said: Introspected,
    pub(crate) until_ms: u64,
}

/// What is remembered of tokens.
#[derive(Debug)]
struct Known {
    /// Those that count, and, until others take their room, those that did when they were last asked about.
    active: Bounded<Answer>,
    /// Those that do not, with when they may be asked about again, Unix milliseconds.
    inactive: Bounded<u64>,
}

/// A bounded memory; when it is full the oldest goes.
#[derive(Debug)]
struct Bounded<T> {
    most: usize,
    entries: HashMap<Hash, T>,
    order: VecDeque<Hash>,
}

impl Known {
    fn new(settings: &Settings) -> Arc<Mutex<Self>> {
        let active = Bounded::new(settings.cache_entries as usize);
        Arc::new(Mutex::new(Self { active, inactive: Bounded::new(MOST_INACTIVE) }))
    }
}

impl<T> Bounded<T> {
    fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn put(&mut self, hash: Hash, entry: T) {
        if self.entries.insert(hash, entry).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }
}

impl Introspection {
    /// Asks nobody yet. What issuers said `before` counts still, where the policy says the same of them.
    pub(crate) fn new(
        issuers: &BTreeMap<String, At<Issuer>>,
        folder: &Path,
        metrics: Metrics,
        watch: &Watch,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for (name, At { value: issuer, .. }) in issuers {
            if let Some(At { value: settings, .. }) = &issuer.introspection {
                let before = before.and_then(|before| before.issuers.get(name));
                let known = before
                    .filter(|before| before.settings == *settings)
                    .map_or_else(|| Known::new(settings), |before| Arc::clone(&before.known));
                let asked = Asked::new(name, settings, known, folder, watch);
                all.insert(name.clone(), asked.with_context(|| format!("issuer `{name}`: introspection"))?);
            }
        }
        Ok(Self { issuers: all, metrics })
    }

    /// What the issuer has said of the token, if that still counts.
    pub(crate) fn known(&self, issuer: &str, token: &str) -> Option<Introspected> {
        let asked = self.issuers.get(issuer)?;
        asked.known(&sha256(token.as_bytes()), now_ms()).map(|answer| answer.said)
    }

    /// Asks the issuer, unless it has said what still counts, or is being asked.
    pub(crate) async fn ask(&self, issuer: &str, token: &str) -> Option<Answer> {
        let asked = self.issuers.get(issuer)?;
        let hash = sha256(token.as_bytes());
        if let Some(answer) = asked.known(&hash, now_ms()) {
            return Some(answer);
        }
        let waiting = Waiting::new(asked, hash);
        // When the request that asks goes away, another one that waits takes over.
        let answer =
            waiting.question.get_or_init(async || self.put(issuer, asked, &hash, token).await).await.clone();
        waiting.is_answered();
        answer
    }

    async fn put(&self, issuer: &str, asked: &Asked, hash: &Hash, token: &str) -> Option<Answer> {
        let outcome = |outcome: &str| self.metrics.introspections.with_label_values(&[issuer, outcome]).inc();
        let stranger = !asked.has_counted(hash);
        let of_strangers = stranger.then(|| asked.for_strangers.try_acquire()).transpose();
        let (Ok(_of_strangers), Ok(_place)) = (of_strangers, asked.places.try_acquire()) else {
            outcome("too_many");
            return None;
        };
        match asked.question(token).await {
            Ok(answer) => {
                outcome(match answer.said {
                    Introspected::Active(_) => "active",
                    Introspected::Inactive => "inactive",
                });
                asked.remember(*hash, answer.clone());
                Some(answer)
            }
            Err(error) => {
                outcome("error");
                tracing::warn!(issuer, error = format!("{error:#}"), "a token's issuer cannot be asked");
                None
            }
        }
    }
}

impl Asked {
    fn new(
        name: &str,
        settings: &Settings,
        known: Arc<Mutex<Known>>,
        folder: &Path,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        let file = |reference: &At<Reference>| load::file(folder, reference).map_err(anyhow::Error::msg);
        let timeout = Duration::from_millis(settings.timeout_ms);
        let limits = ClientLimits { connect_timeout: timeout, timeout, ..ClientLimits::default() };
        let crl = settings.crl.as_ref().map(file).transpose()?;
        let files = TrustFiles { ca: file(&settings.ca)?, crl, stale: load::stale_crl(settings.stale_crl) };
        let title = format!("introspection/{name}");
        let trust = watch.trust(format!("{title}/ca"), files)?;
        let identity = match (&settings.certificate, &settings.key) {
            (Some(certificate), Some(key)) => {
                let files = IdentityFiles { certificate: file(certificate)?, key: file(key)? };
                let issuer = certs::Issuer::Any;
                Some(watch.identity(
                    title.clone(),
                    files,
                    Must { purpose: Purpose::Client, names: Vec::new(), issuer, reader: Reader::Ours },
                )?)
            }
            (Some(_) | None, _) => None,
        };
        watch.connects(certs::Client {
            name: title,
            server_name: None,
            identity: identity.clone(),
            trust: trust.clone(),
        });
        let (trusted, shown) = (trust.clone(), identity.clone());
        let make = move || {
            let shown = shown.as_ref().map(|identity| identity.current());
            let tls = certs::client_config(&trusted.current(), shown.as_deref(), Versions::Tls12And13)?;
            certs::client::https(tls, limits)
        };
        let client = match &identity {
            Some(identity) => watch.derive(&[identity, &trust], make)?,
            None => watch.derive(&[&trust], make)?,
        };
        if let Some(At { value: reference, .. }) = &settings.client_secret {
            load::secret(folder, reference).map_err(anyhow::Error::msg).context("client_secret")?;
        }
        let places = settings.max_in_flight as usize;
        Ok(Self {
            places: Semaphore::new(places),
            for_strangers: Semaphore::new(places - places / KEPT_ONE_IN),
            settings: settings.clone(),
            folder: folder.to_owned(),
            client,
            known,
            asking: Mutex::default(),
        })
    }

    async fn question(&self, token: &str) -> anyhow::Result<Answer> {
        let form = Zeroizing::new(format!("token={}&token_type_hint=access_token", encoded(token)));
        let mut request = self.client.current().post(&self.settings.url);
        request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(form.to_string());
        if let Some(At { value: reference, .. }) = &self.settings.client_secret {
            // Read each time: one that changes counts from then on.
            let (folder, reference) = (self.folder.clone(), reference.clone());
            let read = tokio::task::spawn_blocking(move || load::secret(&folder, &reference));
            let secret = read.await?.map_err(anyhow::Error::msg).context("client_secret")?;
            let secret = std::str::from_utf8(&secret).context("client_secret is no text")?;
            let pair = Zeroizing::new(format!("{}:{}", encoded(&self.settings.client_id), encoded(secret)));
            request = request.header("authorization", format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        } else {
            // Known by its certificate; the name tells which client that is (RFC 8705 section 2.1).
            request = request.body(format!("{}&client_id={}", *form, encoded(&self.settings.client_id)));
        }
        let mut answer = request.send().await?;
        ensure!(answer.status() == reqwest::StatusCode::OK, "it answers {}", answer.status());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            ensure!(body.len() + chunk.len() <= MOST_BYTES, "it answers more than {MOST_BYTES} bytes");
            body.extend_from_slice(&chunk);
        }
        self.understand(&body, now_ms())
    }

    /// When the token expires is in its claims, which every request is decided on by: nothing counts longer for being
    /// remembered.
    fn understand(&self, body: &[u8], now_ms: u64) -> anyhow::Result<Answer> {
        #[derive(serde::Deserialize)]
        struct Said {
            active: bool,
        }
        let Said { active } = serde_json::from_slice(body).context("it does not answer as RFC 7662 says")?;
        let later = |seconds: u64| now_ms.saturating_add(seconds.saturating_mul(1_000));
        if !active {
            return Ok(Answer {
                said: Introspected::Inactive,
                until_ms: later(self.settings.negative_cache_s),
            });
        }
        let claims = std::str::from_utf8(body).context("its answer is no text")?;
        Ok(Answer { said: Introspected::Active(claims.into()), until_ms: later(self.settings.cache_s) })
    }

    fn known(&self, hash: &Hash, now_ms: u64) -> Option<Answer> {
        let known = self.remembered();
        if let Some(until_ms) = known.inactive.entries.get(hash).filter(|until_ms| now_ms <= **until_ms) {
            return Some(Answer { said: Introspected::Inactive, until_ms: *until_ms });
        }
        known.active.entries.get(hash).filter(|answer| now_ms <= answer.until_ms).cloned()
    }

    /// Whether the token counted when its issuer said so, however long ago that is.
    fn has_counted(&self, hash: &Hash) -> bool {
        self.remembered().active.entries.contains_key(hash)
    }

    fn remember(&self, hash: Hash, answer: Answer) {
        let mut known = self.remembered();
        match answer.said {
            Introspected::Active(_) => known.active.put(hash, answer),
            Introspected::Inactive => known.inactive.put(hash, answer.until_ms),
        }
    }

    fn remembered(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asking(&self) -> MutexGuard<'_, HashMap<Hash, Question>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for an answer. The last one that goes away takes the question along.
struct Waiting<'a> {
    asked: &'a Asked,
    hash: Hash,
    question: Question,
}

impl<'a> Waiting<'a> {
    fn new(asked: &'a Asked, hash: Hash) -> Self {
        let question = Arc::clone(asked.asking().entry(hash).or_default());
        Self { asked, hash, question }
    }

    /// Who comes from now on asks anew, or is told what is remembered.
    fn is_answered(&self) {
        self.leave(|_| true);
    }

    fn leave(&self, when: impl FnOnce(&Question) -> bool) {
        let mut asking = self.asked.asking();
        let ours = asking.get(&self.hash).filter(|current| Arc::ptr_eq(current, &self.question));
        if ours.is_some_and(when) {
            asking.remove(&self.hash);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Ours, and the one that is kept: nobody else waits.
        const LAST: usize = 2;
        self.leave(|question| Arc::strong_count(question) <= LAST);
    }
}

/// As `application/x-www-form-urlencoded` has it.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
