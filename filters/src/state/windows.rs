//! How long requests count, route by route, and since when what was taken is remembered as long.
//!
//! What a route takes is remembered for as long as such a request counts there. When it comes to count longer, what was
//! taken until then is forgotten too early: it is refused as soon as it is so old that it may be. So is what was taken by
//! whoever served the path before a route that is new. The script in Redis does the same.

use serde::{Deserialize, Serialize};

/// How long requests count at a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub route: String,
    /// Seconds after it was made; so long, at least, it is remembered.
    pub window_s: u64,
}

/// When each route last remembered something, by the window that it was remembered for. Lists in order: Envoy's module
/// has this too, and maps are code.
#[derive(Debug, Default)]
pub struct Windows {
    by_route: Vec<(String, Used)>,
}

/// Seconds of a window, and in which second of Unix time it was used last.
type Used = Vec<(u64, i64)>;

/// The most that a request's clock may be ahead of ours, for any policy.
const SKEW_S: i64 = 300;
/// Longer than a request counts, for any policy.
const KEPT_S: i64 = 4_000;
/// Most routes to know of; any other is taken for new each time.
const MOST_ROUTES: usize = 1_000;

impl Windows {
    /// Whether a request that was made at `made_s` may have been taken before, and be forgotten.
    pub(super) fn may_have_forgotten(&self, window: &Window, made_s: i64, now_s: i64) -> bool {
        let known = self.find(&window.route).ok();
        let asked = match known.and_then(|at| self.by_route.get(at)) {
            Some(one) => std::slice::from_ref(one),
            None => &self.by_route,
        };
        asked.iter().flat_map(|(_, used)| used).any(|(window_s, last_s)| {
            let age_s = now_s.saturating_sub(made_s);
            let narrower = *window_s < window.window_s;
            narrower
                && made_s <= last_s.saturating_add(SKEW_S)
                && age_s > i64::try_from(*window_s).unwrap_or(i64::MAX)
        })
    }

    /// Something is remembered for that window.
    pub(super) fn note(&mut self, window: &Window, now_s: i64) {
        let at = match self.find(&window.route) {
            Ok(at) => at,
            Err(_) if self.by_route.len() >= MOST_ROUTES => return,
            Err(at) => {
                let mut all = Used::new();
                for (window_s, last_s) in self.by_route.iter().flat_map(|(_, used)| used) {
                    use_last(&mut all, *window_s, *last_s);
                }
                self.by_route.insert(at, (window.route.clone(), all));
                at
            }
        };
        let Some((_, used)) = self.by_route.get_mut(at) else { return };
        use_last(used, window.window_s, now_s);
        used.retain(|(_, last_s)| last_s.saturating_add(KEPT_S) >= now_s);
    }

    fn find(&self, route: &str) -> Result<usize, usize> {
        self.by_route.binary_search_by(|(known, _)| known.as_str().cmp(route))
    }
}

fn use_last(used: &mut Used, window_s: u64, at_s: i64) {
    match used.iter_mut().find(|(known_s, _)| *known_s == window_s) {
        Some((_, last_s)) => *last_s = (*last_s).max(at_s),
        None => used.push((window_s, at_s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000;

    /// What was remembered, `(route, window, when)`, and of a request, `(route, window, when it was made, now)`, whether it
    /// may be forgotten; times are seconds after [`T0`].
    fn check(
        noted: &[(&str, u64, i64)],
        (route, window_s, made, now): (&str, u64, i64, i64),
        expected: bool,
    ) {
        let window = |route: &str, window_s| Window { route: route.to_owned(), window_s };
        let mut windows = Windows::default();
        for (route, window_s, at) in noted {
            windows.note(&window(route, *window_s), T0 + at);
        }
        let forgotten = windows.may_have_forgotten(&window(route, window_s), T0 + made, T0 + now);
        assert_eq!(forgotten, expected, "{noted:?}: {route} {window_s} made {made} at {now}");
    }

    #[test]
    fn what_may_be_forgotten_is_known_by_its_age() {
        let narrow: &[_] = &[("r", 100, 0)];
        for (noted, asked, expected) in [
            (&[] as &[_], ("r", 300, 0, 299), false),
            // As long as before, or shorter.
            (narrow, ("r", 100, 0, 100), false),
            (narrow, ("r", 100, 0, 120), false),
            (narrow, ("r", 50, 0, 50), false),
            // Longer: what the narrow one would have taken it remembers, what is older it does not.
            (narrow, ("r", 300, 0, 100), false),
            (narrow, ("r", 300, 0, 101), true),
            (narrow, ("r", 300, -150, 1), true),
            // A sender's clock may have been ahead; later nothing was taken for the narrow one.
            (narrow, ("r", 300, 300, 401), true),
            (narrow, ("r", 300, 301, 402), false),
            // Policies of both kinds serve for a while.
            (&[("r", 100, 0), ("r", 300, 5), ("r", 100, 50)], ("r", 300, 350, 451), true),
            (&[("r", 100, 0), ("r", 300, 5), ("r", 100, 50)], ("r", 300, 351, 452), false),
            (&[("r", 100, 0), ("r", 200, 5)], ("r", 300, 5, 150), true),
            (&[("r", 200, 0), ("r", 100, 5)], ("r", 200, 5, 150), true),
            // A clock that steps back takes nothing back.
            (&[("r", 100, 50), ("r", 100, 0)], ("r", 300, 350, 451), true),
            // Routes beside each other have windows of their own.
            (&[("wide", 300, 0), ("r", 100, 5)], ("wide", 300, 5, 150), false),
            // One that is new may have the path of one that was there.
            (narrow, ("new", 300, 0, 101), true),
            (narrow, ("new", 300, 0, 100), false),
            (narrow, ("new", 100, 0, 101), false),
            (&[("r", 100, 0), ("new", 300, 5)], ("new", 300, 0, 101), true),
            (&[("r", 100, 0), ("new", 300, 5), ("r", 100, 900)], ("new", 300, 800, 901), false),
            // At last nobody could present it any more.
            (&[("r", 100, 0), ("r", 300, 4_000)], ("r", 300, 300, 401), true),
            (&[("r", 100, 0), ("r", 300, 4_001)], ("r", 300, 300, 401), false),
        ] {
            check(noted, asked, expected);
        }
    }

    #[test]
    fn routes_beyond_the_most_are_new_each_time() {
        let mut windows = Windows::default();
        let window = |number: usize, window_s| Window { route: number.to_string(), window_s };
        (0..=MOST_ROUTES).for_each(|number| windows.note(&window(number, 100), T0));
        assert_eq!(windows.by_route.len(), MOST_ROUTES);
        windows.note(&window(MOST_ROUTES, 300), T0 + 1_000);
        assert!(windows.may_have_forgotten(&window(MOST_ROUTES, 300), T0, T0 + 101));
        assert!(!windows.may_have_forgotten(&window(MOST_ROUTES, 100), T0, T0 + 101));
    }
}
