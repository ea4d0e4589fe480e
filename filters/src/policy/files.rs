//! References that must be files: what they refer to is followed while the edge runs.

use super::document::{At, Document};
use super::mistake::Mistake;
use super::reference::Reference;

pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    let mut all: Vec<Option<&At<Reference>>> = Vec::new();
    for At { value: listener, .. } in &document.listeners {
        let tls = &listener.tls;
        all.extend([Some(&tls.certificate), Some(&tls.key), tls.ca.as_ref()]);
        all.extend(tls.certificates.iter().flat_map(|named| [Some(&named.certificate), Some(&named.key)]));
        all.extend(
            tls.client_certificates.iter().flat_map(|clients| [Some(&clients.ca), clients.crl.as_ref()]),
        );
    }
    for tls in document.upstreams.values().filter_map(|upstream| upstream.value.tls.tls()) {
        all.extend([tls.ca.as_ref(), tls.crl.as_ref(), tls.certificate.as_ref(), tls.key.as_ref()]);
    }
    for At { value: issuer, .. } in document.issuers.values() {
        all.extend(issuer.jwks.iter().flat_map(|jwks| [jwks.ca.as_ref(), jwks.crl.as_ref()]));
        all.extend(issuer.introspection.iter().flat_map(|At { value: asked, .. }| {
            [Some(&asked.ca), asked.crl.as_ref(), asked.certificate.as_ref(), asked.key.as_ref()]
        }));
    }
    all.extend(document.flags.iter().map(|flags| Some(&flags.value.file)));
    all.extend(document.state.redis.iter().map(|redis| redis.value.ca.as_ref()));
    for tls in document.state.service.iter().filter_map(|service| service.value.tls.as_ref()) {
        let client = &tls.client;
        all.extend([Some(&tls.certificate), Some(&tls.key), Some(&tls.client_ca), tls.crl.as_ref()]);
        all.extend([Some(&client.certificate), Some(&client.key), Some(&client.ca), client.crl.as_ref()]);
    }
    let wrong = all.into_iter().flatten().filter(|at| matches!(at.value, Reference::Env(_)));
    mistakes.extend(wrong.map(|at| Mistake::of(at, MUST_BE_FILE)));
}

/// What is wrong with `env:` where a file belongs.
pub const MUST_BE_FILE: &str =
    "what is followed while the edge runs must be a file, so that it can be replaced: write `file:PATH`";
