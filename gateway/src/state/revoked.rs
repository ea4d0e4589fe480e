//! What is revoked: kept in the memory of each edge, so that no request waits for it, and pulled every second from the
//! Redis that a fleet shares.
//!
//! While Redis is away the last list counts, and nobody can revoke: so it lacks nothing but what was revoked while only
//! this edge could not reach Redis. An edge that has never had the list believes no token. What Redis forgets by a
//! restart, the edges tell it again. Without a Redis the list is this process's alone and ends with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use filters::jwt::revocation::Key;
use filters::jwt::{Revocation, Revocations};
use redis::Script;
use serde::Serialize;

use super::redis::Redis;
use crate::metrics::Metrics;
use crate::now_ms;

/// Between two pulls.
pub(super) const PULL_EVERY: Duration = Duration::from_secs(1);
/// Most changes that one answer of Redis tells, and most that are told it at once.
const PAGE: usize = 500;
/// Most pages of one pull: more than the whole list.
const MOST_PAGES: usize = 2 * Revocations::MOST / PAGE;
/// Most changes that a worker is told at once; of the longest texts they stay under what it reads.
const WORKERS_PAGE: usize = 1_000;

/// What is revoked, here.
#[derive(Debug)]
pub(crate) struct Revoked {
    list: Revocations,
    /// In the order in which they came, for Envoy's workers.
    changes: Mutex<Changes>,
    /// How far this edge has followed Redis.
    followed: Mutex<Followed>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Changes {
    /// Of this process, and no other.
    epoch: String,
    last: u64,
    by_number: BTreeMap<u64, Revocation>,
    numbers: HashMap<Key, u64>,
}

#[derive(Debug, Default)]
struct Followed {
    epoch: String,
    last: String,
    /// When Redis last told everything.
    at: Option<Instant>,
}

/// What a worker is told.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    epoch: String,
    /// What to ask for changes after, next time.
    last: u64,
    /// Whether the whole list is told with this.
    whole: bool,
    changes: Vec<Revocation>,
}

impl Told {
    /// Whether it says anything that the worker did not know.
    pub(crate) fn is_news(&self) -> bool {
        !self.changes.is_empty()
    }
}

/// What became of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// What counts now, which is more than was asked for where more was revoked already.
    #[serde(flatten)]
    pub(crate) counts: Revocation,
    /// Whether it was revoked before: nothing else can be taken back.
    pub(crate) was_revoked: bool,
}

/// Why something is not revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRevoked {
    #[error("the shared state is away: nothing was revoked")]
    Away,
    #[error("as much is revoked as can be kept: nothing was revoked")]
    Full,
}

impl Revoked {
    pub(super) fn new(is_shared: bool, metrics: &Metrics) -> Self {
        let list = if is_shared { Revocations::unknown() } else { Revocations::none() };
        let epoch = format!("{:016x}", rand::random::<u64>());
        let changes = Changes { epoch, last: 0, by_number: BTreeMap::new(), numbers: HashMap::new() };
        Self { list, changes: Mutex::new(changes), followed: Mutex::default(), metrics: metrics.clone() }
    }

    pub(crate) fn list(&self) -> &Revocations {
        &self.list
    }

    /// Seconds since Redis last told everything; 0 without one, `None` before the first time.
    pub(super) fn age_s(&self, is_shared: bool) -> Option<f64> {
        match is_shared {
            true => self.followed().at.map(|at| at.elapsed().as_secs_f64()),
            false => Some(0.0),
        }
    }

