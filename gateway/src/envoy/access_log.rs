//! Logs: the gateway's fields, one JSON object a line. The path is left out, for Envoy cannot mask the addresses of
//! payers and payees in it.

use serde_json::{Value, json};

/// `policy` is the first digits of the policy's SHA-256; `refused` will be the filter, the
/// code and the route, `jwt/token_expired/send`: Envoy itself has chosen no route by then.
pub(super) fn json_lines(policy: &str) -> Value {
    // What a trusted proxy says, or who is at the other end.
    let client_ip = json!({ "operators": [
        { "command": "FILTER_STATE", "param": "wasm.torana_client_ip:PLAIN" },
        { "command": "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" },
    ] });
    json!({
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": { "json_format": {
                "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%",
                "target": "access",
                "request_id": "%RESP(X-REQUEST-ID)%",
                "traceparent": "%REQ(TRACEPARENT)%",
                "method": "%REQ(:METHOD)%",
                "route": "%ROUTE_NAME%",
                "experiment": "%FILTER_STATE(wasm.torana_experiment:PLAIN)%",
                "policy": policy,
                "status": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "refused": "%FILTER_STATE(wasm.torana_refused:PLAIN)%",
                "limit": "%FILTER_STATE(wasm.torana_limit:PLAIN)%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "duration_ms": "%DURATION%",
                "would_refuse": "%FILTER_STATE(wasm.torana_would_refuse:PLAIN)%",
                "feature_flags": "%FILTER_STATE(wasm.torana_flags:PLAIN)%",
                "upstream": "%UPSTREAM_CLUSTER%",
                "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                "client_ip": format!("%COALESCE({client_ip})%"),
                "bytes_received": "%BYTES_RECEIVED%",
                "bytes_sent": "%BYTES_SENT%",
            } },
        },
    })
}

/// What Envoy says of itself, in the same form.
pub(super) fn of_envoy() -> Value {
    json!({ "log_format": { "json_format": {
        "timestamp": "%Y-%m-%dT%T.%FZ", "level": "%l", "target": "%n", "message": "%j",
    } } })
}
