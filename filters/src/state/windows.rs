//! For how long signed requests count, and since when what was taken is remembered as long.
//!
//! What is taken is remembered for as long as any route of the policy would take it. When requests come to count longer,
//! what was taken until then is forgotten too early: it is refused as soon as it is so old that it may be. The script in
//! Redis does the same.

/// The windows that requests were remembered for, in seconds, and in which second of Unix time each was used last. A list:
/// Envoy's module has this too, and maps are code.
#[derive(Debug, Default)]
pub struct Windows {
    used: Vec<(u64, i64)>,
}

/// The most that a request's clock may be ahead of ours, for any policy.
const SKEW_S: i64 = 300;
/// Longer than a request counts, for any policy.
const KEPT_S: i64 = 4_000;

impl Windows {
    /// Whether a request that was made at `made_s`, and counts for `window_s`, may have been taken before and be
    /// forgotten.
    pub(super) fn may_have_forgotten(&self, window_s: u64, made_s: i64, now_s: i64) -> bool {
        let age_s = now_s.saturating_sub(made_s);
        self.used.iter().any(|(narrower_s, last_s)| {
            *narrower_s < window_s
                && made_s <= last_s.saturating_add(SKEW_S)
                && age_s > i64::try_from(*narrower_s).unwrap_or(i64::MAX)
        })
    }

    /// Something is remembered for that window.
    pub(super) fn note(&mut self, window_s: u64, now_s: i64) {
        match self.used.iter_mut().find(|(known_s, _)| *known_s == window_s) {
            Some((_, last_s)) => *last_s = (*last_s).max(now_s),
            None => self.used.push((window_s, now_s)),
        }
        self.used.retain(|(_, last_s)| last_s.saturating_add(KEPT_S) >= now_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000;

    /// What was remembered, `(window, when)`, and of a request, `(window, when it was made, now)`, whether it may be
    /// forgotten; times are seconds after [`T0`].
    fn check(noted: &[(u64, i64)], (window_s, made, now): (u64, i64, i64), expected: bool) {
        let mut windows = Windows::default();
        for (window_s, at) in noted {
            windows.note(*window_s, T0 + at);
        }
        let forgotten = windows.may_have_forgotten(window_s, T0 + made, T0 + now);
        assert_eq!(forgotten, expected, "{noted:?}: {window_s} made {made} at {now}");
    }

    #[test]
    fn what_may_be_forgotten_is_known_by_its_age() {
        let narrow: &[_] = &[(100, 0)];
        for (noted, asked, expected) in [
            (&[] as &[_], (300, 0, 299), false),
            // As long as before, or shorter.
            (narrow, (100, 0, 100), false),
            (narrow, (100, 0, 120), false),
            (narrow, (50, 0, 50), false),
            // Longer: what the narrow one would have taken it remembers, what is older it does not.
            (narrow, (300, 0, 100), false),
            (narrow, (300, 0, 101), true),
            (narrow, (300, -150, 1), true),
            // A sender's clock may have been ahead; later nothing was taken for the narrow one.
            (narrow, (300, 300, 401), true),
            (narrow, (300, 301, 402), false),
            // Policies of both kinds serve for a while.
            (&[(100, 0), (300, 5), (100, 50)], (300, 350, 451), true),
            (&[(100, 0), (300, 5), (100, 50)], (300, 351, 452), false),
            (&[(100, 0), (200, 5)], (300, 5, 150), true),
            (&[(200, 0), (100, 5)], (200, 5, 150), true),
            // A clock that steps back takes nothing back.
            (&[(100, 50), (100, 0)], (300, 350, 451), true),
            // At last nobody could present it any more.
            (&[(100, 0), (300, 4_000)], (300, 300, 401), true),
            (&[(100, 0), (300, 4_001)], (300, 300, 401), false),
        ] {
            check(noted, asked, expected);
        }
    }
}
