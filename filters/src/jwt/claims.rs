//! What a token claims (RFC 7519 section 4), and whether that holds now and here.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::keys::verifying_key;
use super::token::TokenError;
use crate::crypto::VerifyingKey;
use crate::filter::{Binding, Identity, Thumbprint};

/// The claims that the edge reads; others are for the upstream to ask for. Text that reaches an upstream in a
/// header is visible ASCII, so that no claim can write a header of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `exp`, milliseconds since the Unix epoch.
    exp_ms: i64,
    nbf_ms: Option<i64>,
    iat_ms: Option<i64>,
    audiences: Vec<String>,
    pub identity: Identity,
    /// `vpas`: the payment addresses that the user may pay from.
    pub vpas: Vec<String>,
    /// `jti`.
    pub token_id: Option<String>,
    /// `sid`: the session that the token belongs to (OpenID Connect Front-Channel Logout 1.0 section 3).
    pub session: Option<String>,
    /// Those of the other claims that the policy asks for.
    pub asked: BTreeMap<String, Value>,
}

/// What a token must say to be for us.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'e> {
    pub audiences: &'e [String],
    /// How far the issuer's clock and ours may differ.
    pub leeway_ms: u64,
    pub now_ms: u64,
}

/// The most payment addresses in a token.
const VPAS_MAX: usize = 64;
/// The longest text of a claim, in bytes.
const TEXT_MAX: usize = 256;

#[derive(Deserialize)]
struct Written {
    sub: String,
    aud: Audience,
    exp: Time,
    nbf: Option<Time>,
    iat: Option<Time>,
    scope: Option<String>,
    tenant: Option<String>,
    device: Option<String>,
    vpas: Option<Vec<String>>,
    cnf: Option<Confirmation>,
    jti: Option<String>,
    sid: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// RFC 7800 section 3.1, RFC 8705 section 3.1. Of confirmation by other means it is only kept that there is one.
#[derive(Deserialize)]
struct Confirmation {
    jwk: Option<Jwk>,
    #[serde(rename = "x5t#S256")]
    certificate: Option<String>,
}

/// A NumericDate (RFC 7519 section 2): seconds, perhaps with a fraction. Kept in milliseconds.
#[derive(Clone, Copy)]
struct Time(i64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let ms = match (number.as_i64(), number.as_f64()) {
            (Some(seconds), _) => seconds.checked_mul(1_000),
            // Beyond 2^53 a millisecond is no longer told apart: such times are mistakes.
            (None, Some(seconds)) if seconds.abs() < 9.0e12 => Some((seconds * 1_000.0) as i64),
            (None, _) => None,
        };
        ms.map(Self).ok_or_else(|| serde::de::Error::custom("not a time"))
    }
}

/// The issuer that a payload names, unverified.
pub fn issuer(payload: &[u8]) -> Result<String, TokenError> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    serde_json::from_slice::<Issued>(payload).map(|issued| issued.iss).map_err(|_| TokenError::Malformed)
}

/// Whether what an issuer says of a token is said of one of its own; it need not say so (RFC 7662 section 2.2).
pub fn may_be_of(payload: &[u8], issuer: &str) -> bool {
    #[derive(Deserialize)]
    struct Issued {
        iss: Option<String>,
    }
    serde_json::from_slice::<Issued>(payload).is_ok_and(|issued| issued.iss.is_none_or(|iss| iss == issuer))
}

impl Claims {
    /// Reads a verified payload; `issuer` is the policy's name of who signed it, `asked` names the other claims to keep.
    pub fn parse(payload: &[u8], issuer: &str, asked: &[String]) -> Result<Self, TokenError> {
        let written: Written = serde_json::from_slice(payload).map_err(|_| TokenError::Malformed)?;
        let vpas = written.vpas.unwrap_or_default();
        let texts = [&written.tenant, &written.device, &written.jti, &written.sid].map(Option::as_ref);
        let texts = [Some(&written.sub)].into_iter().chain(texts);
        let readable = texts.flatten().chain(&vpas).all(|text| readable(text));
        if !readable || vpas.len() > VPAS_MAX || vpas.iter().any(|vpa| vpa.contains([',', ' '])) {
            return Err(TokenError::Malformed);
        }
        let binding = written.cnf.map_or(Ok(Binding::None), Confirmation::binding)?;
        let scopes: BTreeSet<String> = written
            .scope
            .iter()
            .flat_map(|scope| scope.split(' '))
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            exp_ms: written.exp.0,
            nbf_ms: written.nbf.map(|time| time.0),
            iat_ms: written.iat.map(|time| time.0),
            audiences: match written.aud {
                Audience::One(one) => vec![one],
                Audience::Many(many) => many,
            },
            identity: Identity {
                issuer: issuer.to_owned(),
                subject: written.sub,
                tenant: written.tenant,
                device: written.device,
                scopes,
                binding,
            },
            vpas,
            token_id: written.jti,
            session: written.sid,
            asked: others(payload, asked)?,
        })
    }

    /// Whether the token is for us, now.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), TokenError> {
        if !self.audiences.iter().any(|audience| expected.audiences.contains(audience)) {
            return Err(TokenError::Audience);
        }
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let (now, leeway) = (signed(expected.now_ms), signed(expected.leeway_ms));
        if self.exp_ms.saturating_add(leeway) <= now {
            return Err(TokenError::Expired);
        }
        let latest_start = now.saturating_add(leeway);
        match [self.nbf_ms, self.iat_ms].into_iter().flatten().any(|start| start > latest_start) {
            true => Err(TokenError::NotYetValid),
            false => Ok(()),
        }
    }

    /// `iat`, milliseconds since the Unix epoch.
    pub fn issued_ms(&self) -> Option<i64> {
        self.iat_ms
    }

    /// When the token expires, milliseconds since the Unix epoch, before any leeway.
    pub fn expires_ms(&self) -> i64 {
        self.exp_ms
    }
}

