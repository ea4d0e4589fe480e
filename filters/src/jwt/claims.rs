//! What a token claims (RFC 7519 section 4), and whether that holds now and here.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::keys::{Jwk, verifying_key};
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
    /// `jti`; a number is its decimal text.
    pub token_id: Option<String>,
    /// `sid`: the session that the token belongs to (OpenID Connect Front-Channel Logout 1.0 section 3). A number is its
    /// decimal text.
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

/// The claims as they were written. Each is read on its own, so that a refusal can name it.
#[derive(Deserialize)]
struct Written<'p> {
    #[serde(borrow)]
    sub: Option<&'p RawValue>,
    client_id: Option<&'p RawValue>,
    aud: Option<&'p RawValue>,
    exp: Option<&'p RawValue>,
    nbf: Option<&'p RawValue>,
    iat: Option<&'p RawValue>,
    scope: Option<&'p RawValue>,
    tenant: Option<&'p RawValue>,
    device: Option<&'p RawValue>,
    vpas: Option<&'p RawValue>,
    cnf: Option<&'p RawValue>,
    jti: Option<&'p RawValue>,
    sid: Option<&'p RawValue>,
}

const TEXT: &str = "text of 1 to 256 visible ASCII characters, without blanks at its ends";
const TEXT_OR_NUMBER: &str =
    "text of 1 to 256 visible ASCII characters, without blanks at its ends, or a whole number";
const TEXTS: &str = "text, or a list of texts";
const TIME: &str = "a number of seconds since 1970";
const ADDRESSES: &str = "a list of at most 64 payment addresses";
const CONFIRMATION: &str = "a key or a certificate thumbprint that is supported here";

/// A claim of this type; `None` when it is absent.
fn read<'p, T: Deserialize<'p>>(
    written: Option<&'p RawValue>,
    name: &'static str,
    expected: &'static str,
) -> Result<Option<T>, TokenError> {
    let read = written.map(|raw| serde_json::from_str(raw.get())).transpose();
    read.map_err(|_| TokenError::Claim { name, expected })
}

fn required<T>(claim: Option<T>, name: &'static str) -> Result<T, TokenError> {
    claim.ok_or(TokenError::ClaimMissing(name))
}

/// Text that a header field can carry.
fn text(written: Option<&RawValue>, name: &'static str) -> Result<Option<String>, TokenError> {
    match read::<String>(written, name, TEXT)? {
        Some(text) if !readable(&text) => Err(TokenError::Claim { name, expected: TEXT }),
        text => Ok(text),
    }
}

