//! Shared state in Redis: one script call a batch, over one multiplexed connection that comes back by itself.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::{Live, TrustFiles, Watch};
use filters::policy::Redis as Settings;
use filters::state::{Allowance, Answer, Mode, Op, Place, Unanswered, Usage, UsageByTenant, Volume};
use prometheus::{Histogram, IntCounterVec, IntGauge};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, Script, ServerErrorKind, TlsCertificates,
};

use super::breaker::Breaker;
use crate::load;
use crate::metrics::Metrics;

/// Batches that may wait for their answers at once; more count as away.
const MOST_IN_FLIGHT: usize = 4_096;
/// Who asks what tenants have used waits longer than a request does.
const USAGE_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries to connect.
const RECONNECT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// A Redis that many edges share.
pub(super) struct Redis {
    client: Live<Client>,
    config: ConnectionManagerConfig,
    /// Made by the first who asks: it needs a runtime, and the edge is made before there is one. With the client
    /// that it was made with: another CA, another connection.
    connection: Mutex<Option<(Arc<Client>, ConnectionManager)>>,
    script: Arc<Script>,
    prefix: String,
    connect_timeout: Duration,
    timeout: Duration,
    probed: AtomicBool,
    breaker: Breaker,
    began: Instant,
    up: IntGauge,
    batches: IntCounterVec,
    seconds: Histogram,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects when it is first asked.
    pub(super) fn new(
        settings: &Settings,
        folder: &Path,
        metrics: &Metrics,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        metrics.has_redis();
        Ok(Self {
            client: client(settings, folder, watch)?,
            config: ConnectionManagerConfig::new()
                .set_connection_timeout(Some(Duration::from_millis(settings.connect_timeout_ms)))
                .set_response_timeout(Some(Duration::from_millis(settings.timeout_ms)))
                .set_min_delay(RECONNECT[0])
                .set_max_delay(RECONNECT[1])
                .set_number_of_retries(usize::MAX)
                .set_concurrency_limit(MOST_IN_FLIGHT),
            connection: Mutex::new(None),
            script: Arc::new(Script::new(include_str!("batch.lua"))),
            prefix: settings.prefix.clone(),
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
            timeout: Duration::from_millis(settings.timeout_ms),
            probed: AtomicBool::new(false),
            breaker: Breaker::default(),
            began: Instant::now(),
            up: metrics.redis_up.clone(),
            batches: metrics.redis_batches.clone(),
            seconds: metrics.redis_seconds.clone(),
        })
    }

    /// Runs a batch at Redis's own time, as a whole or not at all.
    pub(super) async fn run(&self, ops: &[Op]) -> Result<Vec<Answer>, Unanswered> {
        if !self.breaker.lets(self.now_ms()) {
            self.batches.with_label_values(&["not_asked"]).inc();
            return Err(Unanswered::Away);
        }
        self.run_within(self.timeout, ops).await
    }

    /// Asks for nothing: connects, and learns whether Redis answers. The first time it may take as long as connecting.
    pub(super) async fn probe(&self) -> Result<(), Unanswered> {
        let probed = self.run_within(self.connect_timeout + self.timeout, &[]).await;
        self.probed.store(true, Ordering::Relaxed);
        probed.map(drop)
    }

    /// Whether it is known how Redis is.
    pub(super) fn was_probed(&self) -> bool {
        self.probed.load(Ordering::Relaxed)
    }

