//! Lines and columns of a text, and the bytes there.

/// The number of bytes before a line and a column, both from 1. A column is a character. `\n`, `\r\n` and `\r` end a
/// line, as in YAML.
pub(super) fn offset(text: &str, line: u64, column: u64) -> Option<usize> {
    let start = line_starts(text).nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    let before = usize::try_from(column.checked_sub(1)?).ok()?;
    let rest = text.get(start..)?;
    let line = rest.split(['\n', '\r']).next().unwrap_or_default();
    match line.char_indices().nth(before) {
        Some((at, _)) => Some(start + at),
        None => (line.chars().count() <= before).then_some(start + line.len()),
    }
}

/// The line and the column of a byte, both from 1.
pub(super) fn line_and_column(text: &str, offset: usize) -> (u64, u64) {
    let (mut line, mut start) = (1, 0);
    for (number, at) in (1..).zip(line_starts(text)).take_while(|(_, at)| *at <= offset) {
        (line, start) = (number, at);
    }
    let column = text.get(start..offset).map_or(0, |before| before.chars().count());
    (line, u64::try_from(column).unwrap_or(u64::MAX).saturating_add(1))
}

fn line_starts(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    let ends = bytes.iter().enumerate().filter(move |(at, byte)| match byte {
        b'\n' => true,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    });
    std::iter::once(0).chain(ends.map(|(at, _)| at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_columns_and_bytes() {
        for (text, line, column, expected) in [
            ("ab\ncd", 1, 1, Some(0)),
            ("ab\ncd", 2, 2, Some(4)),
            ("ab\r\ncd", 2, 2, Some(5)),
            ("ab\rcd", 2, 2, Some(4)),
            ("é: ü\nx", 1, 4, Some(4)),
            ("支: x\n", 1, 4, Some(5)),
            ("\tx\n", 1, 2, Some(1)),
            ("ab", 1, 3, Some(2)),
            ("ab\n", 2, 1, Some(3)),
            ("ab", 2, 1, None),
            ("ab", 0, 1, None),
        ] {
            assert_eq!(offset(text, line, column), expected, "{text:?} {line}:{column}");
            if let Some(offset) = expected {
                assert_eq!(line_and_column(text, offset), (line, column), "{text:?} {offset}");
            }
        }
    }
}
