//! Transaction and message ids: 35 letters and digits, the PSP's code and a UUIDv7.

use std::fmt;
use std::str::FromStr;

use uuid::{NoContext, Timestamp, Uuid};

use super::UnixMs;

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
    /// A fresh id of a payment that is made at this time: [`TxnId::made_at`] gives the time back.
    pub fn fresh(psp: PspCode, at: UnixMs) -> Self {
        let ms = u64::try_from(at.0).unwrap_or(0);
        let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
        TxnId { psp, uuid: Uuid::new_v7(Timestamp::from_unix(NoContext, ms / 1000, nanos)) }
    }

    /// When it was made: the first 48 bits of a UUIDv7. None if it is no UUIDv7, and so none of ours.
    pub fn made_at(&self) -> Option<UnixMs> {
        let (seconds, nanos) =
            self.uuid.get_timestamp().filter(|_| self.uuid.get_version_num() == 7)?.to_unix();
        let ms = seconds.checked_mul(1000)?.checked_add(u64::from(nanos / 1_000_000))?;
        i64::try_from(ms).ok().map(UnixMs)
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
        let at = UnixMs(1_800_000_000_123);
        let id = TxnId::fresh("TOR".parse().unwrap(), at);
        assert_eq!(id.made_at(), Some(at));
        assert_ne!(id, TxnId::fresh("TOR".parse().unwrap(), at));
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
