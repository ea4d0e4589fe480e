//! Which pages of other origins a browser lets call: cross-origin resource sharing, as the Fetch standard has it
//! (https://fetch.spec.whatwg.org/#http-cors-protocol).
//!
//! Keeps browsers from telling one site's page what another's service answers; it lets nobody in, and keeps out nobody
//! who has no browser. A preflight, `OPTIONS` with `Access-Control-Request-Method`, is decided on by the route of the
//! method that it asks for, and answered by the edge before anything else is asked. Where several versions serve that
//! method it is answered as all of them would answer it, for it names none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Headers, Host, Refusal, Request, Verdict};
use crate::policy::{Settings, Site, Unusable, in_both};

/// Pages that may call from a browser.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Origins of those pages, whole and to the letter: `https://pay.example`. `*` alone: every page, without
    /// credentials.
    pub origins: Vec<String>,
    /// Fields that they may send besides those that any page may.
    #[serde(default)]
    pub request_fields: Vec<String>,
    /// Fields of answers that they may read besides those that any page may.
    #[serde(default)]
    pub response_fields: Vec<String>,
    /// Whether the browser may send what it holds for this service: cookies, client certificates.
    #[serde(default)]
    pub credentials: bool,
    /// Seconds that a browser may remember a preflight's answer.
    #[serde(default = "ten_minutes")]
    pub max_age_s: u32,
}

fn ten_minutes() -> u32 {
    600
}

const ANY: &str = "*";
const REQUESTED_METHOD: &str = "access-control-request-method";

/// The method that the request asks for in advance, if it is a preflight.
pub(crate) fn preflight<'r>(method: &str, headers: &Headers<'r>) -> Option<&'r str> {
    let is_one = method == "OPTIONS" && matches!(headers.one("origin"), Ok(Some(_)));
    headers.one(REQUESTED_METHOD).ok().flatten().filter(|_| is_one)
}

impl Config {
    /// Whether no page is let in: two lists had none in common.
    pub(crate) fn names_nobody(&self) -> bool {
        self.origins.iter().all(String::is_empty)
    }

    /// What both of two versions let in. Here, other than from a parent to its child, who names no field lets none in.
    pub(crate) fn also(self, other: Self) -> Self {
        let both = |some: &[String], others: &[String]| {
            let named = |field: &&String| others.iter().any(|other| other.eq_ignore_ascii_case(field));
            some.iter().filter(named).cloned().collect()
        };
        let request_fields = both(&self.request_fields, &other.request_fields);
        let response_fields = both(&self.response_fields, &other.response_fields);
        Self { request_fields, response_fields, ..self.and(other) }
    }
}

impl Settings for Config {
    /// A page must be let in by both.
    fn and(self, child: Self) -> Self {
        let named = |origins: Vec<String>| if origins == [ANY] { Vec::new() } else { origins };
        let any = self.origins == [ANY] && child.origins == [ANY];
        let origins = in_both(named(self.origins), named(child.origins));
        Self {
            origins: if any { vec![ANY.to_owned()] } else { origins },
            request_fields: in_both(self.request_fields, child.request_fields),
            response_fields: in_both(self.response_fields, child.response_fields),
            credentials: self.credentials && child.credentials,
            max_age_s: self.max_age_s.min(child.max_age_s),
        }
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        const LONGEST_AGE_S: u32 = 86_400;
        if self.names_nobody() {
            return Err(Unusable::new("`origins` names no page that may call"));
        }
        let any = self.origins == [ANY];
        if let Some(odd) = self.origins.iter().find(|origin| !any && !is_origin(origin)) {
            return Err(Unusable::new(format!(
                "`{odd}` is no origin: write `https://HOST` or `https://HOST:PORT` without a path, or `*` alone"
            )));
        }
        if any && self.credentials {
            return Err(Unusable::new("`credentials` go to pages that are named: `*` is every page there is"));
        }
        let fields = self.request_fields.iter().chain(&self.response_fields);
        if let Some(odd) = fields.clone().find(|field| !is_field(field)) {
            return Err(Unusable::new(format!("`{odd}` is not the name of a field")));
        }
        if self.max_age_s > LONGEST_AGE_S {
            return Err(Unusable::new(format!("`max_age_s` is at most {LONGEST_AGE_S}")));
        }
        Ok(Box::new(Cors {
            any,
            request_fields: self.request_fields.join(", "),
            response_fields: self.response_fields.join(", "),
            origins: self.origins,
            credentials: self.credentials,
            max_age_s: self.max_age_s.to_string(),
        }))
    }
}

/// Scheme, host and perhaps port, as browsers send them (RFC 6454 section 6.1).
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    matches!(scheme, "https" | "http") && !host.is_empty() && host.bytes().all(plain)
}

/// A token of RFC 9110 section 5.6.2, or nothing, which is what two lists without a common name leave.
fn is_field(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[derive(Debug)]
struct Cors {
    any: bool,
    origins: Vec<String>,
    request_fields: String,
    response_fields: String,
    credentials: bool,
    max_age_s: String,
}

impl Cors {
    fn allows(&self, origin: &str) -> bool {
        self.any || self.origins.iter().any(|allowed| allowed == origin)
    }
}

impl Filter for Cors {
    fn name(&self) -> &'static str {
        "cors"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        // What is answered depends on the origin, also where there is none.
        if !self.any {
            context.answer.push(("vary", "Origin".to_owned()));
        }
        let asked = preflight(request.method, &request.headers);
        // An origin that cannot be read is nobody's: the answer is the client's own, and no page hears it.
        let origin = request.headers.one("origin").ok().flatten();
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else {
            return match asked {
                Some(_) => Verdict::refuse(
                    403,
                    "origin_not_allowed",
                    "Pages of this origin may not call this service from a browser.",
                ),
                None => Verdict::Pass,
            };
        };
        let allowed = if self.any { ANY } else { origin };
        context.answer.push(("access-control-allow-origin", allowed.to_owned()));
        if self.credentials {
            context.answer.push(("access-control-allow-credentials", "true".to_owned()));
        }
        let Some(method) = asked else {
            if !self.response_fields.is_empty() {
                context.answer.push(("access-control-expose-headers", self.response_fields.clone()));
            }
            return Verdict::Pass;
        };
        let mut answer = Refusal::no_content("preflight")
            .header("access-control-allow-methods", method)
            .header("access-control-max-age", self.max_age_s.clone());
        if !self.request_fields.is_empty() {
            answer = answer.header("access-control-allow-headers", self.request_fields.clone());
        }
        answer.into()
    }
}
