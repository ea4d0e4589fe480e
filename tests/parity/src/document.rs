//! The policy of a case, for every data plane the same but for its addresses.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use anyhow::Context as _;
use filters::validity::Moment;

use crate::case::Named;
use crate::mint::Keys;

/// Where a data plane listens and whom it speaks to.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// For clients with IPv4 and with IPv6 addresses.
    pub listeners: [SocketAddr; 2],
    pub admin: SocketAddr,
    pub state: SocketAddr,
    /// The upstreams `u` and `v`.
    pub upstreams: [SocketAddr; 2],
    /// The issuer that is asked about tokens.
    pub introspection: SocketAddr,
}

/// A path that is served besides the case's own, to learn whether the keys have been loaded.
pub const READY_PATH: &str = "/parity-ready";

/// As [`READY_PATH`], for feature flags: open while they say so.
pub const FLAGS_READY_PATH: &str = "/parity-ready-flags";

/// The policy of `named`, which begins at `epoch_ms`. Files are named as [`crate::world`] writes them into `folder`.
///
/// # Errors
/// When it names a certificate that there is not.
pub fn policy(
    named: &Named,
    places: &Places,
    folder: &Path,
    keys: &Keys,
    epoch_ms: u64,
) -> anyhow::Result<Value> {
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
    let mut upstreams = json!({ "u": upstream(places.upstreams[0]), "v": upstream(places.upstreams[1]) });
    for (name, settings) in &case.upstreams {
        let mut settings = settings.clone();
        if settings["tls"].is_null() {
            settings["tls"] = upstreams["u"]["tls"].clone();
        }
        upstreams[name] = settings;
    }
    let listener = |name: &str, address: SocketAddr| {
        let mut tls = json!({ "certificate": file("edge.pem"), "key": file("edge.key") });
        if case.client_certificates {
            tls["client_certificates"] = json!({ "ca": file("clients.pem") });
        }
        json!({ "name": name, "address": address, "tls": tls })
    };
    let mut clients = json!({
        "acme-bank": {
            "tenant": case.client_tenant,
            "hmac_keys": [{ "id": "partner-1", "secret": file("partner-1.key") }],
        },
        "other-bank": { "hmac_keys": [{ "id": "other-1", "secret": file("partner-1.key") }] },
    });
    for (name, client) in &case.clients {
        let mut client = client.clone();
        resolve(&mut client, &|text| match text {
            name @ ("partner-1.key" | "acme.keys") => Ok(Some(file(name))),
            text => placeholder(text, keys, epoch_ms),
        })?;
        clients[name] = client;
    }
    let stock = json!({
        "name": "r", "methods": ["GET", "POST", "PUT", "DELETE"], "path": "/{*rest}", "upstream": "u",
        "filters": named.filters(),
    });
    let mut routes = if case.routes.is_empty() { vec![stock] } else { case.routes.clone() };
    routes.push(json!({
        "name": "parity-ready", "methods": ["GET"], "path": READY_PATH, "upstream": "u",
        "filters": { "jwt": {} },
    }));
    let flags = case.flags_file(folder).zip(case.flags_text());
    if let Some((path, text)) = &flags {
        // In process nobody reads it.
        if folder.is_dir() && folder != Path::new("/") {
            std::fs::write(path, text)?;
        }
        routes.push(json!({
            "name": "parity-ready-flags", "methods": ["GET"], "path": FLAGS_READY_PATH, "upstream": "u",
            "filters": { "feature": {
                "when": [{ "flag": "parity-ready", "is": ["on"] }], "closed": "unavailable",
            } },
        }));
    }
    let flags = flags
        .map(|(path, _)| json!({ "file": format!("file:{}", path.display()), "fields": case.flag_fields }));
    let mut issuers = json!({ "main": {
        "issuer": case.issuer.as_deref().unwrap_or("https://issuer.test"), "audiences": ["torana"],
        "algorithms": match case.algorithms.is_empty() {
            true => json!(["ES256"]),
            false => json!(case.algorithms),
        },
        "jwks": case.jwks.clone().unwrap_or_else(|| json!({ "file": file("jwks.json") })),
    } });
    if case.introspection {
        issuers["asked"] = json!({
            "issuer": "https://asked.test", "audiences": ["torana"],
            "introspection": {
                "url": format!("https://localhost:{}/introspect", places.introspection.port()),
                "ca": file("ca.pem"), "client_id": "edge", "client_secret": file("introspection.secret"),
            },
        });
    }
    let state_timeout_ms = case.state_timeout_ms.unwrap_or(5_000);
    let mut service = json!({ "timeout_ms": state_timeout_ms });
    match case.state_socket {
        true => service["socket"] = json!("state.sock"),
        false => service["address"] = json!(places.state),
    }
    let redis = case.redis.as_ref();
    let redis =
        redis.map(|url| json!({ "url": format!("file:{}", url.display()), "timeout_ms": state_timeout_ms }));
    Ok(written(json!({
        "listeners": [listener("v4", places.listeners[0]), listener("v6", places.listeners[1])],
        "admin": { "address": places.admin },
        "trusted_proxies": case.trusted_proxies,
        "state": {
            "memory": { "max_entries": case.max_entries.unwrap_or(10_000) },
            "service": service,
            "redis": redis,
        },
        "upstreams": upstreams,
        "issuers": issuers,
        "clients": clients,
        "tenants": case.tenants,
        "plans": case.plans,
        "default_plan": case.default_plan,
        "utc_offset": morning(epoch_ms),
        "flags": flags,
        "filters": if case.everywhere.is_null() { json!({}) } else { case.everywhere.clone() },
        "routes": routes,
    })))
}

/// Without what a case does not say: a policy leaves out what it does not say.
fn written(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(|value| *value = written(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = written(item.take())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

/// The offset of a place where a day has just begun.
fn morning(epoch_ms: u64) -> String {
    let minute = epoch_ms / 60_000 % 1_440;
    let (sign, minutes) = if minute <= 840 { ('-', minute) } else { ('+', 1_440 - minute) };
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// What `at(60)` or `spki(acme)` stands for.
fn placeholder(text: &str, keys: &Keys, epoch_ms: u64) -> anyhow::Result<Option<String>> {
    let inside = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(seconds) = inside("at") {
        let epoch_s = i64::try_from(epoch_ms / 1_000)?;
        let moment = Moment::from_unix_s(epoch_s + seconds.parse::<i64>()?).context("beyond all time")?;
        return Ok(Some(moment.to_string()));
    }
    inside("spki").map(|name| keys.certificates.pin(name)).transpose()
}

/// Replaces texts, wherever they are.
fn resolve(value: &mut Value, by: &dyn Fn(&str) -> anyhow::Result<Option<String>>) -> anyhow::Result<()> {
    match value {
        Value::String(text) => {
            if let Some(other) = by(text)? {
                *text = other;
            }
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(|value| resolve(value, by)),
        Value::Object(members) => members.values_mut().try_for_each(|value| resolve(value, by)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}
