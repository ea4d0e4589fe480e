//! The memory that unfinished headers hold, of all connections together.
//!
//! Nothing has been decided about a request whose header is unfinished, so anybody can hold this memory. When there is too
//! much of it, the oldest unfinished header goes first, with its connection.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Bytes of unfinished headers that the process holds.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of unfinished headers that the connections of one address hold.
const MOST_BYTES_OF_ADDRESS: usize = MOST_BYTES / 8;

/// The memory of one process.
#[derive(Debug)]
pub(crate) struct Memory {
    held: Mutex<Held>,
    most: usize,
    most_of_address: usize,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    of_address: HashMap<IpAddr, usize>,
    /// The oldest first.
    headers: BTreeMap<u64, Unfinished>,
    next: u64,
}

#[derive(Debug)]
struct Unfinished {
    address: IpAddr,
    bytes: usize,
    dropped: Arc<Notify>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::of(MOST_BYTES, MOST_BYTES_OF_ADDRESS)
    }
}

impl Memory {
    fn of(most: usize, most_of_address: usize) -> Self {
        Self { held: Mutex::default(), most, most_of_address }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn remove(&mut self, number: u64) -> Option<Unfinished> {
        let header = self.headers.remove(&number)?;
        self.total -= header.bytes;
        if let Some(bytes) = self.of_address.get_mut(&header.address) {
            *bytes -= header.bytes;
            if *bytes == 0 {
                self.of_address.remove(&header.address);
            }
        }
        Some(header)
    }

    fn drop_oldest(&mut self, of: impl Fn(&Unfinished) -> bool) {
        let oldest = self.headers.iter().find(|(_, header)| of(header)).map(|(number, _)| *number);
        if let Some(header) = oldest.and_then(|number| self.remove(number)) {
            header.dropped.notify_one();
        }
    }
}

/// What one connection holds of it.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    address: IpAddr,
    number: Option<u64>,
    dropped: Arc<Notify>,
}

impl Share {
    /// Holds nothing yet. `dropped` is notified when the connection is to end.
    pub(crate) fn new(memory: Arc<Memory>, address: IpAddr, dropped: Arc<Notify>) -> Self {
        Self { memory, address, number: None, dropped }
    }

    /// The connection holds so many bytes of an unfinished header from now on.
    pub(crate) fn hold(&mut self, bytes: usize) {
        if bytes == 0 && self.number.is_none() {
            return;
        }
        let mut held = self.memory.held();
        let Some(number) = self.number.filter(|_| bytes > 0) else {
            if let Some(number) = self.number.take() {
                held.remove(number);
            } else {
                self.number = Some(held.next);
                held.next += 1;
                self.add(&mut held, bytes);
            }
            return;
        };
        // It keeps its place among the others. One that was dropped gets none.
        if held.remove(number).is_some() {
            self.add(&mut held, bytes);
        }
    }

    fn add(&self, held: &mut Held, bytes: usize) {
        let Some(number) = self.number else { return };
        let header = Unfinished { address: self.address, bytes, dropped: Arc::clone(&self.dropped) };
        held.headers.insert(number, header);
        held.total += bytes;
        *held.of_address.entry(self.address).or_default() += bytes;
        while held.of_address.get(&self.address).is_some_and(|bytes| *bytes > self.memory.most_of_address) {
            held.drop_oldest(|header| header.address == self.address);
        }
        while held.total > self.memory.most {
            held.drop_oldest(|_| true);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn share(memory: &Arc<Memory>, last: u8) -> Share {
        Share::new(Arc::clone(memory), IpAddr::from([192, 0, 2, last]), Arc::default())
    }

    /// Whether it was told to end.
    fn is_dropped(share: &Share) -> bool {
        let notified = std::pin::pin!(share.dropped.notified());
        notified.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn total(memory: &Memory) -> usize {
        memory.held().total
    }

    #[test]
    fn the_oldest_header_of_an_address_goes_first() {
        let memory = Arc::new(Memory::of(1000, 100));
        let (mut first, mut other, mut second) = (share(&memory, 1), share(&memory, 2), share(&memory, 1));
        first.hold(40);
        other.hold(100);
        second.hold(50);
        first.hold(50);
        assert_eq!(total(&memory), 200);
        second.hold(51);
        assert_eq!((is_dropped(&first), is_dropped(&other), is_dropped(&second)), (true, false, false));
        assert_eq!(total(&memory), 151);
        // What still arrives of it is not counted: its connection ends.
        first.hold(60);
        assert_eq!(total(&memory), 151);
    }

    #[test]
    fn the_oldest_header_of_all_goes_first() {
        let memory = Arc::new(Memory::of(100, 80));
        let mut shares: Vec<Share> = (1..=3).map(|last| share(&memory, last)).collect();
        for share in &mut shares {
            share.hold(30);
        }
        shares[2].hold(41);
        let dropped: Vec<bool> = shares.iter().map(is_dropped).collect();
        assert_eq!(dropped, [true, false, false]);
        assert_eq!(total(&memory), 71);
    }

    #[test]
    fn finished_headers_hold_nothing() {
        let memory = Arc::new(Memory::of(100, 80));
        let mut one = share(&memory, 1);
        one.hold(30);
        one.hold(0);
        one.hold(0);
        assert_eq!(total(&memory), 0);
        let mut two = share(&memory, 1);
        two.hold(30);
        drop(two);
        assert_eq!(total(&memory), 0);
        assert!(memory.held().of_address.is_empty());
    }
}
