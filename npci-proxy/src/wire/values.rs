//! The single values in messages: ids, addresses, codes, money, time. Each is checked when it is made.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description};

/// Why a value was refused. Carries no part of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("an id has exactly 35 letters and digits")]
    Id,
    #[error("a VPA is name@handle with letters, digits and . _ - in the name, at most 255 characters")]
    Vpa,
    #[error("an amount is rupees with exactly two decimals, above zero")]
    Amount,
    #[error("a response code has 1 to 8 letters and digits")]
    Code,
    #[error("a customer reference has exactly 12 digits")]
    Rrn,
    #[error("a time is RFC 3339")]
    Stamp,
    #[error("a note has 1 to 50 characters")]
    Note,
    #[error("a credential block has 1 to 4096 characters of base64")]
    CredBlock,
}

/// Types that travel as a checked string.
macro_rules! checked_string {
    ($name:ident, $check:expr, $error:expr) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok($name(text)) } else { Err($error) }
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

/// A transaction or message id: exactly 35 letters and digits (the network's rule since February 2025).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);
checked_string!(Id, |t| t.len() == 35 && t.bytes().all(|b| b.is_ascii_alphanumeric()), Invalid::Id);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network response code such as `00`, `Z9` or `U30`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code(String);
checked_string!(
    Code,
    |t| (1..=8).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric()),
    Invalid::Code
);

/// Customer reference: exactly 12 digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rrn(String);
checked_string!(Rrn, |t| t.len() == 12 && t.bytes().all(|b| b.is_ascii_digit()), Invalid::Rrn);

/// A payment address. Shown masked (`a***@torana`), compared without regard to case.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vpa(String);
checked_string!(Vpa, is_vpa, Invalid::Vpa);

impl Vpa {
    /// The form to compare and to index by.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl PartialEq for Vpa {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}
impl Eq for Vpa {}

impl fmt::Display for Vpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, handle) = self.0.split_once('@').unwrap_or((&self.0, ""));
        write!(f, "{}***@{handle}", name.get(..1).unwrap_or(""))
    }
}

impl fmt::Debug for Vpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_vpa(text: &str) -> bool {
    let Some((name, handle)) = text.split_once('@') else { return false };
    let name_ok = name.len() >= 2 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let handle_ok = (2..=64).contains(&handle.len()) && handle.bytes().all(|b| b.is_ascii_alphabetic());
    text.len() <= 255 && name_ok && (handle_ok || is_account_handle(handle))
}

/// `account@ABCD0123456.ifsc.npci`, an address by account number: four letters, a zero, six letters or digits.
/// txn-core has the same rule: what it takes from a client must not be refused here.
fn is_account_handle(handle: &str) -> bool {
    let Some((ifsc, rest)) = handle.split_once('.') else { return false };
    let Some((bank, branch)) = ifsc.split_at_checked(4) else { return false };
    rest.eq_ignore_ascii_case("ifsc.npci")
        && bank.bytes().all(|b| b.is_ascii_alphabetic())
        && branch.len() == 7
        && branch.starts_with('0')
        && branch.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The PIN, encrypted on the device for the bank. Passed on, never looked into, never printed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CredBlock(String);
checked_string!(
    CredBlock,
    |t| (1..=4096).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_".contains(&b)),
    Invalid::CredBlock
);

impl fmt::Debug for CredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredBlock(…)")
    }
}

/// Money in integer paise; on the wire rupees with exactly two decimals (`"150.75"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    pub paise: u64,
}

impl std::str::FromStr for Amount {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (rupees, paise) = text.split_once('.').ok_or(Invalid::Amount)?;
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let leading_zero = rupees.len() > 1 && rupees.starts_with('0');
        if !digits(rupees) || !digits(paise) || paise.len() != 2 || rupees.len() > 13 || leading_zero {
            return Err(Invalid::Amount);
        }
        let rupees: u64 = rupees.parse().map_err(|_| Invalid::Amount)?;
        let paise: u64 = paise.parse().map_err(|_| Invalid::Amount)?;
        match rupees * 100 + paise {
            0 => Err(Invalid::Amount),
            paise => Ok(Amount { paise }),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.paise / 100, self.paise % 100)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A moment, in milliseconds of Unix time; on the wire RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub unix_ms: i64,
}

impl std::str::FromStr for Stamp {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Invalid::Stamp)?;
        let unix_ms = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| Invalid::Stamp)?;
        Ok(Stamp { unix_ms })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.unix_ms) * 1_000_000)
            .map_err(|_| fmt::Error)?
            .to_offset(UtcOffset::UTC);
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        f.write_str(&at.format(form).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, paise) in [
            ("150.75", Some(15075)),
            ("0.01", Some(1)),
            ("1.00", Some(100)),
            ("9999999999999.99", Some(999_999_999_999_999)),
            ("0.00", None),
            ("150", None),
            ("150.7", None),
            ("150.755", None),
            ("-1.00", None),
            ("+1.00", None),
            ("1e3.00", None),
            ("01.00", None),
            (".50", None),
            ("1.", None),
            ("99999999999999.99", None),
            ("１.00", None),
            ("", None),
        ] {
            let amount = text.parse::<Amount>();
            assert_eq!(amount.ok().map(|a| a.paise), paise, "{text}");
            if paise.is_some() {
                assert_eq!(amount.unwrap().to_string(), text);
            }
        }
    }

    #[test]
    fn addresses() {
        let long = format!("{}@torana", "a".repeat(248));
        for (text, valid) in [
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
        ] {
            assert_eq!(text.parse::<Vpa>().is_ok(), valid, "{text}");
        }
        assert!(format!("a{long}").parse::<Vpa>().is_err(), "256 is too long");
    }

    #[test]
    fn nothing_private_is_printed() {
        let vpa: Vpa = "alice@torana".parse().unwrap();
        assert_eq!((format!("{vpa}"), format!("{vpa:?}")), ("a***@torana".into(), "a***@torana".into()));
        let block = CredBlock::try_from("c2VjcmV0".to_owned()).unwrap();
        assert!(!format!("{block:?}").contains("c2VjcmV0"));
    }
}
