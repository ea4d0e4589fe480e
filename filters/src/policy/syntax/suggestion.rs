//! What to write for a value that is nearly one: a time with its unit, a size, a rate, `yes`.

use serde_path_to_error::Segment;

use super::position;

/// What a number or a boolean should be that was written like `5s`, `64KiB`, `100/s` or `yes`: the end of a sentence.
pub(super) fn meant(text: &str, path: &[Segment], line: u64, column: u64) -> Option<String> {
    let Some(Segment::Map { key }) = path.last() else { return None };
    let rest = text.get(position::offset(text, line, column)?..)?;
    let written = rest.split([',', '}', ']', '#', '\n', '\r']).next()?.trim();
    let word = written.trim_matches(['"', '\'']);
    if let Some(boolean) = boolean(word) {
        return Some(format!("; write `{boolean}` for `{word}`"));
    }
    if let (Some(number), true) = (per_second(word), key == "requests") {
        return Some(format!(
            "; the time is a field of its own, so write `requests: {number}` and `per_s: 1`"
        ));
    }
    let number = in_unit_of(key, word)?;
    Some(format!("; the unit is in the name, so write `{number}` for `{word}`"))
}

/// The words for true and false of YAML 1.1.
fn boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "yes" | "y" | "on" | "true" => Some(true),
        "no" | "n" | "off" | "false" => Some(false),
        _ => None,
    }
}

fn per_second(word: &str) -> Option<u64> {
    let (number, unit) = word.split_once('/')?;
    matches!(unit.trim(), "s" | "sec" | "second").then(|| number.trim().parse().ok()).flatten()
}

/// A time such as `5s`, or a size such as `64KiB`, in the unit that a field's name ends with.
fn in_unit_of(field: &str, word: &str) -> Option<u64> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = word.split_at_checked(digits)?;
    let number = number.parse::<u64>().ok()?;
    let unit = unit.trim_start();
    if field.ends_with("_bytes") {
        return number.checked_mul(match unit {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" | "Ki" => 1 << 10,
            "MiB" | "Mi" => 1 << 20,
            "GiB" | "Gi" => 1 << 30,
            _ => return None,
        });
    }
    let ms = number.checked_mul(match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    })?;
    if field.ends_with("_ms") {
        Some(ms)
    } else if field.ends_with("_s") {
        ms.is_multiple_of(1_000).then_some(ms / 1_000)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_the_unit_of_its_field() {
        for (field, word, expected) in [
            ("timeout_ms", "5s", Some(5_000)),
            ("timeout_ms", "5 s", Some(5_000)),
            ("timeout_ms", "250ms", Some(250)),
            ("max_age_s", "2m", Some(120)),
            ("max_age_s", "1d", Some(86_400)),
            ("max_age_s", "250ms", None),
            ("max_in_flight", "5s", None),
            ("timeout_ms", "5", None),
            ("timeout_ms", "s", None),
            ("timeout_ms", "99999999999999999999s", None),
            ("max_body_bytes", "64KiB", Some(65_536)),
            ("max_body_bytes", "1MB", Some(1_000_000)),
            ("max_body_bytes", "5s", None),
            ("max_body_bytes", "18446744073709551615KiB", None),
            ("max_in_flight", "64KiB", None),
        ] {
            assert_eq!(in_unit_of(field, word), expected, "{field}: {word}");
        }
    }

    #[test]
    fn what_is_meant_is_told_with_what_was_written() {
        for (key, text, column, expected) in [
            (
                "max_body_bytes",
                "max_body_bytes: 64KiB # x",
                17,
                Some("; the unit is in the name, so write `65536` for `64KiB`"),
            ),
            (
                "timeout_ms",
                "timeout_ms: '5s'",
                13,
                Some("; the unit is in the name, so write `5000` for `5s`"),
            ),
            (
                "requests",
                "requests: 100/s",
                11,
                Some("; the time is a field of its own, so write `requests: 100` and `per_s: 1`"),
            ),
            ("requests", "requests: 100/min", 11, None),
            ("required", "x: { required: yes, a: b }", 16, Some("; write `true` for `yes`")),
            ("required", "required: Off", 11, Some("; write `false` for `Off`")),
            ("required", "required: often", 11, None),
        ] {
            let path = [Segment::Map { key: key.to_owned() }];
            assert_eq!(meant(text, &path, 1, column).as_deref(), expected, "{text}");
        }
    }
}
