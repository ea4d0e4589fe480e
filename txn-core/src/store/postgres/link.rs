//! One connection that comes back: connects when it is needed, backs off while the database is away, and says
//! what kind of failure it was.

use std::time::Duration;

use async_trait::async_trait;
use certs::Live;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, timeout};

use super::config::PostgresConfig;
use crate::store::StoreError;

const BACKOFF_FIRST: Duration = Duration::from_millis(25);
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// Times a transaction that lost to another one is tried again.
const TRIES: u32 = 8;

/// A writer's own connection.
#[derive(Debug)]
pub(super) struct Link {
    options: Live<PgConnectOptions>,
    /// Settings of this connection alone.
    settings: &'static [(&'static str, &'static str)],
    connect_timeout: Duration,
    answer_timeout: Duration,
    open: Option<PgConnection>,
    /// Failures to connect since the last success, and when to try next.
    failures: u32,
    next_try: Instant,
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Fault {
    /// Rolled back because of another transaction: try again.
    Lost,
    /// There is no partition for a row. Nothing is written.
    NoPartition,
    Store(StoreError),
}

/// One transaction, which may be tried again whatever became of it.
#[async_trait]
pub(super) trait Work: Sync {
    type Done: Send;

    async fn attempt(&self, db: &mut PgConnection) -> Result<Self::Done, Fault>;
}

impl Link {
    pub(super) fn new(
        options: Live<PgConnectOptions>,
        settings: &'static [(&'static str, &'static str)],
        config: &PostgresConfig,
    ) -> Link {
        Link {
            options,
            settings,
            connect_timeout: config.connect_timeout(),
            answer_timeout: config.answer_timeout(),
            open: None,
            failures: 0,
            next_try: Instant::now(),
        }
    }

    /// Does `work`: anew if it lost against another transaction, and once more if the connection had been cut.
    pub(super) async fn run<W: Work>(&mut self, work: &W) -> Result<W::Done, Fault> {
        let mut cut = false;
        for attempt in 0..TRIES {
            let fresh = self.open.is_none();
            let mut db = match self.open.take() {
                Some(db) => db,
                None => self.connect().await.map_err(Fault::Store)?,
            };
            let done = timeout(self.answer_timeout, work.attempt(&mut db)).await;
            let done = done.unwrap_or_else(|_| Err(unavailable("no answer in time")));
            match done {
                Ok(done) => {
                    self.open = Some(db);
                    return Ok(done);
                }
                Err(Fault::Lost) => {
                    self.open = Some(db);
                    tokio::time::sleep(jittered(BACKOFF_FIRST, attempt) / 8).await;
                }
                // The connection is dropped. It may have been dead for long, so a new one gets a chance.
                Err(Fault::Store(StoreError::Unavailable(_))) if !fresh && !cut => cut = true,
                Err(Fault::Store(StoreError::Unavailable(why))) => return Err(unavailable(&why)),
                Err(fault) => {
                    self.open = Some(db);
                    return Err(fault);
                }
            }
        }
        Err(Fault::Store(StoreError::Overloaded))
    }

    async fn connect(&mut self) -> Result<PgConnection, StoreError> {
        if Instant::now() < self.next_try {
            return Err(StoreError::Unavailable("waits before it connects again".to_owned()));
        }
        let options = (*self.options.current()).clone().options(self.settings.iter().copied());
        let connected = timeout(self.connect_timeout, options.connect()).await;
        match connected {
            Ok(Ok(db)) => {
                self.failures = 0;
                Ok(db)
            }
            Ok(Err(error)) => Err(self.failed(Fault::from(error).into())),
            Err(_) => Err(self.failed(StoreError::Unavailable("does not take connections".to_owned()))),
        }
    }

    fn failed(&mut self, error: StoreError) -> StoreError {
        self.next_try = Instant::now() + jittered(BACKOFF_FIRST, self.failures);
        self.failures = self.failures.saturating_add(1);
        error
    }

    pub(super) async fn close(self) -> Result<(), StoreError> {
        match self.open {
            Some(db) => Ok(timeout(self.connect_timeout, db.close()).await.unwrap_or(Ok(()))?),
            None => Ok(()),
        }
    }
}

/// Doubles with every attempt, up to a bound, and is never the same for two.
pub(super) fn jittered(first: Duration, attempt: u32) -> Duration {
    let most = (first * 2u32.saturating_pow(attempt.min(10))).min(BACKOFF_MOST);
    most.mul_f64(rand::random_range(0.5..1.0))
}

fn unavailable(why: &str) -> Fault {
    Fault::Store(StoreError::Unavailable(why.to_owned()))
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Fault {
        let code = error.as_database_error().and_then(|db| db.code()).map(|code| code.into_owned());
        match code.as_deref() {
            // serialization_failure, deadlock_detected
            Some("40001" | "40P01") => Fault::Lost,
            // check_violation; a table's own checks have a name
            Some("23514") if error.as_database_error().is_some_and(|db| db.constraint().is_none()) => {
                Fault::NoPartition
            }
            _ => Fault::Store(error.into()),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> StoreError {
        match fault {
            Fault::Lost => StoreError::Overloaded,
            Fault::NoPartition => StoreError::Engine("no partition for this month".to_owned()),
            Fault::Store(error) => error,
        }
    }
}
