//! Shared state in Redis: one script call for each batch, over one multiplexed connection that is replaced by itself.

mod address;
mod cause;
mod health;
mod link;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::Watch;
use filters::policy::Redis as Settings;
use filters::state::{Allowance, Answer, Mode, Op, Place, Unanswered, Usage, UsageByTenant, Volume};
use prometheus::{Histogram, IntCounterVec};
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind};

use self::address::target;
use self::cause::{describe, is_wrong_node, means_another_connection};
pub(crate) use self::health::Faults;
use self::health::Health;
use self::link::{Connection, Link, Prepare};
use super::breaker::Breaker;
use crate::metrics::Metrics;

/// Reports of usage may take longer than a request's batch.
const USAGE_WITHIN: Duration = Duration::from_secs(5);
const BATCH: &str = include_str!("batch.lua");
const WATCH: &str = include_str!("redis/watch.lua");

/// A Redis that many edges share.
pub(super) struct Redis {
    link: Link<NodeCheck>,
    check: NodeCheck,
    script: Script,
    prefix: String,
    /// How long a call may take that no request waits for; connecting included.
    call_timeout: Duration,
    timeout: Duration,
    probed: AtomicBool,
    /// The script was sent once since this process started.
    loaded: AtomicBool,
    breaker: Breaker,
    began: Instant,
    batches: IntCounterVec,
    seconds: Histogram,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Why a batch has no answers.
#[derive(Debug)]
enum Failure {
    /// There is no connection.
    Unconnected(Arc<str>),
    /// Redis may evict nonces, so it is not given any.
    Evicts,
    Redis(RedisError, Connection),
}

impl Redis {
    /// Connects with the first call.
    pub(super) fn new(
        settings: &Settings,
        folder: &Path,
        metrics: &Metrics,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        metrics.has_redis();
        let target = target(settings, folder, watch)?;
        // A batch is one script, which a Cluster runs where its keys are: one tag puts all of them in one slot.
        let prefix = match settings.cluster {
            true => format!("{{{}}}", settings.prefix),
            false => settings.prefix.clone(),
        };
        let connect_timeout = Duration::from_millis(settings.connect_timeout_ms);
        let timeout = Duration::from_millis(settings.timeout_ms);
        let health = Arc::new(Health::new(metrics.redis_up.clone(), metrics.redis_impaired.clone()));
        let check = NodeCheck { since: format!("{prefix}since"), node: format!("{prefix}node"), health };
        Ok(Self {
            link: Link::new(target, connect_timeout, check.clone()),
            check,
            script: Script::new(BATCH),
            prefix,
            call_timeout: connect_timeout * link::NODES_ASKED + timeout,
            timeout,
            probed: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            breaker: Breaker::default(),
            began: Instant::now(),
            batches: metrics.redis_batches.clone(),
            seconds: metrics.redis_seconds.clone(),
        })
    }

    /// Reads the settings and the files that they name. Connects to nothing.
    pub(super) fn read(settings: &Settings, folder: &Path) -> anyhow::Result<()> {
        target(settings, folder, &Watch::new("check")).map(drop)
    }

    /// What it cannot do at the moment.
    pub(super) fn faults(&self) -> Faults {
        self.check.health.faults()
    }

    /// Runs a batch at Redis's own time, as a whole or not at all.
    pub(super) async fn run(&self, ops: &[Op]) -> Result<Vec<Answer>, Unanswered> {
        if !self.breaker.lets(self.now_ms()) {
            self.batches.with_label_values(&["not_asked"]).inc();
            return Err(Unanswered::Away);
        }
        let asked = Instant::now();
        let said = tokio::time::timeout(self.timeout, self.ask(ops, None)).await;
        self.seconds.observe(asked.elapsed().as_secs_f64());
        let error = match said {
            Ok(Ok(answers)) => {
                if self.breaker.answered() {
                    self.check.health.answered();
                }
                self.batches.with_label_values(&["run"]).inc();
                return Ok(answers);
            }
            Ok(Err(Failure::Redis(error, connection))) if error.code() == Some("OOM") => {
                self.check.health.full(describe(&error, connection.tls));
                self.batches.with_label_values(&["state_full"]).inc();
                return Err(Unanswered::Full);
            }
            Ok(Err(Failure::Evicts)) => {
                self.batches.with_label_values(&["eviction_policy"]).inc();
                return Err(Unanswered::Away);
            }
            Ok(Err(Failure::Redis(error, connection))) => self.failed(&error, &connection),
            Ok(Err(Failure::Unconnected(why))) => why.to_string(),
            Err(_) => self.no_answer(self.timeout),
        };
        self.batches.with_label_values(&["away"]).inc();
        if self.breaker.failed(self.now_ms()) {
            // A host that is gone closes nothing: another connection may find the one that took over.
            self.link.close_open();
            self.check.health.unavailable(error);
        }
        Err(Unanswered::Away)
    }

