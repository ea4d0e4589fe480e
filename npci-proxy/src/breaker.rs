//! The circuit breaker: decides whether a call may go out. Pure; time is an argument.

use serde::Deserialize;

/// When the breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before one probe may pass.
    pub open_ms: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { failures: 3, open_ms: 10_000 }
    }
}

#[derive(Debug)]
pub struct Breaker {
    rules: Rules,
    state: State,
    // Answers of calls admitted before the last change of state say nothing about the present one.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed { failures: u32 },
    Open { until_ms: i64 },
    HalfOpen { probing: bool },
}

/// A call that was let through; give it back with [`Breaker::settle`], whatever became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub retry_after_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The network answered, whatever it said.
    Success,
    /// It could not be reached, did not answer in time, or what answered was not the network.
    Failure,
    /// The caller went away before there was an answer.
    Abandoned,
}

impl Breaker {
    pub fn new(rules: Rules) -> Self {
        Breaker { rules, state: State::Closed { failures: 0 }, generation: 0 }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn admit(&mut self, now_ms: i64) -> Result<Ticket, Refused> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until_ms } if now_ms < until_ms => {
                return Err(Refused { retry_after_ms: until_ms - now_ms });
            }
            State::Open { .. } | State::HalfOpen { probing: false } => {
                self.go(State::HalfOpen { probing: true })
            }
            State::HalfOpen { probing: true } => return Err(Refused { retry_after_ms: 1_000 }),
        }
        Ok(Ticket { generation: self.generation })
    }

    pub fn settle(&mut self, now_ms: i64, ticket: Ticket, result: CallResult) {
        if ticket.generation != self.generation {
            return;
        }
        let open = State::Open { until_ms: now_ms.saturating_add(self.rules.open_ms) };
        match (self.state, result) {
            (State::Closed { .. }, CallResult::Success) => self.state = State::Closed { failures: 0 },
            (State::Closed { failures }, CallResult::Failure) if failures + 1 < self.rules.failures => {
                self.state = State::Closed { failures: failures + 1 };
            }
            (State::Closed { .. } | State::HalfOpen { .. }, CallResult::Failure) => self.go(open),
            (State::HalfOpen { .. }, CallResult::Success) => self.go(State::Closed { failures: 0 }),
            (State::HalfOpen { .. }, CallResult::Abandoned) => self.go(State::HalfOpen { probing: false }),
            (State::Closed { .. }, CallResult::Abandoned) | (State::Open { .. }, _) => {}
        }
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{CallResult::*, *};

    enum Step {
        /// At this time a call is admitted and ends so.
        Call(i64, CallResult),
        /// At this time a call is refused, to be tried again after so many milliseconds.
        Refuse(i64, i64),
        /// The state is this.
        Is(State),
    }
    use Step::*;

    fn check(name: &str, steps: &[Step]) {
        let mut breaker = Breaker::new(Rules::default());
        for (index, step) in steps.iter().enumerate() {
            match *step {
                Call(now_ms, result) => {
                    let ticket =
                        breaker.admit(now_ms).unwrap_or_else(|_| panic!("{name}, step {index}: refused"));
                    breaker.settle(now_ms, ticket, result);
                }
                Refuse(now_ms, retry_after_ms) => {
                    assert_eq!(
                        breaker.admit(now_ms),
                        Err(Refused { retry_after_ms }),
                        "{name}, step {index}"
                    );
                }
                Is(state) => assert_eq!(breaker.state(), state, "{name}, step {index}"),
            }
        }
    }

    #[test]
    fn the_table() {
        let closed = State::Closed { failures: 0 };
        check(
            "stays closed",
            &[Call(0, Success), Call(1, Failure), Call(2, Failure), Is(State::Closed { failures: 2 })],
        );
        check(
            "a success starts the count again",
            &[Call(0, Failure), Call(1, Failure), Call(2, Success), Call(3, Failure), Call(4, Failure)],
        );
        check(
            "the third failure in a row opens it for ten seconds",
            &[
                Call(0, Failure),
                Call(1, Failure),
                Call(2, Failure),
                Is(State::Open { until_ms: 10_002 }),
                Refuse(3, 9_999),
                Refuse(10_001, 1),
            ],
        );
        let opened = [Call(0, Failure), Call(0, Failure), Call(0, Failure)];
        check(
            "a probe that succeeds closes it",
            &opened
                .into_iter()
                .chain([Call(10_000, Success), Is(closed), Call(10_001, Success)])
                .collect::<Vec<_>>(),
        );
        let opened = [Call(0, Failure), Call(0, Failure), Call(0, Failure)];
        check(
            "a probe that fails opens it again",
            &opened
                .into_iter()
                .chain([Call(10_000, Failure), Is(State::Open { until_ms: 20_000 }), Refuse(10_001, 9_999)])
                .collect::<Vec<_>>(),
        );
        let opened = [Call(0, Failure), Call(0, Failure), Call(0, Failure)];
        check(
            "an abandoned probe makes room for another",
            &opened
                .into_iter()
                .chain([
                    Call(10_000, Abandoned),
                    Is(State::HalfOpen { probing: false }),
                    Call(10_001, Success),
                    Is(closed),
                ])
                .collect::<Vec<_>>(),
        );
    }

    #[test]
    fn half_open_lets_one_probe_through() {
        let mut breaker = Breaker::new(Rules { failures: 1, open_ms: 10 });
        let ticket = breaker.admit(0).unwrap();
        breaker.settle(0, ticket, Failure);
        let probe = breaker.admit(10).unwrap();
        assert!(breaker.admit(10).is_err());
        breaker.settle(11, probe, Success);
        assert!(breaker.admit(11).is_ok() && breaker.admit(11).is_ok());
    }

    #[test]
    fn late_answers_of_an_earlier_state_count_for_nothing() {
        let mut breaker = Breaker::new(Rules { failures: 1, open_ms: 10 });
        let (slow_failure, slow_success, quick) =
            (breaker.admit(0).unwrap(), breaker.admit(0).unwrap(), breaker.admit(0).unwrap());
        breaker.settle(0, quick, Failure);
        breaker.settle(5, slow_success, Success);
        assert_eq!(breaker.state(), State::Open { until_ms: 10 });
        let probe = breaker.admit(10).unwrap();
        breaker.settle(11, slow_failure, Failure);
        assert_eq!(breaker.state(), State::HalfOpen { probing: true });
        breaker.settle(12, probe, Success);
        assert_eq!(breaker.state(), State::Closed { failures: 0 });
    }
}
