//! Transaction and message ids: 35 letters and digits, the PSP's code and a UUIDv7.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The PSP's three-letter code, the prefix of every id that we make.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PspCode([u8; 3]);

/// The id of a payment: [`PspCode`] and the 32 hex digits of a UUIDv7.
///
/// The network takes exactly 35 letters and digits (UPI rule since February 2025); the hex digits are the
/// value of the `txn_id` column, so the id and the row's key are one value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TxnId {
    psp: PspCode,
    uuid: Uuid,
}

/// The text was no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a PSP code is three capital letters")]
    Psp,
    #[error("a transaction id is a PSP code and 32 hexadecimal digits")]
    Shape,
}

impl PspCode {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for PspCode {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 3] = text.as_bytes().try_into().map_err(|_| IdError::Psp)?;
        if bytes.iter().all(u8::is_ascii_uppercase) { Ok(PspCode(bytes)) } else { Err(IdError::Psp) }
    }
}

impl TxnId {
    /// A fresh id; ids made by one process sort by the time they were made.
    pub fn fresh(psp: PspCode) -> Self {
        TxnId { psp, uuid: Uuid::now_v7() }
    }

    /// The id whose row has this key.
    pub fn from_parts(psp: PspCode, uuid: Uuid) -> Self {
        TxnId { psp, uuid }
    }

    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub fn psp(&self) -> PspCode {
        self.psp
    }
}

impl FromStr for TxnId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (psp, hex) = text.split_at_checked(3).ok_or(IdError::Shape)?;
        if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Shape);
        }
        let uuid = Uuid::try_parse(hex).map_err(|_| IdError::Shape)?;
        Ok(TxnId { psp: psp.parse()?, uuid })
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.psp.as_str(), self.uuid.simple())
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_35_letters_and_digits_and_survives_the_trip_to_text() {
        let id = TxnId::fresh("TOR".parse().unwrap());
        let text = id.to_string();
        assert_eq!(text.len(), 35);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text[3..], id.uuid().simple().to_string());
    }

    #[test]
    fn what_is_no_id() {
        for text in ["", "TOR", "TO", "tor0123456789abcdef0123456789abcdef", "TOR0123", "ÄÖ0123456789abcdef"]
        {
            assert!(text.parse::<TxnId>().is_err(), "{text}");
        }
        let dashed = format!("TOR{}", Uuid::now_v7());
        assert!(dashed.parse::<TxnId>().is_err());
        assert!("TOR{0123456789abcdef0123456789abcde}".parse::<TxnId>().is_err());
    }
}
