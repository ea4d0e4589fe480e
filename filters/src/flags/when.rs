//! What holds while a flag says so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Flags;
use super::definition::is_name;
use crate::filter::{Context, Host, Request};
use crate::policy::{At, unknown};

/// A feature flag and what it must say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The flag's key in the file of `flags`.
    pub flag: String,
    /// Its variants for which this holds.
    pub is: Vec<String>,
    /// The variant that counts while the flag says none: it is DISABLED, says none of this request, or cannot be
    /// evaluated. Absent: what the flag would open stays closed, and a limit holds.
    pub default: Option<String>,
}

/// That a policy counts on a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagUse {
    /// With the place of what counts on it.
    pub flag: At<String>,
    /// The variants that it must have.
    pub variants: Vec<String>,
}

impl When {
    /// Whether the flag says so of the request; `None` where it says nothing.
    pub(crate) fn holds(
        &self,
        request: &Request<'_>,
        host: &dyn Host,
        context: &mut Context,
    ) -> Option<bool> {
        let said = context.flag(&self.flag, request, host).variant;
        let counts = said.as_deref().or(self.default.as_deref())?;
        Some(self.is.iter().any(|variant| variant == counts))
    }

    /// What is wrong with it whatever the flags are.
    pub(crate) fn mistake(&self) -> Option<String> {
        let Self { flag, is, default } = self;
        if is.is_empty() {
            return Some(format!("flag `{flag}`: `is` needs one variant at least"));
        }
        let names = is.iter().chain(default).chain([flag]);
        let wrong = names.into_iter().find(|name| !is_name(name));
        wrong.map(|name| format!("`{name}` cannot be the name of a flag or a variant"))
    }

    /// In words, for those who compare.
    pub(crate) fn meaning(&self) -> String {
        let default = self.default.as_ref().map(|default| format!(", else {default}")).unwrap_or_default();
        format!("while {} is {}{default}", self.flag, self.is.join(" or "))
    }

    pub(crate) fn used(&self) -> (String, Vec<String>) {
        (self.flag.clone(), self.is.iter().chain(&self.default).cloned().collect())
    }
}

impl FlagUse {
    pub(super) fn missing_in(&self, flags: &Flags) -> Option<String> {
        let name = &self.flag.value;
        let Some(flag) = flags.get(name) else {
            return Some(unknown("flag", name, flags.iter().map(|(key, _)| key)));
        };
        let variant = self.variants.iter().find(|variant| flag.variant(variant).is_none())?;
        let known = flag.variants().map(|(name, _)| name);
        Some(format!("flag `{name}`: {}", unknown("variant", variant, known)))
    }
}
