//! Another policy takes over while the gateway runs: when its file changes, or on SIGHUP.
//!
//! The new policy and everything that it refers to is read, checked and opened first; then it takes over at once and
//! whole. Whatever is wrong with it changes nothing: the policy before it goes on, and says so on `/config`, in the log
//! and in the metrics.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use filters::policy::{Document, Mistake};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::edge::Edge;
use crate::gate::Gate;
use crate::listeners::Listeners;
use crate::load::{self, Loaded};
use crate::upstream::probe;

/// Between two looks at the file. It is read again when two of them see the same other text: an editor may be writing.
const LOOK: Duration = Duration::from_millis(500);
/// Looks after which a refused policy is tried again as it is: what it refers to may have come.
const LOOKS_TO_A_RETRY: u32 = 20;

/// Follows the file of the policy that serves, and is what `/config` tells.
pub(crate) struct Reload {
    file: PathBuf,
    gate: Arc<Gate>,
    listeners: Arc<Listeners>,
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

impl Reload {
    pub(crate) fn new(
        file: &Path,
        gate: &Arc<Gate>,
        listeners: &Arc<Listeners>,
        hang_up: HangUp,
    ) -> Arc<Self> {
        let (gate, listeners) = (Arc::clone(gate), Arc::clone(listeners));
        let now = OffsetDateTime::now_utc();
        gate.metrics().policy_since.set(unix_s(now));
        let version = gate.edge().version().to_owned();
        let told = Mutex::new(Told { version, since: now, reloads: 0, refused: None });
        Arc::new(Self { file: file.to_owned(), gate, listeners, hang_up: hang_up.0, told })
    }

    /// What `/config` tells.
    pub(crate) fn report(&self) -> serde_json::Value {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let edge = self.gate.edge();
        let mut report = serde_json::to_value(told).unwrap_or_default();
        if let Some(report) = report.as_object_mut() {
            report.insert("file".to_owned(), self.file.display().to_string().into());
            let routes: Vec<_> = edge.policy.rules().iter().map(|rule| rule.name.as_str()).collect();
            report.insert("routes".to_owned(), routes.into());
            let file = self.file.to_string_lossy();
            let warnings: Vec<_> =
                edge.policy.warnings().iter().map(|warning| warning.in_file(&file)).collect();
            report.insert("warnings".to_owned(), warnings.into());
        }
        report
    }

    /// Does the background work of the policy that serves, and has others take over, until the future is dropped.
    pub(crate) async fn run(&self) {
        let mut work = self.work();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sight = Sight::new(self.gate.edge().version().to_owned());
        loop {
            looks.tick().await;
            let changed = sight.look(self.version_on_disk().await);
            let asked = self.hang_up.swap(false, Ordering::Relaxed);
            if asked {
                tracing::info!("SIGHUP: the policy is read again");
            }
            if changed || asked {
                let taken = self.reload().await;
                if taken.is_ok() {
                    work = self.work();
                }
                sight.tried(self.gate.edge().version(), taken.is_ok());
            } else if sight.is_settled() {
                self.settled();
            }
            // Ended parts are nobody's to wait for; none ends by itself.
            while work.try_join_next().is_some() {}
        }
    }

    /// What a policy needs done beside requests. It ends when the next one's begins.
    fn work(&self) -> JoinSet<()> {
        let edge = self.gate.edge();
        // Upstreams and issuers of a policy before are told of no more.
        edge.metrics().healthy.reset();
        edge.metrics().jwks_keys.reset();
        let mut work = JoinSet::new();
        work.spawn(edge.watch().run());
        work.spawn(edge.keys().keep_fresh());
        for (name, upstream) in edge.probed() {
            work.spawn(probe::keep_probing(name, upstream, edge.metrics().healthy.clone()));
        }
        work
    }

