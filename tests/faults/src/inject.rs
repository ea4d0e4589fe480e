//! Faults as they are done to a running stack and undone again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use stack::{Between, Fleet, Instance, Line, Service, Stack};
use tokio::time::{Instant, sleep, sleep_until};

use crate::say;
use crate::schedule::{Fault, Planned, Schedule};

/// From when it was certainly away until when it certainly was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    from: Instant,
    to: Instant,
}

impl Window {
    /// Whether something that began and ended then was inside.
    pub(crate) fn holds(&self, began: Instant, ended: Instant) -> bool {
        began >= self.from && ended <= self.to
    }
}

/// When engines were away, and how many faults there were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Injected {
    pub(crate) postgres: Vec<Window>,
    pub(crate) redis: Vec<Window>,
    pub(crate) faults: usize,
}

/// An instance that was started again serves its operators within this.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Does a whole schedule.
#[derive(Debug)]
pub(crate) struct Injection {
    stack: Arc<Stack>,
    pub(crate) began: Instant,
    injected: Mutex<Injected>,
}

impl Injection {
    pub(crate) fn new(stack: Arc<Stack>) -> Injection {
        Injection { stack, began: Instant::now(), injected: Mutex::default() }
    }

    /// # Errors
    /// When a fault cannot be done or undone: the harness's failure or that of a service that does not come back.
    pub(crate) async fn run(&self, schedule: &Schedule) -> anyhow::Result<Injected> {
        // Kafka's absences beside the other faults.
        let (kafka, others): (Vec<Planned>, Vec<Planned>) =
            schedule.faults.iter().partition(|planned| planned.fault == Fault::KafkaStopped);
        tokio::try_join!(self.lane(&kafka), self.lane(&others))?;
        Ok(self.injected.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// One after the other.
    async fn lane(&self, faults: &[Planned]) -> anyhow::Result<()> {
        for planned in faults {
            sleep_until(self.began + planned.at).await;
            self.one(*planned).await?;
        }
        Ok(())
    }

    async fn one(&self, planned: Planned) -> anyhow::Result<()> {
        let Planned { fault, lasts, .. } = planned;
        let at = self.began.elapsed().as_secs_f64();
        say(&format!("  {at:>6.1} s  {fault}, {:.1} s", lasts.as_secs_f64()))?;
        let done = self.inject(fault, lasts).await.with_context(|| fault.to_string());
        self.note(|injected| injected.faults += 1);
        done
    }

    async fn inject(&self, fault: Fault, lasts: Duration) -> anyhow::Result<()> {
        match fault {
            Fault::Killed(instance) => {
                self.stack.kill(instance);
                sleep(lasts).await;
                self.stack.resume(instance)?;
                self.serves_operators(instance).await
            }
            Fault::PostgresRestarted | Fault::PostgresStopped => {
                let mut postgres = self.fleet()?.postgres.lock().await;
                postgres.stop().await?;
                let window = away(lasts).await;
                postgres.resume().await?;
                self.note(|injected| injected.postgres.push(window));
                Ok(())
            }
            Fault::KafkaStopped => {
                let mut kafka = self.fleet()?.kafka.lock().await;
                kafka.stop().await?;
                sleep(lasts).await;
                kafka.resume().await
            }
            Fault::RedisStopped => {
                let mut redis = self.fleet()?.redis.lock().await;
                redis.stop().await?;
                let window = away(lasts).await;
                redis.resume().await?;
                self.note(|injected| injected.redis.push(window));
                Ok(())
            }
            Fault::NetworkSilent => {
                let rules = self.network_faults(None).await?;
                let silent = json!({"rules": [{"match": {"any": true}, "fault": {"kind": "silent"}}]});
                self.network_faults(Some(&silent)).await?;
                sleep(lasts).await;
                self.network_faults(Some(&rules)).await?;
                Ok(())
            }
            Fault::Cut(between) => self.bad_line(between, Line::Cut, lasts).await,
            Fault::Slow(between, by) => self.bad_line(between, Line::Slow(by), lasts).await,
        }
    }

    async fn bad_line(&self, between: Between, line: Line, lasts: Duration) -> anyhow::Result<()> {
        let wire = self.stack.wire(between).context("a stack with twins has every wire")?;
        wire.set(line).await?;
        sleep(lasts).await;
        wire.set(Line::Up).await
    }

    /// Reads the simulated network's rules, or sets them.
    async fn network_faults(&self, rules: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("{}/faults", self.stack.admin_url(Service::NpciSim));
        let http = self.stack.plain();
        let request = match rules {
            Some(rules) => http.put(url).body(rules.to_string()),
            None => http.get(url),
        };
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Whether it is ready is another question: what it needs may be away.
    async fn serves_operators(&self, instance: Instance) -> anyhow::Result<()> {
        let url = format!("{}/health", self.stack.admin_url(instance));
        let began = Instant::now();
        while began.elapsed() < STARTS_WITHIN {
            self.stack.check()?;
            let asked = self.stack.plain().get(&url).timeout(Duration::from_secs(1)).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            sleep(POLL).await;
        }
        anyhow::bail!("{} is not up {} s after its start", instance.name(), STARTS_WITHIN.as_secs())
    }

    fn fleet(&self) -> anyhow::Result<&Fleet> {
        self.stack.fleet().context("the stack runs on a fleet's engines")
    }

    fn note(&self, note: impl FnOnce(&mut Injected)) {
        note(&mut self.injected.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn away(lasts: Duration) -> Window {
    let from = Instant::now();
    sleep(lasts).await;
    Window { from, to: Instant::now() }
}
