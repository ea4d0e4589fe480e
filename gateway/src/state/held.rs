//! Places that requests hold, and that come free whatever becomes of the request.
//!
//! Who waits for an answer of the shared state, or for it to be told something, may be dropped with its connection; what
//! was begun for it goes on to its end, which the state's own timeout bounds.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use filters::state::{Answer, Batch, Full, Op, Unanswered};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::State;

type Answers<E> = Result<Vec<Answer>, E>;

impl State {
    /// [Asks](Self::ask), and gives back what was held if nobody waits for the answer any more.
    pub(crate) async fn ask_for_places(self: &Arc<Self>, batch: Batch) -> Answers<Full> {
        let state = Arc::clone(self);
        self.held_while_awaited(batch.all(), async move { state.ask(batch).await }).await
    }

    /// [Runs](Self::run) them, and gives back what was held if nobody waits for the answer any more.
    pub(crate) async fn run_for_places(self: &Arc<Self>, ops: Vec<Op>) -> Answers<Unanswered> {
        let (state, run) = (Arc::clone(self), ops.clone());
        self.held_while_awaited(ops, async move { state.run(&run).await }).await
    }

    async fn held_while_awaited<E: Send + 'static>(
        self: &Arc<Self>,
        ops: Vec<Op>,
        answers: impl Future<Output = Answers<E>> + Send + 'static,
    ) -> Answers<E> {
        if !self.is_shared() || !ops.iter().any(|op| matches!(op, Op::Hold { .. })) {
            return answers.await;
        }
        Asking { state: Arc::clone(self), ops, answers: Some(Box::pin(answers)) }.await
    }

    /// Gives places back: here at once, in the shared state by the time that the task is done.
    pub(crate) fn give_back(self: &Arc<Self>, held: Vec<Op>) -> Option<JoinHandle<()>> {
        if held.is_empty() {
            return None;
        }
        if !self.is_shared() {
            self.give_back_here(&held);
            return None;
        }
        // Without a runtime the process is ending: their leases give them back.
        let runtime = Handle::try_current().ok()?;
        let (state, telling) = (Arc::clone(self), Telling::of(self));
        Some(runtime.spawn(async move {
            state.release(held).await;
            drop(telling);
        }))
    }

    /// Whether the shared state is being told of places that are given back.
    pub(crate) fn is_telling(&self) -> bool {
        self.telling.load(Ordering::Relaxed) > 0
    }
}

/// The shared state being told, counted until dropped.
struct Telling(Arc<State>);

impl Telling {
    fn of(state: &Arc<State>) -> Self {
        state.telling.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.telling.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A question under way. Dropped before it is answered, it is answered all the same.
struct Asking<E: Send + 'static> {
    state: Arc<State>,
    ops: Vec<Op>,
    /// Until they are there.
    answers: Option<Pin<Box<dyn Future<Output = Answers<E>> + Send>>>,
}

impl<E: Send + 'static> Future for Asking<E> {
    type Output = Answers<E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answers<E>> {
        // Nobody polls a future that has been ready.
        let Some(answers) = &mut self.answers else { return Poll::Pending };
        let answered = answers.as_mut().poll(context);
        if answered.is_ready() {
            self.answers = None;
        }
        answered
    }
}

impl<E: Send + 'static> Drop for Asking<E> {
    fn drop(&mut self) {
        let (Some(answers), Ok(runtime)) = (self.answers.take(), Handle::try_current()) else { return };
        let (state, ops) = (Arc::clone(&self.state), std::mem::take(&mut self.ops));
        let telling = Telling::of(&state);
        runtime.spawn(async move {
            let held = answers.await.map(|answers| places(&ops, &answers)).unwrap_or_default();
            if !held.is_empty() {
                state.release(held).await;
            }
            drop(telling);
        });
    }
}

/// The places that a request was given, to be released. Of a batch that was refused it has none.
fn places(ops: &[Op], answers: &[Answer]) -> Vec<Op> {
    if answers.iter().any(Answer::refuses) {
        return Vec::new();
    }
    let held = ops.iter().zip(answers).filter_map(|(op, answer)| match answer {
        Answer::Held(place) => Some(Op::Release { key: op.key().to_owned(), place: *place }),
        Answer::Taken(_)
        | Answer::Exhausted { .. }
        | Answer::Spent(_)
        | Answer::Overspent(_)
        | Answer::Remembered
        | Answer::Seen
        | Answer::TooOld
        | Answer::Busy { .. }
        | Answer::Released
        | Answer::Tallied
        | Answer::WouldRefuse
        | Answer::NotCounted
        | Answer::Away
        | Answer::NotAsked => None,
    });
    held.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use filters::state::{Counted, LimitsWhenAway, Mode};

    use super::super::redis::tests::write_settings;
    use super::*;
    use crate::metrics::Metrics;

    /// Who goes away while the shared state is asked, or told, leaves nothing held there.
    #[tokio::test]
    async fn nobody_who_went_away_holds_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let server = engines::Redis::start(dir.path()).await.unwrap();
        let (folder, settings) = write_settings(&server.url(), "held:", LimitsWhenAway::Refuse);
        let watch = certs::Watch::new("test");
        let state = State::new(&settings, folder.path(), &Metrics::new().unwrap(), &watch).unwrap();
        let state = Arc::new(state);
        // So long that no lease is what frees it.
        let hold = Op::Hold { key: "one".into(), most: 1, lease_ms: 3_600_000, mode: Mode::Enforce };
        let batch = || -> Batch { std::iter::once((hold.clone(), Counted::Shared)).collect() };
        let held = async || {
            for _ in 0..400 {
                if let [answer @ Answer::Held(_)] = *state.ask(batch()).await.unwrap() {
                    return places(std::slice::from_ref(&hold), &[answer]);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("the place did not come free")
        };
        state.release(held().await).await;
        for polls in 0..20 {
            for for_whom in ["a request of ours", "an Envoy worker"] {
                let asking = async {
                    match for_whom {
                        "a request of ours" => state.ask_for_places(batch()).await.unwrap(),
                        _ => state.run_for_places(vec![hold.clone()]).await.unwrap(),
                    }
                };
                let mut asking = Box::pin(asking);
                for _ in 0..polls {
                    if let Poll::Ready(answers) = futures_poll(asking.as_mut()).await {
                        state.release(places(std::slice::from_ref(&hold), &answers)).await;
                        break;
                    }
                    tokio::time::sleep(Duration::from_micros(50)).await;
                }
                drop(asking);
                state.release(held().await).await;
            }
            // Nobody waits for it to be told either.
            drop(state.give_back(held().await));
        }
        state.release(held().await).await;
    }

    async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }
}
