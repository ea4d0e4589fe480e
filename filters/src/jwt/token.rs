//! A token as it is sent: a JWS in compact form (RFC 7515), read strictly (RFC 8725).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};
use serde::de::IgnoredAny;

use super::keys::{KID_MAX, Key};
use crate::crypto::{CryptoError, Verify};
use crate::policy::Algorithm;

/// A token of which nothing is believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'t> {
    /// What the token says of itself; believe it only as far as [`Token::verify`] does.
    pub algorithm: Option<Algorithm>,
    pub kid: Option<String>,
    signed: &'t str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// Types that a token may have (`typ`): none, `JWT`, or an access token's (RFC 9068 section 2.1). Tokens for
/// other purposes, DPoP proofs or logout tokens say, name theirs (RFC 8725 section 3.11).
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// No extension is understood, so none may be critical (RFC 7515 section 4.1.11).
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
    /// Unencoded payloads (RFC 7797) are not JWTs.
    #[serde(default, deserialize_with = "is_there")]
    b64: bool,
}

/// A member that is `null` is there too.
fn is_there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

impl<'t> Token<'t> {
    /// Reads a token of at most `max_length` bytes.
    pub fn parse(text: &'t str, max_length: usize) -> Result<Self, TokenError> {
        if text.len() > max_length {
            return Err(TokenError::Malformed);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let head: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if head.crit
            || head.b64
            || head.kid.as_ref().is_some_and(|kid| kid.len() > KID_MAX)
        {
            return Err(TokenError::Malformed);
        }
        if let Some(name) = &head.typ {
            let name = name.to_ascii_lowercase();
            if !TYPES.contains(&name.strip_prefix("application/").unwrap_or(&name)) {
                return Err(TokenError::Malformed);
            }
        }
        // Others, `none` and the symmetric ones among them, are not supported.
        let algorithm = Algorithm::of_token(&head.alg);
        let signed = text
            .get(..header.len().saturating_add(1).saturating_add(payload.len()))
            .ok_or(TokenError::Malformed)?;
        Ok(Self {
            algorithm,
            kid: head.kid,
            signed,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    /// The payload, unverified: only to find out whose token it claims to be.
    pub fn unverified(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, once the signature holds under this key and algorithm.
    pub fn verify(&self, key: &Key, crypto: &dyn Verify) -> Result<&[u8], TokenError> {
        if self.algorithm != Some(key.algorithm) {
            return Err(TokenError::Algorithm);
        }
        match crypto.verify(&key.key, self.signed.as_bytes(), &self.signature) {
            Ok(()) => Ok(&self.payload),
            Err(CryptoError::Invalid) => Err(TokenError::Signature),
            Err(why) => Err(TokenError::Crypto(why)),
        }
    }
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a signed JWT")]
    Malformed,
    #[error("its payload is not a JSON object, or repeats a claim")]
    Payload,
    #[error("its claim `{0}` is missing")]
    ClaimMissing(&'static str),
    #[error("its claim `{name}` is not {expected}")]
    Claim { name: &'static str, expected: &'static str },
    /// Of an issuer's answer about an opaque token.
    #[error("neither `sub` nor `client_id`")]
    SubjectMissing,
    #[error("signed with an algorithm that this issuer does not use")]
    Algorithm,
    #[error("signed with a key that is not known")]
    KeyUnknown,
    #[error("the signature does not hold")]
    Signature,
    #[error("from an issuer that is not trusted here")]
    Issuer,
    #[error("for another audience")]
    Audience,
    #[error("expired")]
    Expired,
    #[error("not valid yet")]
    NotYetValid,
    #[error("it does not count, says its issuer")]
    Inactive,
    #[error("revoked")]
    Revoked,
    #[error("bound to a certificate, and none is shown")]
    CertificateMissing,
    #[error("bound to another certificate")]
    OtherCertificate,
    #[error("not bound to a certificate")]
    NotBound,
    #[error("bound by means that are not understood")]
    BindingUnsupported,
    /// Not the sender's fault.
    #[error(transparent)]
    Crypto(CryptoError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::Local;
    use crate::jwt::KeySet;

    const PAYLOAD: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const RSA: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;

    fn key(jwk: &str, algorithm: Algorithm) -> Key {
        let set = KeySet::parse(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).expect("a set");
        set.find(None, algorithm).expect("the key").clone()
    }

    fn token(header: &str, payload: &str, signature: &str) -> String {
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(header))
    }

    /// RFC 7515 appendix A.2 and A.3, RFC 8037 appendix A.4: they hold, under their own keys only, and no
    /// other bit holds.
    #[test]
    fn published_tokens() {
        let rs256 = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let es256 = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let eddsa = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let example = "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let keys = [key(RSA, Algorithm::RS256), key(EC, Algorithm::ES256), key(ED, Algorithm::EdDSA)];
        let cases = [
            (format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.{rs256}"), &keys[0]),
            (format!("eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.{es256}"), &keys[1]),
            (format!("eyJhbGciOiJFZERTQSJ9.{example}.{eddsa}"), &keys[2]),
        ];
        for (text, own) in &cases {
            let token = Token::parse(text, 4096).expect(text);
            for key in &keys {
                let expected = if key == *own { None } else { Some(TokenError::Algorithm) };
                assert_eq!(token.verify(key, &Local).err(), expected, "{text}");
            }
            for at in 0..token.signature.len() {
                let mut forged = token.clone();
                forged.signature[at] ^= 1;
                assert_eq!(forged.verify(own, &Local), Err(TokenError::Signature), "{text} {at}");
            }
            let mut other = Token::parse(text, 4096).expect(text);
            other.signed = "eyJhbGciOiJFUzI1NiJ9.e30";
            assert_eq!(other.verify(own, &Local), Err(TokenError::Signature));
        }
    }

    /// RFC 7515 appendix A.1 is well-formed and refused for every key: HS256 with a public key as the secret
    /// is the classic confusion (RFC 8725 section 2.1), and `none` needs no key at all.
    #[test]
    fn symmetric_and_absent_signatures_never_verify() {
        let a1 = format!(
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        );
        let none = |alg: &str| token(&format!(r#"{{"alg":"{alg}"}}"#), PAYLOAD, "");
        for text in [a1, none("none"), none("None"), none("HS256"), none("es256"), none("PS384"), none("Ed448"), none("")] {
            let token = Token::parse(&text, 4096).expect(&text);
            assert_eq!(token.algorithm, None, "{text}");
            for key in [key(RSA, Algorithm::RS256), key(EC, Algorithm::ES256), key(ED, Algorithm::EdDSA)] {
                assert_eq!(token.verify(&key, &Local), Err(TokenError::Algorithm), "{text}");
            }
        }
    }

    #[test]
    fn malformed_tokens() {
        let cases = [
            String::new(),
            "..".into(),
            "a.b".into(),
            "e30.e30.".into(),
            format!("{}.x", token(r#"{"alg":"ES256"}"#, PAYLOAD, "")),
            token(r#"{"alg":"ES256","crit":null}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","b64":null}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","crit":["exp"],"exp":1}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","crit":null,"crit":[]}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","b64":false}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","alg":"none"}"#, PAYLOAD, ""),
            token(r#"{"alg":["ES256"]}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256","typ":"dpop+jwt"}"#, PAYLOAD, ""),
            token(r#"{"alg":"ES256"} "#, "e30=", ""),
            token(r#"{"alg":"ES256"}"#, "e31", ""),
            token(r#"{"alg":"ES256"}"#, "e 0", ""),
            token(&format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(KID_MAX + 1)), PAYLOAD, ""),
            token(r#"{"alg":"ES256"}"#, &"e30".repeat(2000), ""),
        ];
        for text in cases {
            assert_eq!(Token::parse(&text, 4096), Err(TokenError::Malformed), "{text}");
        }
        for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
            assert!(
                Token::parse(&token(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#), PAYLOAD, ""), 4096)
                    .is_ok()
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}", header in any::<String>()) {
            let _ = Token::parse(&text, 4096);
            let _ = Token::parse(&parts, 4096);
            let text = token(&header, "e30", "");
            if let Ok(token) = Token::parse(&text, 4096) {
                prop_assert!(token.verify(&key(EC, Algorithm::ES256), &Local).is_err());
            }
        }
    }
}
