//! Group commit: one task or thread owns the engine's only writing connection; what arrives together is one
//! transaction, and each is answered after its COMMIT. The queue and the batch are bounded.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::{Notify, mpsc, oneshot};

use super::StoreError;
use crate::metrics::Metrics;

/// Bounds of the writer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WriterLimits {
    /// Requests that may wait; one more is refused as overloaded.
    pub queue: usize,
    /// Requests in one transaction.
    pub batch: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        WriterLimits { queue: 4096, batch: 512 }
    }
}

/// What an engine brings: a batch becomes one transaction.
#[async_trait]
pub(super) trait Engine: Send + 'static {
    /// A request, and the answer to it.
    type Op: Send + Sync + fmt::Debug + 'static;
    type Reply: Send + fmt::Debug + 'static;

    /// Whether a client waits for it.
    fn is_urgent(op: &Self::Op) -> bool;

    /// Makes it durable and answers one by one in the same order. An error means that nothing of the batch is; an
    /// engine that takes several transactions for a batch gives each request its own.
    async fn commit(&mut self, batch: &[Self::Op]) -> Result<Committed<Self::Reply>, StoreError>;

    /// Leaves everything tidy; nothing comes after it.
    async fn close(self) -> Result<(), StoreError>;
}

#[derive(Debug)]
pub(super) struct Committed<R> {
    pub replies: Vec<Result<R, StoreError>>,
    pub outgoing_events: usize,
}

type Waiting<E> = (<E as Engine>::Op, oneshot::Sender<Result<<E as Engine>::Reply, StoreError>>);

/// The handle to what writes.
#[derive(Debug)]
pub(super) struct Writer<E: Engine> {
    queue: Mutex<Option<mpsc::Sender<Waiting<E>>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl<E: Engine> Writer<E> {
    /// For an engine that is far away. `bell` is rung after a commit that brought outgoing events.
    pub(super) fn start(
        engine: E,
        limits: &WriterLimits,
        bell: Arc<Notify>,
        metrics: Arc<Metrics>,
    ) -> Writer<E> {
        let (writer, writing) = Writer::new(engine, limits, bell, metrics);
        tokio::spawn(writing);
        writer
    }

    /// For an engine that works on the thread that calls it: gives it one, on which nothing else waits.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when there is no thread to be had.
    pub(super) fn on_a_thread(
        engine: E,
        limits: &WriterLimits,
        bell: Arc<Notify>,
        metrics: Arc<Metrics>,
    ) -> Result<Writer<E>, StoreError> {
        let no_thread = |error: std::io::Error| StoreError::Engine(format!("no thread to write on: {error}"));
        let (writer, writing) = Writer::new(engine, limits, bell, metrics);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(no_thread)?;
        let thread = std::thread::Builder::new().name("store-writer".to_owned());
        thread.spawn(move || runtime.block_on(writing)).map_err(no_thread)?;
        Ok(writer)
    }

    fn new(
        engine: E,
        limits: &WriterLimits,
        bell: Arc<Notify>,
        metrics: Arc<Metrics>,
    ) -> (Writer<E>, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let (end, ended) = oneshot::channel();
        let batch = limits.batch.max(1);
        let writing = async move {
            run(engine, waiting, batch, bell, metrics).await;
            // Nobody may be waiting for it.
            let _unheard = end.send(());
        };
        (Writer { queue: Mutex::new(Some(queue)), ended: tokio::sync::Mutex::new(Some(ended)) }, writing)
    }

    /// Queues a request and waits until it is durable.
    pub(super) async fn ask(&self, op: E::Op) -> Result<E::Reply, StoreError> {
        let (answer, answered) = oneshot::channel();
        let queue = {
            let queue = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.clone().ok_or(StoreError::Closed)?
        };
        queue.try_send((op, answer)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        drop(queue);
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Takes no more, finishes what is queued.
    pub(super) async fn close(&self) {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(ended) = self.ended.lock().await.take() {
            // It ends by itself once the queue is empty; it never panics on purpose.
            let _ended = ended.await;
        }
    }
}

/// How long work that no client waits for may wait for more of its kind. A commit costs the same for one request
/// as for many, and a payment brings six of these for every one that is answered to a client.
const GATHER: Duration = Duration::from_millis(3);

/// Lets more requests join the batch, for a moment or until one comes that a client waits for.
async fn gather<E: Engine>(
    waiting: &mut mpsc::Receiver<Waiting<E>>,
    taken: &mut Vec<Waiting<E>>,
    batch: usize,
) {
    let until = tokio::time::Instant::now() + GATHER;
    let urgent = |taken: &[Waiting<E>]| taken.iter().any(|(op, _)| E::is_urgent(op));
    while taken.len() < batch && !urgent(taken) {
        let more = waiting.recv_many(taken, batch - taken.len());
        match tokio::time::timeout_at(until, more).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

async fn run<E: Engine>(
    mut engine: E,
    mut waiting: mpsc::Receiver<Waiting<E>>,
    batch: usize,
    bell: Arc<Notify>,
    metrics: Arc<Metrics>,
) {
    let mut taken = Vec::with_capacity(batch);
    while waiting.recv_many(&mut taken, batch).await > 0 {
        gather::<E>(&mut waiting, &mut taken, batch).await;
        let (ops, answers): (Vec<E::Op>, Vec<_>) = taken.drain(..).unzip();
        let began = Instant::now();
        let result = engine.commit(&ops).await;
        metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        metrics.commit_batch.observe(ops.len() as f64);
        match result {
            Ok(committed) => {
                for (answer, reply) in answers.into_iter().zip(committed.replies) {
                    // Whoever asked may have gone; what was asked for is durable all the same.
                    let _gone = answer.send(reply);
                }
                if committed.outgoing_events > 0 {
                    bell.notify_one();
                }
            }
            // One request may be what the engine chokes on: the others must not suffer for it.
            Err(error @ StoreError::Engine(_)) if ops.len() > 1 => {
                tracing::warn!(%error, batch = ops.len(), "commit failed; trying its requests one by one");
                for (op, answer) in ops.into_iter().zip(answers) {
                    let alone = engine.commit(std::slice::from_ref(&op)).await;
                    if alone.as_ref().is_ok_and(|committed| committed.outgoing_events > 0) {
                        bell.notify_one();
                    }
                    let reply = alone.and_then(|committed| {
                        let first = committed.replies.into_iter().next();
                        first.unwrap_or(Err(StoreError::Engine("no reply".to_owned())))
                    });
                    let _gone = answer.send(reply);
                }
            }
            Err(error) => {
                tracing::error!(%error, "commit failed");
                for answer in answers {
                    let _gone = answer.send(Err(error.clone()));
                }
            }
        }
    }
    if let Err(error) = engine.close().await {
        tracing::warn!(%error, "the store did not close cleanly; what was answered is durable all the same");
    }
}
