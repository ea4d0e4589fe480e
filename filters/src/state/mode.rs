//! Whether a limit holds already.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a limit does to a request that is beyond it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It refuses the request.
    #[default]
    Enforce,
    /// It lets it pass, and counts as if it had not: the access log and a metric tell what it would have refused. For a
    /// limit that is new, until it is known whom it would hit.
    Shadow,
}

impl Mode {
    pub fn enforces(&self) -> bool {
        match self {
            Self::Enforce => true,
            Self::Shadow => false,
        }
    }
}
