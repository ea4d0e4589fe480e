//! The other side of `signature`: signs what goes to the upstream and what goes back to the client, and passes on no
//! answer of the upstream that is not signed.
//!
//! For an edge in front of somebody who wants every message signed, the payment network say, as npci-proxy does it
//! (RFC 9421, RFC 9530): a request covers method, path, query, digest and content type; an answer covers its status,
//! digest and content type, and names the request that it answers by method, path and the request's nonce, which it
//! echoes in `X-Request-Nonce`, so that no answer can stand in for another.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Headers, Host, Refusal, Request, Verdict};
use crate::policy::{ClientKey, Keyring, NotSigned, Settings, Site, Unusable, Whose};
use crate::signature::digest;
use crate::signature::freshness::Window;
use crate::signature::message::{
    Algorithm, Component, Message, Params, SignError, SignatureError, SignatureFields, parse, sign,
};
use crate::upstream::{Outgoing, UpstreamAnswer};
use crate::validity::Validity;

/// Signs messages on their way, and verifies the upstream's answers (RFC 9421). At least one of the three.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Signs each request to the upstream and digests its body.
    pub to_upstream: Option<Signer>,
    /// Passes on only answers that the upstream has signed, to this request and just now; needs `to_upstream`. What
    /// fails is answered with 502: whether the upstream acted is then unknown.
    pub from_upstream: Option<Verifier>,
    /// Signs the upstream's answers on their way to the client. The edge's own refusals are not signed: whoever wants
    /// signed answers takes nothing from them.
    pub to_client: Option<Signer>,
}

impl Config {
    /// Whether answers are verified or signed.
    pub(crate) fn reads_answers(&self) -> bool {
        self.from_upstream.is_some() || self.to_client.is_some()
    }

    /// Whether it signs or verifies with a key of that client.
    pub(crate) fn names(&self, client: &str, its_keys: &[&str]) -> bool {
        let signers = [&self.to_upstream, &self.to_client].into_iter().flatten();
        let signers = signers.map(|signer| (&signer.key, &signer.client));
        let verifier = self.from_upstream.as_ref().map(|verifier| (&verifier.key, &verifier.client));
        signers.chain(verifier).any(|(key, name)| {
            name.as_deref() == Some(client) || key.as_deref().is_some_and(|key| its_keys.contains(&key))
        })
    }
}

/// Who signs. Exactly one of `key` and `client`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// The id of one of the `hmac_keys` of `clients`.
    pub key: Option<String>,
    /// The name of one of `clients`: of its `hmac_keys` the newest that counts signs, so that keys take over from one
    /// another by their times.
    pub client: Option<String>,
}

/// Who must have signed. Exactly one of `key` and `client`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    /// The id of one of the `hmac_keys` of `clients`; the signature must name it.
    pub key: Option<String>,
    /// The name of one of `clients`; the signature must name one of its `hmac_keys` that counts.
    pub client: Option<String>,
    /// Seconds after its creation that an answer is taken; at most 3600.
    #[serde(default = "seconds::<300>")]
    pub max_age_s: u64,
    /// Seconds that the upstream's clock may be ahead of ours; at most 300.
    #[serde(default = "seconds::<5>")]
    pub max_skew_s: u64,
}

impl Verifier {
    /// Both: an answer that satisfies one and not the other does not pass.
    fn and(self, child: Self) -> Self {
        Self {
            // Nobody can have signed with two keys, and then `build` says so.
            key: if self.key == child.key { child.key } else { Some(NO_KEY.to_owned()) },
            client: if self.client == child.client { child.client } else { Some(NO_KEY.to_owned()) },
            max_age_s: self.max_age_s.min(child.max_age_s),
            max_skew_s: self.max_skew_s.min(child.max_skew_s),
        }
    }
}

/// No key's id: an empty one is refused.
const NO_KEY: &str = "";

fn seconds<const N: u64>() -> u64 {
    N
}

