//! Security fields on every answer (OWASP Secure Headers), refusals included.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter};
use crate::policy::{Settings, Site, Unusable};

/// Fields set on every answer. The defaults suit an API that serves no pages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `Strict-Transport-Security` max-age, seconds (RFC 6797). 0: the field is not sent.
    pub hsts_max_age_s: u64,
    /// `Content-Security-Policy`.
    pub content_security_policy: String,
    /// `Referrer-Policy`.
    pub referrer_policy: String,
    /// `Cache-Control` where the upstream sends none: a payment's answer must not be kept by anyone.
    pub cache_control: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hsts_max_age_s: 31_536_000,
            content_security_policy: "default-src 'none'; frame-ancestors 'none'".into(),
            referrer_policy: "no-referrer".into(),
            cache_control: "no-store".into(),
        }
    }
}

impl Settings for Config {
    /// A route may set its own values; which fields are sent is not its choice.
    fn and(self, child: Self) -> Self {
        Self { hsts_max_age_s: self.hsts_max_age_s.max(child.hsts_max_age_s), ..child }
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let texts = [&self.content_security_policy, &self.referrer_policy, &self.cache_control];
        if texts.iter().any(|text| !text.bytes().all(|byte| (b' '..=b'~').contains(&byte))) {
            return Err(Unusable::new("a field's value must be visible ASCII on one line"));
        }
        let mut fields = vec![
            ("content-security-policy", self.content_security_policy),
            ("referrer-policy", self.referrer_policy),
            ("cache-control", self.cache_control),
            ("x-content-type-options", "nosniff".into()),
            ("x-frame-options", "DENY".into()),
        ];
        if self.hsts_max_age_s > 0 {
            let value = format!("max-age={}; includeSubDomains", self.hsts_max_age_s);
            fields.push(("strict-transport-security", value));
        }
        Ok(Box::new(Headers(fields)))
    }
}

#[derive(Debug)]
struct Headers(Vec<(&'static str, String)>);

impl Filter for Headers {
    fn name(&self) -> &'static str {
        "headers"
    }

    fn response(&self, _context: &Context, fields: &mut Vec<(Cow<'static, str>, String)>) {
        fields.extend(self.0.iter().map(|(name, value)| (Cow::Borrowed(*name), value.clone())));
    }
}
