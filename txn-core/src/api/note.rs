//! The note of a payment: what a payer writes to a payee, and both read on a screen.

/// The longest note, in characters.
const MAX_CHARS: usize = 50;

/// Whether a note can be shown as it was written. Control characters, and characters that are invisible or change the
/// direction of text, can make a note look like another one (Unicode Technical Report 36, section 2).
pub(super) fn is_valid(note: &str) -> bool {
    let mut before = None;
    let is_plain = |now: char| {
        let before = before.replace(now);
        match now {
            // Devanagari, Malayalam and other scripts of India need them between their letters.
            '\u{200c}' | '\u{200d}' => before.is_some_and(|before| ('\u{900}'..='\u{dff}').contains(&before)),
            _ => !now.is_control() && !is_invisible(now),
        }
    };
    (1..=MAX_CHARS).contains(&note.chars().count()) && note.chars().all(is_plain)
}

/// Format characters (general category Cf) and separators that no note needs.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_shown_as_they_were_written() {
        for (note, expected) in [
            ("Lunch", true),
            ("किराया मार्च", true),
            ("ക്ഷ\u{200d} വാടക", true),
            ("क\u{200d}ष", true),
            ("☕ and cake", true),
            (&"é".repeat(50), true),
            ("", false),
            (&"é".repeat(51), false),
            ("a\nb", false),
            ("a\u{0}", false),
            ("a\u{85}b", false),
            ("refund\u{200b}ed", false),
            ("\u{202e}001", false),
            ("a\u{2066}b\u{2069}", false),
            ("\u{feff}Lunch", false),
            ("a\u{200d}b", false),
            ("\u{200c}", false),
        ] {
            assert_eq!(is_valid(note), expected, "{note:?}");
        }
    }
}
