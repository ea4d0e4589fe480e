//! OpenFeature's remote evaluation protocol (OFREP, `/ofrep/v1`): other services, and people, ask what flags say of
//! whomever they name. Nothing that is asked so is counted.

use filters::flags::{Evaluation, Reason};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FeatureFlags, is_off};

/// Where it is asked: all flags, or one.
pub(crate) const PATH: &str = "/ofrep/v1/evaluate/flags";
/// The longest question, bytes.
pub(crate) const MOST_BYTES: usize = 64 * 1024;

#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    context: serde_json::Map<String, Value>,
}

/// Answers a question about the flag of that key, or about all of them. `now_s` is what rules find in
/// `$flagd.timestamp`.
pub(crate) fn answer(
    flags: &FeatureFlags,
    key: Option<&str>,
    body: &[u8],
    now_s: u64,
) -> (StatusCode, Value) {
    let Ok(Question { mut context }) = serde_json::from_slice(body) else {
        let problem = json!({
            "key": key, "errorCode": "INVALID_CONTEXT",
            "errorDetails": "send JSON: {\"context\": {\"targetingKey\": \"u-1\"}}",
        });
        return (StatusCode::BAD_REQUEST, problem);
    };
    match key {
        Some(key) => one(flags, key, &mut context, now_s),
        None => {
            let all: Vec<Value> =
                flags.keys().iter().map(|key| one(flags, key, &mut context, now_s).1).collect();
            (StatusCode::OK, json!({ "flags": all }))
        }
    }
}

fn one(
    flags: &FeatureFlags,
    key: &str,
    context: &mut serde_json::Map<String, Value>,
    now_s: u64,
) -> (StatusCode, Value) {
    context.insert("$flagd".to_owned(), json!({ "flagKey": key, "timestamp": now_s }));
    let asked = flags.asked(key, &Value::Object(context.clone()));
    let Some((Evaluation { variant, reason }, value, metadata)) =
        asked.filter(|(said, ..)| !is_off(said.reason))
    else {
        let problem = json!({ "key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": "there is no such flag in use" });
        return (StatusCode::NOT_FOUND, problem);
    };
    match reason {
        Reason::Error(code) => {
            let details = "its targeting says no variant of it";
            let problem = json!({ "key": key, "errorCode": code.name(), "errorDetails": details });
            (StatusCode::BAD_REQUEST, problem)
        }
        Reason::Static | Reason::TargetingMatch | Reason::Default | Reason::Disabled => {
            let said = json!({
                "key": key, "reason": reason, "variant": variant.as_deref(), "value": value, "metadata": metadata,
            });
            (StatusCode::OK, said)
        }
    }
}
