//! From when until when a key counts.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A moment, written as RFC 3339 has it: `2026-11-01T00:00:00Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(OffsetDateTime);

/// From when until when a key counts, both included (as RFC 5280 section 4.1.2.5 counts certificates). An end that is
/// absent is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub not_before: Option<Moment>,
    pub not_after: Option<Moment>,
}

/// How a moment lies to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    NotYet,
    Now,
    NoLonger,
}

impl Window {
    pub fn at(&self, now_ms: u64) -> Validity {
        let now_ms = i128::from(now_ms);
        if self.not_before.is_some_and(|start| now_ms < start.ms()) {
            return Validity::NotYet;
        }
        match self.not_after {
            Some(end) if now_ms > end.ms() => Validity::NoLonger,
            Some(_) | None => Validity::Now,
        }
    }

    /// Whether no moment lies in it.
    pub fn is_empty(&self) -> bool {
        matches!((self.not_before, self.not_after), (Some(start), Some(end)) if start > end)
    }
}

/// When a key gives way: to the next of its owner's keys that begins after it, or else at its own end.
pub fn next_rotation(of: Window, owners: &[Window], now_ms: u64) -> Option<Moment> {
    let starts = owners.iter().filter_map(|other| other.not_before);
    let later =
        |start: &Moment| start.ms() > i128::from(now_ms) && of.not_before.is_none_or(|own| *start > own);
    starts.filter(later).min().or(of.not_after)
}

impl Moment {
    /// So many seconds after the Unix epoch; `None` beyond the years that RFC 3339 can write.
    pub fn from_unix_s(seconds: i64) -> Option<Self> {
        OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .filter(|moment| (0..=9_999).contains(&moment.year()))
            .map(Self)
    }

    /// Milliseconds since the Unix epoch.
    pub fn ms(self) -> i128 {
        self.0.unix_timestamp_nanos() / 1_000_000
    }

    pub fn time(self) -> OffsetDateTime {
        self.0
    }

    /// As fields of HTTP write it (RFC 9110 section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn http_date(self) -> String {
        let at = self.0.to_offset(UtcOffset::UTC);
        let short = |name: String| name.chars().take(3).collect::<String>();
        let (weekday, month) = (short(at.weekday().to_string()), short(at.month().to_string()));
        let (hour, minute, second) = at.to_hms();
        format!("{weekday}, {:02} {month} {:04} {hour:02}:{minute:02}:{second:02} GMT", at.day(), at.year())
    }
}

impl std::str::FromStr for Moment {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, NotAMoment> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| NotAMoment)?;
        // In UTC it may lie beyond the years that can be written.
        let utc = moment.checked_to_offset(UtcOffset::UTC).filter(|utc| (0..=9_999).contains(&utc.year()));
        utc.map(|_| Self(moment)).ok_or(NotAMoment)
    }
}

/// The text is no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time; write it as RFC 3339 has it, \"2026-11-01T00:00:00Z\" say")]
pub struct NotAMoment;

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Moment({self})")
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "A time as RFC 3339 has it, `2026-11-01T00:00:00Z` say."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_lie_within_the_years_that_are_written() {
        for (text, expected) in [
            ("2026-11-01T00:00:00Z", true),
            ("9999-12-31T23:59:59Z", true),
            ("9999-12-31T23:59:59+00:01", true),
            ("9999-12-31T23:59:59-00:01", false),
            ("0000-01-01T00:00:00Z", true),
            ("0000-01-01T00:00:00+00:01", false),
            ("2026-11-01", false),
        ] {
            let moment = text.parse::<Moment>();
            assert_eq!(moment.is_ok(), expected, "{text}");
            // Neither may panic.
            let _ = moment.map(|moment| (moment.http_date(), moment.ms()));
        }
    }

    #[test]
    fn a_key_gives_way_to_the_next() {
        let window = |start: Option<i64>, end: Option<i64>| Window {
            not_before: start.and_then(Moment::from_unix_s),
            not_after: end.and_then(Moment::from_unix_s),
        };
        let keys = [window(None, Some(30)), window(Some(20), None), window(Some(40), Some(60))];
        for (key, now_s, expected) in [
            (0, 10, Some(20)),
            (0, 20, Some(40)),
            (1, 10, Some(40)),
            (1, 50, None),
            (2, 10, Some(60)),
            (0, 50, Some(30)),
        ] {
            let told = next_rotation(keys[key], &keys, now_s * 1_000);
            assert_eq!(told, expected.and_then(Moment::from_unix_s), "key {key} at {now_s}");
        }
    }

    #[test]
    fn both_ends_belong_to_a_window() {
        let moment = |text: &str| text.parse::<Moment>().expect(text);
        let (start, end) = (moment("2026-01-01T00:00:00Z"), moment("2026-01-02T05:30:00+05:30"));
        let first = 1_767_225_600_000;
        let last = first + 86_400_000;
        let window = |not_before, not_after| Window { not_before, not_after };
        for (window, now_ms, expected) in [
            (window(None, None), 0, Validity::Now),
            (window(None, None), u64::MAX, Validity::Now),
            (window(Some(start), None), first - 1, Validity::NotYet),
            (window(Some(start), None), first, Validity::Now),
            (window(None, Some(end)), last, Validity::Now),
            (window(None, Some(end)), last + 1, Validity::NoLonger),
            (window(Some(start), Some(end)), 0, Validity::NotYet),
        ] {
            assert_eq!(window.at(now_ms), expected, "{window:?} {now_ms}");
        }
        assert!(window(Some(end), Some(start)).is_empty() && !window(Some(start), Some(start)).is_empty());
        assert_eq!(start.to_string(), "2026-01-01T00:00:00Z");
        for text in ["", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "1767225600"] {
            assert_eq!(text.parse::<Moment>(), Err(NotAMoment), "{text}");
        }
    }
}
