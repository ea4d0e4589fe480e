//! Names that the policy gives: they go as they are into logs, metrics, Envoy's configuration and what `check` prints,
//! so none is empty, has a line break, or could be taken for two.

use super::Client;
use super::document::{At, Document};
use super::mistake::Mistake;
use crate::flags::is_name;

/// The names of tenants are told by tokens too, and have a rule of their own; so do those of limits, which are in keys.
pub(super) fn check(document: &Document, mistakes: &mut Vec<Mistake>) {
    let listeners = document.listeners.iter().map(|at| (at.value.name.as_str(), at.with("listener")));
    let upstreams = document.upstreams.iter().map(|(name, at)| (name.as_str(), at.with("upstream")));
    let issuers = document.issuers.iter().map(|(name, at)| (name.as_str(), at.with("issuer")));
    let plans = document.plans.iter().map(|(name, at)| (name.as_str(), at.with("plan")));
    let routes = document.routes.iter().map(|at| (at.value.name.as_str(), at.with("route")));
    let clients = document.clients.iter().map(|(name, client)| (name.as_str(), place(client).with("client")));
    for (name, at) in listeners.chain(upstreams).chain(issuers).chain(plans).chain(routes).chain(clients) {
        if !is_name(name) {
            let what = at.value;
            let message = format!(
                "{what} `{name}`: a name is 1 to 128 visible characters, and none of \" ' , ; = \\ ` {{ }}"
            );
            mistakes.push(Mistake::of(&at, message));
        }
    }
}

/// Where something of the client is written.
fn place(client: &Client) -> At<()> {
    let key = client.hmac_keys.first().map(|key| key.id.with(()));
    let file = || client.hmac_key_file.as_ref().map(|file| file.with(()));
    let certificate = || client.certificates.first().map(|names| names.with(()));
    let api_key = || client.api_keys.first().map(|key| key.with(()));
    key.or_else(file).or_else(certificate).or_else(api_key).unwrap_or_default()
}
