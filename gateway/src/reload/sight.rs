//! When a file is to be tried: what looks at it have seen.

/// Looks after which a refused file is tried again as it is: what it refers to may have come.
const LOOKS_TO_A_RETRY: u32 = 20;

/// What looks at the file have seen.
#[derive(Debug)]
pub(super) struct Sight {
    serving: String,
    /// Of the last look.
    last: Option<String>,
    /// What was tried last and refused, and the looks since.
    refused: Option<(Option<String>, u32)>,
    /// What serves was tried again, and is refused by now.
    in_vain: bool,
}

impl Sight {
    pub(super) fn new(serving: String) -> Self {
        Self { last: Some(serving.clone()), serving, refused: None, in_vain: false }
    }

    /// Notes what the file is now, `None` when it cannot be read, and tells whether it is to be tried.
    pub(super) fn look(&mut self, found: Option<String>) -> bool {
        let stands_still = self.last == found;
        self.last = found;
        self.in_vain &= stands_still;
        if self.is_settled() {
            self.refused = None;
        }
        if self.is_settled() || !stands_still {
            return false;
        }
        match &mut self.refused {
            Some((refused, looks)) if *refused == self.last => {
                *looks += 1;
                looks.is_multiple_of(LOOKS_TO_A_RETRY)
            }
            Some(_) | None => true,
        }
    }

    pub(super) fn tried(&mut self, serving: &str, taken: bool) {
        serving.clone_into(&mut self.serving);
        self.in_vain = !taken && self.last.as_deref() == Some(serving);
        self.refused = (!taken).then(|| match self.refused.take() {
            Some((refused, looks)) if refused == self.last => (refused, looks),
            Some(_) | None => (self.last.clone(), 0),
        });
    }

    /// Whether the file is what serves.
    pub(super) fn is_settled(&self) -> bool {
        !self.in_vain && self.last.as_deref() == Some(self.serving.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks one after the other: what each finds, and whether it is tried; what is tried is taken if it is `good…`.
    fn check(looks: &[(&str, bool)]) {
        let mut sight = Sight::new("first".to_owned());
        for (position, (found, due)) in looks.iter().enumerate() {
            let found = (*found != "nothing").then(|| (*found).to_owned());
            assert_eq!(sight.look(found.clone()), *due, "look {position} of {looks:?}");
            if *due {
                let good = found.filter(|found| found.starts_with("good"));
                let serving = good.clone().unwrap_or_else(|| sight.serving.clone());
                sight.tried(&serving, good.is_some());
            }
        }
    }

    #[test]
    fn a_file_is_tried_when_it_stands_still_and_is_another() {
        check(&[("first", false), ("first", false)]);
        check(&[("good", false), ("good", true), ("good", false), ("good", false)]);
        check(&[("half", false), ("good", false), ("good", true), ("good", false)]);
        check(&[("bad", false), ("bad", true), ("bad", false), ("first", false), ("first", false)]);
        check(&[("bad", false), ("bad", true), ("first", false), ("bad", false), ("bad", true)]);
        check(&[("nothing", false), ("nothing", true), ("nothing", false), ("good", false), ("good", true)]);
        check(&[("bad", false), ("bad", true), ("good", false), ("good", true), ("good", false)]);
    }

    /// What serves could not take over again: that is told, and tried, until it could.
    #[test]
    fn what_was_asked_for_in_vain_is_not_forgotten() {
        let mut sight = Sight::new("good".to_owned());
        let good = || Some("good".to_owned());
        assert!(!sight.look(good()));
        sight.tried("good", false);
        for _ in 1..LOOKS_TO_A_RETRY {
            assert!(!sight.look(good()) && !sight.is_settled());
        }
        assert!(sight.look(good()), "tried again");
        sight.tried("good", true);
        assert!(!sight.look(good()) && sight.is_settled());
    }

    #[test]
    fn what_is_refused_is_tried_again_now_and_then() {
        let mut looks = vec![("bad", false), ("bad", true)];
        for _ in 0..3 {
            looks.extend(vec![("bad", false); LOOKS_TO_A_RETRY as usize - 1]);
            looks.push(("bad", true));
        }
        check(&looks);
    }
}
