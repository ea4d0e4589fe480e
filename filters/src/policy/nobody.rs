//! Filters of a route that ask for what no other filter there finds out: then nobody could pass, or they do nothing.

use super::document::{At, Document};
use super::mistake::Mistake;
use super::{Route, Tenant};
use crate::FilterSet;
use crate::plan::Limit;
use crate::signature::Signer;
use crate::state::Mode;
use crate::subject::By;
use crate::tenant::Source;

/// What a route knows of who sends a request.
#[derive(Clone, Copy)]
struct Known {
    token: bool,
    signature: bool,
    /// Known by a signature, a certificate or a key of its own.
    client: bool,
}

impl Known {
    fn by(filters: &FilterSet) -> Self {
        let (token, signature) = (filters.jwt.is_some(), filters.signature.is_some());
        let client = signature || filters.client_cert.is_some() || filters.api_key.is_some();
        Self { token, signature, client }
    }

    /// What the route lacks to tell whose a request is; `None`: it may be told.
    fn lacks(self, by: By) -> Option<&'static str> {
        let (tells, filters) = match by {
            By::Route | By::Ip => return None,
            By::User | By::Device => (self.token, "`jwt`"),
            By::Key => (self.signature, "`signature`"),
            By::Client => (self.client, "`signature`, `client_cert` or `api_key`"),
            By::Tenant => (self.token || self.client, "`jwt`, `signature`, `client_cert` or `api_key`"),
        };
        (!tells).then_some(filters)
    }
}

/// Where nobody could pass. `filters` are those in effect on the route.
pub(super) fn check(document: &Document, at: &At<Route>, filters: &FilterSet, mistakes: &mut Vec<Mistake>) {
    let name = &at.value.name;
    let mut wrong = |filter: &str, why: String| {
        let message = format!("route `{name}`: {filter}: {why}, so nobody could pass");
        mistakes.push(Mistake { message, ..place(document, at, filter) });
    };
    if filters.nonce.is_some() && filters.signature.is_none() {
        wrong("nonce", "a nonce is taken of a signature, and the route has no `signature`".to_owned());
    }
    if let Some(signature) = &filters.signature
        && signature.signer == Signer::Device
        && filters.jwt.is_none()
    {
        wrong(
            "signature",
            "`signer: device` takes the key from the token, and the route has no `jwt`".to_owned(),
        );
    }
    if let Some(tenant) = &filters.tenant
        && !tenant.from.is_empty()
        && !tenant.from.iter().any(|source| tells(*source, document, Known::by(filters)))
    {
        wrong("tenant", "nothing that is in `from` could tell a tenant here".to_owned());
    }
    for (filter, limit) in limits(filters) {
        if let Some((why, Mode::Enforce)) = unknown(filters, limit) {
            wrong(filter, why);
        }
    }
}

/// What is of no use on a route.
pub(super) fn warnings(document: &Document, at: &At<Route>, filters: &FilterSet) -> Vec<Mistake> {
    let name = &at.value.name;
    let mut warnings = Vec::new();
    if let Some(sticky) = &at.value.sticky
        && filters.tenant.is_none()
        && let Some(lacking) = Known::by(filters).lacks(sticky.value)
    {
        let message = format!(
            "route `{name}`: `sticky: {}` does nothing without {lacking}, and requests go by chance",
            sticky.value.name()
        );
        warnings.push(Mistake::of(sticky, message));
    }
    for (filter, limit) in limits(filters) {
        if let Some((why, Mode::Shadow)) = unknown(filters, limit) {
            let message = format!("route `{name}`: {filter}: {why}, so it would refuse everybody");
            warnings.push(Mistake { message, ..place(document, at, filter) });
        }
    }
    warnings
}

/// The route's own limits. Those of plans hold for some tenants, of whom others may pass.
fn limits(filters: &FilterSet) -> Vec<(&'static str, &dyn Limit)> {
    let mut found: Vec<(&'static str, &dyn Limit)> = Vec::new();
    let rates = filters.rate_limit.iter().flat_map(|settings| &settings.limits);
    found.extend(rates.map(|limit| ("rate_limit", limit as &dyn Limit)));
    let quotas = filters.quota.iter().flat_map(|settings| &settings.limits);
    found.extend(quotas.map(|limit| ("quota", limit as &dyn Limit)));
    let places = filters.concurrency.iter().flat_map(|settings| &settings.limits);
    found.extend(places.map(|limit| ("concurrency", limit as &dyn Limit)));
    found
}

/// Why nobody knows whose requests a limit counts, if nobody does.
fn unknown(filters: &FilterSet, limit: &dyn Limit) -> Option<(String, Mode)> {
    let by = limit.by();
    if by == By::Tenant && filters.tenant.is_some() {
        return None;
    }
    let lacking = Known::by(filters).lacks(by)?;
    let why = format!(
        "limit `{}` is `by: {}`, which the route cannot tell without {lacking}",
        limit.name(),
        by.name()
    );
    Some((why, limit.mode()))
}

fn tells(source: Source, document: &Document, known: Known) -> bool {
    match source {
        Source::Token => known.token,
        Source::Client => known.client && document.clients.values().any(|client| client.tenant.is_some()),
        Source::Host => {
            document.tenants.values().any(|At { value: Tenant { hosts, .. }, .. }| !hosts.is_empty())
        }
    }
}

/// On the route if it names the filter, above otherwise.
fn place(document: &Document, at: &At<Route>, filter: &str) -> Mistake {
    match at.value.filters.value.has(filter) {
        true => Mistake::of(&at.value.filters, ""),
        false => Mistake::of(&document.filters, ""),
    }
}
