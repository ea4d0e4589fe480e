//! OpenFeature's remote evaluation protocol (OFREP, `/ofrep/v1`): other services, and people, ask what flags say of
//! whomever they name. Nothing that is asked so is counted.

use filters::flags::{Evaluation, Reason};
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};

use super::FeatureFlags;

/// Where all flags are asked for, and behind a `/` one.
const PATH: &str = "/ofrep/v1/evaluate/flags";
/// The longest question, bytes.
pub(crate) const MOST_BYTES: usize = 64 * 1024;

#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    context: serde_json::Map<String, Value>,
}

/// What a path asks for; `None`: nothing that is told here.
pub(crate) fn asked(path: &str) -> Option<Asked> {
    let rest = path.strip_prefix(PATH)?;
    if rest.is_empty() {
        return Some(Asked::All);
    }
    let key = percent_decode_str(rest.strip_prefix('/')?);
    Some(Asked::One(key.decode_utf8_lossy().into_owned()))
}

/// Which flags.
#[derive(Debug)]
pub(crate) enum Asked {
    All,
    One(String),
}

/// Answers a question about flags. `now_s` is what rules find in `$flagd.timestamp`.
pub(crate) fn answer(flags: &FeatureFlags, asked: &Asked, body: &[u8], now_s: u64) -> (StatusCode, Value) {
    let Ok(Question { mut context }) = serde_json::from_slice(body) else {
        let key = match asked {
            Asked::All => None,
            Asked::One(key) => Some(key),
        };
        let problem = json!({
            "key": key, "errorCode": "INVALID_CONTEXT",
            "errorDetails": "send JSON: {\"context\": {\"targetingKey\": \"u-1\"}}",
        });
        return (StatusCode::BAD_REQUEST, problem);
    };
    match asked {
        Asked::One(key) => one(flags, key, &mut context, now_s),
        Asked::All => {
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
    let not_found = || {
        let details = "there is no such flag in use";
        let problem = json!({ "key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": details });
        (StatusCode::NOT_FOUND, problem)
    };
    let Some((Evaluation { variant, reason }, value, metadata)) = asked else { return not_found() };
    match reason {
        // Switched off, it is told like one that is not there.
        Reason::Disabled => not_found(),
        Reason::Error(code) => {
            let details = "its targeting says no variant of it";
            let problem = json!({ "key": key, "errorCode": code.name(), "errorDetails": details });
            (StatusCode::BAD_REQUEST, problem)
        }
        Reason::Static | Reason::TargetingMatch | Reason::Default => {
            let said = json!({
                "key": key, "reason": reason, "variant": variant.as_deref(), "value": value, "metadata": metadata,
            });
            (StatusCode::OK, said)
        }
    }
}
