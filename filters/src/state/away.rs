//! What is decided while shared state cannot be asked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answer, Memory, Op};

/// What becomes of limits while shared state is away. Nonces are always refused then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitsWhenAway {
    /// They hold in each worker's own bounded memory, so that many workers together let more pass.
    #[default]
    Local,
    /// Requests that are limited are refused.
    Refuse,
}

/// Answers a batch without the shared state. What must be remembered for certain cannot be, so a batch that
/// remembers is refused as a whole; limits are counted in `local`, if the policy lets them.
pub fn away(batch: &[Op], limits: LimitsWhenAway, now_ms: u64, local: &mut Memory) -> Vec<Answer> {
    let all_away = || {
        let answer = |op: &Op| if op.binds() { Answer::Away } else { Answer::NotCounted };
        batch.iter().map(answer).collect::<Vec<_>>()
    };
    let certain = batch.iter().any(|op| matches!(op, Op::Remember { .. }));
    match limits {
        LimitsWhenAway::Local if !certain => {
            // What tenants use is counted in one place or not at all: nobody is billed twice.
            let counts = |op: &&Op| !matches!(op, Op::Tally { .. });
            let limits: Vec<Op> = batch.iter().filter(counts).cloned().collect();
            let Ok(answers) = local.run(&limits, now_ms) else { return all_away() };
            let mut answers = answers.into_iter();
            let answer = |op| if counts(&op) { answers.next() } else { Some(Answer::NotCounted) };
            batch.iter().map(answer).collect::<Option<_>>().unwrap_or_else(all_away)
        }
        LimitsWhenAway::Local | LimitsWhenAway::Refuse => all_away(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Mode, Rate, Usage};

    const T0: u64 = 1_700_000_000_000;

    fn take() -> Op {
        Op::Take { key: "k".into(), rate: Rate::new(1, 60_000, 1).unwrap(), cost: 1, mode: Mode::Enforce }
    }

    #[test]
    fn limits_fall_back_and_nonces_never() {
        let remember = Op::Remember {
            key: "n".into(),
            ttl_ms: 1_000,
            made_s: 1_700_000_000,
            ahead_s: 0,
            window_s: None,
        };
        for (limits, batch, expected) in [
            (LimitsWhenAway::Local, vec![take()], "Taken"),
            (LimitsWhenAway::Refuse, vec![take()], "Away"),
            (LimitsWhenAway::Local, vec![remember.clone()], "Away"),
            (LimitsWhenAway::Local, vec![take(), remember], "Away"),
        ] {
            let answers = away(&batch, limits, T0, &mut Memory::new(10, 0));
            assert_eq!(answers.len(), batch.len());
            assert!(
                answers.iter().all(|a| format!("{a:?}").starts_with(expected)),
                "{limits:?}: {answers:?}"
            );
        }
    }

    #[test]
    fn what_only_observes_refuses_nobody() {
        let shadow =
            Op::Take { key: "s".into(), rate: Rate::new(1, 60_000, 1).unwrap(), cost: 1, mode: Mode::Shadow };
        let tally = Op::Tally {
            key: "d".into(),
            tenant: "t".into(),
            usage: Usage::of_request(1),
            until_ms: u64::MAX,
        };
        let batch = [shadow, tally];
        let mut local = Memory::new(10, 0);
        let refuse = away(&batch, LimitsWhenAway::Refuse, T0, &mut local);
        assert_eq!(refuse, [Answer::NotCounted, Answer::NotCounted]);
        let first = away(&batch, LimitsWhenAway::Local, T0, &mut local);
        assert!(matches!(first[..], [Answer::Taken(_), Answer::NotCounted]), "{first:?}");
        assert_eq!(
            away(&batch, LimitsWhenAway::Local, T0, &mut local),
            [Answer::WouldRefuse, Answer::NotCounted]
        );
        assert_eq!(local.len(), 1, "usage is not counted here");
    }

    #[test]
    fn the_local_limit_limits_and_is_bounded() {
        let mut local = Memory::new(1, 0);
        assert!(matches!(away(&[take()], LimitsWhenAway::Local, T0, &mut local)[..], [Answer::Taken(_)]));
        assert!(matches!(
            away(&[take()], LimitsWhenAway::Local, T0, &mut local)[..],
            [Answer::Exhausted { .. }]
        ));
        let other = Op::Take {
            key: "other".into(),
            rate: Rate::new(1, 60_000, 1).unwrap(),
            cost: 1,
            mode: Mode::Enforce,
        };
        assert_eq!(away(&[other], LimitsWhenAway::Local, T0, &mut local), [Answer::Away]);
    }
}
