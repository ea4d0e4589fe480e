//! Another policy takes over while a process runs: when its file changes, or on SIGHUP.
//!
//! The new policy and everything that it refers to is read, checked and opened first; then it takes over at once and
//! whole. Whatever is wrong with it changes nothing: the policy before it goes on, and says so on `/config`, in the log
//! and in the metrics. The gateway and the state service do it in the same way.

mod sight;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use filters::policy::{Document, Mistake, Policy};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use self::sight::Sight;
use crate::load::{self, Lenience, Loaded};
use crate::metrics::Metrics;

/// Between two looks at the file. It is read again when two of them see the same other text: an editor may be writing.
const LOOK: Duration = Duration::from_millis(500);
/// Every so many looks, the files of disabled upstreams are read again.
const LOOKS_TO_A_REVIVAL: u32 = 2;

/// Who serves by one policy, and then by another.
pub(crate) trait Serving: Send + Sync + 'static {
    type Snapshot: Snapshot;

    /// What it is called.
    const NAME: &str;

    fn metrics(&self) -> &Metrics;

    /// The one that serves now.
    fn snapshot(&self) -> Arc<Self::Snapshot>;

    /// Has a policy take over that was read. Everything that can fail comes first.
    ///
    /// # Errors
    /// What it needs and is not there. Nothing has changed.
    fn take_over(
        &self,
        loaded: Loaded,
    ) -> impl Future<Output = Result<Arc<Self::Snapshot>, Vec<Mistake>>> + Send;
}

/// One policy and everything that serves it. What was begun with it ends with it, whatever has taken over.
pub(crate) trait Snapshot: Send + Sync + 'static {
    fn policy(&self) -> &Policy;

    /// The first digits of the policy file's SHA-256.
    fn version(&self) -> &str;

    /// Upstreams that are disabled because a certificate or CA of theirs has expired.
    fn disabled(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// What `/config` tells of its upstreams; `None` where nothing connects to them.
    fn upstreams(&self) -> Option<serde_json::Value> {
        None
    }

    /// The policy has taken over: begins what it needs done beside requests. That ends when it is dropped.
    fn begin(&self) -> JoinSet<()>;
}

/// Follows the file of the policy that serves, and is what `/config` tells.
pub(crate) struct Reload<S> {
    file: PathBuf,
    serving: Arc<S>,
    hang_up: Arc<AtomicBool>,
    told: Mutex<Told>,
}

/// What became of the policy file.
#[derive(Clone, Debug, Serialize)]
struct Told {
    /// The first digits of the SHA-256 of the policy that serves.
    version: String,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// How many policies served before it.
    reloads: u64,
    /// Whether the file as it is now is refused.
    refused: Option<Refused>,
}

#[derive(Clone, Debug, Serialize)]
struct Refused {
    /// `None`: the file cannot be read.
    version: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    mistakes: Vec<String>,
}

/// Whether SIGHUP was received. From the beginning on: until somebody receives it, it ends a process.
pub(crate) struct HangUp(Arc<AtomicBool>);

impl HangUp {
    pub(crate) fn receive() -> std::io::Result<Self> {
        let received = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&received))?;
        Ok(Self(received))
    }
}

impl<S: Serving> Reload<S> {
    pub(crate) fn new(file: &Path, serving: &Arc<S>, hang_up: HangUp) -> Arc<Self> {
        let serving = Arc::clone(serving);
        let now = OffsetDateTime::now_utc();
        serving.metrics().policy_since.set(unix_s(now));
        let version = serving.snapshot().version().to_owned();
        let told = Mutex::new(Told { version, since: now, reloads: 0, refused: None });
        Arc::new(Self { file: file.to_owned(), serving, hang_up: hang_up.0, told })
    }

    /// What `/config` tells.
    pub(crate) fn report(&self) -> serde_json::Value {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let snapshot = self.serving.snapshot();
        let policy = snapshot.policy();
        let mut report = serde_json::to_value(told).unwrap_or_default();
        if let Some(report) = report.as_object_mut() {
            report.insert("file".to_owned(), self.file.display().to_string().into());
            let routes: Vec<_> = policy.rules().iter().map(|rule| rule.name.as_str()).collect();
            report.insert("routes".to_owned(), routes.into());
            let file = self.file.to_string_lossy();
            let warnings: Vec<_> = policy.warnings().iter().map(|warning| warning.in_file(&file)).collect();
            report.insert("warnings".to_owned(), warnings.into());
            if let Some(upstreams) = snapshot.upstreams() {
                report.insert("upstreams".to_owned(), upstreams);
            }
        }
        report
    }

    /// Does the background work of the policy that serves, and has others take over, until the future is dropped.
    pub(crate) async fn run(&self) {
        let mut work = self.begin();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks_since: u32 = 0;
        let mut sight = Sight::new(self.serving.snapshot().version().to_owned());
        loop {
            looks.tick().await;
            let changed = sight.look(self.version_on_disk().await);
            let asked = self.hang_up.swap(false, Ordering::Relaxed);
            if asked {
                tracing::info!("SIGHUP: the policy is read again");
            }
            // Only of the file as it serves: another text takes over by itself.
            looks_since = looks_since.wrapping_add(1);
            let revived =
                sight.is_settled() && looks_since.is_multiple_of(LOOKS_TO_A_REVIVAL) && self.revives().await;
            if revived {
                tracing::info!("the files of a disabled upstream are good again: the policy is read again");
            }
            if changed || asked || revived {
                let taken = self.reload().await;
                if taken.is_ok() {
                    work = self.begin();
                }
                sight.tried(self.serving.snapshot().version(), taken.is_ok());
            } else if sight.is_settled() {
                self.settled();
            }
            // Ended parts are nobody's to wait for; none ends by itself.
            while work.try_join_next().is_some() {}
        }
    }