    async fn version_on_disk(&self) -> Option<String> {
        let file = self.file.clone();
        let text = tokio::task::spawn_blocking(move || load::text(&file)).await.ok()?.ok()?;
        Some(load::version(&text))
    }

    async fn reload(&self) -> Result<(), Unchanged> {
        let outcome = self.take_over().await;
        let metrics = self.gate.metrics();
        let now = OffsetDateTime::now_utc();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(edge) => {
                let warnings = edge.policy.warnings().len();
                tracing::info!(version = edge.version(), before = told.version, warnings, "policy taken");
                let reloads = told.reloads + 1;
                *told = Told { version: edge.version().to_owned(), since: now, reloads, refused: None };
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
            self.gate.metrics().policy_refused.set(0);
        }
    }

    /// Everything that can fail comes first.
    async fn take_over(&self) -> Result<Arc<Edge>, Unchanged> {
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || load::load(&file)).await;
        let on_disk = self.version_on_disk().await;
        let refuse = |mistakes: &[Mistake]| {
            let file = self.file.to_string_lossy();
            let mistakes = mistakes.iter().map(|mistake| mistake.in_file(&file)).collect();
            Unchanged { version: on_disk.clone(), mistakes }
        };
        let failed = |error: &anyhow::Error| refuse(&[Mistake::whole(format!("{error:#}"))]);
        let loaded = loaded.map_err(|error| failed(&error.into()))?.map_err(|mistakes| refuse(&mistakes))?;
        let before = self.gate.edge();
        let fixed = fixed(before.policy.document(), loaded.policy.document());
        if !fixed.is_empty() {
            return Err(refuse(&fixed));
        }
        let Loaded { version, .. } = &loaded;
        let version = Some(version.clone());
        let document = loaded.policy.document().clone();
        let made = Edge::new(loaded, self.gate.standing(), Some(&before));
        let (edge, files) = made.map_err(|error| failed(&error))?;
        edge.keys().fetch_missing().await;
        // Who had none before loses nothing.
        let (keys, keys_before) = (edge.keys(), before.keys());
        let missing_before = keys_before.missing();
        let missing: Vec<Mistake> = keys
            .missing()
            .iter()
            .filter(|issuer| !missing_before.contains(issuer))
            .map(|issuer| {
                let why = "has no keys: they could not be fetched, so its tokens would be refused";
                Mistake::whole(format!("issuer `{issuer}` {why}"))
            })
            .collect();
        if !missing.is_empty() {
            return Err(Unchanged { version, ..refuse(&missing) });
        }
        let prepared = self.listeners.prepare(&document, files, &edge.watch());
        let prepared = prepared.map_err(|error| failed(&error))?;
        let edge = Arc::new(edge);
        // Requests first: a connection that arrives the old way is decided on by the new policy, never the reverse.
        self.gate.pass_to(Arc::clone(&edge));
        self.listeners.put_to_use(prepared);
        Ok(edge)
    }
}

/// A policy that did not take over.
struct Unchanged {
    version: Option<String>,
    mistakes: Vec<String>,
}

fn fixed(before: &Document, after: &Document) -> Vec<Mistake> {
    let changed = FIXED.iter().filter(|(_, same)| !same(before, after));
    changed
        .map(|(name, _)| {
            Mistake::whole(format!(
                "`{name}` cannot change while the gateway runs: restart it with the new policy"
            ))
        })
        .collect()
}

/// The parts of a policy that cannot change while the gateway runs, and whether two policies have the same.
pub(crate) const FIXED: [(&str, Same); 2] = [
    ("admin", |before, after| before.admin == after.admin),
    // Another memory would know no nonce, and let through once more whatever was signed a moment ago.
    ("state", |before, after| before.state == after.state),
];

/// Whether a part of two policies is the same.
pub(crate) type Same = fn(&Document, &Document) -> bool;

fn unix_s(at: OffsetDateTime) -> f64 {
    (at - OffsetDateTime::UNIX_EPOCH).as_seconds_f64()
}

