//! What is refused while the shared state is impaired, and whether the instance is ready all the same.

use filters::policy::{Document, ReadinessWhenAway};
use filters::state::LimitsWhenAway;
use serde::Serialize;

use super::State;
use super::redis::Faults;

/// What is refused at the moment, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Refused {
    what: What,
    cause: String,
    /// The routes concerned; empty where it is not a matter of routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// Requests whose nonce must be remembered.
    Nonces,
    /// Requests under limits that instances share.
    Limits,
    /// All tokens, because this process has never read the list of those that are revoked.
    Tokens,
    /// Revoking tokens. What was revoked before stays so.
    Revoking,
}

impl State {
    /// What this process refuses because of the shared state.
    pub(crate) fn refused(&self, document: &Document) -> Vec<Refused> {
        let Some(redis) = &self.redis else { return Vec::new() };
        let faults = redis.faults();
        let mut all = refused(&faults, document);
        if !self.revoked().list().is_known() {
            let why = faults.unavailable.as_deref().unwrap_or("it was not asked yet");
            let cause = format!("the list of revoked tokens was never read from Redis: {why}");
            all.push(Refused { what: What::Tokens, cause, routes: Vec::new() });
        }
        all
    }

    /// Whether what is refused takes the instance out.
    pub(crate) fn takes_out(refused: &[Refused], document: &Document) -> bool {
        match document.state.readiness_when_away {
            ReadinessWhenAway::Ready => false,
            ReadinessWhenAway::NotReady => refused.iter().any(|refused| match refused.what {
                What::Nonces | What::Limits | What::Tokens => true,
                What::Revoking => false,
            }),
        }
    }
}

fn refused(faults: &Faults, document: &Document) -> Vec<Refused> {
    let Faults { unavailable, full, evicts } = faults;
    let unavailable = unavailable.as_ref().map(|why| format!("Redis is unavailable: {why}"));
    let full = full.as_ref().map(|why| format!("Redis is full: {why}"));
    let evicts = evicts.as_ref().map(|why| format!("Redis may evict nonces: {why}"));
    let mut all = Vec::new();
    let routes = document.routes_with_nonces();
    if let Some(cause) = unavailable.as_ref().or(full.as_ref()).or(evicts.as_ref())
        && !routes.is_empty()
    {
        all.push(Refused { what: What::Nonces, cause: cause.clone(), routes });
    }
    let limits = match document.state.limits_when_away {
        LimitsWhenAway::Refuse => unavailable.as_ref().or(full.as_ref()),
        // They are counted in this process, unless Redis answers that it has no room.
        LimitsWhenAway::Local => full.as_ref().filter(|_| unavailable.is_none()),
    };
    if let Some(cause) = limits {
        all.push(Refused { what: What::Limits, cause: cause.clone(), routes: Vec::new() });
    }
    if let Some(cause) = unavailable.or(full) {
        all.push(Refused { what: What::Revoking, cause, routes: Vec::new() });
    }
    all
}

#[cfg(test)]
mod tests {
    use filters::policy::{Policy, Secret};

    use super::*;

    fn document(state: &str) -> Document {
        let text = format!(
            "admin: {{ address: \"127.0.0.1:9\" }}\n\
             listeners: [{{ name: a, address: \"127.0.0.1:1\", tls: {{ certificate: \"file:c\", key: \"file:k\" }} }}]\n\
             upstreams: {{ core: {{ addresses: [\"127.0.0.1:2\"], \
               tls: {{ server_name: c, ca: \"file:c\", certificate: \"file:c\", key: \"file:k\" }} }} }}\n\
             clients: {{ acme: {{ hmac_keys: [{{ id: k, secret: \"env:K\" }}] }} }}\n\
             state: {{ redis: {{ url: \"env:R\" }}{state} }}\n\
             routes:\n\
             - {{ name: open, path: /a, methods: [GET], upstream: core }}\n\
             - {{ name: pay, path: /b, methods: [POST], upstream: core, timeout_ms: 5000, \
                 filters: {{ signature: {{}}, nonce: {{}} }} }}\n"
        );
        let secret = |_: &_| Ok(Secret::new(zeroize::Zeroizing::new(vec![b'k'; 32])));
        Policy::read(&text, &secret).unwrap_or_else(|wrong| panic!("{wrong:?}")).document().clone()
    }

    #[test]
    fn what_is_refused_and_why() {
        let fault = |text: &str| Some(text.to_owned());
        let unavailable = Faults { unavailable: fault("gone"), ..Faults::default() };
        let full = Faults { full: fault("OOM"), ..Faults::default() };
        let evicts = Faults { evicts: fault("lru"), ..Faults::default() };
        for (state, faults, expected) in [
            ("", Faults::default(), r#"[]"#),
            (
                "",
                unavailable.clone(),
                r#"[{"what":"nonces","cause":"Redis is unavailable: gone","routes":["pay"]},{"what":"revoking","cause":"Redis is unavailable: gone"}]"#,
            ),
            (
                ", limits_when_away: refuse",
                unavailable.clone(),
                r#"[{"what":"nonces","cause":"Redis is unavailable: gone","routes":["pay"]},{"what":"limits","cause":"Redis is unavailable: gone"},{"what":"revoking","cause":"Redis is unavailable: gone"}]"#,
            ),
            (
                "",
                full,
                r#"[{"what":"nonces","cause":"Redis is full: OOM","routes":["pay"]},{"what":"limits","cause":"Redis is full: OOM"},{"what":"revoking","cause":"Redis is full: OOM"}]"#,
            ),
            ("", evicts, r#"[{"what":"nonces","cause":"Redis may evict nonces: lru","routes":["pay"]}]"#),
        ] {
            let told = refused(&faults, &document(state));
            assert_eq!(serde_json::to_string(&told).unwrap(), expected, "{state} {faults:?}");
            assert!(!State::takes_out(&told, &document(state)), "ready is the default");
            let not_ready = document(&format!("{state}, readiness_when_away: not_ready"));
            assert_eq!(
                State::takes_out(&told, &not_ready),
                faults != Faults::default(),
                "{state} {faults:?}"
            );
        }
    }
}
