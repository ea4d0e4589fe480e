//! Counters among Envoy's own.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::envoy::Envoy;

/// Each is asked for when it first counts. Their names are made of what the policy and its file of flags name, and of
/// statuses, so there are only so many.
#[derive(Debug, Default)]
pub struct Counters(RefCell<HashMap<String, u32>>);

impl Counters {
    pub fn count(&self, name: String, envoy: &dyn Envoy) {
        let mut known = self.0.borrow_mut();
        if let Some(counter) = known.get(&name).copied().or_else(|| envoy.counter(&name)) {
            envoy.count(counter);
            known.insert(name, counter);
        }
    }
}
