//! What issuers and files of flags are known as between Envoy's module and the state service.
//!
//! Each of the two has a policy of its own, and while one takes over the other's is older. A policy's name of an issuer
//! means what that policy says of it; what the issuer is known as means the same in every policy, so that nobody is told
//! one issuer's keys for another's.

use std::fmt::Write as _;

use super::{At, Discovery, FlagFile, Introspection, Issuer, Jwks, Reference, StaleCrl};
use crate::crypto::sha256;

impl Issuer {
    /// The same wherever the same is said of whose keys these are: who the issuer is, where its keys come from, who is
    /// asked about its tokens, and what those are known by. How often and for how long is each policy's own matter. Every
    /// field is named here, so that none that is added is forgotten.
    pub fn known_as(&self) -> String {
        let Self { issuer, jwks, introspection, audiences: _, algorithms: _, leeway_s: _ } = self;
        let mut said = Said::default();
        said.text(Some(issuer));
        if let Some(jwks) = jwks {
            let Jwks {
                url,
                discovery,
                file,
                ca,
                crl,
                stale_crl,
                refresh_s: _,
                stale_s: _,
                unknown_kid_refresh_s: _,
                timeout_ms: _,
            } = jwks;
            said.text(Some("jwks"));
            said.text(url.as_deref());
            said.text(discovery.map(|discovery| match discovery {
                Discovery::Openid => "openid",
                Discovery::Oauth => "oauth",
            }));
            for reference in [file, ca, crl] {
                said.reference(reference.as_ref().map(|reference| &reference.value));
            }
            said.stale(*stale_crl);
        }
        if let Some(At { value: introspection, .. }) = introspection {
            let Introspection {
                url,
                ca,
                crl,
                stale_crl,
                client_id,
                client_secret,
                certificate,
                key,
                timeout_ms: _,
                cache_s: _,
                negative_cache_s: _,
                cache_entries: _,
                max_in_flight: _,
            } = introspection;
            said.text(Some("introspection"));
            said.text(Some(url));
            said.text(Some(client_id));
            said.reference(Some(&ca.value));
            for reference in [crl, client_secret, certificate, key] {
                said.reference(reference.as_ref().map(|reference| &reference.value));
            }
            said.stale(*stale_crl);
        }
        said.digest()
    }
}

impl FlagFile {
    /// The same for the same file, whatever else policies say of it.
    pub fn known_as(&self) -> String {
        let mut said = Said::default();
        said.reference(Some(&self.file.value));
        said.digest()
    }
}

/// What was said, so that no two lists of texts look alike.
#[derive(Default)]
struct Said(String);

impl Said {
    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => {
                let _ = write!(self.0, "{}:{text}", text.len());
            }
            None => self.0.push('-'),
        }
    }

    fn reference(&mut self, reference: Option<&Reference>) {
        self.text(reference.map(ToString::to_string).as_deref());
    }

    fn stale(&mut self, stale: StaleCrl) {
        self.text(Some(match stale {
            StaleCrl::Refuse => "refuse",
            StaleCrl::Allow => "allow",
        }));
    }

    fn digest(&self) -> String {
        let mut digest = String::with_capacity(32);
        for byte in sha256(self.0.as_bytes()).iter().take(16) {
            let _ = write!(digest, "{byte:02x}");
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(more: &serde_json::Value) -> Issuer {
        let mut written = serde_json::json!({
            "issuer": "https://i", "audiences": ["a"], "algorithms": ["ES256"],
            "jwks": { "url": "https://i/keys", "ca": "file:ca.pem" },
            "introspection": { "url": "https://i/ask", "ca": "file:ca.pem", "client_id": "edge", "client_secret": "file:s" },
        });
        merge(&mut written, more);
        serde_json::from_value(written).unwrap()
    }

    fn merge(into: &mut serde_json::Value, more: &serde_json::Value) {
        for (name, value) in more.as_object().unwrap() {
            match value.is_object() && into[name].is_object() {
                true => merge(&mut into[name], value),
                false => into[name] = value.clone(),
            }
        }
    }

    #[test]
    fn whoever_has_other_keys_is_known_as_another() {
        let known_as = issuer(&serde_json::json!({})).known_as();
        assert_eq!(known_as.len(), 32);
        for (same, more) in [
            (true, r#"{ "audiences": ["b"], "algorithms": ["RS256"], "leeway_s": 5 }"#),
            (
                true,
                r#"{ "jwks": { "refresh_s": 1, "stale_s": 2, "unknown_kid_refresh_s": 3, "timeout_ms": 4 } }"#,
            ),
            (true, r#"{ "introspection": { "timeout_ms": 1, "cache_s": 2, "cache_entries": 3 } }"#),
            (false, r#"{ "issuer": "https://j" }"#),
            (false, r#"{ "jwks": { "url": "https://j/keys" } }"#),
            (false, r#"{ "jwks": { "url": null, "file": "file:keys.json" } }"#),
            (false, r#"{ "jwks": { "url": null, "discovery": "openid" } }"#),
            (false, r#"{ "jwks": { "url": null, "discovery": "oauth" } }"#),
            (false, r#"{ "jwks": { "ca": "file:other.pem" } }"#),
            (false, r#"{ "jwks": { "crl": "file:ca.crl" } }"#),
            (false, r#"{ "jwks": { "stale_crl": "allow" } }"#),
            (false, r#"{ "jwks": null }"#),
            (false, r#"{ "introspection": null }"#),
            (false, r#"{ "introspection": { "url": "https://j/ask" } }"#),
            (false, r#"{ "introspection": { "client_id": "other" } }"#),
            (false, r#"{ "introspection": { "client_secret": "file:other" } }"#),
            (
                false,
                r#"{ "introspection": { "client_secret": null, "certificate": "file:c", "key": "file:k" } }"#,
            ),
            (false, r#"{ "introspection": { "ca": "file:other.pem" } }"#),
            (false, r#"{ "introspection": { "crl": "file:ca.crl" } }"#),
            (false, r#"{ "introspection": { "stale_crl": "allow" } }"#),
        ] {
            let other = issuer(&serde_json::from_str(more).unwrap());
            assert_eq!(other.known_as() == known_as, same, "{more}");
        }
    }
}
