//! Days and months: when the volumes of quotas are there anew, and by which usage is told.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use time::Date;

/// The calendar of one time zone, whose offset from UTC never changes: no day is longer than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    offset_min: i16,
}

/// How long a quota's volume lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the first of the next.
    Month,
}

/// One day, or one month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// `2026-11-25`, `2026-11`.
    pub name: String,
    /// Milliseconds since the Unix epoch.
    pub begins_ms: u64,
    /// Milliseconds since the Unix epoch; it does not belong to the period.
    pub ends_ms: u64,
}

const DAY_MS: u64 = 86_400_000;
/// The Julian day of 1970-01-01.
const EPOCH: i32 = 2_440_588;

impl Calendar {
    /// India's, which has no summer time.
    pub const INDIA: Self = Self { offset_min: 330 };

    /// The day or month in which a moment lies, milliseconds since the Unix epoch.
    pub fn period(self, per: Per, now_ms: u64) -> Period {
        let date = date(self.day_of(now_ms));
        match per {
            Per::Day => self.between(format!("{date}"), date, date.next_day()),
            Per::Month => {
                let first = date.replace_day(1).unwrap_or(date);
                let days = first.month().length(first.year());
                let next = first.checked_add(time::Duration::days(days.into()));
                self.between(month_name(first), first, next)
            }
        }
    }

    /// The days of a month, `2026-11` say; `None` when it is none.
    pub fn days_of(self, month: &str) -> Option<Vec<Period>> {
        let (year, number) = month.split_once('-')?;
        let plain =
            year.len() == 4 && number.len() == 2 && month.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        let number = time::Month::try_from(number.parse::<u8>().ok().filter(|_| plain)?).ok()?;
        let year = year.parse().ok().filter(|year| *year >= 1970)?;
        let days = (1..=number.length(year)).map(|day| {
            let date = Date::from_calendar_date(year, number, day).ok()?;
            Some(self.between(format!("{date}"), date, date.next_day()))
        });
        days.collect()
    }

    fn offset_ms(self) -> i64 {
        i64::from(self.offset_min) * 60_000
    }

    /// Days since 1970-01-01 there.
    fn day_of(self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(self.offset_ms()) / DAY_MS
    }

    fn between(self, name: String, first: Date, next: Option<Date>) -> Period {
        let begins = |date: Date| {
            let day = u64::try_from(date.to_julian_day().saturating_sub(EPOCH)).unwrap_or(0);
            day.saturating_mul(DAY_MS).saturating_add_signed(self.offset_ms().saturating_neg())
        };
        Period { name, begins_ms: begins(first), ends_ms: next.map_or(u64::MAX, begins) }
    }
}

fn month_name(date: Date) -> String {
    format!("{:04}-{:02}", date.year(), u8::from(date.month()))
}

fn date(days: u64) -> Date {
    let julian = i32::try_from(days).ok().and_then(|days| days.checked_add(EPOCH));
    julian.and_then(|julian| Date::from_julian_day(julian).ok()).unwrap_or(Date::MAX)
}

impl Period {
    /// Seconds from its begin to its end.
    pub fn length_s(&self) -> u64 {
        self.ends_ms.saturating_sub(self.begins_ms) / 1_000
    }
}

impl Per {
    /// As the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl Default for Calendar {
    fn default() -> Self {
        Self::INDIA
    }
}

/// The text is no offset from UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an offset from UTC; write `+05:30`, `-03:00` or `+00:00`, at most 14 hours")]
pub struct NotAnOffset;

impl FromStr for Calendar {
    type Err = NotAnOffset;

