//! The one way to sign and to verify a message between us and the network: RFC 9421 with HMAC-SHA256 over
//! an RFC 9530 digest. Owns which components must be covered; never decides on time or replay.
//!
//! A request covers method, path, query, digest and content type. An answer covers status, digest and content type,
//! and names the request that it answers: by method and path (`;req`) and by the request's nonce, echoed in
//! `x-request-nonce`, so that an answer cannot stand in for another one.

use certs::Live;
use filters::signature::{
    digest,
    message::{Algorithm, Component, Fields, Message, Params, SignatureFields, parse, sign},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use crate::{keys::Keys, secret::Secret};

const LABEL: &str = "sig1";
const REQUEST_COVERS: [&str; 5] = ["@method", "@path", "@query", "content-digest", "content-type"];
const ANSWER_COVERS: [&str; 6] =
    ["@status", "content-digest", "content-type", "x-request-nonce", "\"@method\";req", "\"@path\";req"];
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REQUEST_NONCE: HeaderName = HeaderName::from_static("x-request-nonce");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// Signs what we send, with the newest key that counts at that moment.
#[derive(Debug)]
pub struct Signer(Live<Keys>);

/// Verifies what the other side sent, with the key that it names, if that counts at that moment.
#[derive(Debug)]
pub struct Verifier(Live<Keys>);

/// What makes each message a new one: when it was created (Unix seconds) and its nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub created_s: i64,
    pub nonce: String,
}

impl Mark {
    /// A fresh mark with 128 random bits.
    pub fn fresh(now_ms: i64) -> Mark {
        Mark { created_s: now_ms.div_euclid(1_000), nonce: uuid::Uuid::new_v4().simple().to_string() }
    }
}

/// The request of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub nonce: &'a str,
}

/// Why a message does not count as the other side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("there is no content digest")]
    DigestMissing,
    #[error("the content digest does not fit the body")]
    DigestMismatch,
    #[error("there is no signature {LABEL}")]
    SignatureMissing,
    #[error("the signature cannot be read, or lacks created, nonce, keyid or alg")]
    Malformed,
    #[error("the signature does not cover what it must")]
    CoversTooLittle,
    #[error("the signature is by an unknown algorithm or key, or one that does not count now")]
    UnknownKey,
    #[error("the signature does not hold")]
    Invalid,
    #[error("the answer is to another request")]
    OtherRequest,
}

/// The message could not be signed: a mistake in the configuration or in a header we set.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct CannotSign(String);

impl Signer {
    pub fn new(keys: &Live<Keys>) -> Signer {
        Signer(keys.clone())
    }

    /// With one key, always.
    pub fn hmac(key_id: &str, secret: &Secret) -> Result<Signer, CannotSign> {
        Keys::one(key_id, secret).map(|keys| Signer(keys.into())).map_err(CannotSign)
    }

    /// Adds content type, digest and signature to a request's headers.
    pub fn sign_request(
        &self,
        (method, path): (&str, &str),
        headers: &mut HeaderMap,
        body: &[u8],
        mark: &Mark,
    ) -> Result<(), CannotSign> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        set(headers, CONTENT_DIGEST, &digest::content_digest(body))?;
        let signed = {
            let fields = Borrowed(headers);
            let message = Message::request(method, "https", "", path, None, &fields);
            self.sign(&message, &REQUEST_COVERS, mark)?
        };
        set(headers, SIGNATURE_INPUT, &signed.signature_input)?;
        set(headers, SIGNATURE, &signed.signature)
    }

    /// Adds digest, the asker's nonce and the signature to an answer's headers; its content type is already there.
    pub fn sign_answer(
        &self,
        asked: Asked<'_>,
        status: u16,
        headers: &mut HeaderMap,
        body: &[u8],
        mark: &Mark,
    ) -> Result<(), CannotSign> {
        set(headers, CONTENT_DIGEST, &digest::content_digest(body))?;
        set(headers, REQUEST_NONCE, asked.nonce)?;
        let signed = {
            let (fields, none) = (Borrowed(headers), HeaderMap::new());
            let none = Borrowed(&none);
            let request = Message::request(asked.method, "https", "", asked.path, None, &none);
            let message = Message::response(status, &fields, Some(&request));
            self.sign(&message, &ANSWER_COVERS, mark)?
        };
        set(headers, SIGNATURE_INPUT, &signed.signature_input)?;
        set(headers, SIGNATURE, &signed.signature)
    }

    fn sign(
        &self,
        message: &Message<'_>,
        covers: &[&str],
        mark: &Mark,
    ) -> Result<SignatureFields, CannotSign> {
        let keys = self.0.current();
        let signing = keys.signing(mark.created_s.saturating_mul(1_000));
        let (key_id, key) = signing.ok_or_else(|| CannotSign("no key counts now".to_owned()))?;
        let params = Params {
            created: Some(mark.created_s),
            nonce: Some(mark.nonce.clone()),
            keyid: Some(key_id.to_owned()),
            alg: Some(Algorithm::HmacSha256),
            ..Params::covering(covers).map_err(cannot)?
        };
        sign(message, LABEL, &params, key).map_err(cannot)
    }
}

