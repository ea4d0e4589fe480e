//! The policy of a case, for every data plane the same but for its addresses.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::case::Named;

/// Where a data plane listens and whom it speaks to.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// For clients with IPv4 and with IPv6 addresses.
    pub listeners: [SocketAddr; 2],
    pub admin: SocketAddr,
    pub state: SocketAddr,
    /// The upstreams `u` and `v`.
    pub upstreams: [SocketAddr; 2],
}

/// A path that is served besides the case's own, to learn whether the keys have been loaded.
pub const READY_PATH: &str = "/parity-ready";

/// The policy of `named`. Files are named as [`crate::world`] writes them into `folder`.
pub fn policy(named: &Named, places: &Places, folder: &Path) -> Value {
    let case = &named.case;
    let file = |name: &str| format!("file:{}", folder.join(name).display());
    let upstream = |address: SocketAddr| {
        json!({
            "addresses": [address],
            "tls": {
                "server_name": "upstream.test", "ca": file("ca.pem"),
                "certificate": file("edge.pem"), "key": file("edge.key"),
            },
        })
    };
    let listener = |name: &str, address: SocketAddr| {
        json!({
            "name": name, "address": address,
            "tls": { "certificate": file("edge.pem"), "key": file("edge.key") },
        })
    };
    let stock = json!({
        "name": "r", "methods": ["GET", "POST", "PUT", "DELETE"], "path": "/{*rest}", "upstream": "u",
        "filters": named.filters(),
    });
    let mut routes = if case.routes.is_empty() { vec![stock] } else { case.routes.clone() };
    routes.push(json!({
        "name": "parity-ready", "methods": ["GET"], "path": READY_PATH, "upstream": "u",
        "filters": { "jwt": {} },
    }));
    json!({
        "listeners": [listener("v4", places.listeners[0]), listener("v6", places.listeners[1])],
        "admin": { "address": places.admin },
        "trusted_proxies": case.trusted_proxies,
        "state": {
            "memory": { "max_entries": case.max_entries.unwrap_or(10_000) },
            "service": { "address": places.state, "timeout_ms": case.state_timeout_ms.unwrap_or(5_000) },
        },
        "upstreams": { "u": upstream(places.upstreams[0]), "v": upstream(places.upstreams[1]) },
        "issuers": { "main": {
            "issuer": "https://issuer.test", "audiences": ["torana"], "algorithms": ["ES256"],
            "jwks": { "file": file("jwks.json") },
        } },
        "clients": { "acme-bank": {
            "tenant": case.client_tenant,
            "hmac_keys": [{ "id": "partner-1", "secret": file("partner-1.key") }],
        }, "other-bank": {
            "hmac_keys": [{ "id": "other-1", "secret": file("partner-1.key") }],
        } },
        "filters": if case.everywhere.is_null() { json!({}) } else { case.everywhere.clone() },
        "routes": routes,
    })
}
