//! The one trip to shared state: what is sent and what its answer means.

use filters::state::{Answer, Batch, Counted, Full, LimitsWhenAway, Memory, Op, away};

use crate::envoy::Answered;

/// Where a batch is sent.
pub const PATH: &str = "/v1/state";

/// A batch on its way.
#[derive(Debug)]
pub struct Trip {
    batch: Batch,
    /// What was counted here has been answered already.
    here: Vec<Answer>,
    shared: Vec<Op>,
    /// Operations of requests that have left, sent along.
    released: usize,
}

/// What becomes of a batch.
#[derive(Debug)]
pub enum Begun {
    /// Nothing needs the shared state: these are the answers.
    Answered(Result<Vec<Answer>, Full>),
    /// The body to send, and what to do with the answer.
    Trip(Vec<u8>, Trip),
}

impl Trip {
    /// Counts what is counted here, and writes down the rest, with places that others have left.
    pub fn begin(batch: Batch, releases: Vec<Op>, now_ms: u64, local: &mut Memory) -> Begun {
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
        let released = releases.len();
        let sent: Vec<&Op> = releases.iter().chain(&shared).collect();
        match serde_json::to_vec(&sent) {
            Ok(body) => Begun::Trip(body, Self { batch, here, shared, released }),
            // Strings and numbers always serialize; if they did not, nobody could be asked.
            Err(_) => Begun::Answered(batch.join(here, vec![Answer::Away; shared.len()]).ok_or(Full)),
        }
    }

    /// What the state service said, or, if it is away, what the policy says then.
    pub fn end(
        self,
        answered: &Answered,
        limits: LimitsWhenAway,
        now_ms: u64,
        local: &mut Memory,
    ) -> Result<Vec<Answer>, Full> {
        if answered.status == Some(507) {
            return Err(Full);
        }
        let shared = self.read(answered).unwrap_or_else(|| away(&self.shared, limits, now_ms, local));
        self.batch.join(self.here, shared).ok_or(Full)
    }

    /// The answers to our own operations. Anything but as many answers as questions counts as no answer.
    fn read(&self, answered: &Answered) -> Option<Vec<Answer>> {
        if answered.status != Some(200) {
            return None;
        }
        let mut answers: Vec<Answer> = serde_json::from_slice(&answered.body).ok()?;
        if answers.len() != self.released + self.shared.len() {
            return None;
        }
        let ours = answers.split_off(self.released);
        let fit = self.shared.iter().zip(&ours).all(|(op, answer)| fits(op, answer));
        fit.then_some(ours)
    }
}

/// Whether an answer can be one to the operation.
fn fits(op: &Op, answer: &Answer) -> bool {
    match answer {
        Answer::Taken(_) | Answer::Exhausted { .. } => matches!(op, Op::Take { .. }),
        Answer::Remembered | Answer::Seen | Answer::TooOld => matches!(op, Op::Remember { .. }),
        Answer::Held(_) | Answer::Busy { .. } => matches!(op, Op::Hold { .. }),
        Answer::Released => matches!(op, Op::Release { .. }),
        Answer::Away | Answer::NotAsked => false,
    }
}

#[cfg(test)]
mod tests {
    use filters::state::{Place, Rate};

    use super::*;

    const T0: u64 = 1_700_000_000_000;

    fn take(key: &str) -> Op {
        Op::Take { key: key.into(), rate: Rate::new(1, 60_000, 1).unwrap(), cost: 1 }
    }

    fn nonce() -> Op {
        Op::Remember { key: "n".into(), ttl_ms: 1_000, made_s: 0 }
    }

    fn begin(ops: &[(Op, Counted)], releases: Vec<Op>, local: &mut Memory) -> Begun {
        Trip::begin(ops.iter().cloned().collect(), releases, T0, local)
    }

    #[test]
    fn what_is_counted_here_makes_no_trip() {
        let mut local = Memory::new(10, 0);
        let ops = [(take("a"), Counted::Here)];
        assert!(
            matches!(begin(&ops, vec![], &mut local), Begun::Answered(Ok(a)) if matches!(a[..], [Answer::Taken(_)]))
        );
        // Refused here, the nonce is not asked for, and so not burnt.
        let both = [(nonce(), Counted::Shared), (take("a"), Counted::Here)];
        let begun = begin(&both, vec![], &mut local);
        assert!(
            matches!(&begun, Begun::Answered(Ok(a)) if matches!(a[..], [Answer::NotAsked, Answer::Exhausted { .. }])),
            "{begun:?}"
        );
    }

    #[test]
    fn an_answer_counts_only_if_it_fits_the_question() {
        let release = Op::Release { key: "h".into(), place: Place { number: 0, until_us: 1 } };
        let taken = r#"{"taken":{"remaining":0,"reset_ms":1}}"#;
        for (status, body, expected) in [
            (
                Some(200),
                format!("[\"released\",{taken},\"remembered\"]"),
                "[Taken(Allowance { remaining: 0, reset_ms: 1 }), Remembered]",
            ),
            (
                Some(200),
                format!("[\"released\",{taken},\"seen\"]"),
                "[Taken(Allowance { remaining: 0, reset_ms: 1 }), Seen]",
            ),
            (Some(200), format!("[{taken},\"remembered\"]"), "[Away, Away]"),
            (Some(200), format!("[\"released\",\"remembered\",{taken}]"), "[Away, Away]"),
            (Some(200), format!("[\"released\",{taken},\"not_asked\"]"), "[Away, Away]"),
            (Some(200), "<html>".into(), "[Away, Away]"),
            (Some(200), String::new(), "[Away, Away]"),
            (Some(500), format!("[\"released\",{taken},\"remembered\"]"), "[Away, Away]"),
            (None, String::new(), "[Away, Away]"),
        ] {
            let mut local = Memory::new(10, 0);
            let ops = [(take("a"), Counted::Shared), (nonce(), Counted::Shared)];
            let Begun::Trip(sent, trip) = begin(&ops, vec![release.clone()], &mut local) else { panic!() };
            let sent: Vec<Op> = serde_json::from_slice(&sent).unwrap();
            assert_eq!(sent, [release.clone(), take("a"), nonce()]);
            let answered = Answered { status, etag: None, body: body.clone().into_bytes() };
            let answers = trip.end(&answered, LimitsWhenAway::Local, T0, &mut local).unwrap();
            assert_eq!(format!("{answers:?}"), expected, "{status:?} {body}");
        }
    }

    #[test]
    fn a_full_state_is_told_apart() {
        let mut local = Memory::new(10, 0);
        let Begun::Trip(_, trip) = begin(&[(nonce(), Counted::Shared)], vec![], &mut local) else { panic!() };
        let answered = Answered { status: Some(507), ..Answered::default() };
        assert_eq!(trip.end(&answered, LimitsWhenAway::Local, T0, &mut local), Err(Full));
    }

    #[test]
    fn away_limits_are_counted_here() {
        let mut local = Memory::new(10, 0);
        for expected in ["Taken", "Exhausted"] {
            let Begun::Trip(_, trip) = begin(&[(take("a"), Counted::Shared)], vec![], &mut local) else {
                panic!()
            };
            let answers = trip.end(&Answered::default(), LimitsWhenAway::Local, T0, &mut local).unwrap();
            assert!(format!("{:?}", answers[0]).starts_with(expected), "{answers:?}");
        }
    }
}
