//! What a client is told when the edge itself, or what is behind it, fails: the same words in every data plane.

use crate::filter::Refusal;

/// A failure that no filter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The request is not HTTP as the edge reads it.
    Malformed,
    /// The request's version of HTTP is older than HTTP/1.1.
    HttpVersion,
    /// The header is larger than any that the edge reads.
    HeaderTooLarge,
    /// The request did not arrive whole.
    BodyIncomplete,
    /// The body is larger than any that the edge holds.
    BodyTooLarge,
    /// The request did not arrive in time.
    RequestTimeout,
    /// As many requests are in flight to the upstream as the policy lets.
    UpstreamOverloaded,
    /// No connection could be made: the upstream has seen nothing of the request.
    UpstreamUnreachable,
    /// The answer did not come in time.
    UpstreamTimeout,
    /// The connection broke after the request had been sent.
    UpstreamFailed,
    /// The answer is larger than what the edge reads of an answer that it must decide on.
    AnswerTooLarge,
    /// The shared state is full of what is still needed.
    StateFull,
    /// The shared state could not be asked, and the request must not pass without it.
    StateUnavailable,
}

impl Failure {
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::HttpVersion,
        Self::HeaderTooLarge,
        Self::BodyIncomplete,
        Self::BodyTooLarge,
        Self::RequestTimeout,
        Self::UpstreamOverloaded,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::UpstreamFailed,
        Self::AnswerTooLarge,
        Self::StateFull,
        Self::StateUnavailable,
    ];

    /// What the client is told.
    pub fn refusal(self) -> Refusal {
        let soon = |refusal: Refusal| refusal.header("retry-after", "1");
        match self {
            Self::Malformed => Refusal::new(400, "request_malformed", "The request is not well-formed HTTP."),
            // RFC 9110 section 15.5.22.
            Self::HttpVersion => {
                Refusal::new(426, "http_version_unsupported", "Send the request as HTTP/1.1 or HTTP/2.")
                    .header("upgrade", "HTTP/1.1")
            }
            Self::HeaderTooLarge => {
                Refusal::new(431, "headers_too_large", "The header fields are too large.")
            }
            Self::BodyIncomplete => Refusal::new(400, "body_incomplete", "The body did not arrive whole."),
            Self::BodyTooLarge => {
                Refusal::new(413, "body_too_large", "The body is larger than what is accepted here.")
            }
            Self::RequestTimeout => {
                Refusal::new(408, "request_timeout", "The request did not arrive in time.")
            }
            Self::UpstreamOverloaded => soon(Refusal::new(
                503,
                "upstream_overloaded",
                "The service is at its limit. Nothing was done; try again.",
            )),
            Self::UpstreamUnreachable => soon(Refusal::new(
                503,
                "upstream_unreachable",
                "The service cannot be reached. Nothing was done; try again.",
            )),
            Self::UpstreamTimeout => Refusal::new(
                504,
                "upstream_timeout",
                "The service did not answer in time. Whether it acted is unknown: \
                 ask again with the same Idempotency-Key.",
            ),
            Self::UpstreamFailed => Refusal::new(
                502,
                "upstream_failed",
                "The service broke off. Whether it acted is unknown: \
                 ask again with the same Idempotency-Key.",
            ),
            Self::AnswerTooLarge => Refusal::new(
                502,
                "answer_too_large",
                "The service's answer is larger than what is verified here, so it is not passed on. \
                 Whether the service acted is unknown: ask for the status.",
            ),
            Self::StateFull => soon(Refusal::new(
                503,
                "state_full",
                "The edge cannot remember more at the moment. Nothing was done; try again.",
            )),
            Self::StateUnavailable => soon(Refusal::new(
                503,
                "state_unavailable",
                "The edge cannot check this at the moment. Nothing was done; try again.",
            )),
        }
    }
}
