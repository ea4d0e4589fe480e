//! Feature flags: values that change while the edge runs, without another policy.
//!
//! Owns what flags there are and what each says of a request, in the terms of OpenFeature and from flagd's file format
//! (flagd.dev, "Flag Definitions"). It must never touch the file: the data plane follows that and hands over its text. A
//! flag that cannot be evaluated says nothing, and whoever asked goes on with what is safe.

mod definition;
mod facts;
mod fractional;
mod logic;
mod operator;
mod sem_ver;
#[cfg(test)]
mod tests;
mod when;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::Value;

pub(crate) use definition::is_name;
pub use facts::{RESERVED, Seen};
pub use when::{FlagUse, When};

use logic::Rule;

/// Everything that one file of flags says.
#[derive(Debug, Default)]
pub struct Flags {
    by_key: BTreeMap<Arc<str>, Flag>,
}

/// One flag.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    state: State,
    /// By their names; all of one type.
    variants: BTreeMap<Arc<str>, Value>,
    default: Option<Arc<str>>,
    targeting: Option<Rule>,
    metadata: BTreeMap<String, Value>,
}

/// Whether a flag is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    Enabled,
    Disabled,
}

/// What a flag says of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// `None`: it says nothing, and whoever asks has a value of his own.
    pub variant: Option<Arc<str>>,
    pub reason: Reason,
}

/// Why it says that: OpenFeature's reasons (specification, section 1.4.7) as flagd gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It says the same of every request.
    Static,
    /// Its targeting chose the variant.
    TargetingMatch,
    /// Its targeting chose none.
    Default,
    Disabled,
    Error(ErrorCode),
}

/// Why a flag could not be evaluated: OpenFeature's codes (specification, section 2.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// No flags were ever read.
    ProviderNotReady,
    FlagNotFound,
    /// Its targeting names no variant of it, or would take too long.
    General,
}

impl Flags {
    /// The longest file, bytes.
    pub const MOST_BYTES: usize = 1 << 20;
    /// The most flags in it.
    pub const MOST: usize = 1_000;

    /// Reads flagd's format, JSON. All mistakes are told at once, as far as the text can be read.
    pub fn read(text: &str) -> Result<Self, Vec<String>> {
        definition::read(text)
    }

    pub fn get(&self, key: &str) -> Option<&Flag> {
        self.by_key.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Flag)> + Clone {
        self.by_key.iter().map(|(key, flag)| (&**key, flag))
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// What a flag says where these are the facts: OpenFeature's evaluation context, an object.
    pub fn evaluate(&self, key: &str, facts: &Value) -> Evaluation {
        match self.by_key.get(key) {
            Some(flag) => flag.evaluate(facts),
            None => Evaluation::error(ErrorCode::FlagNotFound),
        }
    }

    /// What a policy counts on and these flags do not have, a sentence each.
    pub fn lacks(&self, used: &[FlagUse]) -> Vec<String> {
        used.iter().filter_map(|used| used.missing_in(self)).collect()
    }
}

impl Flag {
    pub fn state(&self) -> State {
        self.state
    }

    pub fn variants(&self) -> impl Iterator<Item = (&str, &Value)> + Clone {
        self.variants.iter().map(|(name, value)| (&**name, value))
    }

    pub fn variant(&self, name: &str) -> Option<&Value> {
        self.variants.get(name)
    }

    /// The variant of requests that its targeting says nothing of.
    pub fn default(&self) -> Option<&str> {
        self.default.as_deref()
    }

    pub fn has_targeting(&self) -> bool {
        self.targeting.is_some()
    }

    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// What of it differs in another flag of the same name, in the words of the format.
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        let Self { state, variants, default, targeting, metadata } = self;
        let parts = [
            ("state", *state != other.state),
            ("variants", *variants != other.variants),
            ("defaultVariant", *default != other.default),
            ("targeting", *targeting != other.targeting),
            ("metadata", *metadata != other.metadata),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect()
    }

    fn evaluate(&self, facts: &Value) -> Evaluation {
        match self.state {
            State::Enabled => {}
            State::Disabled => return Evaluation { variant: None, reason: Reason::Disabled },
        }
        let Some(rule) = &self.targeting else {
            return Evaluation { variant: self.default.clone(), reason: Reason::Static };
        };
        let Ok(chosen) = rule.apply(facts) else { return Evaluation::error(ErrorCode::General) };
        let name = match chosen {
            Value::Null => return Evaluation { variant: self.default.clone(), reason: Reason::Default },
            Value::String(name) => name,
            Value::Bool(_) | Value::Number(_) => chosen.to_string(),
            Value::Array(_) | Value::Object(_) => return Evaluation::error(ErrorCode::General),
        };
        match self.variants.get_key_value(name.as_str()) {
            Some((name, _)) => Evaluation { variant: Some(name.clone()), reason: Reason::TargetingMatch },
            None => Evaluation::error(ErrorCode::General),
        }
    }
}

impl Evaluation {
    fn error(code: ErrorCode) -> Self {
        Self { variant: None, reason: Reason::Error(code) }
    }
}

impl Reason {
    /// As OpenFeature writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "STATIC",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Default => "DEFAULT",
            Self::Disabled => "DISABLED",
            Self::Error(_) => "ERROR",
        }
    }
}

impl ErrorCode {
    /// As OpenFeature writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProviderNotReady => "PROVIDER_NOT_READY",
            Self::FlagNotFound => "FLAG_NOT_FOUND",
            Self::General => "GENERAL",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
