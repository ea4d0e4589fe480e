//! Takes payments to the network: first the durable mark, then the call, then what the call said.
//!
//! A payment that is marked is never sent again unless the proxy said in so many words that it was not sent.
//! Whatever happens to this process in between, a status check finds out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::bus::Delivery;
use crate::bus::consume::{self, Handler, HandlerError};
use crate::metrics::Metrics;
use crate::network::Network;
use crate::store::{Applied, Apply, CredBlock, Store, StoreError, Trace};
use crate::txn::{Effect, Event, Txn, TxnId, UnixMs};

/// The name of its inbox and its consumer group.
pub const GROUP: &str = "orchestrator";

/// Sends payments and asks about them, within bounds.
#[derive(Debug, Clone)]
pub struct Orchestrator {
    store: Arc<dyn Store>,
    network: Arc<dyn Network>,
    metrics: Arc<Metrics>,
    sending: Arc<Semaphore>,
    asking: Arc<Semaphore>,
    bounds: Bounds,
}

/// Calls to the network under way at once, and how long a marked payment may wait for its call.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub sends: u32,
    pub inquiries: u32,
    /// From the mark to the call; see [`Rules::send_starts_within_ms`](crate::txn::Rules).
    pub send_starts_within_ms: u64,
}

/// What a call said is written down for so long. Then the timer that was set before the call finds out again; but what
/// the proxy said for certain (that nothing was sent) is worth more than what the network will say of it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
const WRITE_AGAIN_AFTER_MOST: Duration = Duration::from_secs(1);

impl Orchestrator {
    pub fn new(
        store: Arc<dyn Store>,
        network: Arc<dyn Network>,
        metrics: Arc<Metrics>,
        bounds: Bounds,
    ) -> Self {
        Orchestrator {
            store,
            network,
            metrics,
            sending: Arc::new(Semaphore::new(bounds.sends as usize)),
            asking: Arc::new(Semaphore::new(bounds.inquiries as usize)),
            bounds,
        }
    }

    /// Marks a payment as dispatched and, if that was allowed, sends it in the background.
    /// Waits while too many are under way. May be dropped while it waits: either nothing happens, or the payment
    /// is marked and sent all the same, and [`Orchestrator::drain`] waits for it.
    ///
    /// # Errors
    /// Of the store: nothing was marked and nothing is sent.
    pub async fn dispatch(
        &self,
        txn_id: TxnId,
        inbox: Option<String>,
        trace: Trace,
    ) -> Result<(), StoreError> {
        let permit = self.sending.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let inbox = inbox.map(|message| (GROUP, message));
        let input = Apply { txn_id, event: Event::Dispatch, at: UnixMs::now(), inbox };
        let this = self.clone();
        detached(async move {
            match this.apply(input).await? {
                Applied::Stepped { txn, effects, cred_block } if effects.contains(&Effect::Send) => {
                    tokio::spawn(this.send(*txn, cred_block, trace, permit));
                }
                Applied::Stepped { .. } | Applied::Ignored { .. } | Applied::SeenBefore => {}
                Applied::UnknownTxn => {
                    tracing::error!(%txn_id, "asked to dispatch a payment that is not stored");
                }
            }
            Ok(())
        })
        .await
    }

    /// Takes a due status check and, if it is allowed, asks in the background. May be dropped as
    /// [`Orchestrator::dispatch`] may.
    ///
    /// # Errors
    /// Of the store: the timer stands.
    pub async fn check(&self, txn_id: TxnId) -> Result<(), StoreError> {
        let permit = self.asking.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let input = Apply { txn_id, event: Event::CheckDue, at: UnixMs::now(), inbox: None };
        let this = self.clone();
        detached(async move {
            if let Applied::Stepped { txn, effects, .. } = this.apply(input).await?
                && effects.contains(&Effect::Inquire)
            {
                tokio::spawn(this.ask(*txn, permit));
            }
            Ok(())
        })
        .await
    }