    /// Connects, and finds out whether Redis can run batches.
    pub(super) async fn probe(&self) -> Result<(), Unanswered> {
        let probed = tokio::time::timeout(self.call_timeout, async {
            let mut connection = self.link.connection().await.map_err(|why| why.to_string())?;
            let checked = tokio::time::timeout(self.timeout, self.check.run(&mut connection, false)).await;
            let checked = checked.unwrap_or_else(|_| Err(self.no_answer(self.timeout)));
            // Another connection may find another node, or one that answers.
            checked.inspect_err(|_| self.link.close(&connection))?;
            match self.loaded.load(Ordering::Relaxed) {
                true => Ok(()),
                false => self.load_batch().await,
            }
        });
        let probed = probed.await.unwrap_or_else(|_| Err(self.no_answer(self.call_timeout)));
        self.probed.store(true, Ordering::Relaxed);
        match probed {
            Ok(()) => {
                self.breaker.answered();
                self.check.health.answered();
                Ok(())
            }
            Err(why) => {
                self.breaker.failed(self.now_ms());
                self.check.health.unavailable(why);
                Err(Unanswered::Away)
            }
        }
    }

    /// Runs an empty batch. A Redis that does not know the script begins its memory when it is sent, so that must happen
    /// now and not with the first request: that one would have been signed before.
    async fn load_batch(&self) -> Result<(), String> {
        match tokio::time::timeout(self.timeout, self.ask(&[], None)).await {
            Ok(Ok(_)) => {
                self.loaded.store(true, Ordering::Relaxed);
                Ok(())
            }
            // The next probe asks again: it is full, which the check has found, or a Cluster moves the slot.
            Ok(Err(Failure::Evicts)) => Ok(()),
            Ok(Err(Failure::Redis(error, _))) if matches!(error.code(), Some("OOM" | "TRYAGAIN")) => Ok(()),
            Ok(Err(Failure::Redis(error, connection))) => Err(self.failed(&error, &connection)),
            Ok(Err(Failure::Unconnected(why))) => Err(why.to_string()),
            Err(_) => Err(self.no_answer(self.timeout)),
        }
    }

    /// Whether it is known how Redis is.
    pub(super) fn was_probed(&self) -> bool {
        self.probed.load(Ordering::Relaxed)
    }

    /// Runs a script that no request waits for, however it goes: whether Redis is away, batches find out.
    pub(super) async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<T> {
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(format!("{}{key}", self.prefix));
        }
        for argument in arguments {
            call.arg(*argument);
        }
        let called = async {
            let mut connection = self.link.connection().await.map_err(|why| anyhow::anyhow!("{why}"))?;
            let said = call.invoke_async(&mut connection).await;
            said.map_err(|error| anyhow::anyhow!(self.failed(&error, &connection)))
        };
        let said = tokio::time::timeout(self.call_timeout, called).await;
        said.map_err(|_| anyhow::anyhow!(self.no_answer(self.call_timeout)))?.context("redis")
    }

    /// Closes the connection if it must be replaced, and describes the error.
    fn failed(&self, error: &RedisError, connection: &Connection) -> String {
        if means_another_connection(error) {
            self.link.close(connection);
        }
        describe(error, connection.tls)
    }

    fn no_answer(&self, within: Duration) -> String {
        match self.link.failure() {
            Some(why) => why.to_string(),
            None => format!("no answer within {} ms", within.as_millis()),
        }
    }