/// Text, or a whole number, which stands for its decimal text.
fn text_or_number(written: Option<&RawValue>, name: &'static str) -> Result<Option<String>, TokenError> {
    // JSON has one spelling for each whole number without a fraction or an exponent, but for "-0".
    let is_whole = |raw: &str| {
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        raw != "-0" && readable(raw) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    match written.map(RawValue::get) {
        Some(raw) if is_whole(raw) => Ok(Some(raw.to_owned())),
        Some(_) | None => {
            text(written, name).map_err(|_| TokenError::Claim { name, expected: TEXT_OR_NUMBER })
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
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
    struct Issued<'p> {
        #[serde(borrow)]
        iss: Option<&'p RawValue>,
    }
    let Issued { iss } = serde_json::from_slice(payload).map_err(|_| TokenError::Payload)?;
    required(read(iss, "iss", "text")?, "iss")
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
    /// Whether its time is over, without any leeway.
    pub fn is_over(&self, now_ms: u64) -> bool {
        i64::try_from(now_ms).is_ok_and(|now_ms| self.exp_ms <= now_ms)
    }

    /// Reads a verified payload; `issuer` is the policy's name of who signed it, `asked` names the other claims to keep.
    pub fn parse(payload: &[u8], issuer: &str, asked: &[String]) -> Result<Self, TokenError> {
        Self::read(payload, issuer, asked, |written| required(text(written.sub, "sub")?, "sub"))
    }

    /// Reads what the issuer answers about an opaque token (RFC 7662 section 2.2). A token that a client got for itself
    /// has no `sub`; its subject is the client then.
    pub fn introspected(payload: &[u8], issuer: &str, asked: &[String]) -> Result<Self, TokenError> {
        Self::read(payload, issuer, asked, |written| match text(written.sub, "sub")? {
            Some(subject) => Ok(subject),
            None => text(written.client_id, "client_id")?.ok_or(TokenError::SubjectMissing),
        })
    }

    fn read(
        payload: &[u8],
        issuer: &str,
        asked: &[String],
        subject: impl FnOnce(&Written<'_>) -> Result<String, TokenError>,
    ) -> Result<Self, TokenError> {
        let written: Written<'_> = serde_json::from_slice(payload).map_err(|_| TokenError::Payload)?;
        let vpas: Vec<String> = read(written.vpas, "vpas", ADDRESSES)?.unwrap_or_default();
        let addressable = vpas.iter().all(|vpa| readable(vpa) && !vpa.contains([',', ' ']));
        if !addressable || vpas.len() > VPAS_MAX {
            return Err(TokenError::Claim { name: "vpas", expected: ADDRESSES });
        }
        let binding = match read::<Confirmation>(written.cnf, "cnf", CONFIRMATION)? {
            None => Binding::None,
            Some(confirmation) => confirmation.binding()?,
        };
        let scopes: BTreeSet<String> = match read(written.scope, "scope", TEXTS)? {
            None => BTreeSet::new(),
            Some(Texts::One(scopes)) => {
                scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
            }
            Some(Texts::Many(scopes)) => scopes.into_iter().collect(),
        };
        let time = |written, name| read::<Time>(written, name, TIME).map(|time| time.map(|time| time.0));
        Ok(Self {
            exp_ms: required(time(written.exp, "exp")?, "exp")?,
            nbf_ms: time(written.nbf, "nbf")?,
            iat_ms: time(written.iat, "iat")?,
            audiences: match required(read(written.aud, "aud", TEXTS)?, "aud")? {
                Texts::One(one) => vec![one],
                Texts::Many(many) => many,
            },
            identity: Identity {
                issuer: issuer.to_owned(),
                subject: subject(&written)?,
                tenant: text(written.tenant, "tenant")?,
                device: text(written.device, "device")?,
                scopes,
                binding,
            },
            vpas,
            token_id: text_or_number(written.jti, "jti")?,
            session: text_or_number(written.sid, "sid")?,
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
                VerifyingKey::Hmac(_)
                | VerifyingKey::EcdsaP384(_)
                | VerifyingKey::RsaPssSha256(_)
                | VerifyingKey::RsaPssSha512(_)
                | VerifyingKey::RsaV15Sha256(_),
            ))
            | Err(_) => return Err(TokenError::Claim { name: "cnf", expected: CONFIRMATION }),
        };
        let thumbprint = |text: String| {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
            bytes.map(Thumbprint).ok_or(TokenError::Claim { name: "cnf", expected: CONFIRMATION })
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
        serde_json::from_slice(payload).map_err(|_| TokenError::Payload)?;
    all.retain(|name, _| names.contains(name));
    Ok(all)
}

/// Whether a header field carries the text unchanged to every reader. HTTP strips blanks at the ends of a value (RFC 9110
/// section 5.5): "bob " would be another user at the edge than at the upstream.
pub(super) fn readable(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TEXT_MAX
        && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
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
        let missing = |name| Err(TokenError::ClaimMissing(name));
        let not = |name, expected| Err(TokenError::Claim { name, expected });
        let cases = [
            (base(""), Ok(())),
            (aud(r#"["x","other"]"#), Ok(())),
            (aud(r#"["x"]"#), Err(TokenError::Audience)),
            (aud("[]"), Err(TokenError::Audience)),
            (aud(r#""Edge""#), Err(TokenError::Audience)),
            (aud("1"), not("aud", TEXTS)),
            (aud(r#"["edge",1]"#), not("aud", TEXTS)),
            (aud("null"), missing("aud")),
            (exp(&format!("{}", NOW_S - 29)), Ok(())),
            (exp(&format!("{}", NOW_S - 30)), Err(TokenError::Expired)),
            (exp(&format!("{}.5", NOW_S - 30)), Ok(())),
            (exp("0"), Err(TokenError::Expired)),
            (exp("-1"), Err(TokenError::Expired)),
            (exp("null"), missing("exp")),
            (exp("\"9999999999\""), not("exp", TIME)),
            (exp("1e300"), not("exp", TIME)),
            (exp("9223372036854775807"), not("exp", TIME)),
            (exp("18446744073709551615"), not("exp", TIME)),
            (r#"{"sub":"u1","aud":"edge"}"#.into(), missing("exp")),
            (format!(r#"{{"aud":"edge","exp":{}}}"#, NOW_S + 60), missing("sub")),
            (format!(r#"{{"client_id":"c","aud":"edge","exp":{}}}"#, NOW_S + 60), missing("sub")),
            (format!(r#"{{"sub":"u1","exp":{}}}"#, NOW_S + 60), missing("aud")),
            (base(r#","exp":9999999999"#), Err(TokenError::Payload)),
            (base(&format!(r#","nbf":{}"#, NOW_S + 30)), Ok(())),
            (base(&format!(r#","nbf":{}"#, NOW_S + 31)), Err(TokenError::NotYetValid)),
            (base(r#","nbf":true"#), not("nbf", TIME)),
            (base(&format!(r#","iat":{}"#, NOW_S + 31)), Err(TokenError::NotYetValid)),
            (base(r#","iat":"now""#), not("iat", TIME)),
            (base(r#","tenant":"acme","device":"d1","vpas":["a@b"],"scope":"pay read","new":{}"#), Ok(())),
            (base(r#","scope":["pay","read"]"#), Ok(())),
            (base(r#","scope":7"#), not("scope", TEXTS)),
            (base(r#","scope":["pay",7]"#), not("scope", TEXTS)),
            (base(r#","tenant":"a\r\nx-evil: 1""#), not("tenant", TEXT)),
            (base(r#","tenant":"""#), not("tenant", TEXT)),
            (base(r#","tenant":"acme ""#), not("tenant", TEXT)),
            (base(r#","tenant":" acme""#), not("tenant", TEXT)),
            (base(r#","tenant":"acme bank""#), Ok(())),
            (base(r#","device":"d\u200b1""#), not("device", TEXT)),
            (base(r#","sid":"s1 ""#), not("sid", TEXT_OR_NUMBER)),
            (base(r#","vpas":["a@b "]"#), not("vpas", ADDRESSES)),
            (base(r#","device":"é""#), not("device", TEXT)),
            (base(r#","jti":"t1","sid":"s1""#), Ok(())),
            (base(r#","jti":7,"sid":-7"#), Ok(())),
            (base(r#","jti":7.5"#), not("jti", TEXT_OR_NUMBER)),
            (base(r#","jti":7e2"#), not("jti", TEXT_OR_NUMBER)),
            (base(r#","jti":-0"#), not("jti", TEXT_OR_NUMBER)),
            (base(r#","jti":true"#), not("jti", TEXT_OR_NUMBER)),
            (base(&format!(r#","jti":1{}"#, "0".repeat(256))), not("jti", TEXT_OR_NUMBER)),
            (base(r#","sid":"""#), not("sid", TEXT_OR_NUMBER)),
            (base(r#","sid":[]"#), not("sid", TEXT_OR_NUMBER)),
            (base(r#","vpas":["a@b,c@d"]"#), not("vpas", ADDRESSES)),
            (base(r#","vpas":"a@b""#), not("vpas", ADDRESSES)),
            (base(&format!(r#","cnf":{{"jwk":{p256}}}"#)), Ok(())),
            (base(r#","cnf":{"jkt":"x"}"#), Ok(())),
            (base(r#","cnf":{"jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}"#), not("cnf", CONFIRMATION)),
            (base(r#","cnf":{"jwk":{"kty":"oct","k":"AAAA"}}"#), not("cnf", CONFIRMATION)),
            (base(r#","cnf":{"x5t#S256":"x","x5t#S256":"y"}"#), not("cnf", CONFIRMATION)),
            ("[]".into(), Err(TokenError::Payload)),
            ("no JSON".into(), Err(TokenError::Payload)),
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
    fn scopes_in_either_form() {
        for (scope, expected) in [
            (r#""pay read""#, &["pay", "read"][..]),
            (r#"["pay","read"]"#, &["pay", "read"]),
            (r#"["pay read"]"#, &["pay read"]),
            (r#""""#, &[]),
            ("[]", &[]),
            ("null", &[]),
        ] {
            let text = format!(r#"{{"sub":"u1","aud":"edge","exp":1,"scope":{scope}}}"#);
            let claims = Claims::parse(text.as_bytes(), "dev", &[]).expect(scope);
            let scopes: Vec<&str> = claims.identity.scopes.iter().map(String::as_str).collect();
            assert_eq!(scopes, expected, "{scope}");
        }
    }

    #[test]
    fn numbers_that_identify() {
        for (number, expected) in
            [("7", "7"), ("0", "0"), ("-7", "-7"), ("\"7\"", "7"), ("18446744073709551616", "18446744073709551616")]
        {
            let text = format!(r#"{{"sub":"u1","aud":"edge","exp":1,"jti":{number},"sid":{number}}}"#);
            let claims = Claims::parse(text.as_bytes(), "dev", &[]).expect(number);
            assert_eq!(claims.token_id.as_deref(), Some(expected));
            assert_eq!(claims.session.as_deref(), Some(expected));
        }
    }

    #[test]
    fn subjects_of_opaque_tokens() {
        for (claims, expected) in [
            (r#""sub":"u1","client_id":"c1""#, Ok("u1")),
            (r#""client_id":"c1""#, Ok("c1")),
            (r#""sub":null,"client_id":"c1""#, Ok("c1")),
            (r#""scope":"pay""#, Err(TokenError::SubjectMissing)),
            (r#""sub":7,"client_id":"c1""#, Err(TokenError::Claim { name: "sub", expected: TEXT })),
            (r#""client_id":"""#, Err(TokenError::Claim { name: "client_id", expected: TEXT })),
        ] {
            let text = format!(r#"{{"aud":"edge","exp":1,{claims}}}"#);
            let read = Claims::introspected(text.as_bytes(), "dev", &[]).map(|claims| claims.identity.subject);
            assert_eq!(read.as_deref(), expected.as_ref().copied(), "{claims}");
        }
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
        let unsupported = Err(TokenError::Claim { name: "cnf", expected: CONFIRMATION });
        for unreadable in ["", "x", "AAAA", "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0="] {
            let bound = binding(&format!(r#","cnf":{{"x5t#S256":"{unreadable}"}}"#));
            assert_eq!(bound, unsupported, "{unreadable}");
        }
        for key in [format!(r#"{{"jwk":{p256}}}"#), format!(r#"{{"kid":"x","jwk":{p256}}}"#)] {
            let bound = binding(&format!(r#","cnf":{key}"#));
            assert!(matches!(bound, Ok(Binding::Key(VerifyingKey::EcdsaP256(_)))), "{key}: {bound:?}");
        }
        assert_eq!(binding(r#","cnf":"x""#), unsupported);
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
