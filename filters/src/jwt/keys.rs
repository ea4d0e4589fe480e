//! Public keys of issuers and devices, as JSON Web Keys (RFC 7517, 7518, 8037).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::crypto::{self, CryptoError, RsaPublicKey, VerifyingKey};
use crate::policy::Algorithm;

/// The longest key set that is read, in bytes.
pub const SET_MAX: usize = 256 * 1024;
/// The most keys that a set may have.
pub const KEYS_MAX: usize = 64;
/// The longest key id, in bytes.
pub const KID_MAX: usize = 256;

/// The keys of an issuer that can verify its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    /// A published key that serves two algorithms is here twice.
    keys: Vec<Key>,
    /// Usable keys as they were published.
    published: usize,
}

/// What is read of a JSON Web Key (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// A key of an issuer, for one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub kid: Option<String>,
    pub algorithm: Algorithm,
    pub key: VerifyingKey,
}

impl KeySet {
    /// Reads a JWK set. Keys of other types, for other uses or of other algorithms are passed over, as
    /// RFC 7517 section 5 asks; a set without a single usable key is an error, and so is one that names two
    /// keys alike.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Set<'s> {
            #[serde(borrow)]
            keys: Vec<&'s RawValue>,
        }
        if bytes.len() > SET_MAX {
            return Err(KeySetError::TooLarge);
        }
        let set: Set<'_> = serde_json::from_slice(bytes).map_err(|_| KeySetError::Malformed)?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeySetError::TooLarge);
        }
        let mut usable = Self::default();
        for key in set.keys {
            let keys = serde_json::from_str(key.get()).ok().and_then(Key::of).unwrap_or_default();
            let repeats = |key: &Key| {
                usable.keys.iter().any(|other| other.kid == key.kid && other.algorithm == key.algorithm)
            };
            if keys.iter().any(repeats) {
                return Err(KeySetError::Repeated);
            }
            usable.published += usize::from(!keys.is_empty());
            usable.keys.extend(keys);
        }
        match usable.is_empty() {
            true => Err(KeySetError::NoneUsable),
            false => Ok(usable),
        }
    }

    /// The key for a token: the one named, or the only one of that algorithm when the token names none.
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.algorithm == algorithm && (kid.is_none() || key.kid.as_deref() == kid));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Some(key),
            (Some(_), Some(_)) | (None, _) => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// How many published keys are usable.
    pub fn len(&self) -> usize {
        self.published
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    /// A published key, once for each algorithm that it serves; `None` when it is not understood.
    fn of(jwk: Jwk) -> Option<Vec<Self>> {
        let for_signatures = jwk.usage.as_ref().is_none_or(|usage| usage == "sig");
        let may_verify = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures || !may_verify || jwk.kid.as_ref().is_some_and(|kid| kid.len() > KID_MAX) {
            return None;
        }
        let served = match verifying_key(&jwk).ok()? {
            key @ VerifyingKey::EcdsaP256(_) => vec![(Algorithm::ES256, key)],
            key @ VerifyingKey::EcdsaP384(_) => vec![(Algorithm::ES384, key)],
            key @ VerifyingKey::Ed25519(_) => vec![(Algorithm::EdDSA, key)],
            VerifyingKey::RsaV15Sha256(rsa) => vec![
                (Algorithm::RS256, VerifyingKey::RsaV15Sha256(rsa.clone())),
                (Algorithm::PS256, VerifyingKey::RsaPssSha256(rsa)),
            ],
            VerifyingKey::Hmac(_) | VerifyingKey::RsaPssSha256(_) | VerifyingKey::RsaPssSha512(_) => return None,
        };
        // A key that names its algorithm is for that one only.
        let fits = |algorithm: Algorithm| {
            jwk.alg.as_deref().is_none_or(|named| Algorithm::of_token(named) == Some(algorithm))
        };
        let keys = served.into_iter().filter(|(algorithm, _)| fits(*algorithm));
        Some(keys.map(|(algorithm, key)| Self { kid: jwk.kid.clone(), algorithm, key }).collect())
    }
}

