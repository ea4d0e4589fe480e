//! What a request must look like before anything else reads it.
//!
//! Owns the edge's parser differentials: a path, a body or a header that two readers could understand
//! differently is refused here. It also removes every identity field that only the edge may set; that
//! happens on every path, whether or not the policy names this filter ([`edge_only`]).

mod identity;
mod json;
mod path;
mod target;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chain::Refused;
use crate::failure::Failure;
use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict};
use crate::policy::{Settings, Site, Unusable};

pub(crate) use json::unambiguous as unambiguous_json;
pub use identity::edge_only;
pub use path::{decode, unambiguous};
pub(crate) use target::{is_authority, is_query};

/// The field in which Envoy tells the module which transfer coding the client named.
pub const TRANSFER_CODING: &str = "x-torana-transfer-coding";

/// Bounds on the request, and what its body must be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most bytes of body; 0: none may be sent. Up to 65536 the edge reads the whole body before it decides. Above, at most
    /// 1073741824 (1 GiB), it forwards the body as it arrives, and nothing on the route may need the whole body.
    pub max_body_bytes: usize,
    /// Most header fields.
    pub max_headers: usize,
    /// Most bytes of all names and values together.
    pub max_header_bytes: usize,
    /// Most bytes of path and query.
    pub max_target_bytes: usize,
    /// Media types a body may have, without parameters. Empty: any.
    pub content_types: Vec<String>,
    /// Deepest nesting of a JSON body.
    pub max_json_depth: usize,
}

impl Config {
    /// The edge reads the whole body before it decides; this bounds what one request can hold.
    pub const MOST_BODY_BYTES: usize = 64 * 1024;
    /// The largest body that a policy may let through as it arrives.
    pub const MOST_STREAMED_BYTES: usize = 1024 * 1024 * 1024;

    /// The limit of bodies that are forwarded as they arrive; `None`: the edge reads the whole body first.
    pub fn streams(&self) -> Option<usize> {
        (self.max_body_bytes > Self::MOST_BODY_BYTES).then_some(self.max_body_bytes)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_body_bytes: 16 * 1024,
            max_headers: 64,
            max_header_bytes: 16 * 1024,
            max_target_bytes: 2 * 1024,
            content_types: vec!["application/json".into()],
            max_json_depth: 8,
        }
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        let content_types = match (self.content_types.is_empty(), child.content_types.is_empty()) {
            (true, _) => child.content_types,
            (_, true) => self.content_types,
            (false, false) => {
                child.content_types.into_iter().filter(|t| self.content_types.contains(t)).collect()
            }
        };
        Self {
            max_body_bytes: self.max_body_bytes.min(child.max_body_bytes),
            max_headers: self.max_headers.min(child.max_headers),
            max_header_bytes: self.max_header_bytes.min(child.max_header_bytes),
            max_target_bytes: self.max_target_bytes.min(child.max_target_bytes),
            content_types,
            max_json_depth: self.max_json_depth.min(child.max_json_depth),
        }
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if self.max_body_bytes > Self::MOST_STREAMED_BYTES {
            return Err(Unusable::new(format!("`max_body_bytes` is at most {}", Self::MOST_STREAMED_BYTES)));
        }
        Ok(Box::new(Shape(self)))
    }
}

#[derive(Debug)]
struct Shape(Config);

impl Filter for Shape {
    fn name(&self) -> &'static str {
        "shape"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, _context: &mut Context) -> Verdict {
        if request.path.len() + request.query.map_or(0, str::len) > self.0.max_target_bytes {
            return Verdict::refuse(414, "target_too_long", "The path and query are too long.");
        }
        if request.headers.len() > self.0.max_headers {
            return Verdict::refuse(431, "headers_too_many", "The request has too many header fields.");
        }
        let header_bytes: usize = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if header_bytes > self.0.max_header_bytes {
            return Failure::HeaderTooLarge.refusal().into();
        }
        match request.headers.one("content-length") {
            Ok(None) => {}
            Ok(Some(text)) => match text.parse::<usize>() {
                Ok(length) if length > self.0.max_body_bytes => return self.too_large(),
                Ok(_) => {}
                Err(_) => return length_invalid(),
            },
            Err(_) => return length_invalid(),
        }
        if !framed_once(request) {
            return framing_ambiguous().refusal.into();
        }
        if request.headers.all("content-encoding").next().is_some() {
            return Verdict::refuse(415, "content_encoding_unsupported", "Send the body without an encoding.");
        }
        Verdict::Pass
    }

    fn body(&self, request: &Request<'_>, body: &[u8], _host: &dyn Host, _context: &mut Context) -> Verdict {
        if body.len() > self.0.max_body_bytes {
            return self.too_large();
        }
        if body.is_empty() {
            return Verdict::Pass;
        }
        let media_type = match self.media_type(request) {
            Ok(media_type) => media_type,
            Err(refused) => return refused,
        };
        if is_json(&media_type)
            && let Err(why) = json::check(body, self.0.max_json_depth) {
            return Verdict::refuse(400, why.code(), why.detail());
        }
        Verdict::Pass
    }

    fn body_begins(&self, request: &Request<'_>) -> Verdict {
        self.media_type(request).map_or_else(|refused| refused, |_| Verdict::Pass)
    }
}

impl Shape {
    fn too_large(&self) -> Verdict {
        too_large(self.0.max_body_bytes).into()
    }

    /// The media type of the body, if the policy lets it through.
    fn media_type(&self, request: &Request<'_>) -> Result<String, Verdict> {
        let Ok(Some(content_type)) = request.headers.one("content-type") else {
            let detail = "A body needs exactly one Content-Type.";
            return Err(Verdict::refuse(415, "content_type_missing", detail));
        };
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !self.0.content_types.is_empty() && !self.0.content_types.contains(&media_type) {
            let detail = format!("Send one of: {}.", self.0.content_types.join(", "));
            return Err(Verdict::refuse(415, "content_type_unsupported", detail));
        }
        Ok(media_type)
    }
}

/// Whether `shape` checks bodies of this media type as JSON.
pub(crate) fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || media_type.ends_with("+json")
}

/// The refusal of a body above the limit, bytes.
fn too_large(most: usize) -> Refusal {
    Refusal::new(413, "body_too_large", format!("A body here has at most {most} bytes."))
}

/// The refusal of a body that passed its limit, bytes, while it was forwarded.
pub fn streamed_too_much(most: usize) -> Refused {
    Refused { filter: "shape", refusal: too_large(most) }
}

/// The refusal of a body whose end two readers could find in different places.
pub fn framing_ambiguous() -> Refused {
    let detail = "Send either one Content-Length or `Transfer-Encoding: chunked`.";
    Refused { filter: "shape", refusal: Refusal::new(400, "framing_ambiguous", detail) }
}

/// Whether every reader finds the same end of the body: where there is a transfer coding, it is `chunked` to
/// the letter and alone, and no length contradicts it (RFC 9112 section 6.3, request smuggling).
fn framed_once(request: &Request<'_>) -> bool {
    match request.headers.one("transfer-encoding") {
        Ok(None) => true,
        Ok(Some("chunked")) => request.headers.all("content-length").next().is_none(),
        Ok(Some(_)) | Err(_) => false,
    }
}

fn length_invalid() -> Verdict {
    Verdict::refuse(400, "content_length_invalid", "Content-Length must be one whole number.")
}
