//! What a batch of requests means for payments that have been read; every engine decides with this, and writes
//! what comes of it.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::cells::Loaded;
use super::record::{self, Record};
use super::{Accepted, Applied, Apply, NewTxn};
use crate::txn::{Effect, Rules, TxnId, UnixMs, step};

/// What an idempotency key stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstUse {
    pub fingerprint: [u8; 32],
    pub txn_id: TxnId,
}

/// The answer to a request whose key is taken.
pub(super) fn again(new: &NewTxn, first: FirstUse) -> Accepted {
    if first.txn_id == new.txn.id {
        // Its own: the first try was committed, and the answer got lost on the way.
        Accepted::New
    } else if first.fingerprint == new.fingerprint {
        Accepted::Replayed(first.txn_id)
    } else {
        Accepted::KeyReused
    }
}

/// Where the rows of a decision are collected.
pub(super) trait Changes {
    /// A payment's next version; it may have several in one batch.
    fn change(&mut self, record: Record);

    /// A message about this payment that has now had its effect.
    fn take_in(&mut self, txn_id: TxnId, consumer: &'static str, message: &str, at: UnixMs);
}

/// Applies every input in turn to the payments as they were read, and gives an answer for each.
pub(super) fn apply_all(
    inputs: &[&Apply],
    txns: &mut HashMap<Uuid, Loaded>,
    seen: &mut HashSet<(String, String)>,
    rules: &Rules,
    changes: &mut impl Changes,
) -> Vec<Applied> {
    let mut answers = Vec::with_capacity(inputs.len());
    for input in inputs {
        let known = txns.get_mut(&input.txn_id.uuid()).filter(|loaded| loaded.txn.id == input.txn_id);
        let Some(loaded) = known else {
            answers.push(Applied::UnknownTxn);
            continue;
        };
        if let Some((consumer, message)) = &input.inbox {
            if !seen.insert(((*consumer).to_owned(), message.clone())) {
                answers.push(Applied::SeenBefore);
                continue;
            }
            changes.take_in(input.txn_id, consumer, message, input.at);
        }
        match step(&loaded.txn, &input.event, input.at, rules) {
            Ok(step) => {
                changes.change(record::stepped(&step, &input.event, input.at));
                loaded.txn = step.txn.clone();
                let cred_block =
                    if step.effects.contains(&Effect::Send) { loaded.cred_block.clone() } else { None };
                answers.push(Applied::Stepped { txn: Box::new(step.txn), effects: step.effects, cred_block });
            }
            Err(why) => {
                if let Some(record) = record::ignored(&loaded.txn, why, &input.event, input.at) {
                    loaded.txn = record.txn.clone();
                    changes.change(record);
                }
                answers.push(Applied::Ignored { txn: Box::new(loaded.txn.clone()), why });
            }
        }
    }
    answers
}
