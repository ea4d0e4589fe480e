//! Days and months: when the volumes of quotas are there anew, and by which usage is told.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The calendar of one time zone, whose offset from UTC never changes: no day is longer than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    offset_min: i16,
}

/// How long a quota's volume lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// A day of the Gregorian calendar, from 1970 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
}

impl Calendar {
    /// India's, which has no summer time.
    pub const INDIA: Self = Self { offset_min: 330 };

    /// The day or month in which a moment lies, milliseconds since the Unix epoch.
    pub fn period(self, per: Per, now_ms: u64) -> Period {
        let date = Date::after_epoch(now_ms.saturating_add_signed(self.offset_ms()) / DAY_MS);
        match per {
            Per::Day => self.day(date),
            Per::Month => {
                let first = Date { day: 1, ..date };
                let next = match date.month {
                    12 => Date { year: date.year.saturating_add(1), month: 1, day: 1 },
                    month => Date { month: month.saturating_add(1), ..first },
                };
                let name = format!("{:04}-{:02}", date.year, date.month);
                Period { name, begins_ms: self.begins_ms(first), ends_ms: self.begins_ms(next) }
            }
        }
    }

    /// The days of a month, `2026-11` say; `None` when it is none.
    pub fn days_of(self, month: &str) -> Option<Vec<Period>> {
        let (year, number) = month.split_once('-')?;
        let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
        let (year, month) = match (digits(year, 4), digits(number, 2)) {
            (true, true) => (year.parse().ok()?, number.parse().ok()?),
            (_, _) => return None,
        };
        let first = Date { year, month, day: 1 };
        if year < 1970 || !(1..=12).contains(&month) {
            return None;
        }
        Some((1..=first.days_in_month()).map(|day| self.day(Date { day, ..first })).collect())
    }

    fn offset_ms(self) -> i64 {
        i64::from(self.offset_min) * 60_000
    }

    fn day(self, date: Date) -> Period {
        let begins_ms = self.begins_ms(date);
        let name = format!("{:04}-{:02}-{:02}", date.year, date.month, date.day);
        Period { name, begins_ms, ends_ms: begins_ms.saturating_add(DAY_MS) }
    }

    fn begins_ms(self, date: Date) -> u64 {
        date.days().saturating_mul(DAY_MS).saturating_add_signed(self.offset_ms().saturating_neg())
    }
}

/// Counts years from March on, so that a leap day is a year's last; after Howard Hinnant's `days_from_civil`. A whole
/// number of 400 years has always as many days.
impl Date {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    /// From 1 March of the year 0 to 1 January 1970.
    const EPOCH: u64 = 719_468;

    /// So many days after 1 January 1970.
    fn after_epoch(days: u64) -> Self {
        let days = days.saturating_add(Self::EPOCH);
        let (centuries, day) = (days / Self::DAYS_IN_400_YEARS, days % Self::DAYS_IN_400_YEARS);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let from_march = (5 * day + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = centuries.saturating_mul(400) + year + u64::from(month <= 2);
        Self { year, month, day: day - (153 * from_march + 2) / 5 + 1 }
    }

    /// Days since 1 January 1970; 0 before it.
    fn days(self) -> u64 {
        let year = self.year.saturating_sub(u64::from(self.month <= 2));
        let from_march = if self.month > 2 { self.month - 3 } else { self.month + 9 };
        let day = (153 * from_march + 2) / 5 + self.day.saturating_sub(1);
        let within = year % 400;
        let day = 365 * within + within / 4 - within / 100 + day;
        (year / 400).saturating_mul(Self::DAYS_IN_400_YEARS).saturating_add(day).saturating_sub(Self::EPOCH)
    }

    fn days_in_month(self) -> u64 {
        let leap =
            self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match self.month {
            2 => 28 + u64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }
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

impl Serialize for Calendar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
    fn days_and_dates_are_those_of_everybody() {
        for days in (0..200_000).chain([719_468, 2_932_896]) {
            let date = Date::after_epoch(days);
            let theirs = time::Date::from_julian_day(i32::try_from(days).expect("small") + 2_440_588);
            let theirs = theirs.expect("within all time");
            let parts = (theirs.year() as u64, u64::from(u8::from(theirs.month())), u64::from(theirs.day()));
            assert_eq!((date.year, date.month, date.day), parts, "{days} days");
            assert_eq!(
                (date.days(), date.days_in_month()),
                (days, theirs.month().length(theirs.year()).into())
            );
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
