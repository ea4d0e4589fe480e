//! What a policy may say and its writer should know that it says: told by `check`, refused by nobody.

use super::document::{At, Document};
use super::envoy;
use super::lease::outlived;
use super::meaning::nonces;
use super::mistake::Mistake;
use super::nobody;
use super::overlap::overlaps;
use super::preflight;
use super::routing::Paths;
use super::tenancy;
use super::unused::{unused, unwatched};
use super::upstreams;
use super::{Listener, Route};
use crate::FilterSet;

/// The fewest signed requests a second that the memory should hold the nonces of. Below this it is worth a
/// warning: a full memory refuses payments.
const SIGNED_PER_S_MIN: u64 = 5_000;

/// What is worth a second look in a document without mistakes, in the order of its lines.
pub(super) fn warnings(document: &Document, paths: &Paths) -> Vec<Mistake> {
    let mut warnings = overlaps(document, paths);
    let mut effective = Vec::new();
    let mut longest: Option<(u64, &At<Route>)> = None;
    let signs = document.filters.value.has("signing")
        || document.routes.iter().any(|route| route.value.filters.value.has("signing"));
    for written in &document.routes {
        let At { value: route, location } = written;
        for filter in &route.except {
            let message = format!("route `{}` does without `{}`", route.name, filter.value);
            warnings.push(Mistake::of(filter, message));
        }
        let filters = document.filters_of(route);
        if let Some(missing) = missing(&filters) {
            warnings.push(Mistake::at(*location, format!("route `{}` {missing}", route.name)));
        }
        if filters.needs_certificate().is_some() {
            let asks = |listener: &&At<Listener>| listener.value.tls.client_certificates.is_some();
            let others: Vec<String> = document
                .listeners
                .iter()
                .filter(|listener| !asks(listener))
                .map(|listener| format!("`{}`", listener.value.name))
                .collect();
            if !others.is_empty() {
                let message = format!(
                    "route `{}` requires a client certificate and refuses everybody who comes by {}, where none is \
                     asked for",
                    route.name,
                    others.join(", ")
                );
                warnings.push(Mistake::at(*location, message));
            }
        }
        if let (Some(signature), true) = (&filters.signature, signs)
            && signature.takes_any_client()
        {
            let message = format!(
                "route `{}`: `signature` takes the key of every client, those included that `signing` signs with, and \
                 whoever verifies with such a key can sign with it; name `clients`",
                route.name
            );
            warnings.push(Mistake::at(*location, message));
        }
        if let Some(nonce) = &filters.nonce
            && longest.is_none_or(|(most, _)| nonce.window_s > most)
        {
            longest = Some((nonce.window_s, written));
        }
        warnings.extend(nobody::warnings(document, written, &filters));
        effective.push(filters);
    }
    warnings.extend(tenancy::warnings(document));
    warnings.extend(unused(document, &effective));
    warnings.extend(unwatched(document));
    warnings.extend(upstreams::unencrypted(document));
    warnings.extend(outlived(document));
    warnings.extend(preflight::refused(document));
    // It is there for Envoy's workers.
    if document.state.service.is_some() {
        warnings.extend(envoy::beyond(document));
    }
    warnings.extend(no_timeout(document));
    warnings.extend(longest.and_then(|(_, route)| too_few_entries(document, route)));
    warnings.sort_by_key(|warning| (warning.line, warning.column));
    warnings
}

fn missing(filters: &FilterSet) -> Option<&'static str> {
    match (filters.lets_anybody_in(), filters.signature.is_some(), filters.nonce.is_some()) {
        (true, ..) => {
            Some("has no `jwt`, `signature`, `api_key` or required `client_cert`: anybody may call it")
        }
        (_, true, false) => {
            Some("has `signature` without `nonce`: who copies a signed request can send it again")
        }
        (_, true, true) | (false, false, _) => None,
    }
}

impl FilterSet {
    /// Whether these filters ask nobody who they are.
    pub fn lets_anybody_in(&self) -> bool {
        let keyless = self.signature.is_none() && self.api_key.is_none();
        keyless && self.jwt.is_none() && self.needs_certificate().is_none()
    }
}

/// Routes of which neither they nor their upstreams say how long clients may have to wait, at the first of them.
fn no_timeout(document: &Document) -> Option<Mistake> {
    let is_silent = |route: &&At<Route>| {
        let mut upstreams = route.value.upstreams_of(document);
        route.value.timeout_ms.is_none() && upstreams.any(|(_, at)| at.value.timeout_ms.is_none())
    };
    let silent: Vec<&At<Route>> = document.routes.iter().filter(is_silent).collect();
    let first = silent.first()?;
    // All of them: whoever accepts the warning accepts it of these.
    let names: Vec<String> = silent.iter().map(|route| format!("`{}`", route.value.name)).collect();
    let message = format!(
        "no `timeout_ms`: {}: an upstream may take {} ms there; write how long it may",
        names.join(", "),
        Route::TIMEOUT_MS
    );
    Some(Mistake::of(first, message))
}

/// Every nonce is an entry for as long as it is remembered, so entries and time bound the requests a second.
fn too_few_entries(document: &Document, route: &At<Route>) -> Option<Mistake> {
    let seconds = nonces(document).remembered_s();
    let entries = document.state.memory.max_entries;
    let per_s = u64::try_from(entries).unwrap_or(u64::MAX).checked_div(seconds)?;
    let message = format!(
        "route `{}`: nonces are remembered for {seconds} s, so `state.memory.max_entries: {entries}` lasts for \
         {per_s} signed requests a second and refuses more with 503; {} entries last for {SIGNED_PER_S_MIN}",
        route.value.name,
        SIGNED_PER_S_MIN.saturating_mul(seconds),
    );
    (per_s < SIGNED_PER_S_MIN).then(|| Mistake::of(route, message))
}