impl Confirmation {
    /// What cannot be read must not turn a bound token into one that anybody may use.
    fn binding(self) -> Result<Binding, TokenError> {
        let key = match self.jwk.map(|jwk| verifying_key(&jwk)).transpose() {
            Ok(key @ (None | Some(VerifyingKey::EcdsaP256(_) | VerifyingKey::Ed25519(_)))) => key,
            Ok(Some(
                VerifyingKey::Hmac(_) | VerifyingKey::RsaPssSha512(_) | VerifyingKey::RsaV15Sha256(_),
            ))
            | Err(_) => return Err(TokenError::Malformed),
        };
        let thumbprint = |text: String| {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
            bytes.map(Thumbprint).ok_or(TokenError::Malformed)
        };
        Ok(match (key, self.certificate.map(thumbprint).transpose()?) {
            (None, None) => Binding::NotUnderstood,
            (Some(key), None) => Binding::Key(key),
            (None, Some(certificate)) => Binding::Certificate(certificate),
            (Some(key), Some(certificate)) => Binding::KeyAndCertificate(key, certificate),
        })
    }
}

/// The claims of these names, as far as they are there. A payload is read once more only where a policy asks for some.
fn others(payload: &[u8], names: &[String]) -> Result<BTreeMap<String, Value>, TokenError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut all: BTreeMap<String, Value> =
        serde_json::from_slice(payload).map_err(|_| TokenError::Malformed)?;
    all.retain(|name, _| names.contains(name));
    Ok(all)
}

