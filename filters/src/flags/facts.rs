//! What flags may look at: OpenFeature's evaluation context of one request.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{ErrorCode, Evaluation, Flags};
use crate::filter::{Context, Host, Request};
use crate::policy::FlagFile;

/// The names of facts that are the edge's own.
pub const RESERVED: [&str; 10] =
    ["targetingKey", "$flagd", "user", "tenant", "client", "device", "scopes", "ip", "method", "path"];

/// Which flags a request has seen, and what they said: the same until it ends, whatever the file says meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Fields of the request that flags may look at, by the names of the facts.
    fields: Option<Arc<FlagFile>>,
    asked: Option<Asked>,
    said: Vec<(Arc<str>, Evaluation)>,
}

/// What the first question found.
#[derive(Clone, Debug)]
struct Asked {
    flags: Option<Arc<Flags>>,
    facts: Map<String, Value>,
}

impl Seen {
    pub(crate) fn of(source: Option<&Arc<FlagFile>>) -> Self {
        Self { fields: source.cloned(), ..Self::default() }
    }

    /// What a flag said, if it was asked.
    pub(crate) fn variant(&self, key: &str) -> Option<&str> {
        self.said().find(|(known, _)| *known == key)?.1.variant.as_deref()
    }

    /// What each flag said that was asked, once each.
    pub fn said(&self) -> impl Iterator<Item = (&str, &Evaluation)> {
        self.said.iter().map(|(flag, said)| (&**flag, said))
    }
}

impl Context {
    /// What a flag says of the request.
    pub(crate) fn flag(&mut self, key: &str, request: &Request<'_>, host: &dyn Host) -> Evaluation {
        if let Some((_, said)) = self.flags.said.iter().find(|(known, _)| &**known == key) {
            return said.clone();
        }
        let mut asked = self
            .flags
            .asked
            .take()
            .unwrap_or_else(|| Asked { flags: host.flags(), facts: facts(self, request) });
        let own = json!({ "flagKey": key, "timestamp": host.now_ms() / 1_000 });
        asked.facts.insert("$flagd".to_owned(), own);
        let facts = Value::Object(std::mem::take(&mut asked.facts));
        let said = match &asked.flags {
            Some(flags) => flags.evaluate(key, &facts),
            None => Evaluation::error(ErrorCode::ProviderNotReady),
        };
        if let Value::Object(facts) = facts {
            asked.facts = facts;
        }
        self.flags.asked = Some(asked);
        self.flags.said.push((key.into(), said.clone()));
        said
    }
}

fn facts(context: &Context, request: &Request<'_>) -> Map<String, Value> {
    let mut facts = Map::new();
    let identity = context.identity();
    let client = context.client.as_ref().map(|client| client.name.to_string());
    let user = identity.map(|who| who.subject.clone());
    let texts = [
        ("targetingKey", user.clone().or_else(|| client.clone())),
        ("user", user),
        ("tenant", context.tenant_name().map(str::to_owned)),
        ("client", client),
        ("device", identity.and_then(|who| who.device.clone())),
        ("ip", Some(context.client_ip.to_string())),
        ("method", Some(request.method.to_owned())),
        ("path", crate::shape::decode(request.path).map(Cow::into_owned)),
    ];
    for (name, text) in texts {
        facts.extend(text.map(|text| (name.to_owned(), Value::String(text))));
    }
    if let Some(who) = identity {
        facts.insert("scopes".to_owned(), json!(who.scopes));
    }
    for (name, field) in context.flags.fields.iter().flat_map(|source| &source.fields) {
        // A field that is sent twice is not there: nobody could say which one counts.
        if let Ok(Some(value)) = request.headers.one(field) {
            facts.insert(name.clone(), Value::String(value.to_owned()));
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use crate::admission::{Admission, Draw};
    use crate::filter::{Headers, Host, Request};
    use crate::flags::Flags;
    use crate::jwt::KeySet;
    use crate::policy::{Policy, Secret};

    use super::*;

    const POLICY: &str = r#"
listeners:
  - { name: edge, address: "127.0.0.1:8443", tls: { certificate: "file:edge.pem", key: "file:edge.key" } }
admin: { address: "127.0.0.1:9100" }
flags: { file: "file:flags.json" }
upstreams:
  u: { addresses: ["127.0.0.1:1"], tls: { server_name: u, ca: "file:c", certificate: "file:g", key: "file:k" } }
  v: { addresses: ["127.0.0.1:2"], tls: { server_name: v, ca: "file:c", certificate: "file:g", key: "file:k" } }
routes:
  - name: r
    methods: [GET]
    path: /
    flag: core
    upstreams: [{ upstream: u, variant: "off" }, { upstream: v, variant: "on" }]
    filters: { feature: { when: [{ flag: open, is: ["on"] }, { flag: late, is: ["on"] }] } }
"#;

    /// Each time that it is asked its flags say the other thing.
    struct Fickle(Cell<bool>);

    impl Host for Fickle {
        fn now_ms(&self) -> u64 {
            0
        }

        fn keys(&self, _issuer: &str) -> Option<Arc<KeySet>> {
            None
        }

        fn flags(&self) -> Option<Arc<Flags>> {
            let variant = if self.0.replace(!self.0.get()) { "on" } else { "off" };
            let flag = json!({
                "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": variant,
            });
            let flags = json!({ "flags": { "open": flag, "late": flag, "core": flag } });
            Some(Arc::new(Flags::read(&flags.to_string()).unwrap()))
        }
    }

    #[test]
    fn a_request_sees_one_state_of_the_flags() {
        let policy = Policy::read(POLICY, &|_| Ok(Secret::LATER)).unwrap();
        let peer = [10, 0, 0, 1].into();
        let request = Request {
            method: "GET",
            scheme: "https",
            authority: "edge.test",
            path: "/",
            query: None,
            headers: Headers::default(),
            peer,
            certificate: None,
        };
        for (first, expected) in [(true, Ok(Some(("core", "on")))), (false, Err("route_not_found"))] {
            let host = Fickle(Cell::new(first));
            let mut admission = Admission::new(peer, None, Draw { request_id: 1, trace_id: 1, span_id: 1 });
            let decided = admission.head(&policy, &request, &host).map_err(|refused| refused.refusal.code);
            assert_eq!(decided.map(|()| admission.variant(&policy)), expected);
        }
    }
}
