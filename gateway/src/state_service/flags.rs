//! Feature flags, for Envoy's workers and for people.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Service;

/// The file's flags as JSON; 204 where the policy has no file of them.
pub(super) async fn told(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let Some((version, json)) = service.flags.written() else {
        return StatusCode::NO_CONTENT.into_response();
    };
    let etag = format!("\"{version}\"");
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let fields = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)];
    (fields, json.to_string()).into_response()
}

/// What there is, and whether the file as it is now counts. What flags have said Envoy counts.
pub(super) async fn report(State(service): State<Arc<Service>>) -> Response {
    Json(service.flags.report(&service.metrics.flags)).into_response()
}
