//! What is remembered between requests: in this process, or in a Redis that many processes share.
//!
//! Owns where nonces and limits are kept and what becomes of a request while that place is away. The arithmetic is
//! the crate `filters`'; a property test holds both places to the same answers.

mod breaker;
mod held;
mod readiness;
mod redis;
mod revoked;

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certs::Watch;
use filters::jwt::Revocation;
use filters::policy::{Mistake, State as Settings};
use filters::state::{
    Answer, Batch, Begun, Full, LimitsWhenAway, Memory, Op, Trip, Unanswered, UsageByTenant,
};

use self::redis::Redis;
pub(crate) use self::revoked::{NotRevoked, Outcome, Revoked};
use crate::metrics::Metrics;
use crate::now_ms;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The state of an edge.
#[derive(Debug)]
pub(crate) struct State {
    /// With Redis, what is counted in this process alone, and limits while Redis is away.
    memory: Mutex<Memory>,
    redis: Option<Redis>,
    limits_when_away: LimitsWhenAway,
    revoked: Revoked,
    /// How often the shared state is being told of places given back.
    telling: AtomicUsize,
}

impl State {
    /// Opens nothing yet: an edge may start while its Redis is away.
    pub(crate) fn new(
        settings: &Settings,
        folder: &Path,
        metrics: &Metrics,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        let memory = Memory::new(settings.memory.max_entries, now_ms());
        let redis = settings.redis.as_ref().map(|redis| Redis::new(&redis.value, folder, metrics, watch));
        Ok(Self {
            memory: Mutex::new(memory),
            redis: redis.transpose()?,
            limits_when_away: settings.limits_when_away,
            revoked: Revoked::new(settings.redis.is_some(), metrics),
            telling: AtomicUsize::new(0),
        })
    }

    /// What is wrong with the settings, if anything, and with what they refer to.
    pub(crate) fn mistake(settings: &Settings, folder: &Path) -> Option<Mistake> {
        let redis = settings.redis.as_ref()?;
        let why = Redis::read(&redis.value, folder).err()?;
        Some(Mistake::of(&redis.value.url, format!("{why:#}")))
    }

    /// Connects, and goes on looking whether the shared state answers, so that a request seldom has to find out.
    pub(crate) async fn keep_watch(&self) {
        let Some(redis) = &self.redis else { return std::future::pending().await };
        let looking = async {
            loop {
                let _ = redis.probe().await;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::join!(looking, self.revoked.follow(redis));
    }

    /// What is revoked.
    pub(crate) fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Revokes at every edge that shares this state, or takes a revocation back.
    pub(crate) async fn revoke(&self, revocation: Revocation) -> Result<Outcome, NotRevoked> {
        self.revoked.revoke(revocation, self.redis.as_ref()).await
    }

    /// Learns at once what is revoked.
    pub(crate) async fn pull_revocations(&self) -> anyhow::Result<()> {
        match &self.redis {
            Some(redis) => self.revoked.pull(redis).await,
            None => Ok(()),
        }
    }

    /// Seconds since the list of what is revoked was last known to be whole; `None`: it never was.
    pub(crate) fn revocations_age_s(&self) -> Option<f64> {
        self.revoked.age_s(self.redis.is_some())
    }

    /// Whether it is known how the shared state is, well or away.
    pub(crate) fn is_known(&self) -> bool {
        self.redis.as_ref().is_none_or(Redis::was_probed)
    }

    /// Answers a request's batch: as a whole or not at all, in at most one trip.
    pub(crate) async fn ask(&self, batch: Batch) -> Result<Vec<Answer>, Full> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let Some(redis) = &self.redis else { return self.memory().run(&batch.all(), now_ms()) };
        let begun = Trip::begin(batch, now_ms(), &mut self.memory());
        match begun {
            Begun::Answered(answers) => answers,
            Begun::Asking(mut trip) => {
                let said = redis.run(&trip.ask(Vec::new())).await;
                trip.end(said, self.limits_when_away, now_ms(), &mut self.memory()).answers
            }
        }
    }

    /// Answers operations that are all of shared state, and says so when it is away.
    pub(crate) async fn run(&self, ops: &[Op]) -> Result<Vec<Answer>, Unanswered> {
        match &self.redis {
            Some(redis) => redis.run(ops).await,
            None => self.memory().run(ops, now_ms()).map_err(|Full| Unanswered::Full),
        }
    }

    /// Gives back what a request held. What cannot be told is given back by its lease.
    pub(crate) async fn release(&self, held: Vec<Op>) {
        // With a Redis a place is here if it was taken while that was away.
        self.give_back_here(&held);
        if self.redis.is_some() && self.run(&held).await.is_err() {
            tracing::debug!("places were not given back; their leases will");
        }
    }

    fn give_back_here(&self, held: &[Op]) {
        // Giving back needs no room, so the memory cannot be too full for it.
        let _ = self.memory().run(held, now_ms());
    }

    /// What tenants have used of days, by the keys of their tallies: of the whole edge with Redis, otherwise of this
    /// process since it began.
    pub(crate) async fn usage(&self, days: &[String]) -> Result<Vec<UsageByTenant>, Unanswered> {
        match &self.redis {
            Some(redis) => redis.usage(days).await,
            None => {
                let memory = self.memory();
                Ok(days.iter().map(|day| memory.usage(day)).collect())
            }
        }
    }

    /// Whether what is remembered is the whole edge's.
    pub(crate) fn is_shared(&self) -> bool {
        self.redis.is_some()
    }

    /// Things remembered in this process.
    pub(crate) fn entries(&self) -> usize {
        self.memory().len()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic while the lock was held cannot have left half a batch: writing one does not fail.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
