//! Peak hours: when the network takes no call that no user started.
//!
//! The caller says who started a call, in `x-initiated-by`. txn-core says `user` for a payment and for its own
//! checks of a user's pending payment, however they were timed: the user is waiting for them. What is left,
//! `system`, can wait for the end of the window and is refused.

use serde::Deserialize;
use time::{Duration, OffsetDateTime, Time, UtcOffset, macros::format_description};

/// The hours of the day, India time, in which calls that no user started are refused here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// From (included) and to (excluded), `HH:MM`, India time; a window does not cross midnight.
    pub windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "[String; 2]")]
pub struct Window {
    from: Time,
    to: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a window is [\"HH:MM\", \"HH:MM\"], the second later than the first")]
pub struct InvalidWindow;

impl TryFrom<[String; 2]> for Window {
    type Error = InvalidWindow;
    fn try_from([from, to]: [String; 2]) -> Result<Self, InvalidWindow> {
        let form = format_description!("[hour]:[minute]");
        let parse = |text: &str| Time::parse(text, form).map_err(|_| InvalidWindow);
        let (from, to) = (parse(&from)?, parse(&to)?);
        if from < to { Ok(Window { from, to }) } else { Err(InvalidWindow) }
    }
}

impl Default for Rules {
    fn default() -> Self {
        let window = |from: (u8, u8), to: (u8, u8)| {
            let time = |(hour, minute)| Time::from_hms(hour, minute, 0).unwrap_or(Time::MIDNIGHT);
            Window { from: time(from), to: time(to) }
        };
        Rules { windows: vec![window((10, 0), (13, 0)), window((17, 0), (21, 30))] }
    }
}

/// If `now_ms` (Unix time) lies in a peak window: how long until the window ends, in milliseconds.
pub fn ends_in_ms(rules: &Rules, now_ms: i64) -> Option<i64> {
    let india = UtcOffset::from_hms(5, 30, 0).unwrap_or(UtcOffset::UTC);
    let now = OffsetDateTime::UNIX_EPOCH
        .checked_add(Duration::milliseconds(now_ms))
        .and_then(|now| now.checked_to_offset(india))?
        .time();
    let window = rules.windows.iter().find(|window| window.from <= now && now < window.to)?;
    i64::try_from((window.to - now).whole_milliseconds()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stamp;

    #[test]
    fn the_table() {
        for (utc, minutes_left) in [
            ("2026-01-05T04:29:00Z", None), // 09:59 in India
            ("2026-01-05T04:30:00Z", Some(180)),
            ("2026-01-05T07:29:00Z", Some(1)),
            ("2026-01-05T07:30:00Z", None),
            ("2026-01-05T11:29:00Z", None),
            ("2026-01-05T11:30:00Z", Some(270)),
            ("2026-01-05T15:59:00Z", Some(1)),
            ("2026-01-05T16:00:00Z", None),
            ("2026-01-05T20:00:00Z", None), // 01:30 on the next day
        ] {
            let now: Stamp = utc.parse().unwrap();
            let left = ends_in_ms(&Rules::default(), now.unix_ms);
            assert_eq!(left, minutes_left.map(|minutes: i64| minutes * 60_000), "{utc}");
        }
    }

    #[test]
    fn windows_as_written() {
        let window = |from: &str, to: &str| Window::try_from([from.to_owned(), to.to_owned()]);
        assert!(window("10:00", "13:00").is_ok());
        for (from, to) in [("13:00", "10:00"), ("10:00", "10:00"), ("10", "13:00"), ("24:00", "25:00")] {
            assert_eq!(window(from, to), Err(InvalidWindow), "{from} {to}");
        }
    }
}