const LABEL: &str = "sig1";
const REQUEST_NONCE: &str = "x-request-nonce";
const CONTENT_TYPE: &str = "content-type";
const REQUEST_COVERS: [&str; 4] = ["@method", "@path", "@query", "content-digest"];
const ANSWER_COVERS: [&str; 5] =
    ["@status", "content-digest", REQUEST_NONCE, "\"@method\";req", "\"@path\";req"];

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self {
            to_upstream: child.to_upstream.or(self.to_upstream),
            from_upstream: match (self.from_upstream, child.from_upstream) {
                (Some(parent), Some(child)) => Some(parent.and(child)),
                (parent, child) => child.or(parent),
            },
            to_client: child.to_client.or(self.to_client),
        }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let Self { to_upstream, from_upstream, to_client } = self;
        if to_upstream.is_none() && to_client.is_none() {
            return Err(Unusable::new("name at least one of `to_upstream` and `to_client`"));
        }
        if from_upstream.is_some() && to_upstream.is_none() {
            return Err(Unusable::new("`from_upstream` needs `to_upstream`: an answer is told by its request's nonce"));
        }
        let components = |covered: &[&str]| {
            covered.iter().map(|text| text.parse()).collect::<Result<Vec<Component>, _>>().map_err(unusable)
        };
        let signer = |signer: Option<Signer>, covered: &[&str]| -> Result<_, Unusable> {
            let Some(Signer { key, client }) = signer else { return Ok(None) };
            Ok(Some(Signs {
                whose: whose(site, key, client)?,
                keyring: Arc::clone(site.keyring),
                covers: components(covered)?,
            }))
        };
        let verifies = match from_upstream {
            None => None,
            Some(Verifier { max_age_s, max_skew_s, .. })
                if !(1..=3_600).contains(&max_age_s) || max_skew_s > 300 =>
            {
                return Err(Unusable::new("`max_age_s` is between 1 and 3600, `max_skew_s` at most 300"));
            }
            Some(Verifier { key, client, max_age_s, max_skew_s }) => Some(Verifies {
                whose: whose(site, key, client)?,
                keyring: Arc::clone(site.keyring),
                window: Window { max_age_s, max_skew_s },
                must_cover: components(&ANSWER_COVERS)?,
            }),
        };
        Ok(Box::new(Signing {
            requests: signer(to_upstream, &REQUEST_COVERS)?,
            verifies,
            answers: signer(to_client, &ANSWER_COVERS)?,
            content_type: CONTENT_TYPE.parse().map_err(unusable)?,
        }))
    }
}

fn whose(site: &Site<'_>, key: Option<String>, client: Option<String>) -> Result<Whose, Unusable> {
    match (key, client) {
        (Some(none), _) | (_, Some(none)) if none == NO_KEY => {
            Err(Unusable::new("`from_upstream` names no key, or another one than that of every route"))
        }
        // What has not been told yet was checked where it is written.
        (Some(key), None) if site.keyring.get(&key).is_some() || !site.keyring.is_whole() => Ok(Whose::Key(key)),
        (Some(key), None) => {
            Err(Unusable::new(format!("there is no key `{key}` among the `hmac_keys` of `clients`")))
        }
        (None, Some(client)) if site.keyring.has_client(&client) => Ok(Whose::Client(client)),
        (None, Some(client)) => Err(Unusable::new(format!("there is no client `{client}` that has a key"))),
        (None, None) | (Some(_), Some(_)) => {
            Err(Unusable::new("whose key it is says exactly one of `key` and `client`"))
        }
    }
}

fn unusable(why: impl std::fmt::Display) -> Unusable {
    Unusable::new(why.to_string())
}

#[derive(Debug)]
struct Signing {
    requests: Option<Signs>,
    verifies: Option<Verifies>,
    answers: Option<Signs>,
    /// Covered when the message has it.
    content_type: Component,
}

#[derive(Debug)]
struct Signs {
    whose: Whose,
    /// As it was when the policy was read.
    keyring: Arc<Keyring>,
    covers: Vec<Component>,
}

#[derive(Debug)]
struct Verifies {
    whose: Whose,
    /// As it was when the policy was read.
    keyring: Arc<Keyring>,
    window: Window,
    must_cover: Vec<Component>,
}

