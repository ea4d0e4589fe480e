use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// A value that is replaced while others use it. Whoever has taken it keeps what was taken; whoever asks again gets
/// the newest. Clones are handles of the same value.
pub struct Live<T>(Arc<Slot<T>>);

struct Slot<T> {
    current: ArcSwap<T>,
    generation: watch::Sender<u64>,
}

/// What can be told to have changed.
pub trait Versioned {
    /// Counts the values that there have been. To follow it, take a receiver before the value.
    fn generations(&self) -> watch::Receiver<u64>;
}

impl<T> Live<T> {
    pub fn current(&self) -> Arc<T> {
        self.0.current.load_full()
    }

    /// How many values there were before this one.
    pub fn generation(&self) -> u64 {
        *self.0.generation.borrow()
    }

    pub(crate) fn set(&self, value: T) {
        self.0.current.store(Arc::new(value));
        self.0.generation.send_modify(|generation| *generation += 1);
    }
}

impl<T> Versioned for Live<T> {
    fn generations(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }
}

/// One that stays as it is.
impl<T> From<T> for Live<T> {
    fn from(value: T) -> Live<T> {
        Live(Arc::new(Slot { current: ArcSwap::from_pointee(value), generation: watch::channel(0).0 }))
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Live<T> {
        Live(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.current()).field(&self.generation()).finish()
    }
}
