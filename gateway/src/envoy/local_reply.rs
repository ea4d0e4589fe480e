//! What Envoy answers by itself, in the words of the edge.

use filters::failure::Failure;
use serde_json::{Value, json};

use super::REFUSED_FIELD;

/// What each of the flags that Envoy gives an answer of its own says. Of several the first counts: that it was tried too
/// often (`URX`), or could not be tried once more (`UO`), stands beside what happened the last time.
const BY_FLAGS: [(&[&str], Failure); 4] = [
    (&["UT", "DT", "SI"], Failure::UpstreamTimeout),
    (&["UC", "UR", "UPE", "LR"], Failure::UpstreamFailed),
    (&["UF", "UH", "URX", "NC"], Failure::UpstreamUnreachable),
    (&["UO"], Failure::UpstreamOverloaded),
];

/// What the flags of a line of Envoy's log say, `UF,URX` say.
pub(crate) fn failure(flags: &str) -> Option<Failure> {
    let is_there = |known: &[&str]| flags.split(',').any(|flag| known.contains(&flag));
    BY_FLAGS.into_iter().find(|(known, _)| is_there(known)).map(|(_, failure)| failure)
}

/// Problems in place of Envoy's own answers, by the flag that says what happened.
pub(super) fn problems() -> Value {
    let by_status = [
        (400, Failure::Malformed),
        (408, Failure::RequestTimeout),
        (413, Failure::BodyTooLarge),
        (426, Failure::HttpVersion),
        (431, Failure::HeaderTooLarge),
        // A body that is forwarded as it arrives cannot be sent again when the first connection could not be made.
        (507, Failure::UpstreamUnreachable),
    ];
    let flagged = BY_FLAGS.into_iter().map(|(flags, failure)| {
        mapper(&not_refused(&json!({ "response_flag_filter": { "flags": flags } })), failure)
    });
    let told = by_status.into_iter().map(|(status, failure)| {
        let status = json!({ "status_code_filter": {
            "comparison": { "op": "EQ", "value": { "default_value": status, "runtime_key": "torana.none" } },
        } });
        mapper(&not_refused(&status), failure)
    });
    json!({ "mappers": flagged.chain(told).collect::<Vec<_>>() })
}

/// The module's own refusals pass as they are.
fn not_refused(filter: &Value) -> Value {
    let refused = json!({ "header_filter": {
        "header": { "name": REFUSED_FIELD, "present_match": true, "invert_match": true },
    } });
    json!({ "and_filter": { "filters": [filter, refused] } })
}

fn mapper(filter: &Value, failure: Failure) -> Value {
    let refusal = failure.refusal();
    // The problem that the edge writes, with the id in Envoy's notation.
    let mut problem: Value =
        serde_json::from_str(&refusal.problem("%REQ(X-REQUEST-ID)%")).unwrap_or_default();
    problem["status"] = json!(refusal.status);
    let fields: Vec<Value> = refusal
        .headers
        .iter()
        .map(|(name, value)| {
            json!({ "header": { "key": name, "value": value }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" })
        })
        .collect();
    json!({
        "filter": filter,
        "status_code": refusal.status,
        "headers_to_add": fields,
        "body_format_override": {
            "json_format": problem,
            "content_type": "application/problem+json",
        },
    })
}