impl Verifier {
    pub fn new(keys: &Live<Keys>) -> Verifier {
        Verifier(keys.clone())
    }

    /// With one key, always.
    pub fn hmac(key_id: &str, secret: &Secret) -> Result<Verifier, CannotSign> {
        Keys::one(key_id, secret).map(|keys| Verifier(keys.into())).map_err(CannotSign)
    }

    /// Digest first, then signature. What comes back still has to be fresh and new.
    pub fn verify_request(
        &self,
        (method, path): (&str, &str),
        headers: &HeaderMap,
        body: &[u8],
        now_ms: i64,
    ) -> Result<Mark, Broken> {
        check_digest(headers, body)?;
        let fields = Borrowed(headers);
        self.verify(&Message::request(method, "https", "", path, None, &fields), &REQUEST_COVERS, now_ms)
    }

    /// What comes back still has to be fresh; it is new because it answers our own nonce.
    pub fn verify_answer(
        &self,
        asked: Asked<'_>,
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        now_ms: i64,
    ) -> Result<Mark, Broken> {
        check_digest(headers, body)?;
        let (fields, none) = (Borrowed(headers), HeaderMap::new());
        let none = Borrowed(&none);
        let request = Message::request(asked.method, "https", "", asked.path, None, &none);
        let mark =
            self.verify(&Message::response(status, &fields, Some(&request)), &ANSWER_COVERS, now_ms)?;
        match only(headers, &REQUEST_NONCE) {
            Some(nonce) if nonce.as_bytes() == asked.nonce.as_bytes() => Ok(mark),
            _ => Err(Broken::OtherRequest),
        }
    }

    fn verify(&self, message: &Message<'_>, must_cover: &[&str], now_ms: i64) -> Result<Mark, Broken> {
        use filters::signature::message::SignatureError as Error;
        let parsed = parse(message.headers, Some(LABEL)).map_err(|error| match error {
            Error::Missing => Broken::SignatureMissing,
            Error::UnknownAlgorithm => Broken::UnknownKey,
            _ => Broken::Malformed,
        })?;
        for component in must_cover {
            let component: Component = component.parse().map_err(|_| Broken::CoversTooLittle)?;
            if !parsed.covers(&component) {
                return Err(Broken::CoversTooLittle);
            }
        }
        let params = parsed.params();
        let (Some(created_s), Some(nonce), Some(key_id), Some(alg)) =
            (params.created, &params.nonce, &params.keyid, params.alg)
        else {
            return Err(Broken::Malformed);
        };
        let keys = self.0.current();
        let key = keys.verifying(key_id, now_ms).filter(|_| alg == Algorithm::HmacSha256);
        let key = key.ok_or(Broken::UnknownKey)?;
        if !(16..=128).contains(&nonce.len()) {
            return Err(Broken::Malformed);
        }
        parsed.verify(message, key).map_err(|_| Broken::Invalid)?;
        Ok(Mark { created_s, nonce: nonce.clone() })
    }
}

fn check_digest(headers: &HeaderMap, body: &[u8]) -> Result<(), Broken> {
    if !headers.contains_key(CONTENT_DIGEST) {
        return Err(Broken::DigestMissing);
    }
    let lines = headers.get_all(CONTENT_DIGEST).iter().map(HeaderValue::as_bytes);
    digest::verify(lines, body).map_err(|_| Broken::DigestMismatch)
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<(), CannotSign> {
    headers.insert(name, HeaderValue::from_str(value).map_err(cannot)?);
    Ok(())
}

fn cannot(error: impl std::fmt::Display) -> CannotSign {
    CannotSign(error.to_string())
}

struct Borrowed<'a>(&'a HeaderMap);

