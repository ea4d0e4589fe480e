use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value};

/// What a token says (RFC 7519), with what Torana adds to it. Every member may be changed before it is minted,
/// so that tests can make tokens that must be refused.
#[derive(Debug, Clone, Serialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    /// Seconds since the epoch.
    pub iat: i64,
    pub exp: i64,
    pub jti: String,
    pub tenant: String,
    /// Device id; a partner has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Addresses that the user may pay from.
    pub vpas: Vec<String>,
    /// Space separated (RFC 8693 section 4.2).
    pub scope: String,
    /// The device's public key (RFC 7800): `{"jwk": …}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Value>,
    /// Members beyond these, such as `nbf`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A token whose signature must not be believed, whatever its claims say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// `alg: none` and no signature.
    AlgNone,
    /// HS256 with the issuer's public key (PEM, as its owner would publish it) as the secret.
    Hs256WithPublicKey,
    /// Signed by the issuer, under a key id that it does not publish.
    UnknownKid,
    /// Signed by somebody else under the issuer's key id.
    OtherKey,
}

/// The device that a token was made for, as the app on that device knows it. Verifies nothing.
pub fn device_of(token: &str) -> anyhow::Result<String> {
    let payload = token.split('.').nth(1).context("the token is not a JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let device = claims.get("device").and_then(Value::as_str).context("the token names no device")?;
    Ok(device.to_owned())
}