impl Filter for Signing {
    fn name(&self) -> &'static str {
        "signing"
    }

    fn body(&self, _request: &Request<'_>, body: &[u8], _host: &dyn Host, context: &mut Context) -> Verdict {
        if self.requests.is_some() {
            context.upstream.push(("content-digest".into(), digest::content_digest(body)));
        }
        Verdict::Pass
    }

    fn forwards(&self) -> bool {
        self.requests.is_some()
    }

    fn forward(&self, outgoing: &Outgoing<'_>, host: &dyn Host, context: &mut Context) -> Verdict {
        let Some(signs) = &self.requests else { return Verdict::Pass };
        let has_type = outgoing.has(CONTENT_TYPE);
        match signs.sign(&outgoing.message(), has_type.then_some(&self.content_type), outgoing.nonce, host) {
            Ok(fields) => {
                context.upstream.push(("signature-input".into(), fields.signature_input));
                context.upstream.push(("signature".into(), fields.signature));
                Verdict::Pass
            }
            Err(CannotSign::Keys(_)) => Refusal::new(
                503,
                "signing_key_unavailable",
                "The edge has no key to sign this with at the moment. Nothing was done; try again.",
            )
            .header("retry-after", "1")
            .into(),
            Err(CannotSign::Field(_)) => {
                Verdict::refuse(400, "request_not_signable", "A field that is to be signed cannot be.")
            }
        }
    }

    fn reads_answer(&self) -> bool {
        self.verifies.is_some() || self.answers.is_some()
    }

    fn answer(
        &self,
        request: &Request<'_>,
        answer: &UpstreamAnswer<'_>,
        host: &dyn Host,
        context: &mut Context,
    ) -> Verdict {
        let Request { method, scheme, authority, path, query, .. } = request;
        let asked = Message::request(method, scheme, authority, path, *query, &request.headers);
        if let Some(verifies) = &self.verifies {
            let asked = Message { path: answer.path, ..asked };
            if let Err(unverified) = verifies.check(answer, &asked, &self.content_type, host) {
                return unverified.refusal().into();
            }
        }
        let Some(signs) = &self.answers else { return Verdict::Pass };
        match signs.answer(answer, &asked, &self.content_type, context.signed.as_ref(), host) {
            Ok(fields) => {
                context.answer.extend(fields);
                Verdict::Pass
            }
            Err(CannotSign::Keys(_) | CannotSign::Field(_)) => {
                Verdict::refuse(502, "answer_not_signable", "The answer is to be signed and cannot be.")
            }
        }
    }
}

