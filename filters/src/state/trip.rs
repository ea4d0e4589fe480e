//! The one trip of a request to shared state: what is asked there, and what its answer means.

use super::{Answer, Batch, Counted, Full, LimitsWhenAway, Memory, Op, away};

/// Why shared state did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It has no room for what would have to be remembered.
    #[error("the shared state is full of what is still needed")]
    Full,
    /// It could not be asked, or gave no answer in time, or none that could be one.
    #[error("the shared state is away")]
    Away,
}

/// A batch on its way.
#[derive(Debug)]
pub struct Trip {
    batch: Batch,
    /// What was counted here has been answered already.
    here: Vec<Answer>,
    shared: Vec<Op>,
    /// Operations of requests that have left, sent along.
    released: Vec<Op>,
}

/// What came of a trip.
#[derive(Debug)]
pub struct Ended {
    pub answers: Result<Vec<Answer>, Full>,
    /// What was sent along and not heard: to be sent along with another.
    pub untold: Vec<Op>,
}

/// What becomes of a batch.
#[derive(Debug)]
pub enum Begun {
    /// Nothing needs the shared state: these are the answers.
    Answered(Result<Vec<Answer>, Full>),
    /// The shared state must be asked.
    Asking(Trip),
}

impl Trip {
    /// Counts what is counted here.
    pub fn begin(batch: Batch, now_ms: u64, local: &mut Memory) -> Begun {
        let ops = batch.counted(Counted::Here);
        let here = if ops.is_empty() { Ok(Vec::new()) } else { local.run(&ops, now_ms) };
        let here = match here {
            Ok(here) => here,
            Err(full) => return Begun::Answered(Err(full)),
        };
        let shared = batch.counted(Counted::Shared);
        if here.iter().any(Answer::refuses) || shared.is_empty() {
            return Begun::Answered(batch.refused_here(here).ok_or(Full));
        }
        Begun::Asking(Self { batch, here, shared, released: Vec::new() })
    }

    /// What to ask, after `releases`: places that others have left.
    pub fn ask(&mut self, releases: Vec<Op>) -> Vec<Op> {
        self.released = releases;
        self.released.iter().chain(&self.shared).cloned().collect()
    }

    /// Nobody will hear what the shared state says: what was sent along, which may not have arrived. Told twice it does no
    /// harm.
    pub fn abandon(self) -> Vec<Op> {
        self.released
    }

    /// What the shared state said, or, if it is away, what the policy says then.
    pub fn end(
        self,
        said: Result<Vec<Answer>, Unanswered>,
        limits: LimitsWhenAway,
        now_ms: u64,
        local: &mut Memory,
    ) -> Ended {
        let (shared, untold) = match said.map(|answers| self.ours(answers)) {
            Ok(Some(answers)) => (Ok(answers), Vec::new()),
            Ok(None) | Err(Unanswered::Away) => {
                (Ok(away(&self.shared, limits, now_ms, local)), self.released)
            }
            Err(Unanswered::Full) if self.shared.iter().any(Op::binds) => (Err(Full), self.released),
            Err(Unanswered::Full) => (Ok(vec![Answer::NotCounted; self.shared.len()]), self.released),
        };
        let answers = shared.and_then(|shared| self.batch.join(self.here, shared).ok_or(Full));
        Ended { answers, untold }
    }

    /// The answers to our own operations. Anything but as many answers as questions counts as no answer.
    fn ours(&self, mut answers: Vec<Answer>) -> Option<Vec<Answer>> {
        if answers.len() != self.released.len() + self.shared.len() {
            return None;
        }
        let ours = answers.split_off(self.released.len());
        let fit = self.shared.iter().zip(&ours).all(|(op, answer)| fits(op, answer));
        fit.then_some(ours)
    }
}