    async fn run_within(&self, timeout: Duration, ops: &[Op]) -> Result<Vec<Answer>, Unanswered> {
        let asked = Instant::now();
        // Longer than the connection's own limit only while there is no connection.
        let said = tokio::time::timeout(timeout, self.ask(ops, None)).await;
        self.seconds.observe(asked.elapsed().as_secs_f64());
        let error = match said {
            Ok(Ok(answers)) => {
                if self.breaker.answered() {
                    tracing::info!("the shared state is back");
                }
                self.up.set(1);
                self.batches.with_label_values(&["run"]).inc();
                return Ok(answers);
            }
            Ok(Err(error)) if error.code() == Some("OOM") => {
                self.batches.with_label_values(&["state_full"]).inc();
                return Err(Unanswered::Full);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        self.up.set(0);
        self.batches.with_label_values(&["away"]).inc();
        if self.breaker.failed(self.now_ms()) {
            tracing::warn!(
                error,
                "the shared state is away: nonces are refused, limits are as the policy says"
            );
        }
        Err(Unanswered::Away)
    }

    /// Runs a script that no request waits for, however it goes: whether Redis is away, batches find out.
    pub(super) async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<T> {
        let mut connection = self.connection()?;
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(format!("{}{key}", self.prefix));
        }
        for argument in arguments {
            call.arg(*argument);
        }
        let timeout = self.connect_timeout + self.timeout;
        let said = tokio::time::timeout(timeout, call.invoke_async(&mut connection)).await;
        said.context("no answer in time")?.context("redis")
    }

    /// One call. `now_us`: a time in place of Redis's own.
    async fn ask(&self, ops: &[Op], now_us: Option<u64>) -> redis::RedisResult<Vec<Answer>> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(ops.len().saturating_add(2)).arg(self.since());
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
        let mut connection = self.connection()?;
        let said: Vec<Vec<i64>> = match call.query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.begin_anew(&mut connection).await?;
                call.query_async(&mut connection).await?
            }
            said => said?,
        };
        let answers: Option<Vec<Answer>> = said.iter().map(|numbers| answer(numbers)).collect();
        answers.filter(|answers| answers.len() == ops.len()).ok_or_else(|| {
            redis::RedisError::from((
                redis::ErrorKind::UnexpectedReturnType,
                "the script answered something else",
            ))
        })
    }

    /// What every edge's tenants have used of days, by the keys of their tallies.
    pub(super) async fn usage(&self, days: &[String]) -> Result<Vec<UsageByTenant>, Unanswered> {
        let mut asked = redis::pipe();
        for day in days {
            asked.cmd("HGETALL").arg(format!("{}{day}", self.prefix));
        }
        let mut connection = self.connection().map_err(|_| Unanswered::Away)?;
        let told = asked.query_async::<Vec<Vec<(String, u64)>>>(&mut connection);
        match tokio::time::timeout(USAGE_WITHIN, told).await {
            Ok(Ok(days)) => Ok(days.iter().map(|fields| used(fields)).collect()),
            Ok(Err(_)) | Err(_) => Err(Unanswered::Away),
        }
    }

    /// Redis does not know the script: it is new, or was started again, and then it may have come back with a past in
    /// which the last nonces are missing. So its memory begins now, and only then can anybody run the script.
    async fn begin_anew(&self, connection: &mut ConnectionManager) -> redis::RedisResult<()> {
        let (seconds, us): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        let now_us = seconds.saturating_mul(1_000_000).saturating_add(us);
        let () = redis::cmd("SET").arg(self.since()).arg(now_us).query_async(connection).await?;
        self.script.load_async(connection).await?;
        tracing::info!("the shared state begins anew: what was signed before is refused");
        Ok(())
    }

    /// Where Redis keeps since when it remembers.
    fn since(&self) -> String {
        format!("{}since", self.prefix)
    }

    /// One for all, which comes back by itself.
    fn connection(&self) -> redis::RedisResult<ConnectionManager> {
        let client = self.client.current();
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        match &*connection {
            Some((of, connection)) if Arc::ptr_eq(of, &client) => Ok(connection.clone()),
            Some(_) | None => {
                let made = ConnectionManager::new_lazy_with_config((*client).clone(), self.config.clone())?;
                *connection = Some((client, made.clone()));
                Ok(made)
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
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

/// Whom it asks. Connects to nothing.
pub(super) fn client(settings: &Settings, folder: &Path, watch: &Watch) -> anyhow::Result<Live<Client>> {
    made(settings, folder, watch).context("state.redis")
}

fn made(settings: &Settings, folder: &Path, watch: &Watch) -> anyhow::Result<Live<Client>> {
    let reference = &settings.url.value;
    let url = load::secret(folder, reference).map_err(|why| anyhow::anyhow!("{reference}: {why}"))?;
    // The text may hold a password: no message quotes it.
    let url = std::str::from_utf8(&url).ok().context("its address is no text")?;
    let info = url.trim().into_connection_info().ok().context(
        "its address is not one: write redis://host:port/0, rediss://user:password@host:port/0 or redis+unix:///path",
    )?;
    let local = match info.addr() {
        ConnectionAddr::Tcp(host, _) => {
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        ConnectionAddr::TcpTls { insecure, .. } => {
            anyhow::ensure!(!insecure, "its address switches verification off: remove `#insecure`");
            true
        }
        _ => true,
    };
    anyhow::ensure!(local, "it holds nonces and limits: off the host write rediss://, which is TLS");
    let Some(ca) = &settings.ca else { return Ok(Client::open(info)?.into()) };
    let ca = load::file(folder, ca).map_err(anyhow::Error::msg)?;
    let trust =
        watch.trust("redis/ca".into(), TrustFiles { ca, crl: None, stale: certs::StaleCrl::Refuse })?;
    watch.connects(certs::Client {
        name: "redis".into(),
        server_name: None,
        identity: None,
        trust: trust.clone(),
    });
    let trusted = trust.clone();
    Ok(watch.derive(&[&trust], move || {
        let root_cert = Some(trusted.current().pem().into_bytes());
        Client::build_with_tls(info.clone(), TlsCertificates { client_tls: None, root_cert })
    })?)
}

#[cfg(test)]
pub(super) mod tests;
#[cfg(test)]
mod windows_tests;
