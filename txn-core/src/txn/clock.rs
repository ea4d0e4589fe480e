//! Times: milliseconds inside, RFC 3339 on wires.

use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time: milliseconds since 1970-01-01 UTC.
///
/// `step` and the store take it as an argument; only the outermost code reads the clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UnixMs(pub i64);

impl UnixMs {
    /// What the clock says. For `main`, handlers and background tasks; never for `step`.
    pub fn now() -> Self {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixMs(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
    }

    pub fn plus(self, ms: u64) -> Self {
        UnixMs(self.0.saturating_add_unsigned(ms))
    }

    pub fn minus(self, ms: u64) -> Self {
        UnixMs(self.0.saturating_sub_unsigned(ms))
    }

    /// Milliseconds from `self` until `later`; 0 if that is past.
    pub fn until(self, later: UnixMs) -> u64 {
        u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0)
    }

    /// Reads an RFC 3339 time.
    pub fn parse(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(UnixMs)
    }
}

/// RFC 3339, UTC, with milliseconds.
impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (ms, text) in [(0, "1970-01-01T00:00:00.000Z"), (1_721_390_400_123, "2024-07-19T12:00:00.123Z")] {
            assert_eq!(UnixMs(ms).to_string(), text);
            assert_eq!(UnixMs::parse(text), Some(UnixMs(ms)));
        }
        assert_eq!(UnixMs::parse("2024-07-19T17:30:00.123+05:30"), Some(UnixMs(1_721_390_400_123)));
        assert_eq!(UnixMs::parse("yesterday"), None);
    }
}