    /// Whether an upstream that is disabled could serve by now.
    async fn revives(&self) -> bool {
        let disabled = self.serving.snapshot().disabled();
        if disabled.is_empty() {
            return false;
        }
        let (file, lenience) = (self.file.clone(), Lenience::Only(disabled.clone()));
        let loaded = tokio::task::spawn_blocking(move || load::load_with(&file, &lenience)).await;
        loaded.is_ok_and(|loaded| loaded.is_ok_and(|loaded| loaded.disabled.len() < disabled.len()))
    }

    fn begin(&self) -> JoinSet<()> {
        // Upstreams and issuers of a policy before are told of no more.
        let metrics = self.serving.metrics();
        metrics.healthy.reset();
        metrics.jwks_keys.reset();
        self.serving.snapshot().begin()
    }

    async fn version_on_disk(&self) -> Option<String> {
        let file = self.file.clone();
        let text = tokio::task::spawn_blocking(move || load::text(&file)).await.ok()?.ok()?;
        Some(load::version(&text))
    }

    async fn reload(&self) -> Result<(), Unchanged> {
        let outcome = self.take_over().await;
        let metrics = self.serving.metrics();
        let now = OffsetDateTime::now_utc();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(snapshot) => {
                let warnings = snapshot.policy().warnings().len();
                let version = snapshot.version();
                tracing::info!(version, before = told.version, warnings, "policy taken");
                let reloads = told.reloads + 1;
                *told = Told { version: version.to_owned(), since: now, reloads, refused: None };
                metrics.policy_since.set(unix_s(now));
                metrics.policy_reloads.with_label_values(&["taken"]).inc();
            }
            Err(Unchanged { version, mistakes }) => {
                let again = told
                    .refused
                    .as_ref()
                    .is_some_and(|before| before.version == *version && before.mistakes == *mistakes);
                if !again {
                    for mistake in mistakes {
                        tracing::error!(
                            mistake,
                            serving = told.version,
                            "policy refused; the one before stays"
                        );
                    }
                    let mistakes = mistakes.clone();
                    told.refused = Some(Refused { version: version.clone(), since: now, mistakes });
                    metrics.policy_reloads.with_label_values(&["refused"]).inc();
                }
            }
        }
        metrics.policy_refused.set(i64::from(outcome.is_err()));
        outcome.map(drop)
    }

    /// The file holds what serves already.
    fn settled(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.refused.take().is_some() {
            tracing::info!(version = told.version, "the policy file is what serves again");
            self.serving.metrics().policy_refused.set(0);
        }
    }

    async fn take_over(&self) -> Result<Arc<S::Snapshot>, Unchanged> {
        let file = self.file.clone();
        let lenience = Lenience::Only(self.serving.snapshot().disabled());
        let loaded = tokio::task::spawn_blocking(move || load::load_with(&file, &lenience)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(vec![Mistake::whole(error.to_string())]));
        let (version, outcome) = match loaded {
            Err(mistakes) => (self.version_on_disk().await, Err(mistakes)),
            Ok(loaded) => {
                let version = Some(loaded.version.clone());
                let before = self.serving.snapshot();
                let fixed = fixed(before.policy().document(), loaded.policy.document(), S::NAME);
                match fixed.is_empty() {
                    true => (version, self.serving.take_over(loaded).await),
                    false => (version, Err(fixed)),
                }
            }
        };
        let file = self.file.to_string_lossy();
        outcome.map_err(|mistakes| {
            let mistakes = mistakes.iter().map(|mistake| mistake.in_file(&file)).collect();
            Unchanged { version, mistakes }
        })
    }
}

/// A policy that did not take over.
struct Unchanged {
    version: Option<String>,
    mistakes: Vec<String>,
}

fn fixed(before: &Document, after: &Document, name: &str) -> Vec<Mistake> {
    let changed = FIXED.iter().filter(|(_, same)| !same(before, after));
    changed
        .map(|(part, _)| {
            Mistake::whole(format!(
                "`{part}` cannot change while the {name} runs: restart it with the new policy"
            ))
        })
        .collect()
}

/// The parts of a policy that cannot change while a process runs, and whether two policies have the same.
pub(crate) const FIXED: [(&str, Same); 2] = [
    ("admin", |before, after| before.admin == after.admin),
    // Another memory would know no nonce, and let through once more whatever was signed a moment ago. Here is too where
    // the state service listens.
    ("state", |before, after| before.state == after.state),
];

/// Whether a part of two policies is the same.
pub(crate) type Same = fn(&Document, &Document) -> bool;

fn unix_s(at: OffsetDateTime) -> f64 {
    (at - OffsetDateTime::UNIX_EPOCH).as_seconds_f64()
}
