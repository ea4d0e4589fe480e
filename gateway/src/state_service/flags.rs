//! Feature flags, for Envoy's workers and for people.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Service;

/// The flags of the file that is known as that, JSON. A worker whose policy has another file is told nothing: it goes on
/// with what it has until this policy is its own, or its own is this one.
pub(super) async fn told(
    State(service): State<Arc<Service>>,
    Path(known_as): Path<String>,
    headers: HeaderMap,
) -> Response {
    let known = service.known();
    let file = known.policy.document().flags.as_ref();
    let is_ours = file.is_some_and(|file| file.value.known_as() == known_as);
    let Some((version, json)) = known.flags.written().filter(|_| is_ours) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let etag = format!("\"{version}\"");
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let fields = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)];
    (fields, json.to_string()).into_response()
}

/// What there is, and whether the file as it is now counts. What flags have said Envoy counts, and tells.
pub(super) async fn report(State(service): State<Arc<Service>>) -> Response {
    Json(service.known().flags.report(None)).into_response()
}