pub(super) fn readable(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_MAX && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_S: i64 = 1_700_000_000;

    fn check(claims: &str) -> Result<(), TokenError> {
        let expected = Expected {
            audiences: &["edge".to_owned(), "other".to_owned()],
            leeway_ms: 30_000,
            now_ms: NOW_S as u64 * 1_000,
        };
        Claims::parse(claims.as_bytes(), "dev", &[])?.check(&expected)
    }

    #[test]
    fn claims() {
        let base = |rest: &str| format!(r#"{{"sub":"u1","aud":"edge","exp":{}{rest}}}"#, NOW_S + 60);
        let exp = |exp: &str| format!(r#"{{"sub":"u1","aud":"edge","exp":{exp}}}"#);
        let aud = |aud: &str| format!(r#"{{"sub":"u1","aud":{aud},"exp":{}}}"#, NOW_S + 60);
        let p256 = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let cases = [
            (base(""), Ok(())),
            (aud(r#"["x","other"]"#), Ok(())),
            (aud(r#"["x"]"#), Err(TokenError::Audience)),
            (aud("[]"), Err(TokenError::Audience)),
            (aud(r#""Edge""#), Err(TokenError::Audience)),
            (aud("1"), Err(TokenError::Malformed)),
            (exp(&format!("{}", NOW_S - 29)), Ok(())),
            (exp(&format!("{}", NOW_S - 30)), Err(TokenError::Expired)),
            (exp(&format!("{}.5", NOW_S - 30)), Ok(())),
            (exp("0"), Err(TokenError::Expired)),
            (exp("-1"), Err(TokenError::Expired)),
            (exp("null"), Err(TokenError::Malformed)),
            (exp("\"9999999999\""), Err(TokenError::Malformed)),
            (exp("1e300"), Err(TokenError::Malformed)),
            (exp("9223372036854775807"), Err(TokenError::Malformed)),
            (exp("18446744073709551615"), Err(TokenError::Malformed)),
            (r#"{"sub":"u1","aud":"edge"}"#.into(), Err(TokenError::Malformed)),
            (format!(r#"{{"aud":"edge","exp":{}}}"#, NOW_S + 60), Err(TokenError::Malformed)),
            (format!(r#"{{"sub":"u1","exp":{}}}"#, NOW_S + 60), Err(TokenError::Malformed)),
            (base(r#","exp":9999999999"#), Err(TokenError::Malformed)),
            (base(&format!(r#","nbf":{}"#, NOW_S + 30)), Ok(())),
            (base(&format!(r#","nbf":{}"#, NOW_S + 31)), Err(TokenError::NotYetValid)),
            (base(&format!(r#","iat":{}"#, NOW_S + 31)), Err(TokenError::NotYetValid)),
            (base(r#","tenant":"acme","device":"d1","vpas":["a@b"],"scope":"pay read","new":{}"#), Ok(())),
            (base(r#","tenant":"a\r\nx-evil: 1""#), Err(TokenError::Malformed)),
            (base(r#","tenant":"""#), Err(TokenError::Malformed)),
            (base(r#","device":"é""#), Err(TokenError::Malformed)),
            (base(r#","jti":"t1","sid":"s1""#), Ok(())),
            (base(r#","jti":7"#), Err(TokenError::Malformed)),
            (base(r#","sid":"""#), Err(TokenError::Malformed)),
            (base(r#","vpas":["a@b,c@d"]"#), Err(TokenError::Malformed)),
            (base(&format!(r#","cnf":{{"jwk":{p256}}}"#)), Ok(())),
            (base(r#","cnf":{"jkt":"x"}"#), Ok(())),
            (
                base(r#","cnf":{"jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}"#),
                Err(TokenError::Malformed),
            ),
            (base(r#","cnf":{"jwk":{"kty":"oct","k":"AAAA"}}"#), Err(TokenError::Malformed)),
            ("[]".into(), Err(TokenError::Malformed)),
        ];
        for (claims, expected) in cases {
            assert_eq!(check(&claims), expected, "{claims}");
        }
    }

    #[test]
    fn who_a_token_is() {
        let text = r#"{"sub":"u1","aud":"edge","exp":1,"tenant":"t","device":"d","scope":" pay  read","vpas":["a@b","c@d"]}"#;
        let claims = Claims::parse(text.as_bytes(), "dev", &[]).expect("claims");
        let scopes = ["pay", "read"].map(str::to_owned).into();
        let expected = Identity {
            issuer: "dev".into(),
            subject: "u1".into(),
            tenant: Some("t".into()),
            device: Some("d".into()),
            scopes,
            binding: Binding::None,
        };
        assert_eq!((claims.identity, claims.vpas), (expected, vec!["a@b".to_owned(), "c@d".to_owned()]));
    }

    #[test]
    fn what_a_token_is_bound_to() {
        let p256 = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let binding = |rest: &str| {
            let text = format!(r#"{{"sub":"u1","aud":"edge","exp":1{rest}}}"#);
            Claims::parse(text.as_bytes(), "dev", &[]).map(|claims| claims.identity.binding)
        };
        assert_eq!(binding(""), Ok(Binding::None));
        for others in ["{}", r#"{"jkt":"x"}"#, r#"{"x5t#S256":null}"#, r#"{"kid":"x"}"#, r#"{"jwk":null}"#] {
            assert_eq!(binding(&format!(r#","cnf":{others}"#)), Ok(Binding::NotUnderstood), "{others}");
        }
        // The certificate of RFC 8705 appendix A and its thumbprint there.
        let x5t = r#""x5t#S256":"A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0""#;
        let bound = binding(&format!(r#","cnf":{{{x5t}}}"#));
        assert!(matches!(bound, Ok(Binding::Certificate(Thumbprint([0x03, 0x80, ..])))), "{bound:?}");
        let bound = binding(&format!(r#","cnf":{{{x5t},"jwk":{p256}}}"#));
        assert!(matches!(bound, Ok(Binding::KeyAndCertificate(..))), "{bound:?}");
        for unreadable in ["", "x", "AAAA", "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0="] {
            let bound = binding(&format!(r#","cnf":{{"x5t#S256":"{unreadable}"}}"#));
            assert_eq!(bound, Err(TokenError::Malformed), "{unreadable}");
        }
        for key in [format!(r#"{{"jwk":{p256}}}"#), format!(r#"{{"kid":"x","jwk":{p256}}}"#)] {
            let bound = binding(&format!(r#","cnf":{key}"#));
            assert!(matches!(bound, Ok(Binding::Key(VerifyingKey::EcdsaP256(_)))), "{key}: {bound:?}");
        }
        assert_eq!(binding(r#","cnf":"x""#), Err(TokenError::Malformed));
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), number in any::<f64>(), now_ms in any::<u64>(), leeway_ms in any::<u64>()) {
            let _ = (Claims::parse(&bytes, "dev", &[]), issuer(&bytes));
            let text = serde_json::json!({"sub": "u", "aud": "a", "exp": number, "nbf": -number}).to_string();
            if let Ok(claims) = Claims::parse(text.as_bytes(), "dev", &[]) {
                let _ = claims.check(&Expected { audiences: &["a".to_owned()], leeway_ms, now_ms });
            }
        }
    }
}