/// The key of a JWK; a symmetric one is never a verifying key here (RFC 8725 section 2.1).
pub fn verifying_key(jwk: &Jwk) -> Result<VerifyingKey, CryptoError> {
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("EC", Some("P-256")) => {
            // Both are exactly 32 bytes (RFC 7518 section 6.2.1.2): other splits of 64 would be other points.
            let (x, y) = (number(&jwk.x)?, number(&jwk.y)?);
            match (x.len(), y.len()) {
                (32, 32) => VerifyingKey::ecdsa_p256(&[x, y].concat()),
                _ => Err(CryptoError::Key("a P-256 coordinate is 32 bytes")),
            }
        }
        ("EC", Some("P-384")) => VerifyingKey::ecdsa_p384(&number(&jwk.x)?, &number(&jwk.y)?),
        ("OKP", Some("Ed25519")) => VerifyingKey::ed25519(&number(&jwk.x)?),
        ("RSA", _) => RsaPublicKey::new(&number(&jwk.n)?, &number(&jwk.e)?).map(VerifyingKey::RsaV15Sha256),
        _ => Err(CryptoError::Key("not a P-256, P-384, Ed25519 or RSA public key")),
    }
}

/// The thumbprint of a device's key (RFC 7638), base64url. `None` for keys that devices do not use.
pub fn thumbprint(key: &VerifyingKey) -> Option<String> {
    let members = match key {
        VerifyingKey::EcdsaP256(point) => {
            let (x, y) = point.uncompressed().split_at_checked(33)?;
            let x = URL_SAFE_NO_PAD.encode(x.get(1..)?);
            format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{}"}}"#, URL_SAFE_NO_PAD.encode(y))
        }
        VerifyingKey::Ed25519(key) => {
            format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(key.bytes()))
        }
        VerifyingKey::Hmac(_)
        | VerifyingKey::EcdsaP384(_)
        | VerifyingKey::RsaPssSha256(_)
        | VerifyingKey::RsaPssSha512(_)
        | VerifyingKey::RsaV15Sha256(_) => return None,
    };
    Some(URL_SAFE_NO_PAD.encode(crypto::sha256(members.as_bytes())))
}

fn number(text: &Option<String>) -> Result<Vec<u8>, CryptoError> {
    let text = text.as_ref().ok_or(CryptoError::Key("a number is missing"))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| CryptoError::Key("a number is not base64url"))
}