/// Whether an answer can be one to the operation.
fn fits(op: &Op, answer: &Answer) -> bool {
    match answer {
        Answer::Taken(_) | Answer::Exhausted { .. } => matches!(op, Op::Take { .. }),
        Answer::Spent(_) | Answer::Overspent(_) => matches!(op, Op::Spend { .. }),
        Answer::Remembered | Answer::Seen | Answer::TooOld => matches!(op, Op::Remember { .. }),
        Answer::Held(_) | Answer::Busy { .. } => matches!(op, Op::Hold { .. }),
        Answer::Released => matches!(op, Op::Release { .. }),
        Answer::Tallied => matches!(op, Op::Tally { .. }),
        Answer::WouldRefuse | Answer::NotCounted => !op.binds() && !matches!(op, Op::Release { .. }),
        Answer::Away | Answer::NotAsked => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Allowance, Mode, Place, Rate, Usage};

    const T0: u64 = 1_700_000_000_000;

    fn take(key: &str) -> Op {
        Op::Take { key: key.into(), rate: Rate::new(1, 60_000, 1).unwrap(), cost: 1, mode: Mode::Enforce }
    }

    fn nonce() -> Op {
        Op::Remember { key: "n".into(), ttl_ms: 1_000, made_s: 0, ahead_s: 0, window_s: None }
    }

    fn begin(ops: &[(Op, Counted)], local: &mut Memory) -> Begun {
        Trip::begin(ops.iter().cloned().collect(), T0, local)
    }

    #[test]
    fn what_is_counted_here_makes_no_trip() {
        let mut local = Memory::new(10, 0);
        let ops = [(take("a"), Counted::Here)];
        assert!(
            matches!(begin(&ops, &mut local), Begun::Answered(Ok(a)) if matches!(a[..], [Answer::Taken(_)]))
        );
        // Refused here, the nonce is not asked for, and so not burnt.
        let both = [(nonce(), Counted::Shared), (take("a"), Counted::Here)];
        let begun = begin(&both, &mut local);
        assert!(
            matches!(&begun, Begun::Answered(Ok(a)) if matches!(a[..], [Answer::NotAsked, Answer::Exhausted { .. }])),
            "{begun:?}"
        );
    }

    #[test]
    fn an_answer_counts_only_if_it_fits_the_question() {
        let release = Op::Release { key: "h".into(), place: Place { number: 0, until_us: 1 } };
        let taken = Answer::Taken(Allowance { remaining: 0, reset_ms: 1 });
        let away = vec![Answer::Away; 2];
        for (said, expected) in [
            (Ok(vec![Answer::Released, taken, Answer::Remembered]), vec![taken, Answer::Remembered]),
            (Ok(vec![Answer::Released, taken, Answer::Seen]), vec![taken, Answer::Seen]),
            (Ok(vec![taken, Answer::Remembered]), away.clone()),
            (Ok(vec![Answer::Released, Answer::Remembered, taken]), away.clone()),
            (Ok(vec![Answer::Released, taken, Answer::NotAsked]), away.clone()),
            (Ok(vec![]), away.clone()),
            (Err(Unanswered::Away), away),
        ] {
            let mut local = Memory::new(10, 0);
            let ops = [(take("a"), Counted::Shared), (nonce(), Counted::Shared)];
            let Begun::Asking(mut trip) = begin(&ops, &mut local) else { panic!() };
            assert_eq!(trip.ask(vec![release.clone()]), [release.clone(), take("a"), nonce()]);
            let ended = trip.end(said.clone(), LimitsWhenAway::Local, T0, &mut local);
            // What was sent along and not heard comes back.
            assert_eq!(ended.untold.is_empty(), expected[0] == taken, "{said:?}");
            assert_eq!(ended.answers, Ok(expected), "{said:?}");
        }
    }

    #[test]
    fn a_full_state_is_told_apart() {
        let mut local = Memory::new(10, 0);
        let Begun::Asking(trip) = begin(&[(nonce(), Counted::Shared)], &mut local) else { panic!() };
        assert_eq!(trip.end(Err(Unanswered::Full), LimitsWhenAway::Local, T0, &mut local).answers, Err(Full));
        // What refuses nobody does not refuse for want of room either.
        let tally =
            Op::Tally { key: "d".into(), tenant: "t".into(), usage: Usage::of_request(1), until_ms: T0 };
        let Begun::Asking(trip) = begin(&[(tally, Counted::Shared)], &mut local) else { panic!() };
        let ended = trip.end(Err(Unanswered::Full), LimitsWhenAway::Local, T0, &mut local);
        assert_eq!(ended.answers, Ok(vec![Answer::NotCounted]));
    }

    #[test]
    fn only_what_refuses_nobody_may_be_answered_so() {
        let take = |mode| Op::Take { key: "a".into(), rate: Rate::new(1, 60_000, 1).unwrap(), cost: 1, mode };
        for (op, fine) in [(take(Mode::Shadow), true), (take(Mode::Enforce), false), (nonce(), false)] {
            for said in [Answer::WouldRefuse, Answer::NotCounted] {
                assert_eq!(fits(&op, &said), fine, "{op:?} {said:?}");
            }
        }
    }

    #[test]
    fn away_limits_are_counted_here() {
        let mut local = Memory::new(10, 0);
        for expected in ["Taken", "Exhausted"] {
            let Begun::Asking(trip) = begin(&[(take("a"), Counted::Shared)], &mut local) else { panic!() };
            let ended = trip.end(Err(Unanswered::Away), LimitsWhenAway::Local, T0, &mut local);
            let answers = ended.answers.unwrap();
            assert!(format!("{:?}", answers[0]).starts_with(expected), "{answers:?}");
        }
    }
}