    fn from_str(text: &str) -> Result<Self, NotAnOffset> {
        let (sign, rest) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(rest), _) => (1, rest),
            (None, Some(rest)) => (-1, rest),
            (None, None) => return Err(NotAnOffset),
        };
        let two = |digits: &str| {
            let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<i16>().ok().filter(|_| plain)
        };
        let (hours, minutes) = rest.split_once(':').ok_or(NotAnOffset)?;
        match (two(hours), two(minutes)) {
            (Some(hours), Some(minutes)) if minutes < 60 && hours * 60 + minutes <= 14 * 60 => {
                Ok(Self { offset_min: sign * (hours * 60 + minutes) })
            }
            (_, _) => Err(NotAnOffset),
        }
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.offset_min < 0 { '-' } else { '+' };
        let minutes = self.offset_min.unsigned_abs();
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

impl<'de> Deserialize<'de> for Calendar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Calendar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "UtcOffset".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[+-][0-9]{2}:[0-9]{2}$",
            "description": "An offset from UTC, `+05:30` say."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validity::Moment;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Moment>().expect(text).ms()).expect(text)
    }

    #[test]
    fn days_and_months_begin_at_midnight_there() {
        for (offset, per, now, name, begins, ends) in [
            (
                "+05:30",
                Per::Day,
                "2026-11-25T18:29:59.999Z",
                "2026-11-25",
                "2026-11-24T18:30:00Z",
                "2026-11-25T18:30:00Z",
            ),
            (
                "+05:30",
                Per::Day,
                "2026-11-25T18:30:00Z",
                "2026-11-26",
                "2026-11-25T18:30:00Z",
                "2026-11-26T18:30:00Z",
            ),
            (
                "+05:30",
                Per::Month,
                "2026-11-30T18:29:59Z",
                "2026-11",
                "2026-10-31T18:30:00Z",
                "2026-11-30T18:30:00Z",
            ),
            (
                "+05:30",
                Per::Month,
                "2026-11-30T18:30:00Z",
                "2026-12",
                "2026-11-30T18:30:00Z",
                "2026-12-31T18:30:00Z",
            ),
            (
                "+00:00",
                Per::Month,
                "2028-02-29T23:59:59Z",
                "2028-02",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                "-03:00",
                Per::Day,
                "2027-01-01T02:59:59Z",
                "2026-12-31",
                "2026-12-31T03:00:00Z",
                "2027-01-01T03:00:00Z",
            ),
        ] {
            let calendar: Calendar = offset.parse().expect(offset);
            let expected = Period { name: name.to_owned(), begins_ms: ms(begins), ends_ms: ms(ends) };
            assert_eq!(calendar.period(per, ms(now)), expected, "{offset} {now}");
            assert_eq!(calendar.to_string(), offset);
        }
        // At the end of all time nothing panics.
        for offset in [Calendar::INDIA, Calendar { offset_min: -840 }] {
            for now_ms in [0, u64::MAX] {
                let _ = (offset.period(Per::Day, now_ms), offset.period(Per::Month, now_ms).length_s());
            }
        }
    }

    #[test]
    fn the_days_of_a_month_are_the_month() {
        let calendar = Calendar::INDIA;
        let days = calendar.days_of("2028-02").expect("a month");
        assert_eq!(
            (days.len(), days[0].name.as_str(), days[28].name.as_str()),
            (29, "2028-02-01", "2028-02-29")
        );
        let month = calendar.period(Per::Month, days[7].begins_ms);
        assert_eq!((month.begins_ms, month.ends_ms), (days[0].begins_ms, days[28].ends_ms));
        assert!(days.windows(2).all(|pair| pair[0].ends_ms == pair[1].begins_ms));
        for none in ["", "2026", "2026-13", "2026-00", "2026-1", "26-01", "+026-01", "1969-12", "2026-01-01"]
        {
            assert_eq!(calendar.days_of(none), None, "{none}");
        }
    }

    #[test]
    fn offsets() {
        for text in ["", "05:30", "+5:30", "+05:60", "+14:01", "Z", "+05", "+ 5:30", "Asia/Kolkata"] {
            assert_eq!(text.parse::<Calendar>(), Err(NotAnOffset), "{text}");
        }
    }
}
