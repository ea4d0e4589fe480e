//! Payment addresses.

use std::fmt;
use std::str::FromStr;

/// A virtual payment address, `name@handle` or `account@IFSC.ifsc.npci`.
///
/// Compares without regard to case and keeps the spelling it was given. `Debug` and `Display` mask it, so
/// that no log line can hold a whole one; [`Vpa::as_str`] is for wires and rows.
#[derive(Clone)]
pub struct Vpa(String);

/// The text was no payment address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a VPA is name@handle: 2 or more of A-Z a-z 0-9 . _ - before the @, 2 to 64 letters after it")]
pub struct VpaError;

/// UPI's limit for the whole address.
const MAX_LEN: usize = 255;

impl Vpa {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Vpa {
    type Err = VpaError;

    fn from_str(text: &str) -> Result<Self, VpaError> {
        let (name, handle) = text.split_once('@').ok_or(VpaError)?;
        let name_ok = name.len() >= 2
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        let handle_ok = (2..=64).contains(&handle.len()) && handle.bytes().all(|b| b.is_ascii_alphabetic());
        if text.len() <= MAX_LEN && name_ok && (handle_ok || is_ifsc_handle(handle)) {
            Ok(Vpa(text.to_owned()))
        } else {
            Err(VpaError)
        }
    }
}

/// `ABCD0123456.ifsc.npci`: four letters, a zero, six letters or digits.
fn is_ifsc_handle(handle: &str) -> bool {
    let Some((ifsc, rest)) = handle.split_once('.') else { return false };
    let Some((bank, branch)) = ifsc.split_at_checked(4) else { return false };
    rest.eq_ignore_ascii_case("ifsc.npci")
        && bank.bytes().all(|b| b.is_ascii_alphabetic())
        && branch.len() == 7
        && branch.starts_with('0')
        && branch.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The text with every payment address in it masked as [`Vpa`] masks itself, wherever it stands.
///
/// For texts that others wrote (errors, reasons) on their way into logs, tickets and audit files.
pub fn mask_vpas(text: &str) -> String {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        let name = before.len() - before.trim_end_matches(in_name).len();
        let (kept, name) = before.split_at(before.len() - name);
        masked += kept;
        if !name.is_empty() {
            masked += name.get(..1).unwrap_or_default();
            masked += "***";
        }
        masked.push('@');
        rest = after;
    }
    masked + rest
}

impl PartialEq for Vpa {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Vpa {}

impl fmt::Display for Vpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, handle) = self.0.split_once('@').unwrap_or_default();
        write!(f, "{}***@{handle}", name.get(..1).unwrap_or_default())
    }
}

impl fmt::Debug for Vpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let long = format!("{}@torana", "a".repeat(248));
        let cases = [
            ("alice@torana", true),
            ("a.b_c-9@ok", true),
            ("12345678@HDFC0001234.ifsc.npci", true),
            ("12345678@hdfc0abc12z.IFSC.NPCI", true),
            ("12345678@HDFC1001234.ifsc.npci", false),
            ("12345678@HDF10001234.ifsc.npci", false),
            ("12345678@HDFC000123.ifsc.npci", false),
            ("12345678@HDFC00012345.ifsc.npci", false),
            ("12345678@HDFC000-234.ifsc.npci", false),
            ("a@torana", false),
            ("alice@t", false),
            ("alice", false),
            ("alice@bob@torana", false),
            ("alice@torana1", false),
            ("al ice@torana", false),
            ("älice@torana", false),
            ("@torana", false),
            ("", false),
            (&long[..], true),
        ];
        for (text, ok) in cases {
            assert_eq!(text.parse::<Vpa>().is_ok(), ok, "{text}");
        }
        assert!(format!("a{long}").parse::<Vpa>().is_err(), "256 is too long");
    }

    #[test]
    fn every_address_in_a_text_is_masked() {
        let cases = [
            (
                "from alice@torana to b.o_b-2@HDFC0001234.ifsc.npci.",
                "from a***@torana to b***@HDFC0001234.ifsc.npci.",
            ),
            (r#"{"fromVPA":"alice@torana"}"#, r#"{"fromVPA":"a***@torana"}"#),
            ("चायalice@torana@x@", "चायa***@t***@x***@"),
            ("@ @@ none", "@ @@ none"),
            ("", ""),
        ];
        for (text, masked) in cases {
            assert_eq!(mask_vpas(text), masked);
        }
    }

    #[test]
    fn compares_without_case_and_prints_masked() {
        let vpa: Vpa = "Alice@Torana".parse().unwrap();
        assert_eq!(vpa, "alice@torana".parse().unwrap());
        assert_eq!(format!("{vpa} {vpa:?}"), "A***@Torana A***@Torana");
        assert_eq!(vpa.as_str(), "Alice@Torana");
    }
}
