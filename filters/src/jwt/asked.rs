//! Claims that a route asks for: what they must be, and which of them the upstream is told.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claims::{Claims, readable};
use crate::policy::Unusable;

/// Values of which a claim must have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Accepted {
    One(Scalar),
    Many(Vec<Scalar>),
}

/// A value of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    Truth(bool),
    Number(i64),
    Text(String),
}

/// What a route asks of claims.
#[derive(Debug)]
pub(super) struct Asked {
    required: BTreeMap<String, Vec<Scalar>>,
    /// The upstream's field, and the claim that it tells.
    told: Vec<(String, String)>,
    /// Every claim that is asked for.
    pub names: Vec<String>,
}

/// What every field that tells a claim begins with: the edge's own word, so a client's never passes.
const PREFIX: &str = "x-torana-claim-";
/// The most claims of either kind.
const MOST: usize = 16;

impl Accepted {
    pub(super) fn values(self) -> Vec<Scalar> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }

    /// What both accept.
    pub(super) fn and(self, other: Self) -> Self {
        let others = other.values();
        Self::Many(self.values().into_iter().filter(|value| others.contains(value)).collect())
    }
}

impl Scalar {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Truth(truth) => value.as_bool() == Some(*truth),
            Self::Number(number) => value.as_i64() == Some(*number),
            Self::Text(text) => value.as_str() == Some(text),
        }
    }
}

impl Asked {
    pub(super) fn new(
        required: BTreeMap<String, Accepted>,
        told: BTreeMap<String, String>,
    ) -> Result<Self, Unusable> {
        if required.len() > MOST || told.len() > MOST {
            return Err(Unusable::new(format!("`claims` and `claims_to_headers` have at most {MOST} entries")));
        }
        let required: BTreeMap<_, _> =
            required.into_iter().map(|(name, accepted)| (name, accepted.values())).collect();
        if let Some((name, _)) = required.iter().find(|(_, accepted)| accepted.is_empty()) {
            return Err(Unusable::new(format!("`claims`: no value of `{name}` is accepted, so nobody could pass")));
        }
        let fits = |field: &str| {
            field.strip_prefix(PREFIX).is_some_and(|rest| {
                (1..=48).contains(&rest.len())
                    && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
        };
        if let Some(field) = told.keys().find(|field| !fits(field)) {
            return Err(Unusable::new(format!(
                "`claims_to_headers`: `{field}` is not a field of the edge's own: write `{PREFIX}` and lower-case \
                 letters, digits or '-'"
            )));
        }
        let mut names: Vec<String> = required.keys().chain(told.values()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        Ok(Self { required, told: told.into_iter().collect(), names })
    }

    /// The first claim that is not what it must be. A claim of several values must have one that is accepted.
    pub(super) fn missing(&self, claims: &Claims) -> Option<&str> {
        let mut required = self.required.iter();
        let missing = required.find(|(name, accepted)| {
            let one = |value: &Value| accepted.iter().any(|scalar| scalar.is(value));
            !match claims.asked.get(*name) {
                Some(Value::Array(values)) => values.iter().any(one),
                Some(value) => one(value),
                None => false,
            }
        });
        missing.map(|(name, _)| name.as_str())
    }

    /// What the upstream is told: nothing of a claim that is not there. `Err`: the claim that no field can carry.
    pub(super) fn told(&self, claims: &Claims) -> Result<Vec<(Cow<'static, str>, String)>, &str> {
        let mut fields = Vec::new();
        for (field, claim) in &self.told {
            if let Some(value) = claims.asked.get(claim) {
                fields.push((Cow::Owned(field.clone()), text(value).ok_or(claim.as_str())?));
            }
        }
        Ok(fields)
    }
}

/// A claim as a field tells it. `None`: no field could, or not so that it is read as it was meant.
fn text(value: &Value) -> Option<String> {
    let one = |value: &Value| match value {
        Value::String(text) if readable(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let Value::Array(values) = value else { return one(value) };
    let texts: Option<Vec<String>> = values.iter().map(one).collect();
    let texts = texts.filter(|texts| texts.iter().all(|text| !text.contains([',', ' '])))?;
    Some(texts.join(",")).filter(|all| readable(all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_claims() {
        let text_of = |text: &str| Scalar::Text(text.to_owned());
        for (accepted, value, fits, told) in [
            (vec![text_of("full")], json!("full"), true, Some("full")),
            (vec![text_of("full")], json!("Full"), false, Some("Full")),
            (vec![text_of("a"), text_of("otp")], json!(["pwd", "otp"]), true, Some("pwd,otp")),
            (vec![text_of("a")], json!(["pwd", "otp"]), false, Some("pwd,otp")),
            (vec![Scalar::Truth(true)], json!(true), true, Some("true")),
            (vec![Scalar::Truth(true)], json!("true"), false, Some("true")),
            (vec![Scalar::Number(2)], json!(2), true, Some("2")),
            (vec![Scalar::Number(2)], json!(2.5), false, Some("2.5")),
            (vec![text_of("x")], json!({ "a": "x" }), false, None),
            (vec![text_of("x")], json!(null), false, None),
            (vec![text_of("x")], json!([]), false, None),
            (vec![text_of("x")], json!(["x", ["x"]]), true, None),
            (vec![text_of("x")], json!(["x", "a,b"]), true, None),
            (vec![text_of("x")], json!("a\r\nx-evil: 1"), false, None),
        ] {
            let payload = json!({ "sub": "u", "aud": "a", "exp": 1, "kyc": value.clone() }).to_string();
            let claims = Claims::parse(payload.as_bytes(), "dev", &["kyc".to_owned()]).unwrap();
            let asked = Asked::new(
                [("kyc".to_owned(), Accepted::Many(accepted))].into(),
                [("x-torana-claim-kyc".to_owned(), "kyc".to_owned())].into(),
            );
            let asked = asked.unwrap();
            assert_eq!(asked.missing(&claims).is_none(), fits, "{value}");
            let field = asked.told(&claims).ok().map(|fields| fields[0].1.clone());
            assert_eq!(field.as_deref(), told, "{value}");
        }
    }
}