    /// Waits until no call is under way, or until it has taken too long.
    pub async fn drain(&self, at_most: Duration) {
        let all = async {
            // Never given back: nothing begins after this.
            let sends = self.sending.acquire_many(self.bounds.sends).await;
            let inquiries = self.asking.acquire_many(self.bounds.inquiries).await;
            if let (Ok(sends), Ok(inquiries)) = (sends, inquiries) {
                sends.forget();
                inquiries.forget();
            }
        };
        if timeout(at_most, all).await.is_err() {
            tracing::warn!("calls to the network are cut off; their payments will be status-checked");
        }
    }

    /// Applies an event and counts what became of it.
    ///
    /// # Errors
    /// Of the store.
    pub async fn apply(&self, input: Apply) -> Result<Applied, StoreError> {
        let (txn_id, event) = (input.txn_id, input.event.name());
        let applied = self.store.apply(input).await?;
        self.metrics.applied(txn_id, event, &applied);
        Ok(applied)
    }

    async fn send(self, txn: Txn, cred_block: Option<CredBlock>, trace: Trace, permit: OwnedSemaphorePermit) {
        // A process that was held up since the mark (a slow disk, a stopped machine) must not send: status checks
        // may have begun, and what they say of a payment that is still on its way would be wrong.
        let waited_ms = txn.dispatched_at.unwrap_or(txn.created_at).until(UnixMs::now());
        let event = if waited_ms > self.bounds.send_starts_within_ms {
            tracing::warn!(txn_id = %txn.id, waited_ms, "held up for too long to be sent now; later");
            Event::NotSent { sending: txn.sends, reason: "held_up".to_owned(), retry_after_ms: None }
        } else {
            let event = self.network.initiate(&txn, cred_block.as_ref(), &trace).await;
            self.metrics.network_calls.with_label_values(&["initiate", event.name()]).inc();
            event
        };
        self.write_down(txn.id, event).await;
        drop(permit);
    }

    async fn ask(self, txn: Txn, permit: OwnedSemaphorePermit) {
        let event = self.network.inquire(&txn).await;
        self.metrics.network_calls.with_label_values(&["inquire", event.name()]).inc();
        self.write_down(txn.id, event).await;
        drop(permit);
    }

    async fn write_down(&self, txn_id: TxnId, event: Event) {
        let until = Instant::now() + WRITTEN_WITHIN;
        let mut again_after = Duration::from_millis(50);
        while Instant::now() < until {
            let input = Apply { txn_id, event: event.clone(), at: UnixMs::now(), inbox: None };
            match self.apply(input).await {
                Ok(_) => return,
                Err(StoreError::Closed) => break,
                Err(error) => {
                    tracing::warn!(%txn_id, event = event.name(), %error, "not written down yet");
                    sleep(again_after).await;
                    again_after = (2 * again_after).min(WRITE_AGAIN_AFTER_MOST);
                }
            }
        }
        tracing::error!(%txn_id, event = event.name(), "not written down; a status check will find out");
    }
}

/// Goes on to its end even if whoever waits for it is dropped: between a mark and its call nothing may stop.
async fn detached(
    work: impl Future<Output = Result<(), StoreError>> + Send + 'static,
) -> Result<(), StoreError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(StoreError::Engine(error.to_string())))
}

/// Consumes `upi.transaction.initiated`.
#[async_trait]
impl Handler for Orchestrator {
    async fn handle(&self, delivery: &Delivery) -> Result<(), HandlerError> {
        let message = &delivery.message;
        let envelope = consume::event(message)?;
        let txn_id: TxnId = envelope.txn_id.parse().map_err(|_| HandlerError::Poison("txnId".to_owned()))?;
        self.dispatch(txn_id, Some(message.event_id.clone()), envelope.trace).await.map_err(|error| {
            match error {
                // This payment's own trouble: others go on.
                StoreError::Engine(_) => HandlerError::Failed(error.to_string()),
                StoreError::Overloaded | StoreError::Closed | StoreError::Unavailable(_) => {
                    HandlerError::Unavailable(error.to_string())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
