//! Who may speak on a listener: a verified certificate is not enough, its name must be expected.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use certs::serve::PeerCertificate;
use http::StatusCode;

use crate::problem::{Problem, Sent};

/// Refuses every request of a client whose certificate has none of these DNS names.
pub fn only(router: Router, names: &[String]) -> Router {
    let names: Arc<[String]> = names.into();
    router.layer(from_fn_with_state(names, check))
}

async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let certificate = request.extensions().get::<PeerCertificate>().and_then(|peer| peer.0.as_deref());
    match certificate {
        Some(facts) if names.iter().any(|name| facts.has_dns(name)) => next.run(request).await,
        certificate => {
            let subject = certificate.map(|facts| facts.subject.as_str());
            tracing::warn!(subject, "a client with an unexpected certificate was refused");
            let problem = Problem::new(StatusCode::FORBIDDEN, "client_not_allowed")
                .detail("this certificate may not call here")
                .sent(Sent::No);
            problem.into_response()
        }
    }
}
