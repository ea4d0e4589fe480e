//! What librdkafka says on its own, in our log and not too often.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

/// While brokers are away every client complains several times a second: one line in this time says it.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Lets a line through now and then, and counts what it held back.
#[derive(Debug, Clone, Default)]
pub(super) struct Voice(Arc<Mutex<Option<(Instant, u64)>>>);

impl Voice {
    /// How many lines were held back since the last that was let through, if this one is.
    fn may_say(&self) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, held_back)) if at.elapsed() < SAY_EVERY => {
                *held_back += 1;
                None
            }
            last => {
                let held_back = last.map_or(0, |(_, held_back)| held_back);
                *last = Some((Instant::now(), 0));
                Some(held_back)
            }
        }
    }

    /// Warns, unless it has lately.
    pub(super) fn warn(&self, what: &str, detail: &dyn Display) {
        match self.may_say() {
            Some(held_back) => tracing::warn!(%detail, held_back, "{what}"),
            None => tracing::debug!(%detail, "{what}"),
        }
    }
}

/// A client's ear.
#[derive(Debug, Clone, Default)]
pub(super) struct Ear {
    pub(super) voice: Voice,
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => self.voice.warn("librdkafka", &message),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, message, "librdkafka");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.warn("kafka; trying again", &format_args!("{error}: {reason}"));
    }
}