/// Why a message is not signed.
#[derive(Debug, thiserror::Error)]
enum CannotSign {
    #[error(transparent)]
    Keys(#[from] NotSigned),
    #[error(transparent)]
    Field(#[from] SignError),
}

impl Signs {
    /// `content_type` is covered too, if there is one.
    fn sign(
        &self,
        message: &Message<'_>,
        content_type: Option<&Component>,
        nonce: &str,
        host: &dyn Host,
    ) -> Result<SignatureFields, CannotSign> {
        let keyring = host.keyring().unwrap_or_else(|| Arc::clone(&self.keyring));
        let (keyid, key) = keyring.signer(&self.whose, host.now_ms())?;
        let params = Params {
            components: self.covers.iter().chain(content_type).cloned().collect(),
            created: Some(i64::try_from(host.now_ms() / 1_000).unwrap_or(i64::MAX)),
            nonce: Some(nonce.to_owned()),
            keyid: Some(keyid.to_owned()),
            alg: Some(Algorithm::HmacSha256),
            ..Params::default()
        };
        Ok(sign(message, LABEL, &params, &key)?)
    }

    /// The fields that make the answer ours.
    fn answer(
        &self,
        answer: &UpstreamAnswer<'_>,
        asked: &Message<'_>,
        content_type: &Component,
        signed: Option<&crate::filter::Signed>,
        host: &dyn Host,
    ) -> Result<Vec<(&'static str, String)>, CannotSign> {
        // A request that brought no nonce is answered under ours, which nobody can mistake for theirs.
        let asked_nonce = signed.and_then(|signed| signed.nonce.as_deref()).unwrap_or(answer.nonce);
        let mut fields = vec![
            ("content-digest", digest::content_digest(answer.body)),
            (REQUEST_NONCE, asked_nonce.to_owned()),
        ];
        let replaced = |name: &&str| fields.iter().any(|(ours, _)| ours == name);
        let kept = answer.headers.iter().filter(|(name, _)| !replaced(name));
        let ours = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        let headers: Headers<'_> = kept.chain(ours).collect();
        let has_type = headers.all(CONTENT_TYPE).next().is_some();
        let message = Message::response(answer.status, &headers, Some(asked));
        let made = self.sign(&message, has_type.then_some(content_type), answer.nonce, host)?;
        fields.push(("signature-input", made.signature_input));
        fields.push(("signature", made.signature));
        Ok(fields)
    }
}

/// Why an answer is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unverified {
    Unsigned,
    Digest,
    CoversTooLittle,
    AnotherKey,
    Invalid,
    AnotherRequest,
    Stale,
}

impl Verifies {
    fn check(
        &self,
        answer: &UpstreamAnswer<'_>,
        asked: &Message<'_>,
        content_type: &Component,
        host: &dyn Host,
    ) -> Result<(), Unverified> {
        let parsed = parse(&answer.headers, None).map_err(|why| match why {
            SignatureError::Missing => Unverified::Unsigned,
            _ => Unverified::Invalid,
        })?;
        let has_type = answer.headers.all(CONTENT_TYPE).next().is_some();
        let mut must_cover = self.must_cover.iter().chain(has_type.then_some(content_type));
        if !must_cover.all(|component| parsed.covers(component)) {
            return Err(Unverified::CoversTooLittle);
        }
        let params = parsed.params();
        let keyring = host.keyring().unwrap_or_else(|| Arc::clone(&self.keyring));
        let named = params.keyid.as_deref().and_then(|keyid| Some((keyid, keyring.get(keyid)?)));
        let wanted = |(keyid, key): &(&str, &ClientKey)| match &self.whose {
            Whose::Key(only) => keyid == only,
            Whose::Client(name) => *key.client.name == **name,
        };
        let counts = |(_, key): &(&str, &ClientKey)| key.window.at(host.now_ms()) == Validity::Now;
        let key = named.filter(wanted).filter(counts).and_then(|(_, key)| key.key.as_ref());
        let key = key.ok_or(Unverified::AnotherKey)?;
        let Some(created) = params.created else { return Err(Unverified::CoversTooLittle) };
        let message = Message::response(answer.status, &answer.headers, Some(asked));
        parsed.verify_with(&message, key, host.verifier()).map_err(|_| Unverified::Invalid)?;
        if digest::verify(answer.headers.all("content-digest"), answer.body).is_err() {
            return Err(Unverified::Digest);
        }
        if !matches!(answer.headers.one(REQUEST_NONCE), Ok(Some(nonce)) if nonce == answer.nonce) {
            return Err(Unverified::AnotherRequest);
        }
        self.window.check(created, params.expires, host.now_ms()).map_err(|_| Unverified::Stale)
    }
}

impl Unverified {
    fn refusal(self) -> Refusal {
        let (code, what) = match self {
            Self::Unsigned => ("answer_unsigned", "is not signed"),
            Self::Digest => ("answer_digest_mismatch", "is not the one that was digested"),
            Self::CoversTooLittle => ("answer_signature_incomplete", "is signed in part only"),
            Self::AnotherKey => ("answer_key_unknown", "is signed with another key, or one that does not count now"),
            Self::Invalid => ("answer_signature_invalid", "has a signature that does not hold"),
            Self::AnotherRequest => ("answer_to_another_request", "answers another request"),
            Self::Stale => ("answer_stale", "was not signed just now"),
        };
        let detail = format!(
            "The service's answer {what}, so it is not passed on. Whether the service acted is unknown: ask for the \
             status."
        );
        Refusal::new(502, code, detail)
    }
}