    /// Revokes, here and at every edge of the fleet.
    pub(super) async fn revoke(
        &self,
        revocation: Revocation,
        redis: Option<&Redis>,
    ) -> Result<Outcome, NotRevoked> {
        let Outcome { counts, was_revoked } = match redis {
            Some(redis) => put(redis, std::slice::from_ref(&revocation), Put::Anew)
                .await?
                .pop()
                .ok_or(NotRevoked::Away)?,
            None => {
                self.list.forget(now_ms());
                let was_revoked = self.list.get(&revocation.key()).is_some();
                if !revocation.undone && !was_revoked && self.list.len() >= Revocations::MOST {
                    return Err(NotRevoked::Full);
                }
                Outcome { counts: revocation, was_revoked }
            }
        };
        // What another edge revoked meanwhile may have been pulled already.
        Ok(Outcome { counts: self.take(counts, Source::Somebody, Say::Each), was_revoked })
    }

    /// Pulls changes for as long as the process lives.
    pub(super) async fn follow(&self, redis: &Redis) {
        loop {
            let outcome = match self.pull(redis).await {
                Ok(()) => "ok",
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "revocations not pulled");
                    "error"
                }
            };
            self.metrics.revocation_pulls.with_label_values(&[outcome]).inc();
            tokio::time::sleep(PULL_EVERY).await;
        }
    }

    pub(super) async fn pull(&self, redis: &Redis) -> anyhow::Result<()> {
        for _ in 0..MOST_PAGES {
            let (epoch, last) = {
                let followed = self.followed();
                (followed.epoch.clone(), followed.last.clone())
            };
            let told: Vec<String> =
                call(redis, &["pull", &epoch, if last.is_empty() { "0" } else { &last }, &PAGE.to_string()])
                    .await?;
            let [now_epoch, now_last, left, changes @ ..] = told.as_slice() else {
                anyhow::bail!("the script answered something else")
            };
            if *now_epoch != epoch && !epoch.is_empty() {
                self.tell_again(redis).await?;
                // What was just answered may be weaker than what is known here.
                let mut followed = self.followed();
                (followed.epoch, followed.last) = (now_epoch.clone(), String::new());
                continue;
            }
            let say = if self.list.is_known() { Say::Each } else { Say::Nothing };
            for change in changes {
                self.take(serde_json::from_str(change)?, Source::Redis, say);
            }
            let whole = left == "0";
            let mut followed = self.followed();
            (followed.epoch, followed.last) = (now_epoch.clone(), now_last.clone());
            if whole {
                followed.at = Some(Instant::now());
                drop(followed);
                if !self.list.is_known() {
                    self.list.known();
                    tracing::info!(entries = self.list.len(), "revocations are known");
                }
                self.list.forget(now_ms());
                return Ok(());
            }
        }
        anyhow::bail!("there are more changes than can be kept")
    }

    /// Redis may have lost what was revoked: it is told what is known here, as far as it does not know better.
    async fn tell_again(&self, redis: &Redis) -> anyhow::Result<()> {
        let all = self.list.all();
        tracing::warn!(
            entries = all.len(),
            "the shared state may have lost what was revoked and is told again"
        );
        for page in all.chunks(PAGE) {
            put(redis, page, Put::Again).await?;
        }
        Ok(())
    }

    /// Takes one, and remembers for workers what counts now.
    fn take(&self, revocation: Revocation, source: Source, say: Say) -> Revocation {
        let now_ms = now_ms();
        if revocation.until_ms <= now_ms {
            return revocation;
        }
        // Held all along, so that workers are told in the order in which the list changes.
        let mut changes = self.changes();
        let (counts, changed) = match source {
            Source::Redis => (revocation.clone(), self.list.apply(revocation)),
            Source::Somebody => self.list.revoke(revocation, now_ms),
        };
        if changed && say == Say::Each {
            tell(&counts);
        }
        let key = counts.key();
        let before = changes.numbers.get(&key).and_then(|number| changes.by_number.get(number));
        if before == Some(&counts) {
            return counts;
        }
        changes.forget(now_ms);
        changes.last += 1;
        let number = changes.last;
        if let Some(before) = changes.numbers.insert(key, number) {
            changes.by_number.remove(&before);
        }
        changes.by_number.insert(number, counts.clone());
        counts
    }

    /// What has changed since a worker last asked.
    pub(crate) fn told(&self, epoch: &str, after: u64) -> Told {
        let changes = self.changes();
        let after = if epoch == changes.epoch { after } else { 0 };
        let mut newer = changes.by_number.range(after.saturating_add(1)..);
        let page: Vec<_> = newer.by_ref().take(WORKERS_PAGE).collect();
        let is_last = newer.next().is_none();
        let last = page.last().map_or(after, |(number, _)| **number);
        Told {
            epoch: changes.epoch.clone(),
            last,
            whole: is_last && self.list.is_known(),
            changes: page.into_iter().map(|(_, revocation)| revocation.clone()).collect(),
        }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes {
    /// Forgets what is over, when there is enough to look through.
    fn forget(&mut self, now_ms: u64) {
        const LOOK_AT: u64 = 1_024;
        if self.last.is_multiple_of(LOOK_AT) {
            self.by_number.retain(|_, revocation| revocation.until_ms > now_ms);
            let Self { by_number, numbers, .. } = self;
            numbers.retain(|_, number| by_number.contains_key(number));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Say {
    Each,
    Nothing,
}

/// Who says that something is revoked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It knows what counts.
    Redis,
    /// Somebody who need not know what was revoked before.
    Somebody,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Anew,
    /// Redis may have forgotten it, or know that it was taken back.
    Again,
}

/// The audit's line: what counts here from now on.
fn tell(revocation: &Revocation) {
    let Revocation { kind, id, tenant, issued_until_ms, until_ms, undone } = revocation;
    tracing::info!(
        target: "audit",
        kind = kind.name(),
        id = %crate::access_log::masked(id),
        tenant,
        issued_until_ms,
        until_ms,
        "{}",
        if *undone { "revocation taken back" } else { "revoked" }
    );
}

/// What became of each.
async fn put(redis: &Redis, revocations: &[Revocation], how: Put) -> Result<Vec<Outcome>, NotRevoked> {
    let most = Revocations::MOST.to_string();
    let anew = match how {
        Put::Anew => "1",
        Put::Again => "0",
    };
    let mut arguments: Vec<String> = ["put", &most, anew].map(str::to_owned).to_vec();
    for revocation in revocations {
        arguments.push(revocation.key().as_str().to_owned());
        arguments.push(serde_json::to_string(revocation).map_err(|_| NotRevoked::Away)?);
        arguments.push(revocation.until_ms.to_string());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let away = |error: anyhow::Error| {
        tracing::warn!(error = format!("{error:#}"), "the shared state could not be told what is revoked");
        NotRevoked::Away
    };
    let said: Vec<String> = call(redis, &arguments).await.map_err(away)?;
    match said.as_slice() {
        [done, each @ ..] if done == "1" => {
            let outcomes = each.as_chunks().0.iter().map(|[was_revoked, counts]| {
                let counts = serde_json::from_str(counts)?;
                Ok(Outcome { counts, was_revoked: was_revoked == "1" })
            });
            outcomes.collect::<Result<_, serde_json::Error>>().map_err(|error| away(error.into()))
        }
        [..] => Err(NotRevoked::Full),
    }
}

async fn call(redis: &Redis, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    const KEYS: [&str; 4] = ["revoked", "revoked/changes", "revoked/until", "revoked/head"];
    static SCRIPT: std::sync::LazyLock<Arc<Script>> =
        std::sync::LazyLock::new(|| Arc::new(Script::new(include_str!("revoked.lua"))));
    let (now, epoch) = (now_ms().to_string(), format!("{:032x}", rand::random::<u128>()));
    let all: Vec<&str> =
        [now.as_str(), epoch.as_str()].into_iter().chain(arguments.iter().copied()).collect();
    redis.call(&SCRIPT, &KEYS, &all).await
}

#[cfg(test)]
mod tests;
