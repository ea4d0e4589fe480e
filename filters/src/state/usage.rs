//! What tenants use, by day, for whoever bills them.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What a tenant has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Requests that the edge let pass.
    pub requests: u64,
    /// What they cost.
    pub cost: u64,
    /// Requests that a limit, a quota or a nonce refused.
    pub refused: u64,
}

/// What each tenant has used, by its name.
pub type UsageByTenant = BTreeMap<String, Usage>;

impl Usage {
    /// Of one request that passes.
    pub fn of_request(cost: u32) -> Self {
        Self { requests: 1, cost: cost.into(), refused: 0 }
    }

    /// The same requests, had they been refused.
    #[must_use]
    pub fn refused(self) -> Self {
        Self { requests: 0, cost: 0, refused: self.requests.saturating_add(self.refused) }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.cost = self.cost.saturating_add(other.cost);
        self.refused = self.refused.saturating_add(other.refused);
    }
}
