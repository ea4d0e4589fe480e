//! What was called how often, for tests to read at the admin address.

use std::collections::BTreeMap;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Initiate,
    Status,
    Validate,
    CallbackAttempt,
}

#[derive(Debug, Default, Serialize)]
pub struct Calls {
    totals: BTreeMap<Call, u64>,
    transactions: BTreeMap<String, BTreeMap<Call, u64>>,
    /// How our callbacks were answered: HTTP status, or `none`.
    callback_answers: BTreeMap<String, u64>,
    /// Requests that were not the provider's, by code.
    refused: BTreeMap<String, u64>,
    /// Requests by the serial of the certificate that they came with.
    certificates: BTreeMap<String, u64>,
}

/// Serials that are counted; whoever renews more often is counted under those it had.
const CERTIFICATES: usize = 1_000;

impl Calls {
    pub fn count(&mut self, call: Call, txn_id: Option<&str>) {
        *self.totals.entry(call).or_default() += 1;
        if let Some(txn_id) = txn_id {
            *self.transactions.entry(txn_id.to_owned()).or_default().entry(call).or_default() += 1;
        }
    }

    pub fn callback_answered(&mut self, status: Option<u16>) {
        let answer = status.map_or("none".to_owned(), |status| status.to_string());
        *self.callback_answers.entry(answer).or_default() += 1;
    }

    pub fn refused(&mut self, code: &str) {
        *self.refused.entry(code.to_owned()).or_default() += 1;
    }

    pub fn came_with(&mut self, serial_hex: &str) {
        if let Some(count) = self.certificates.get_mut(serial_hex) {
            *count += 1;
        } else if self.certificates.len() < CERTIFICATES {
            self.certificates.insert(serial_hex.to_owned(), 1);
        }
    }

    pub fn of(&self, txn_id: &str, call: Call) -> u64 {
        self.transactions.get(txn_id).and_then(|calls| calls.get(&call)).copied().unwrap_or(0)
    }
}
