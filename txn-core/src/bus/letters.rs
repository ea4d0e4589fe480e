//! The dead letters: finding them, and sending them back to where they came from.
//!
//! A letter that was sent back leaves a mark in the dead letter topic, so that it is not sent again by mistake. A
//! crash between the two sends it again, which does no harm: its event has the id that it always had, and consumers
//! have inboxes.

use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;

use bytes::Bytes;

use super::consume::header;
use super::{Bus, BusError, Delivery, Message, Payload, Place, Topic};
use crate::txn::UnixMs;

/// A mark has it, and names the letter that was sent back.
const REPLAYED: &str = "x-replayed";
/// A message that was sent back has it: which letter it was.
const REPLAYED_FROM: &str = "x-replayed-from";

/// Letters held in memory at once, together.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Marks that are remembered: more letters were never sent back within their seven days.
const MAX_MARKS: usize = 1_000_000;

/// Where a letter lies: `partition-offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId(pub Place);

/// The text named no letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a letter is named by its partition and offset, as `dlq list` prints them: 3-17")]
pub struct LetterIdError;

/// A message that nobody could handle.
#[derive(Debug, Clone)]
pub struct Letter {
    pub id: LetterId,
    pub message: Message,
}

/// Which letters are meant; all conditions have to hold.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub ids: Vec<LetterId>,
    /// Who could not handle it.
    pub group: Option<String>,
    /// Where it came from.
    pub topic: Option<Topic>,
    pub key: Option<String>,
    /// What the reason has to contain.
    pub reason: Option<String>,
    /// Not before.
    pub since: Option<UnixMs>,
    pub replayed: Replayed,
}

/// Whether letters that were sent back are meant too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replayed {
    #[default]
    LeftOut,
    Included,
}

/// Letters that were found, oldest first.
#[derive(Debug, Clone)]
pub struct Found {
    pub letters: Vec<Letter>,
    /// There are more than were asked for, or than fit.
    pub more: bool,
    pub marks: HashSet<LetterId>,
}

/// Finds at most `most` letters.
///
/// # Errors
/// Of the bus.
pub async fn find(bus: &dyn Bus, wanted: &Wanted, most: usize) -> Result<Found, BusError> {
    let mut marks = HashSet::new();
    bus.scan(Topic::DeadLetter, &mut |delivery: Delivery| {
        let mark = delivery.message.header(REPLAYED).and_then(|id| id.parse::<LetterId>().ok());
        if let Some(mark) = mark.filter(|_| marks.len() < MAX_MARKS) {
            marks.insert(mark);
        }
        ControlFlow::Continue(())
    })
    .await?;
    let (mut letters, mut bytes, mut more) = (Vec::new(), 0, false);
    bus.scan(Topic::DeadLetter, &mut |Delivery { place, message }| {
        let letter = Letter { id: LetterId(place), message };
        if letter.message.header(REPLAYED).is_some() || !wanted.is(&letter, &marks) {
            return ControlFlow::Continue(());
        }
        if letters.len() >= most || bytes > MAX_BYTES {
            more = true;
            return ControlFlow::Break(());
        }
        bytes += letter.size();
        letters.push(letter);
        ControlFlow::Continue(())
    })
    .await?;
    letters.sort_by_key(|letter| (letter.failed_at(), letter.id));
    Ok(Found { letters, more, marks })
}

/// Sends a letter back to where it came from, without what it met on its way, and leaves a mark.
///
/// # Errors
/// [`BusError::Engine`] when it names no topic that it came from; others of the bus. Trying again is safe.
pub async fn replay(bus: &dyn Bus, letter: &Letter, now: UnixMs) -> Result<Topic, BusError> {
    let origin = letter.message.header(header::ORIGIN).unwrap_or_default();
    let topic = Topic::from_name(origin).ok_or_else(|| {
        BusError::Engine(format!("letter {} came from no topic of ours: `{origin}`", letter.id))
    })?;
    let kept = letter
        .message
        .headers
        .iter()
        .filter(|(name, _)| !header::OF_THIS_ROUND.contains(&name.as_str()) && name != REPLAYED_FROM);
    let mut headers: Vec<(String, String)> = kept.cloned().collect();
    headers.push((REPLAYED_FROM.to_owned(), letter.id.to_string()));
    let again = Message { topic, headers, ..letter.message.clone() };
    bus.publish(vec![again]).await?;
    let mark = Message {
        topic: Topic::DeadLetter,
        key: letter.message.key.clone(),
        event_id: letter.message.event_id.clone(),
        headers: vec![
            (REPLAYED.to_owned(), letter.id.to_string()),
            (header::ORIGIN.to_owned(), topic.name().to_owned()),
            (header::FAILED_AT.to_owned(), now.to_string()),
        ],
        payload: Payload::read(String::new(), Bytes::new()),
    };
    bus.publish(vec![mark]).await?;
    Ok(topic)
}

impl Letter {
    pub fn header(&self, name: &str) -> &str {
        self.message.header(name).unwrap_or_default()
    }

    pub fn failed_at(&self) -> Option<UnixMs> {
        UnixMs::parse(self.header(header::FAILED_AT))
    }

    fn size(&self) -> usize {
        let payload = &self.message.payload;
        let headers: usize = self.message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        headers + payload.wire().map_or(0, Bytes::len) + payload.event().map_or(0, str::len)
    }
}

impl Wanted {
    fn is(&self, letter: &Letter, marks: &HashSet<LetterId>) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let in_reason = |reason: &String| letter.header(header::REASON).contains(reason.as_str());
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && is(&self.group, letter.header(header::GROUP))
            && self.topic.is_none_or(|topic| topic.name() == letter.header(header::ORIGIN))
            && is(&self.key, &letter.message.key)
            && self.reason.as_ref().is_none_or(in_reason)
            && self.since.is_none_or(|since| letter.failed_at().is_some_and(|at| at >= since))
            && (self.replayed == Replayed::Included || !marks.contains(&letter.id))
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.partition, self.0.offset)
    }
}

impl FromStr for LetterId {
    type Err = LetterIdError;

    fn from_str(text: &str) -> Result<Self, LetterIdError> {
        let (partition, offset) = text.split_once('-').ok_or(LetterIdError)?;
        let partition = partition.parse().map_err(|_| LetterIdError)?;
        Ok(LetterId(Place { partition, offset: offset.parse().map_err(|_| LetterIdError)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::contract::dead_letters;
    use crate::bus::{LocalBus, Retention};

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_of_the_local_bus() {
        let dir = tempfile::tempdir().unwrap();
        let bus = LocalBus::open(&dir.path().join("bus.db"), Retention::default()).await.unwrap();
        dead_letters(&bus).await;
    }

    #[test]
    fn what_names_a_letter() {
        assert_eq!("3-17".parse(), Ok(LetterId(Place { partition: 3, offset: 17 })));
        for text in ["", "3", "3-", "-17", "a-b", "3-17-2"] {
            assert_eq!(text.parse::<LetterId>(), Err(LetterIdError), "{text}");
        }
    }
}