/// What looks at the file have seen.
#[derive(Debug)]
struct Sight {
    serving: String,
    /// Of the last look.
    last: Option<String>,
    /// What was tried last and refused, and the looks since.
    refused: Option<(Option<String>, u32)>,
    /// What serves was tried again, and is refused by now.
    in_vain: bool,
}

impl Sight {
    fn new(serving: String) -> Self {
        Self { last: Some(serving.clone()), serving, refused: None, in_vain: false }
    }

    /// Notes what the file is now, `None` when it cannot be read, and tells whether it is to be tried.
    fn look(&mut self, found: Option<String>) -> bool {
        let stands_still = self.last == found;
        self.last = found;
        self.in_vain &= stands_still;
        if self.is_settled() {
            self.refused = None;
        }
        if self.is_settled() || !stands_still {
            return false;
        }
        match &mut self.refused {
            Some((refused, looks)) if *refused == self.last => {
                *looks += 1;
                looks.is_multiple_of(LOOKS_TO_A_RETRY)
            }
            Some(_) | None => true,
        }
    }

    fn tried(&mut self, serving: &str, taken: bool) {
        serving.clone_into(&mut self.serving);
        self.in_vain = !taken && self.last.as_deref() == Some(serving);
        self.refused = (!taken).then(|| match self.refused.take() {
            Some((refused, looks)) if refused == self.last => (refused, looks),
            Some(_) | None => (self.last.clone(), 0),
        });
    }

    /// Whether the file is what serves.
    fn is_settled(&self) -> bool {
        !self.in_vain && self.last.as_deref() == Some(self.serving.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks one after the other: what each finds, and whether it is tried; what is tried is taken if it is `good…`.
    fn check(looks: &[(&str, bool)]) {
        let mut sight = Sight::new("first".to_owned());
        for (position, (found, due)) in looks.iter().enumerate() {
            let found = (*found != "nothing").then(|| (*found).to_owned());
            assert_eq!(sight.look(found.clone()), *due, "look {position} of {looks:?}");
            if *due {
                let good = found.filter(|found| found.starts_with("good"));
                let serving = good.clone().unwrap_or_else(|| sight.serving.clone());
                sight.tried(&serving, good.is_some());
            }
        }
    }

    #[test]
    fn a_file_is_tried_when_it_stands_still_and_is_another() {
        check(&[("first", false), ("first", false)]);
        check(&[("good", false), ("good", true), ("good", false), ("good", false)]);
        check(&[("half", false), ("good", false), ("good", true), ("good", false)]);
        check(&[("bad", false), ("bad", true), ("bad", false), ("first", false), ("first", false)]);
        check(&[("bad", false), ("bad", true), ("first", false), ("bad", false), ("bad", true)]);
        check(&[("nothing", false), ("nothing", true), ("nothing", false), ("good", false), ("good", true)]);
        check(&[("bad", false), ("bad", true), ("good", false), ("good", true), ("good", false)]);
    }

    /// What serves could not take over again: that is told, and tried, until it could.
    #[test]
    fn what_was_asked_for_in_vain_is_not_forgotten() {
        let mut sight = Sight::new("good".to_owned());
        let good = || Some("good".to_owned());
        assert!(!sight.look(good()));
        sight.tried("good", false);
        for _ in 1..LOOKS_TO_A_RETRY {
            assert!(!sight.look(good()) && !sight.is_settled());
        }
        assert!(sight.look(good()), "tried again");
        sight.tried("good", true);
        assert!(!sight.look(good()) && sight.is_settled());
    }

    #[test]
    fn what_is_refused_is_tried_again_now_and_then() {
        let mut looks = vec![("bad", false), ("bad", true)];
        for _ in 0..3 {
            looks.extend(vec![("bad", false); LOOKS_TO_A_RETRY as usize - 1]);
            looks.push(("bad", true));
        }
        check(&looks);
    }
}