/// Why a key set cannot be used: the issuer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("the key set has more than {SET_MAX} bytes or {KEYS_MAX} keys")]
    TooLarge,
    #[error("not a JWK set")]
    Malformed,
    #[error("the key set has two keys of one id and algorithm")]
    Repeated,
    #[error("the key set has no P-256, P-384, Ed25519 or RSA key that verifies signatures")]
    NoneUsable,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P256: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
    const P384: &str = r#""kty":"EC","crv":"P-384","x":"iA7aWQTT5oWnD1tmmFFINTL6Qy0cCYXRO4S0rPmBm9QYhpUgDDeobE0xUQbYP7Lz","y":"YNKTGl_8nPRZAOuQCGClgXMrhBOdPSL9LqDVDtEhs1f1yOhZSB5I0HSZXzrc0QYC""#;
    const RSA: &str = r#""kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ""#;
    const ED: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    #[test]
    fn sets() {
        let set =
            |keys: &str| KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes()).map(|set| set.len());
        let cases: &[(String, Result<usize, KeySetError>)] = &[
            (format!("{{{P256}}}"), Ok(1)),
            (format!("{{{P256},\"kid\":\"a\"}},{{{ED},\"kid\":\"a\"}}"), Ok(2)),
            (format!("{{{P256},\"kid\":\"a\"}},{{{P256},\"kid\":\"a\"}}"), Err(KeySetError::Repeated)),
            (
                format!("{{{P256},\"use\":\"sig\",\"alg\":\"ES256\",\"key_ops\":[\"verify\"],\"new\":1}}"),
                Ok(1),
            ),
            (format!("{{{P256},\"use\":\"enc\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{P256},\"alg\":\"ES384\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{P256},\"alg\":7}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{P256},\"alg\":null}}"), Ok(1)),
            (format!("{{{ED},\"alg\":\"EdDSA\"}}"), Ok(1)),
            (format!("{{{ED},\"alg\":\"Ed25519\"}}"), Ok(1)),
            (format!("{{{ED},\"alg\":\"Ed448\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{ED},\"alg\":\"ES256\"}}"), Err(KeySetError::NoneUsable)),
            (
                format!("{{{ED},\"alg\":\"EdDSA\",\"kid\":\"a\"}},{{{ED},\"alg\":\"Ed25519\",\"kid\":\"a\"}}"),
                Err(KeySetError::Repeated),
            ),
            (format!("{{{P384}}}"), Ok(1)),
            (format!("{{{P384},\"alg\":\"ES384\"}}"), Ok(1)),
            (format!("{{{P384},\"alg\":\"ES256\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{RSA}}}"), Ok(1)),
            (format!("{{{P256},\"alg\":\"HS256\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{P256},\"alg\":\"new\"}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{P256},\"key_ops\":[\"sign\"]}}"), Err(KeySetError::NoneUsable)),
            (format!("{{{ED}}},{{\"kty\":\"oct\",\"k\":\"AAAA\"}},{{\"kty\":\"new\"}},3"), Ok(1)),
            (r#"{"kty":"oct","k":"AAAA"}"#.into(), Err(KeySetError::NoneUsable)),
            (r#"{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}"#.into(), Err(KeySetError::NoneUsable)),
            (r#"{"kty":"EC","crv":"P-384","x":"AAAA","y":"AAAA"}"#.into(), Err(KeySetError::NoneUsable)),
            (r#"{"kty":"RSA","n":"AAAA","e":"AQAB"}"#.into(), Err(KeySetError::NoneUsable)),
            (String::new(), Err(KeySetError::NoneUsable)),
            (vec!["{}"; KEYS_MAX + 1].join(","), Err(KeySetError::TooLarge)),
        ];
        for (keys, expected) in cases {
            assert_eq!(set(keys), *expected, "{keys}");
        }
        assert_eq!(KeySet::parse(b"[]"), Err(KeySetError::Malformed));
        assert_eq!(KeySet::parse(&vec![b' '; SET_MAX + 1]), Err(KeySetError::TooLarge));
    }

    /// An RSA key without `alg` serves both of its algorithms, and one with `alg` that one alone.
    #[test]
    fn algorithms_of_an_rsa_key() {
        for (alg, rs256, ps256) in [
            ("", true, true),
            (r#","alg":"RS256""#, true, false),
            (r#","alg":"PS256""#, false, true),
            (r#","alg":"PS512""#, false, false),
        ] {
            let set = KeySet::parse(format!(r#"{{"keys":[{{{RSA},"kid":"r"{alg}}},{{{ED}}}]}}"#).as_bytes()).unwrap();
            let found = |algorithm| set.find(Some("r"), algorithm).is_some();
            assert_eq!((found(Algorithm::RS256), found(Algorithm::PS256)), (rs256, ps256), "{alg}");
        }
    }

    #[test]
    fn a_key_is_found_by_its_id_and_algorithm() {
        let set = format!(r#"{{"keys":[{{{P256},"kid":"a"}},{{{ED},"kid":"b"}},{{{ED},"kid":"c"}}]}}"#);
        let set = KeySet::parse(set.as_bytes()).expect("a set");
        assert!(set.find(Some("a"), Algorithm::ES256).is_some());
        assert!(set.find(Some("a"), Algorithm::EdDSA).is_none());
        assert!(set.find(Some("z"), Algorithm::ES256).is_none());
        assert!(set.find(None, Algorithm::ES256).is_some());
        assert!(set.find(None, Algorithm::EdDSA).is_none(), "two could be meant");
    }

    /// RFC 8037 appendix A.3.
    #[test]
    fn published_thumbprint() {
        let jwk: Jwk = serde_json::from_str(&format!("{{{ED}}}")).expect("a JWK");
        let key = verifying_key(&jwk).expect("a key");
        assert_eq!(thumbprint(&key).as_deref(), Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
    }

    proptest! {
        #[test]
        fn no_set_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in any::<String>()) {
            let _ = KeySet::parse(&bytes);
            let key = serde_json::json!({"keys": [{"kty": "EC", "crv": "P-256", "x": text, "y": text}]});
            prop_assert!(KeySet::parse(key.to_string().as_bytes()).is_err());
        }
    }
}
