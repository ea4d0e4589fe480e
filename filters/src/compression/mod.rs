//! Answers compressed on their way to clients that take gzip (RFC 9110 sections 8.4 and 12.5.3).
//!
//! Decides by the header of the upstream's answer, and never looks at its body: the data plane compresses, as the body
//! comes and without holding any of it back. In Envoy that is Envoy's own compressor, which reads headers by rules of its
//! own. So this decides by the same rules, and what else must stay plain it marks `no-transform` (RFC 9111 section
//! 5.2.2.6), which keeps Envoy from compressing it, and everybody between here and the client.
//!
//! Whoever sees how long compressed answers are, and can have something of theirs written into them, learns what
//! secret stands beside it, TLS or not (BREACH). So nothing is compressed unless the policy says so, and an answer that
//! sets a cookie never is.

mod accept;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::accept::takes_gzip;
use crate::filter::{Filter, Headers, Request};
use crate::policy::{Settings, Site, Unusable};

/// Compresses answers (gzip) for clients that take it. Not for answers in which something that a client sent stands
/// beside a secret of somebody else's: their length tells it (BREACH). Answers that set cookies, are signed or digested,
/// or say `Cache-Control: no-transform` are never compressed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The shortest answer that is compressed, in bytes. One that does not say how long it is, is.
    pub least_bytes: u32,
    /// Media types, without parameters. An answer that names no type counts as one of them.
    pub types: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let types = ["application/json", "text/csv", "text/html", "text/plain"];
        Self { least_bytes: 1_024, types: types.map(str::to_owned).to_vec() }
    }
}

impl Settings for Config {
    /// What a route says of itself: it takes nothing away from what protects it.
    fn and(self, child: Self) -> Self {
        child
    }

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        const LONGEST_LEAST_BYTES: u32 = 1_048_576;
        const MOST_TYPES: usize = 32;
        if !(1..=LONGEST_LEAST_BYTES).contains(&self.least_bytes) {
            return Err(Unusable::new(format!("`least_bytes` is between 1 and {LONGEST_LEAST_BYTES}")));
        }
        if self.types.is_empty() || self.types.len() > MOST_TYPES {
            return Err(Unusable::new(format!("`types` are between 1 and {MOST_TYPES} media types")));
        }
        if let Some(odd) = self.types.iter().find(|name| !is_media_type(name)) {
            return Err(Unusable::new(format!(
                "`{odd}` is not a media type: write it as `application/json`, in lower case and without parameters"
            )));
        }
        if self.types.iter().any(|name| name == PROBLEM) {
            return Err(Unusable::new(format!("`{PROBLEM}` is what refusals are, and those stay as they are")));
        }
        Ok(Box::new(Compression(self)))
    }
}

/// The type of the edge's own refusals, which are short.
const PROBLEM: &str = "application/problem+json";

fn is_media_type(text: &str) -> bool {
    let token = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$&^_.+-".contains(&byte);
        !part.is_empty() && part.bytes().all(plain)
    };
    text.split_once('/').is_some_and(|(kind, name)| token(kind) && token(name))
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// It goes on as the upstream sent it.
    AsItComes,
    /// This client gets it plain, and another one compressed.
    Varies,
    /// Nobody may compress it.
    Kept,
    /// It is compressed, if it has a body.
    Gzip,
}

/// What is done to a field of the answer: it is set, in place of all of that name, or removed.
pub type Edit = (&'static str, Option<String>);

impl Coding {
    /// Of an answer that has turned out to have no body.
    #[must_use]
    pub fn of_nothing(self) -> Self {
        match self {
            Self::Gzip => Self::Varies,
            Self::AsItComes | Self::Varies | Self::Kept => self,
        }
    }

    /// What becomes of the fields, all others of the answer being there already. Who compresses names the coding and drops
    /// the length.
    pub fn edits(self, fields: &Headers<'_>) -> Vec<Edit> {
        match self {
            Self::AsItComes => Vec::new(),
            Self::Varies => vec![vary(fields)],
            Self::Kept => vec![no_transform(fields)],
            // Parts of what the upstream has are no parts of this (RFC 9110 section 14.3), and it is not byte for byte what
            // a strong tag stands for (section 8.8.1).
            Self::Gzip => [("accept-ranges", None)].into_iter().chain(weak(fields)).chain([vary(fields)]).collect(),
        }
    }
}

/// Whoever keeps answers asks what else the client takes.
fn vary(fields: &Headers<'_>) -> Edit {
    const NAME: &str = "Accept-Encoding";
    let others = list(fields, "vary").filter(|name| !name.eq_ignore_ascii_case(NAME));
    ("vary", Some(others.chain([NAME]).collect::<Vec<_>>().join(", ")))
}

fn no_transform(fields: &Headers<'_>) -> Edit {
    let others = list(fields, "cache-control").filter(|directive| !directive.eq_ignore_ascii_case(NO_TRANSFORM));
    ("cache-control", Some(others.chain([NO_TRANSFORM]).collect::<Vec<_>>().join(", ")))
}

/// What becomes of the answer's tag: a strong one is made weak, and what is none goes.
fn weak(fields: &Headers<'_>) -> Option<Edit> {
    fields.all("etag").next()?;
    let tag = fields.one("etag").ok().flatten();
    match tag {
        Some(weak) if weak.starts_with("W/\"") => None,
        Some(strong) if strong.starts_with('"') => Some(("etag", Some(format!("W/{strong}")))),
        Some(_) | None => Some(("etag", None)),
    }
}

const NO_TRANSFORM: &str = "no-transform";

/// The members of a list field. What is not text is nobody's word that we pass on.
fn list<'f>(fields: &'f Headers<'_>, name: &'static str) -> impl Iterator<Item = &'f str> {
    let lines = fields.all(name).filter_map(|line| std::str::from_utf8(line).ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|member| !member.is_empty())
}

