//! Money: integer paise inside, rupees with two decimals on wires.

use std::fmt;
use std::str::FromStr;

/// An amount of money in paise (1/100 rupee), never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AmountPaise(u64);

/// The text was no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an amount is rupees above zero, at most 10 digits, with at most two decimals and no exponent")]
pub struct AmountError;

/// NUMERIC(12, 2): ten digits before the point.
const MAX_WHOLE_DIGITS: usize = 10;

impl AmountPaise {
    pub fn from_paise(paise: u64) -> Result<Self, AmountError> {
        if paise == 0 { Err(AmountError) } else { Ok(AmountPaise(paise)) }
    }

    pub fn paise(self) -> u64 {
        self.0
    }
}

/// Takes the raw text of a JSON number: `^[0-9]{1,10}(\.[0-9]{1,2})?$` and nothing else.
///
/// A floating-point number never exists on the way: `0.29` is 29 paise, `1e3` and `1.005` are refused.
impl FromStr for AmountPaise {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let (whole, decimals) = match text.split_once('.') {
            Some((_, "")) => return Err(AmountError),
            Some(parts) => parts,
            None => (text, ""),
        };
        if whole.is_empty() || whole.len() > MAX_WHOLE_DIGITS || decimals.len() > 2 {
            return Err(AmountError);
        }
        if !whole.bytes().chain(decimals.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(AmountError);
        }
        let paise: u64 = format!("{whole}{decimals:0<2}").parse().map_err(|_| AmountError)?;
        AmountPaise::from_paise(paise)
    }
}

/// Rupees with exactly two decimals, as the network wants them.
impl fmt::Display for AmountPaise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let cases = [
            ("150.75", Some((15_075, "150.75"))),
            ("150.7", Some((15_070, "150.70"))),
            ("150", Some((15_000, "150.00"))),
            ("0.01", Some((1, "0.01"))),
            ("0.29", Some((29, "0.29"))),
            ("9999999999.99", Some((999_999_999_999, "9999999999.99"))),
            ("10000000000", None),
            ("0", None),
            ("0.00", None),
            ("-1", None),
            ("+1", None),
            ("1.005", None),
            ("1e3", None),
            ("1E3", None),
            ("1.", None),
            (".5", None),
            ("", None),
            ("1,000", None),
            ("\"150.75\"", None),
            ("١", None),
            (" 1", None),
            ("null", None),
        ];
        for (text, want) in cases {
            let got = text.parse::<AmountPaise>().ok().map(|a| (a.paise(), a.to_string()));
            assert_eq!(got, want.map(|(paise, shown)| (paise, shown.to_owned())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_amount_or_an_error(text in ".{0,20}") {
            if let Ok(amount) = text.parse::<AmountPaise>() {
                proptest::prop_assert_eq!(amount.to_string().parse(), Ok(amount));
            }
        }
    }
}
