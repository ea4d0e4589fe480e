//! Refusals as `application/problem+json` (RFC 9457) with a stable code and no internal detail.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// Whether the network may have seen the call that is refused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sent {
    /// Surely not: the same call may be made again.
    No,
    /// Perhaps: only the network can say what became of it.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub detail: Option<String>,
    pub sent: Option<Sent>,
    pub retry_after_ms: Option<i64>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent: Option<Sent>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str) -> Problem {
        Problem { status, code, detail: None, sent: None, retry_after_ms: None }
    }

    pub fn detail(self, detail: impl Into<String>) -> Problem {
        Problem { detail: Some(detail.into()), ..self }
    }

    pub fn sent(self, sent: Sent) -> Problem {
        Problem { sent: Some(sent), ..self }
    }

    pub fn retry_after_ms(self, retry_after_ms: i64) -> Problem {
        Problem { retry_after_ms: Some(retry_after_ms), ..self }
    }

    /// Headers and body, for whoever has to sign them.
    pub fn parts(&self) -> (HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_after_ms) = self.retry_after_ms {
            // Whole seconds, rounded up: too late is allowed, too early is not.
            let seconds = retry_after_ms.max(0).saturating_add(999) / 1_000;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail.as_deref(),
            sent: self.sent,
        };
        (headers, serde_json::to_vec(&document).unwrap_or_default())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (headers, body) = self.parts();
        (self.status, headers, Body::from(body)).into_response()
    }
}