#[derive(Debug)]
struct Compression(Config);

impl Filter for Compression {
    fn name(&self) -> &'static str {
        "compression"
    }

    fn coding(&self, request: &Request<'_>, status: u16, fields: &Headers<'_>) -> Coding {
        let Self(Config { least_bytes, types }) = self;
        // A part is one of what the upstream has, and an interim answer has none.
        let has_parts = matches!(status, 100..=199 | 206);
        if has_parts || fields.all("content-encoding").next().is_some() {
            return Coding::AsItComes;
        }
        let type_fits = match fields.all("content-type").next() {
            None => true,
            Some(line) => {
                let name = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                types.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
            }
        };
        let is_long_enough = match fields.all("content-length").next() {
            None => true,
            Some(length) => {
                let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<u64>().ok());
                length.is_some_and(|length| length >= u64::from(*least_bytes))
            }
        };
        if !type_fits || !is_long_enough {
            return Coding::AsItComes;
        }
        // A digest or a signature is of the bytes as they come (RFC 9530).
        let is_sealed = ["content-digest", "repr-digest", "digest", "content-md5", "signature"]
            .iter()
            .any(|name| fields.all(name).next().is_some());
        let is_fixed = list(fields, "cache-control").any(|word| word.eq_ignore_ascii_case(NO_TRANSFORM));
        if is_sealed || is_fixed || fields.all("set-cookie").next().is_some() {
            return Coding::Kept;
        }
        let has_body = request.method != "HEAD" && !matches!(status, 204 | 205 | 304);
        match has_body && takes_gzip(request.headers.all("accept-encoding")) {
            true => Coding::Gzip,
            false => Coding::Varies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(coding: Coding, fields: &[(&str, &[u8])]) -> Vec<Edit> {
        coding.edits(&fields.iter().copied().collect())
    }

    #[test]
    fn what_becomes_of_fields() {
        let set = |name, value: &str| (name, Some(value.to_owned()));
        let (ranges, varies) = (("accept-ranges", None), set("vary", "Accept-Encoding"));
        let gzip = |tag: Option<Edit>| [ranges.clone()].into_iter().chain(tag).chain([varies.clone()]).collect();
        type Given<'g> = &'g [(&'g str, &'g [u8])];
        let cases: [(Coding, Given<'_>, Vec<Edit>); 12] = [
            (Coding::AsItComes, &[("etag", b"\"1\"")], vec![]),
            (Coding::Gzip, &[], gzip(None)),
            (Coding::Gzip, &[("etag", b"\"1\"")], gzip(Some(set("etag", "W/\"1\"")))),
            (Coding::Gzip, &[("etag", b"W/\"1\"")], gzip(None)),
            (Coding::Gzip, &[("etag", b"1")], gzip(Some(("etag", None)))),
            (Coding::Gzip, &[("etag", b"\"\xff\"")], gzip(Some(("etag", None)))),
            (Coding::Gzip, &[("etag", b"\"1\""), ("etag", b"\"2\"")], gzip(Some(("etag", None)))),
            (Coding::Varies, &[], vec![varies.clone()]),
            (Coding::Varies, &[("vary", b"Origin"), ("vary", b"accept-encoding, X")], vec![set("vary", "Origin, X, Accept-Encoding")]),
            (Coding::Kept, &[], vec![set("cache-control", "no-transform")]),
            (Coding::Kept, &[("cache-control", b"no-store")], vec![set("cache-control", "no-store, no-transform")]),
            (Coding::Kept, &[("cache-control", b"No-Transform, private")], vec![set("cache-control", "private, no-transform")]),
        ];
        for (coding, fields, expected) in cases {
            assert_eq!(edits(coding, fields), expected, "{coding:?} {fields:?}");
        }
    }

    #[test]
    fn nothing_is_compressed_that_is_not_there() {
        for (coding, expected) in [
            (Coding::Gzip, Coding::Varies),
            (Coding::Kept, Coding::Kept),
            (Coding::Varies, Coding::Varies),
            (Coding::AsItComes, Coding::AsItComes),
        ] {
            assert_eq!(coding.of_nothing(), expected);
        }
    }
}
