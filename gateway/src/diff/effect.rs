//! Which way a setting changes who passes.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::delta::{Delta, Step, as_set};
use super::networks::Networks;

/// What a change does to who passes, the one to look at first first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It lets in what was refused before.
    Looser,
    /// It changes what happens, or nobody has said which way it goes.
    Other,
    /// It refuses what passed before, and lets nothing in.
    Stricter,
}

/// How a setting and who passes hang together.
enum Lets {
    /// A greater number, a longer list, one entry more lets more in.
    MoreIn,
    /// A greater number, a longer list, one entry more lets less in.
    LessIn,
    /// A list of who may; an empty one is everybody.
    AllInWhenEmpty,
    /// To be there at all lets less in.
    LessInWhenThere,
    /// To be there at all lets more in.
    MoreInWhenThere,
    /// Values that let less in come later.
    LessInLater(&'static [&'static [&'static str]]),
}

/// Stands for settings that may also be one word.
const SETTINGS: &str = "{…}";

/// What is known of settings. What is not here goes neither way, and is told all the same.
const KNOWN: &[(&str, Lets)] = {
    use Lets::{AllInWhenEmpty, LessIn, LessInLater, LessInWhenThere, MoreIn, MoreInWhenThere};
    const STALE_CRL: Lets = LessInLater(&[&["allow"], &["refuse"]]);
    const MODE: Lets = LessInLater(&[&["shadow"], &["enforce"]]);
    &[
        ("ip_access.allow", AllInWhenEmpty),
        ("ip_access.deny", LessIn),
        ("shape.max_body_bytes", MoreIn),
        ("shape.max_headers", MoreIn),
        ("shape.max_header_bytes", MoreIn),
        ("shape.max_target_bytes", MoreIn),
        ("shape.max_json_depth", MoreIn),
        ("shape.content_types", AllInWhenEmpty),
        ("client_cert.mode", LessInLater(&[&["off"], &["optional"], &["required"]])),
        ("client_cert.clients", AllInWhenEmpty),
        ("idempotency.max_length", MoreIn),
        ("idempotency.body_member", LessInWhenThere),
        ("jwt.issuers", AllInWhenEmpty),
        ("jwt.scopes", LessIn),
        ("jwt.bound_to", LessInWhenThere),
        ("jwt.max_length", MoreIn),
        ("signature.signer", LessInLater(&[&["either"], &["device", "client"]])),
        ("signature.clients", AllInWhenEmpty),
        ("signature.components", LessIn),
        ("signature.label", LessInWhenThere),
        ("signature.max_age_s", MoreIn),
        ("signature.max_skew_s", MoreIn),
        ("nonce.window_s", MoreIn),
        ("nonce.max_skew_s", MoreIn),
        ("nonce.min_length", LessIn),
        ("nonce.max_length", MoreIn),
        ("rate_limit.limits", LessIn),
        ("rate_limit.limits.requests", MoreIn),
        ("rate_limit.limits.per_s", LessIn),
        ("rate_limit.limits.burst", MoreIn),
        ("rate_limit.limits.counted", LessInLater(&[&["here"], &["shared"]])),
        ("rate_limit.limits.mode", MODE),
        ("rate_limit.cost", LessIn),
        ("rate_limit.limits.when", MoreInWhenThere),
        ("quota.limits.when", MoreInWhenThere),
        ("concurrency.limits.when", MoreInWhenThere),
        ("plans.rate_limit.when", MoreInWhenThere),
        ("plans.quota.when", MoreInWhenThere),
        ("plans.concurrency.when", MoreInWhenThere),
        ("feature.when", LessIn),
        ("quota.limits", LessIn),
        ("quota.limits.most", MoreIn),
        ("quota.limits.mode", MODE),
        ("concurrency.limits", LessIn),
        ("concurrency.limits.most", MoreIn),
        ("concurrency.limits.lease_s", LessIn),
        ("concurrency.limits.mode", MODE),
        ("api_key.clients", AllInWhenEmpty),
        ("tenant.from", MoreIn),
        ("tenants.hosts", MoreIn),
        ("cors.origins", MoreIn),
        ("cors.credentials", LessInLater(&[&["true"], &["false"]])),
        ("plans.rate_limit", LessIn),
        ("plans.rate_limit.requests", MoreIn),
        ("plans.rate_limit.per_s", LessIn),
        ("plans.rate_limit.burst", MoreIn),
        ("plans.rate_limit.mode", MODE),
        ("plans.quota", LessIn),
        ("plans.quota.most", MoreIn),
        ("plans.quota.mode", MODE),
        ("plans.concurrency", LessIn),
        ("plans.concurrency.most", MoreIn),
        ("plans.concurrency.lease_s", LessIn),
        ("plans.concurrency.mode", MODE),
        ("tenants", MoreIn),
        // Whom nobody names is let in.
        ("default_plan", MoreIn),
        ("signing.from_upstream", LessInWhenThere),
        ("signing.from_upstream.max_age_s", MoreIn),
        ("signing.from_upstream.max_skew_s", MoreIn),
        ("routes.methods", MoreIn),
        ("routes.websocket", MoreIn),
        ("admin.revocation_secret", LessInWhenThere),
        ("clients", MoreIn),
        ("clients.tenant", LessInWhenThere),
        ("clients.hmac_keys", MoreIn),
        ("clients.hmac_key_file", MoreIn),
        ("clients.certificates", MoreIn),
        ("clients.api_keys", MoreIn),
        ("issuers", MoreIn),
        ("issuers.audiences", MoreIn),
        ("issuers.algorithms", MoreIn),
        ("issuers.leeway_s", MoreIn),
        ("issuers.jwks.stale_s", MoreIn),
        ("issuers.introspection", MoreIn),
        ("issuers.introspection.cache_s", MoreIn),
        ("issuers.introspection.crl", LessInWhenThere),
        ("issuers.introspection.stale_crl", STALE_CRL),
        ("issuers.jwks.crl", LessInWhenThere),
        ("issuers.jwks.stale_crl", STALE_CRL),
        ("trusted_proxies", MoreIn),
        ("listeners", MoreIn),
        ("listeners.tls.client_certificates", LessInWhenThere),
        ("listeners.tls.client_certificates.crl", LessInWhenThere),
        ("listeners.tls.client_certificates.stale_crl", STALE_CRL),
        ("listeners.tls.client_certificates.required", LessInLater(&[&["false"], &["true"]])),
        // `off` beside settings: a message that anybody could read or answer.
        ("upstreams.tls", LessInLater(&[&["off"], &[SETTINGS]])),
        ("upstreams.forward_authorization", LessInLater(&[&["true"], &["false"]])),
        ("upstreams.tls.crl", LessInWhenThere),
        ("upstreams.tls.stale_crl", STALE_CRL),
        ("state.limits_when_away", LessInLater(&[&["local"], &["refuse"]])),
        ("state.service.tls", LessInWhenThere),
        ("state.service.tls.allowed_clients", MoreIn),
        ("state.service.tls.crl", LessInWhenThere),
        ("state.service.tls.stale_crl", STALE_CRL),
    ]
};

impl Effect {
    /// The effect of a difference.
    pub(super) fn of(delta: &Delta) -> Self {
        let fields: Vec<&str> = delta
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                Step::Entry(_) => None,
            })
            .collect();
        let fields = fields.join(".");
        if fields.starts_with("jwt.claims.") {
            return match (&delta.before, &delta.after) {
                (None, Some(_)) => Self::Stricter,
                (Some(_), None) => Self::Looser,
                (before, after) => more(before.as_ref(), after.as_ref()),
            };
        }
        let Some((_, lets)) = KNOWN.iter().find(|(known, _)| *known == fields) else { return Self::Other };
        let (before, after) = (delta.before.as_ref(), delta.after.as_ref());
        match lets {
            Lets::MoreIn => more(before, after),
            Lets::LessIn => more(after, before),
            Lets::LessInWhenThere => match (before, after) {
                (None, Some(_)) => Self::Stricter,
                (Some(_), None) => Self::Looser,
                (Some(_), Some(_)) | (None, None) => Self::Other,
            },
            Lets::MoreInWhenThere => match (before, after) {
                (None, Some(_)) => Self::Looser,
                (Some(_), None) => Self::Stricter,
                (Some(_), Some(_)) | (None, None) => Self::Other,
            },
            Lets::AllInWhenEmpty => match (is_empty(before), is_empty(after)) {
                (true, true) => Self::Other,
                (true, false) => Self::Stricter,
                (false, true) => Self::Looser,
                (false, false) => more(before, after),
            },
            Lets::LessInLater(order) => {
                let rank = |value: Option<&Value>| {
                    let text = match value? {
                        Value::String(text) => text.clone(),
                        Value::Object(_) => SETTINGS.to_owned(),
                        other => other.to_string(),
                    };
                    order.iter().position(|same| same.contains(&text.as_str()))
                };
                match (rank(before), rank(after)) {
                    (Some(before), Some(after)) if after < before => Self::Looser,
                    (Some(before), Some(after)) if after > before => Self::Stricter,
                    (Some(_) | None, Some(_) | None) => Self::Other,
                }
            }
        }
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    value.is_none_or(|value| value.as_array().is_some_and(Vec::is_empty))
}

/// The effect where more lets more in. Lists that gain something and lose something let something in.
fn more(before: Option<&Value>, after: Option<&Value>) -> Effect {
    let set = |value: Option<&Value>| -> Option<BTreeSet<String>> {
        match value {
            None => Some(BTreeSet::new()),
            Some(value) => value.as_array().map(|list| as_set(list)),
        }
    };
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    if let (Some(before), Some(after)) = (number(before), number(after)) {
        return if after > before { Effect::Looser } else { Effect::Stricter };
    }
    let networks = |value: Option<&Value>| Networks::of(value?.as_array()?);
    if let (Some(before), Some(after)) = (networks(before), networks(after)) {
        return if after.are_in(&before) { Effect::Stricter } else { Effect::Looser };
    }
    match (before, after) {
        // An entry of a list, or what is there or not.
        (None, Some(after)) if after.is_object() || after.is_string() => Effect::Looser,
        (Some(before), None) if before.is_object() || before.is_string() => Effect::Stricter,
        (before, after) => match (set(before), set(after)) {
            (Some(before), Some(after)) if !after.is_subset(&before) => Effect::Looser,
            (Some(_), Some(_)) => Effect::Stricter,
            (Some(_) | None, Some(_) | None) => Effect::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::delta::deltas;
    use super::{Effect, KNOWN};

    #[test]
    #[allow(clippy::needless_pass_by_value, reason = "literals")]
    fn which_way_a_change_goes() {
        fn check(before: Value, after: Value, expected: Effect) {
            let told: Vec<Effect> = deltas(&before, &after).iter().map(Effect::of).collect();
            assert_eq!(told, [expected], "{before} {after}");
        }
        use Effect::{Looser, Other, Stricter};
        let jwt = |settings: Value| json!({ "jwt": settings });
        check(jwt(json!({"scopes": ["a"]})), jwt(json!({"scopes": []})), Looser);
        check(jwt(json!({"scopes": ["a"]})), jwt(json!({"scopes": ["a", "b"]})), Stricter);
        // Who has `b` alone passes now.
        check(jwt(json!({"scopes": ["a"]})), jwt(json!({"scopes": ["b"]})), Looser);
        check(jwt(json!({"issuers": null})), jwt(json!({"issuers": ["a"]})), Stricter);
        check(jwt(json!({"issuers": ["a"]})), jwt(json!({"issuers": null})), Looser);
        check(jwt(json!({"issuers": ["a"]})), jwt(json!({"issuers": ["a", "b"]})), Looser);
        check(jwt(json!({"bound_to": "certificate"})), jwt(json!({})), Looser);
        check(jwt(json!({"cache_entries": 1})), jwt(json!({"cache_entries": 2})), Other);
        let cert = |mode: &str| json!({"client_cert": {"mode": mode}});
        check(cert("required"), cert("optional"), Looser);
        check(cert("off"), cert("optional"), Stricter);
        let signer = |signer: &str| json!({"signature": {"signer": signer}});
        check(signer("device"), signer("either"), Looser);
        check(signer("device"), signer("client"), Other);
        let limit = |limit: Value| json!({"rate_limit": {"limits": [limit]}});
        let (few, many) = (json!({"name": "a", "requests": 1}), json!({"name": "a", "requests": 2}));
        check(limit(few.clone()), limit(many), Looser);
        check(limit(few.clone()), json!({"rate_limit": {"limits": []}}), Looser);
        check(json!({"rate_limit": {"limits": []}}), limit(few), Stricter);
        check(json!({"ip_access": {"deny": ["10.0.0.0/8"]}}), json!({"ip_access": {"deny": []}}), Looser);
        let allow = |networks: &[&str]| json!({ "ip_access": { "allow": networks } });
        check(allow(&["10.0.0.0/8"]), allow(&["10.0.0.0/9"]), Stricter);
        check(allow(&["10.0.0.0/9", "192.0.2.0/24"]), allow(&["10.0.0.0/8"]), Looser);
        check(allow(&["10.0.0.0/8"]), allow(&["nobody"]), Stricter);
        check(allow(&["10.0.0.0/8"]), allow(&[]), Looser);
        let deny = |networks: &[&str]| json!({ "ip_access": { "deny": networks } });
        check(deny(&["10.0.0.0/8"]), deny(&["10.0.0.0/9"]), Looser);
        check(deny(&["10.0.0.0/9"]), deny(&["10.0.0.0/8"]), Stricter);
        check(json!({"x": {"y": 1}}), json!({"x": {"y": 2}}), Other);
    }

    /// A setting that was renamed would go neither way from then on, silently.
    #[test]
    fn what_is_known_is_there() {
        let schema: Value = serde_json::from_str(&crate::schema::text()).unwrap_or_default();
        for (path, _) in KNOWN {
            let first = path.split('.').next().unwrap_or_default();
            let of_filter = filters::FilterSet::NAMES.contains(&first);
            let mut at = if of_filter { schema["$defs"]["FilterSet"].clone() } else { schema.clone() };
            for field in path.split('.') {
                at = resolved(&schema, &at);
                at = at["properties"][field].clone();
                assert!(!at.is_null(), "{path}: there is no `{field}`");
            }
        }
    }

    /// What a schema says of a thing, of an entry of a list, or of one of a map.
    fn resolved(schema: &Value, at: &Value) -> Value {
        // Of a word or an object, the object.
        let several = at["anyOf"].as_array().into_iter().flatten();
        let object = several.map(|one| resolved(schema, one)).find(|one| one["properties"].is_object());
        if let Some(object) = object {
            return object;
        }
        let inner = [&at["items"], &at["additionalProperties"], &at["anyOf"][0]];
        if let Some(name) = at["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
            return resolved(schema, &schema["$defs"][name]);
        }
        match inner.into_iter().find(|inner| inner.is_object()) {
            Some(inner) => resolved(schema, inner),
            None => at.clone(),
        }
    }
}