impl Fields for Borrowed<'_> {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.0.iter().for_each(|(name, value)| visit(name.as_str(), value.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretRef;

    const POST: (&str, &str) = ("POST", "/v1/callback");
    const NOW_MS: i64 = 1_700_000_000_000;
    const BODY: &[u8] = br#"{"a":1}"#;

    fn secret(letter: &str) -> Secret {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Its owner's alone, as temporary files are.
        std::fs::write(file.path(), letter.repeat(64)).unwrap();
        SecretRef::File(file.path().into()).load("".as_ref()).unwrap()
    }

    fn mark() -> Mark {
        Mark { created_s: 1_700_000_000, nonce: "0123456789abcdef".into() }
    }

    fn signed_request() -> HeaderMap {
        let mut headers = HeaderMap::new();
        Signer::hmac("k", &secret("a")).unwrap().sign_request(POST, &mut headers, BODY, &mark()).unwrap();
        headers
    }

    #[test]
    fn requests() {
        let right = Verifier::hmac("k", &secret("a")).unwrap();
        assert_eq!(right.verify_request(POST, &signed_request(), BODY, NOW_MS), Ok(mark()));
        let check = |name: &str, expected: Broken, change: &dyn Fn(&mut HeaderMap)| {
            let mut headers = signed_request();
            change(&mut headers);
            assert_eq!(right.verify_request(POST, &headers, BODY, NOW_MS), Err(expected), "{name}");
        };
        let replace = |headers: &mut HeaderMap, name: HeaderName, from: &str, to: &str| {
            let value = headers[&name].to_str().unwrap();
            assert!(value.contains(from), "{value}");
            let value = value.replacen(from, to, 1);
            headers.insert(name, value.parse().unwrap());
        };
        check("no digest", Broken::DigestMissing, &|h| drop(h.remove(CONTENT_DIGEST)));
        check("other digest", Broken::DigestMismatch, &|h| {
            h.insert(CONTENT_DIGEST, digest::content_digest(b"x").parse().unwrap());
        });
        check("another digest beside the right one", Broken::DigestMismatch, &|h| {
            h.append(CONTENT_DIGEST, digest::content_digest(b"x").parse().unwrap());
        });
        check("a second line that is not signed", Broken::Invalid, &|h| {
            h.append(CONTENT_DIGEST, digest::content_digest(BODY).parse().unwrap());
        });
        check("unsigned", Broken::SignatureMissing, &|h| {
            h.remove(SIGNATURE);
            h.remove(SIGNATURE_INPUT);
        });
        check("no signature field", Broken::Malformed, &|h| drop(h.remove(SIGNATURE)));
        check("other content type", Broken::Invalid, &|h| {
            h.insert(CONTENT_TYPE, "text/plain".parse().unwrap());
        });
        check("later", Broken::Invalid, &|h| replace(h, SIGNATURE_INPUT, "1700000000", "1700000001"));
        check("other nonce", Broken::Invalid, &|h| replace(h, SIGNATURE_INPUT, "0123456789", "1123456789"));
        check("short nonce", Broken::Malformed, &|h| {
            replace(h, SIGNATURE_INPUT, "\"0123456789abcdef\"", "\"0123\"");
        });
        check("covers less", Broken::CoversTooLittle, &|h| {
            replace(h, SIGNATURE_INPUT, " \"content-digest\"", "")
        });
        check("other key id", Broken::UnknownKey, &|h| replace(h, SIGNATURE_INPUT, "\"k\"", "\"other\""));
        check("other algorithm", Broken::UnknownKey, &|h| {
            replace(h, SIGNATURE_INPUT, "hmac-sha256", "ed25519")
        });
        check("no algorithm", Broken::Malformed, &|h| {
            replace(h, SIGNATURE_INPUT, ";alg=\"hmac-sha256\"", "")
        });
        check("other label", Broken::SignatureMissing, &|h| {
            replace(h, SIGNATURE_INPUT, "sig1=", "sig2=");
            replace(h, SIGNATURE, "sig1=", "sig2=");
        });
        let wrong = Verifier::hmac("k", &secret("b")).unwrap();
        assert_eq!(wrong.verify_request(POST, &signed_request(), BODY, NOW_MS), Err(Broken::Invalid));
        for other in [("PUT", "/v1/callback"), ("POST", "/v1/other")] {
            assert_eq!(
                right.verify_request(other, &signed_request(), BODY, NOW_MS),
                Err(Broken::Invalid),
                "{other:?}"
            );
        }
        assert_eq!(right.verify_request(POST, &signed_request(), b"{}", NOW_MS), Err(Broken::DigestMismatch));
    }

    #[test]
    fn answers() {
        let asked = Asked { method: "POST", path: "/v1/statusInquiry", nonce: "0123456789abcdef" };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        let answer_mark = Mark { created_s: 7, nonce: "fedcba9876543210".into() };
        let signer = Signer::hmac("k", &secret("a")).unwrap();
        signer.sign_answer(asked, 200, &mut headers, BODY, &answer_mark).unwrap();
        let right = Verifier::hmac("k", &secret("a")).unwrap();
        assert_eq!(right.verify_answer(asked, 200, &headers, BODY, NOW_MS), Ok(answer_mark));
        assert_eq!(right.verify_answer(asked, 201, &headers, BODY, NOW_MS), Err(Broken::Invalid));
        assert_eq!(right.verify_answer(asked, 200, &headers, b"{}", NOW_MS), Err(Broken::DigestMismatch));
        let other_nonce = Asked { nonce: "0123456789abcdee", ..asked };
        assert_eq!(right.verify_answer(other_nonce, 200, &headers, BODY, NOW_MS), Err(Broken::OtherRequest));
        let other_path = Asked { path: "/v1/initiateTransaction", ..asked };
        assert_eq!(right.verify_answer(other_path, 200, &headers, BODY, NOW_MS), Err(Broken::Invalid));
        let mut forged = headers.clone();
        forged.insert(REQUEST_NONCE, "0123456789abcdee".parse().unwrap());
        assert_eq!(right.verify_answer(other_nonce, 200, &forged, BODY, NOW_MS), Err(Broken::Invalid));
        // Our own request cannot be reflected to us as an answer.
        assert_eq!(
            right.verify_answer(Asked { path: POST.1, ..asked }, 200, &signed_request(), BODY, NOW_MS),
            Err(Broken::CoversTooLittle)
        );
    }
}
