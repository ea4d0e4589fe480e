//! Refusals: RFC 9457, a stable `code`, never internal detail.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::store::StoreError;

/// A refusal as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Seconds; also the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u16>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Problem { title, status, code, detail: None, retry_after: None }
    }

    pub fn bad_request(code: &'static str, title: &'static str) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, code, title)
    }

    pub fn detail(self, detail: impl ToString) -> Self {
        Problem { detail: Some(detail.to_string()), ..self }
    }

    /// In seconds.
    pub fn retry_after(self, seconds: u16) -> Self {
        Problem { retry_after: Some(seconds), ..self }
    }

    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let problem = match error {
            StoreError::Overloaded => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too much to do; try again")
            }
            StoreError::Closed => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "Going away; try again")
            }
            StoreError::Unavailable(what) => {
                tracing::warn!(what, "the store is away");
                store_unavailable()
            }
            StoreError::Engine(what) => {
                tracing::error!(what, "the store failed");
                store_unavailable()
            }
        };
        problem.retry_after(1)
    }
}

/// The request may or may not be durable: the same idempotency key tells, whichever it is.
fn store_unavailable() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "Cannot store now; try again")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}
