//! What an upstream answers: what it was sent, and, where the case says so, a signature on it.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use filters::crypto::{SigningKey, VerifyingKey};
use filters::signature::message::{self, Message};
use filters::signature::{digest, message::Params};
use serde::{Deserialize, Serialize};

use crate::case::Answers;
use crate::mint::{AUTHORITY, PARTNER_SECRET, split};
use crate::outcome::{FieldMap, upstream_fields};
use crate::saying::{Length, Says};

/// The field in which a case tells the upstream how to answer.
pub const TELLS: &str = "x-answer";

/// What upstreams answer with, besides what they were sent.
const ALWAYS: [(&str, &str); 4] = [
    ("content-type", "application/json"),
    ("server", "upstream/1.0"),
    ("x-upstream-says", "hello"),
    // Which the policy alone says where it has `cors`.
    ("access-control-allow-credentials", "true"),
];

const STRANGER_SECRET: &[u8] = b"a stranger's secret of 32 bytes!";

/// What an upstream was sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    pub upstream: String,
    /// Path and query.
    pub target: String,
    /// Names and bytes.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Seen {
    /// The target, and the fields by name.
    pub fn told(&self, method: &str) -> FieldMap {
        let mut map =
            upstream_fields(self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
        let (path, query) = split(&self.target);
        let message = Message::request(method, "https", AUTHORITY, path, query, &self.fields);
        tell_seals(&mut map, &message, &self.body);
        map.insert(":path".to_owned(), vec![self.target.clone()]);
        map
    }
}

/// What it answers.
#[derive(Debug)]
pub struct Made {
    pub status: u16,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub length: Length,
}

impl Made {
    /// Whether the answer says how long it is.
    pub fn tells_length(&self) -> bool {
        self.length == Length::Told && !matches!(self.status, 204 | 304)
    }
}

/// How to answer, as it travels in [`TELLS`].
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    answers: Answers,
    now_s: i64,
}

/// What to put into [`TELLS`].
///
/// # Errors
/// Never, but the compiler cannot know.
pub fn tell(answers: &Answers, now_s: i64) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&Told { answers: answers.clone(), now_s })?)
}

/// Answers with what was sent.
///
/// # Errors
/// When the case asks for something that there is not.
pub fn answer(method: &str, seen: &Seen) -> anyhow::Result<Made> {
    let mut body = serde_json::to_vec(seen)?;
    let mut fields: Vec<(String, Vec<u8>)> =
        ALWAYS.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
    let says = Says::of(&seen.fields)?;
    says.word(&mut fields);
    if !says.has_body(method) {
        body.clear();
    }
    let Says { status, length, .. } = says;
    let Some((_, told)) = seen.fields.iter().find(|(name, _)| name == TELLS) else {
        return Ok(Made { status, fields, body, length });
    };
    let Told { answers, now_s } = serde_json::from_slice(told)?;
    fields.push(("content-digest".to_owned(), digest::content_digest(&body).into_bytes()));
    let nonce = match &answers.request_nonce {
        Some(other) => other.clone(),
        None => {
            message::parse(&seen.fields, None)?.params().nonce.clone().context("the request has no nonce")?
        }
    };
    fields.push(("x-request-nonce".to_owned(), nonce.into_bytes()));
    let secret = match answers.key.as_str() {
        "partner" => PARTNER_SECRET,
        "stranger" => STRANGER_SECRET,
        other => bail!("there is no key {other}"),
    };
    let components: Vec<&str> = answers.components.iter().map(String::as_str).collect();
    let mut params = Params::covering(&components)?;
    params.created = answers.created.map(|offset| now_s + offset);
    params.keyid = Some(answers.keyid);
    params.nonce = Some("fedcba9876543210".to_owned());
    let (path, query) = split(&seen.target);
    let none: Vec<(String, Vec<u8>)> = Vec::new();
    let asked = Message::request(method, "https", AUTHORITY, path, query, &none);
    let signed = Message::response(200, &fields, Some(&asked));
    let made = message::sign(&signed, "net", &params, &SigningKey::hmac(secret)?)?;
    fields.push(("signature-input".to_owned(), made.signature_input.into_bytes()));
    fields.push(("signature".to_owned(), made.signature.into_bytes()));
    for (name, value) in &answers.then {
        fields.retain(|(known, _)| known != name);
        if !value.is_empty() {
            fields.push((name.clone(), value.clone().into_bytes()));
        }
    }
    if answers.another_body {
        body.push(b' ');
    }
    Ok(Made { status, fields, body, length })
}

/// Tells the seals of an answer to what the client sent and to what the upstream saw: either may have been signed.
pub fn tell_answer(
    map: &mut FieldMap,
    status: u16,
    fields: &[(String, Vec<u8>)],
    body: &[u8],
    to: [Asked<'_>; 2],
) {
    for Asked { method, target } in to {
        let none: Vec<(String, Vec<u8>)> = Vec::new();
        let (path, query) = split(target);
        let asked = Message::request(method, "https", AUTHORITY, path, query, &none);
        tell_seals(map, &Message::response(status, &fields, Some(&asked)), body);
    }
}

/// A request that an answer is to.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a str,
    pub target: &'a str,
}

/// Tells signatures, nonces and digests, which differ from one time to the next, by whether they hold.
fn tell_seals(map: &mut FieldMap, message: &Message<'_>, body: &[u8]) {
    let partner = VerifyingKey::hmac(PARTNER_SECRET);
    let holds =
        |parsed: message::Parsed| partner.as_ref().is_ok_and(|key| parsed.verify(message, key).is_ok());
    if message::parse(message.headers, None).is_ok_and(holds) {
        map.insert("signature".to_owned(), vec!["(holds)".to_owned()]);
    }
    for name in ["signature-input", "x-request-nonce"] {
        map.entry(name.to_owned()).and_modify(|values| values.iter_mut().for_each(without_nonce));
    }
    map.entry("content-digest".to_owned()).and_modify(|values| {
        for value in values {
            if digest::verify([value.as_bytes()], body).is_ok() {
                *value = "(of the body)".to_owned();
            }
        }
    });
    map.retain(|_, values| !values.is_empty());
}

/// Replaces what looks like a request's id, and the time that every case has its own of.
fn without_nonce(text: &mut String) {
    if let Some((before, after)) = text.split_once(";created=") {
        let rest = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
        *text = format!("{before};created=(now){rest}");
    }
    let is_id = |part: &str| part.len() == 32 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('"').map(|part| if is_id(part) { "(an id)" } else { part }).collect();
    *text = parts.join("\"");
}

impl Default for Answers {
    /// As the payment network signs.
    fn default() -> Self {
        let covered = ["@status", "content-digest", "content-type", "x-request-nonce"].map(str::to_owned);
        let asked = ["\"@method\";req", "\"@path\";req"].map(str::to_owned);
        Self {
            key: "partner".to_owned(),
            keyid: "partner-1".to_owned(),
            components: covered.into_iter().chain(asked).collect(),
            created: Some(0),
            request_nonce: None,
            then: BTreeMap::new(),
            another_body: false,
        }
    }
}
