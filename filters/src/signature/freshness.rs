//! Whether a signature is of now.

/// How long ago a signature may have been created, and how far its sender's clock may be ahead, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub max_age_s: u64,
    pub max_skew_s: u64,
}

/// Why a signature is not of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    TooOld,
    InFuture,
}

impl Window {
    /// `created_s` and `expires_s` as RFC 9421 section 2.3 has them, seconds since the Unix epoch.
    pub fn check(self, created_s: i64, expires_s: Option<i64>, now_ms: u64) -> Result<(), Stale> {
        let now_s = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
        let limit = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let age_s = now_s.saturating_sub(created_s);
        if age_s > limit(self.max_age_s) || expires_s.is_some_and(|expires| expires <= now_s) {
            return Err(Stale::TooOld);
        }
        if age_s.saturating_neg() > limit(self.max_skew_s) {
            return Err(Stale::InFuture);
        }
        Ok(())
    }
}

impl Stale {
    /// The code and the detail for whoever sent a request that is not of now.
    pub fn of_request(self) -> (&'static str, &'static str) {
        match self {
            Self::TooOld => ("created_too_old", "The request was signed too long ago. Sign it anew."),
            Self::InFuture => {
                ("created_in_future", "The request was signed in the future. Check your clock.")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_the_window() {
        let window = Window { max_age_s: 300, max_skew_s: 30 };
        let now_s = 1_700_000_000;
        for (created, expires, expected) in [
            (0, None, Ok(())),
            (-300, None, Ok(())),
            (-301, None, Err(Stale::TooOld)),
            (30, None, Ok(())),
            (31, None, Err(Stale::InFuture)),
            (0, Some(1), Ok(())),
            (0, Some(0), Err(Stale::TooOld)),
            (i64::MIN, None, Err(Stale::TooOld)),
            (i64::MAX - now_s, None, Err(Stale::InFuture)),
        ] {
            let at = |offset: i64| now_s.saturating_add(offset);
            let now_ms = u64::try_from(now_s).unwrap() * 1_000 + 999;
            assert_eq!(window.check(at(created), expires.map(at), now_ms), expected, "{created} {expires:?}");
        }
    }
}
