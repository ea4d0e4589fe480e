//! Idempotency keys: what moves money needs one, in a form that can be stored, and the body must agree with
//! the header (Idempotency-Key header field, draft-ietf-httpapi-idempotency-key-header).

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde::de::IgnoredAny;

use crate::filter::{Context, Filter, Host, Request, Verdict};
use crate::policy::{Settings, Site, Unusable};

/// Requires an `Idempotency-Key` of 8 to `max_length` letters, digits, `-`, `_`, `.` and `:`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Longest key, in characters; at most 255.
    pub max_length: usize,
    /// The member of a JSON body that repeats the key. The body and the header must agree where both speak.
    pub body_member: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_length: 64, body_member: Some("idempotencyKey".into()) }
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self {
            max_length: self.max_length.min(child.max_length),
            body_member: child.body_member.or(self.body_member),
        }
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if !(MIN_LENGTH..=255).contains(&self.max_length) {
            return Err(Unusable::new(format!("`max_length` is between {MIN_LENGTH} and 255")));
        }
        Ok(Box::new(Idempotency(self)))
    }
}

/// A shorter key is a counter, and counters collide.
const MIN_LENGTH: usize = 8;

#[derive(Debug)]
struct Idempotency(Config);

impl Filter for Idempotency {
    fn name(&self) -> &'static str {
        "idempotency"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        let key = match request.headers.one("idempotency-key") {
            Ok(Some(key)) => key,
            Ok(None) => {
                return Verdict::refuse(
                    400,
                    "idempotency_key_missing",
                    "Send an Idempotency-Key: a repeated request with the same key has one effect.",
                );
            }
            Err(_) => return self.malformed(),
        };
        // The draft writes the key as a structured-field string, most clients as a bare token.
        let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
        if !(MIN_LENGTH..=self.0.max_length).contains(&key.len()) || !key.bytes().all(key_byte) {
            return self.malformed();
        }
        context.idempotency_key = Some(key.to_owned());
        Verdict::Pass
    }

    fn body(&self, _request: &Request<'_>, body: &[u8], _host: &dyn Host, context: &mut Context) -> Verdict {
        let Some(member) = &self.0.body_member else { return Verdict::Pass };
        // `shape` has refused what is not JSON or names a member twice. Without it a body that cannot be
        // read has no member to agree with, and the upstream refuses it.
        let Ok(Object(members)) = serde_json::from_slice::<Object<'_>>(body) else { return Verdict::Pass };
        let agrees = members
            .iter()
            .filter(|(name, _)| name == member)
            .all(|(_, value)| value.as_deref().is_some() && value.as_deref() == context.idempotency_key.as_deref());
        if agrees {
            Verdict::Pass
        } else {
            let detail = format!("The body's `{member}` and the Idempotency-Key field differ.");
            Verdict::refuse(400, "idempotency_key_mismatch", detail)
        }
    }
}

impl Idempotency {
    fn malformed(&self) -> Verdict {
        let detail = format!(
            "Send one Idempotency-Key of {MIN_LENGTH} to {} letters, digits, '-', '_', '.' or ':'.",
            self.0.max_length
        );
        Verdict::refuse(400, "idempotency_key_malformed", detail)
    }
}

fn key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':')
}

/// The members of an object, with the text of those that are strings.
struct Object<'a>(Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Value<'a> {
                    #[serde(borrow)]
                    Text(Cow<'a, str>),
                    Other(IgnoredAny),
                }
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<Cow<'de, str>, Value<'de>>()? {
                    members.push((
                        name,
                        match value {
                            Value::Text(text) => Some(text),
                            Value::Other(IgnoredAny) => None,
                        },
                    ));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
