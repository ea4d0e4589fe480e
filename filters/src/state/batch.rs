//! What one request asks of state, for data planes that keep part of it themselves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answer, Op};

/// Where a limit is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Once for the whole edge, in the shared state: exact, and a trip there for each request.
    #[default]
    Shared,
    /// In each gateway and each of Envoy's workers apart: no trip, but so many workers let so many times more
    /// pass. For what protects a machine rather than a promise.
    Here,
}

/// The operations of one request, in the order of its filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(Vec<(Op, Counted)>);

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every operation, for a data plane that has one memory for all.
    pub fn all(&self) -> Vec<Op> {
        self.0.iter().map(|(op, _)| op.clone()).collect()
    }

    /// The operations that are counted in one of the places.
    pub fn counted(&self, place: Counted) -> Vec<Op> {
        self.0.iter().filter(|(_, counted)| *counted == place).map(|(op, _)| op.clone()).collect()
    }

    /// The answers of both places in the order of the batch; `None` when there are not as many as operations.
    pub fn join(&self, here: Vec<Answer>, shared: Vec<Answer>) -> Option<Vec<Answer>> {
        let (mut here, mut shared) = (here.into_iter(), shared.into_iter());
        let joined: Option<Vec<Answer>> = self
            .0
            .iter()
            .map(|(_, counted)| match counted {
                Counted::Here => here.next(),
                Counted::Shared => shared.next(),
            })
            .collect();
        joined.filter(|_| here.next().is_none() && shared.next().is_none())
    }

    /// The answers when what is counted here refuses, so that the shared state is not asked.
    pub fn refused_here(&self, here: Vec<Answer>) -> Option<Vec<Answer>> {
        let shared = self.0.iter().filter(|(_, counted)| *counted == Counted::Shared).count();
        self.join(here, vec![Answer::NotAsked; shared])
    }
}

impl FromIterator<(Op, Counted)> for Batch {
    fn from_iter<I: IntoIterator<Item = (Op, Counted)>>(ops: I) -> Self {
        Self(ops.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_in_the_order_of_the_questions() {
        let op =
            |key: &str| Op::Remember { key: key.into(), ttl_ms: 1, made_s: 0, ahead_s: 0, window_s: None };
        let batch: Batch = [(op("a"), Counted::Shared), (op("b"), Counted::Here), (op("c"), Counted::Shared)]
            .into_iter()
            .collect();
        assert_eq!(batch.all(), [op("a"), op("b"), op("c")]);
        assert_eq!(batch.counted(Counted::Here), [op("b")]);
        assert_eq!(batch.counted(Counted::Shared), [op("a"), op("c")]);
        let (here, shared) = (vec![Answer::Seen], vec![Answer::Remembered, Answer::Away]);
        let joined = Some(vec![Answer::Remembered, Answer::Seen, Answer::Away]);
        assert_eq!(batch.join(here.clone(), shared.clone()), joined);
        let refused = Some(vec![Answer::NotAsked, Answer::Seen, Answer::NotAsked]);
        assert_eq!(batch.refused_here(here.clone()), refused);
        for (here, shared) in [
            (vec![], shared.clone()),
            (here.clone(), vec![]),
            (vec![Answer::Seen; 2], shared),
            (here, vec![Answer::Seen; 3]),
        ] {
            assert_eq!(batch.join(here, shared), None);
        }
    }
}
