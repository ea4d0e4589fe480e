//! Times that are written with a unit, where the field has the unit in its name.

use serde_path_to_error::Segment;

/// What a number should be that was written like `5s`: the end of a sentence.
pub(super) fn meant(text: &str, path: &[Segment], line: u64, column: u64) -> Option<String> {
    let Some(Segment::Map { key }) = path.last() else { return None };
    let line = text.lines().nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    let rest: String = line.chars().skip(usize::try_from(column.checked_sub(1)?).ok()?).collect();
    let word = rest.trim_start_matches(['"', '\'']).split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let number = in_unit_of(key, word)?;
    Some(format!("; the unit is in the name, so write `{number}` for `{word}`"))
}

/// A time such as `5s` in the unit that a field's name ends with.
fn in_unit_of(field: &str, word: &str) -> Option<u64> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = word.split_at_checked(digits)?;
    let ms = number.parse::<u64>().ok()?.checked_mul(match unit {
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
    fn a_time_in_the_unit_of_its_field() {
        for (field, word, expected) in [
            ("timeout_ms", "5s", Some(5_000)),
            ("timeout_ms", "250ms", Some(250)),
            ("max_age_s", "2m", Some(120)),
            ("max_age_s", "1d", Some(86_400)),
            ("max_age_s", "250ms", None),
            ("max_in_flight", "5s", None),
            ("timeout_ms", "5", None),
            ("timeout_ms", "s", None),
            ("timeout_ms", "99999999999999999999s", None),
        ] {
            assert_eq!(in_unit_of(field, word), expected, "{field}: {word}");
        }
    }
}