    /// One call. `now_us`: a time in place of Redis's own.
    async fn ask(&self, ops: &[Op], now_us: Option<u64>) -> Result<Vec<Answer>, Failure> {
        let mut connection = self.link.connection().await.map_err(Failure::Unconnected)?;
        // Known by now: a connection is checked before it is used.
        if self.check.health.evicts() && ops.iter().any(|op| matches!(op, Op::Remember { .. })) {
            return Err(Failure::Evicts);
        }
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash());
        self.write(&mut call, ops, now_us);
        let said: redis::RedisResult<Vec<Vec<i64>>> = match call.query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                // It is new or was started again, and may have lost the last nonces. So its memory begins now, and only
                // then can anybody run the script: `EVAL` makes it known there, on the node that has the keys.
                let begun = self.check.begin(&mut connection).await;
                let mut call = redis::cmd("EVAL");
                call.arg(BATCH);
                self.write(&mut call, ops, now_us);
                match begun {
                    Ok(()) => call.query_async(&mut connection).await,
                    Err(error) => Err(error),
                }
            }
            said => said,
        };
        let answers = said.and_then(|said| {
            let answers: Option<Vec<Answer>> = said.iter().map(|numbers| answer(numbers)).collect();
            answers.filter(|answers| answers.len() == ops.len()).ok_or_else(|| {
                RedisError::from((ErrorKind::UnexpectedReturnType, "the script answered something else"))
            })
        });
        answers.map_err(|error| Failure::Redis(error, connection))
    }

    /// Keys and arguments of the script.
    fn write(&self, call: &mut Cmd, ops: &[Op], now_us: Option<u64>) {
        call.arg(ops.len().saturating_add(2)).arg(&self.check.since);
        call.arg(format!("{}windows", self.prefix));
        for op in ops {
            call.arg(format!("{}{}", self.prefix, op.key()));
        }
        call.arg(now_us.map(|now| now.to_string()).unwrap_or_default());
        for op in ops {
            match op {
                Op::Take { rate, cost, mode, .. } => {
                    call.arg("take").arg(rate.interval_us()).arg(rate.burst()).arg(*cost).arg(shadow(*mode));
                }
                Op::Spend { most, cost, ends_ms, mode, .. } => {
                    let most = (*most).min(Volume::MOST);
                    call.arg("spend").arg(most).arg(*cost).arg(*ends_ms).arg(shadow(*mode));
                }
                Op::Remember { ttl_ms, made_s, ahead_s, window_s, .. } => {
                    call.arg("remember").arg(us(*ttl_ms)).arg(*made_s).arg(*ahead_s);
                    call.arg(window_s.map(|window_s| window_s.to_string()).unwrap_or_default());
                }
                Op::Hold { most, lease_ms, mode, .. } => {
                    let most = (*most).min(Op::MOST_PLACES);
                    call.arg("hold").arg(most).arg(us(*lease_ms)).arg(shadow(*mode));
                }
                Op::Release { place, .. } => {
                    call.arg("release").arg(place.number).arg(place.until_us);
                }
                Op::Tally { tenant, usage, until_ms, .. } => {
                    call.arg("tally").arg(tenant).arg(usage.requests).arg(usage.cost).arg(usage.refused);
                    call.arg(*until_ms);
                }
            }
        }
    }

    /// What every edge's tenants have used of days, by the keys of their tallies.
    pub(super) async fn usage(&self, days: &[String]) -> Result<Vec<UsageByTenant>, Unanswered> {
        let mut asked = redis::pipe();
        for day in days {
            asked.cmd("HGETALL").arg(format!("{}{day}", self.prefix));
        }
        let told = async {
            let mut connection = self.link.connection().await.map_err(|why| why.to_string())?;
            let told = asked.query_async::<Vec<Vec<(String, u64)>>>(&mut connection).await;
            told.map_err(|error| self.failed(&error, &connection))
        };
        match tokio::time::timeout(USAGE_WITHIN, told).await {
            Ok(Ok(days)) => Ok(days.iter().map(|fields| used(fields)).collect()),
            Ok(Err(error)) => {
                tracing::warn!(error, "the usage of tenants cannot be read");
                Err(Unanswered::Away)
            }
            Err(_) => Err(Unanswered::Away),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Since when Redis remembers, and whether it can be relied on.
#[derive(Clone)]
struct NodeCheck {
    /// The key of the beginning of its memory.
    since: String,
    /// The key of the node that wrote it.
    node: String,
    health: Arc<Health>,
}

impl NodeCheck {
    /// Finds out whether Redis can keep nonces, and makes its memory begin now where it may have lost some.
    ///
    /// # Errors
    /// The node cannot run batches; why.
    async fn run(&self, connection: &mut Connection, anew: bool) -> Result<(), String> {
        let told = |error: RedisError, tls| describe(&error, tls);
        let (policy, error) =
            self.watch(connection, anew).await.map_err(|error| told(error, connection.tls))?;
        self.health.evicts_by(&policy);
        if error.is_empty() {
            self.health.has_room();
            return Ok(());
        }
        match error.split_once(' ').map_or(error.as_str(), |(code, _)| code) {
            // It answers, and still gives back and counts what needs no room.
            "OOM" => {
                self.health.full(error);
                Ok(())
            }
            code if is_wrong_node(code) => {
                Err(format!("{error} (the node is the wrong one; the address is resolved again)"))
            }
            _ => Err(error),
        }
    }

    /// Makes the memory begin now.
    async fn begin(&self, connection: &mut Connection) -> redis::RedisResult<()> {
        self.watch(connection, true).await.map(drop)
    }

    /// The eviction policy, and the error of a write; each may be empty.
    async fn watch(&self, connection: &mut Connection, anew: bool) -> redis::RedisResult<(String, String)> {
        let mut call = redis::cmd("EVAL");
        call.arg(WATCH).arg(2).arg(&self.since).arg(&self.node).arg(u8::from(anew));
        let (policy, error, begins): (String, String, u8) = call.query_async(connection).await?;
        if begins == 1 && error.is_empty() && !self.health.evicts() {
            tracing::info!("the shared state begins anew: what was signed before is refused");
        }
        Ok((policy, error))
    }
}

impl Prepare for NodeCheck {
    async fn prepare(&self, mut connection: Connection, moved: bool) -> Result<(), String> {
        self.run(&mut connection, moved).await
    }
}

fn shadow(mode: Mode) -> u8 {
    match mode {
        Mode::Enforce => 0,
        Mode::Shadow => 1,
    }
}

fn us(ms: u64) -> u64 {
    ms.saturating_mul(1_000)
}

/// What the script has counted of a day: under a mark and the tenant's name.
fn used(fields: &[(String, u64)]) -> UsageByTenant {
    let mut by_tenant = UsageByTenant::new();
    for (field, number) in fields {
        let Some((mark, tenant)) = field.split_at_checked(1) else { continue };
        let used = by_tenant.entry(tenant.to_owned()).or_default();
        *used += match mark {
            "r" => Usage { requests: *number, ..Usage::default() },
            "c" => Usage { cost: *number, ..Usage::default() },
            "x" => Usage { refused: *number, ..Usage::default() },
            _ => Usage::default(),
        };
    }
    by_tenant
}

/// What the script's numbers mean.
fn answer(numbers: &[i64]) -> Option<Answer> {
    let number = |number: i64| u64::try_from(number).ok();
    let allowance = |remaining: i64, reset_ms: i64| {
        Some(Allowance { remaining: u32::try_from(remaining).ok()?, reset_ms: number(reset_ms)? })
    };
    Some(match *numbers {
        [0, remaining, reset_ms] => Answer::Taken(allowance(remaining, reset_ms)?),
        [1, remaining, reset_ms, retry_after_ms] => Answer::Exhausted {
            allowance: allowance(remaining, reset_ms)?,
            retry_after_ms: number(retry_after_ms)?,
        },
        [2] => Answer::Remembered,
        [3] => Answer::Seen,
        [4] => Answer::TooOld,
        [5, place, until_us] => {
            Answer::Held(Place { number: u32::try_from(place).ok()?, until_us: number(until_us)? })
        }
        [6, retry_after_ms] => Answer::Busy { retry_after_ms: number(retry_after_ms)? },
        [7] => Answer::Released,
        [8, left, renews_ms] => Answer::Spent(Volume { left: number(left)?, renews_ms: number(renews_ms)? }),
        [9, left, renews_ms] => {
            Answer::Overspent(Volume { left: number(left)?, renews_ms: number(renews_ms)? })
        }
        [10] => Answer::WouldRefuse,
        [11] => Answer::Tallied,
        _ => return None,
    })
}

#[cfg(test)]
mod nodes_tests;
#[cfg(test)]
pub(super) mod tests;
#[cfg(test)]
mod windows_tests;
