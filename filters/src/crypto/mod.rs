//! The few cryptographic operations of the edge, the same on every target.
//!
//! Natively they are ring's; in a WASM module, where there is no C compiler, pure Rust serves. A module whose
//! host verifies faster than its own code can (Envoy's `verify_signature`) passes a [`Verify`] of its own.
//! A key is for one algorithm only: nothing a sender writes can make a key do another algorithm's work
//! (RFC 8725 section 3.1).

#[cfg(not(target_family = "wasm"))]
mod native;
#[cfg(any(target_family = "wasm", test))]
mod portable;
#[cfg(any(target_family = "wasm", test))]
mod rsa;

#[cfg(not(target_family = "wasm"))]
use native as backend;
#[cfg(target_family = "wasm")]
use portable as backend;

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The shortest HMAC secret that is accepted, in bytes: the size of the hash (RFC 7518 section 3.2).
pub const HMAC_SECRET_MIN: usize = 32;

/// Verifies signatures. The data plane chooses who does it.
pub trait Verify: Send + Sync {
    fn verify(&self, key: &VerifyingKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError>;
}

/// The built-in [`Verify`]: ring natively, pure Rust in a WASM module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Verify for Local {
    fn verify(&self, key: &VerifyingKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        match key {
            VerifyingKey::Hmac(key) => match equal(&backend::hmac_sha256(&key.0, message), signature) {
                true => Ok(()),
                false => Err(CryptoError::Invalid),
            },
            VerifyingKey::EcdsaP256(key) => backend::verify_p256(&key.0, message, signature),
            VerifyingKey::EcdsaP384(key) => backend::verify_p384(&key.0, message, signature),
            VerifyingKey::Ed25519(key) => backend::verify_ed25519(&key.0, message, signature),
            VerifyingKey::RsaV15Sha256(key) => backend::verify_rsa_v15_sha256(key, message, signature),
            VerifyingKey::RsaPssSha256(key) => backend::verify_rsa_pss_sha256(key, message, signature),
            VerifyingKey::RsaPssSha512(key) => backend::verify_rsa_pss_sha512(key, message, signature),
        }
    }
}

/// Why a cryptographic operation gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The sender's fault.
    #[error("the signature does not hold")]
    Invalid,
    /// The configuration's fault.
    #[error("unusable key: {0}")]
    Key(&'static str),
    #[error("{0} is not available on this target")]
    Unsupported(Algorithm),
    #[error("signing failed")]
    Signing,
}

/// Signature algorithms by their names in the HTTP Signature Algorithms registry (RFC 9421 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    HmacSha256,
    /// Signatures are `r || s`, 64 bytes.
    EcdsaP256Sha256,
    /// Signatures are `r || s`, 96 bytes. For tokens only.
    EcdsaP384Sha384,
    Ed25519,
    /// For tokens only. It is not in the registry.
    RsaPssSha256,
    RsaPssSha512,
    RsaV15Sha256,
}

impl Algorithm {
    /// The registered name, or one in its style.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::Ed25519 => "ed25519",
            Self::RsaPssSha256 => "rsa-pss-sha256",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }

    /// The algorithm of message signatures with that registered name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::HmacSha256, Self::EcdsaP256Sha256, Self::Ed25519, Self::RsaPssSha512, Self::RsaV15Sha256]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key that can verify, of exactly one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyingKey {
    Hmac(HmacKey),
    EcdsaP256(P256PublicKey),
    EcdsaP384(P384PublicKey),
    Ed25519(Ed25519PublicKey),
    RsaPssSha256(RsaPublicKey),
    RsaPssSha512(RsaPublicKey),
    RsaV15Sha256(RsaPublicKey),
}

impl VerifyingKey {
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::HmacSha256,
            Self::EcdsaP256(_) => Algorithm::EcdsaP256Sha256,
            Self::EcdsaP384(_) => Algorithm::EcdsaP384Sha384,
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::RsaPssSha256(_) => Algorithm::RsaPssSha256,
            Self::RsaPssSha512(_) => Algorithm::RsaPssSha512,
            Self::RsaV15Sha256(_) => Algorithm::RsaV15Sha256,
        }
    }

    /// An HMAC-SHA256 key. Fails when the secret is shorter than [`HMAC_SECRET_MIN`].
    pub fn hmac(secret: &[u8]) -> Result<Self, CryptoError> {
        HmacKey::new(secret).map(Self::Hmac)
    }

    /// A P-256 public key: `0x04 || x || y`, or `x || y`.
    pub fn ecdsa_p256(point: &[u8]) -> Result<Self, CryptoError> {
        P256PublicKey::new(point).map(Self::EcdsaP256)
    }

    /// A P-384 public key: its coordinates, 48 bytes each.
    pub fn ecdsa_p384(x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        P384PublicKey::new(x, y).map(Self::EcdsaP384)
    }

    /// An Ed25519 public key of 32 bytes.
    pub fn ed25519(key: &[u8]) -> Result<Self, CryptoError> {
        Ed25519PublicKey::new(key).map(Self::Ed25519)
    }
}

/// A key that can sign, of exactly one algorithm. Natively only, but for HMAC.
#[derive(Debug)]
pub enum SigningKey {
    Hmac(HmacKey),
    EcdsaP256(P256SigningKey),
    Ed25519(Ed25519SigningKey),
}

impl SigningKey {
    /// An HMAC-SHA256 key. Fails when the secret is shorter than [`HMAC_SECRET_MIN`].
    pub fn hmac(secret: &[u8]) -> Result<Self, CryptoError> {
        HmacKey::new(secret).map(Self::Hmac)
    }

    /// An ECDSA P-256 key, PKCS#8 in DER.
    pub fn ecdsa_p256_pkcs8(der: &[u8]) -> Result<Self, CryptoError> {
        backend::P256Signer::from_pkcs8(der).map(|signer| Self::EcdsaP256(P256SigningKey(signer)))
    }

    /// An Ed25519 key, PKCS#8 in DER, with or without its public half.
    pub fn ed25519_pkcs8(der: &[u8]) -> Result<Self, CryptoError> {
        backend::Ed25519Signer::from_pkcs8(der).map(|signer| Self::Ed25519(Ed25519SigningKey(signer)))
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::HmacSha256,
            Self::EcdsaP256(_) => Algorithm::EcdsaP256Sha256,
            Self::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// The key that verifies what this one signs.
    pub fn verifying_key(&self) -> Result<VerifyingKey, CryptoError> {
        match self {
            Self::Hmac(key) => Ok(VerifyingKey::Hmac(key.clone())),
            Self::EcdsaP256(key) => VerifyingKey::ecdsa_p256(key.0.public()),
            Self::Ed25519(key) => VerifyingKey::ed25519(key.0.public()),
        }
    }

    /// ECDSA signatures are `r || s` and differ from call to call: the backend draws their nonce itself.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Hmac(key) => Ok(backend::hmac_sha256(&key.0, message).to_vec()),
            Self::EcdsaP256(key) => key.0.sign(message),
            Self::Ed25519(key) => key.0.sign(message),
        }
    }
}

/// A shared secret for HMAC-SHA256. Copies share it, and the last one that is dropped wipes it.
#[derive(Clone)]
pub struct HmacKey(Arc<Zeroizing<Vec<u8>>>);

impl HmacKey {
    pub fn new(secret: &[u8]) -> Result<Self, CryptoError> {
        if secret.len() < HMAC_SECRET_MIN {
            return Err(CryptoError::Key("an HMAC secret needs at least 32 bytes"));
        }
        Ok(Self(Arc::new(Zeroizing::new(secret.to_vec()))))
    }
}

impl PartialEq for HmacKey {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for HmacKey {}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(..)")
    }
}

/// A point on P-256, uncompressed: `0x04 || x || y`. Whether it is on the curve shows when it verifies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct P256PublicKey([u8; 65]);

impl P256PublicKey {
    /// From `0x04 || x || y` or `x || y`.
    pub fn new(point: &[u8]) -> Result<Self, CryptoError> {
        let coordinates = match (point.len(), point.split_first()) {
            (65, Some((4, coordinates))) => coordinates,
            (64, _) => point,
            _ => return Err(CryptoError::Key("a P-256 point is 65 bytes, 0x04 || x || y")),
        };
        let mut uncompressed = [4; 65];
        uncompressed.iter_mut().skip(1).zip(coordinates).for_each(|(to, from)| *to = *from);
        Ok(Self(uncompressed))
    }

    /// `0x04 || x || y`.
    pub fn uncompressed(&self) -> &[u8; 65] {
        &self.0
    }
}

impl fmt::Debug for P256PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P256PublicKey(..)")
    }
}

/// A point on P-384, uncompressed: `0x04 || x || y`. Whether it is on the curve shows when it verifies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct P384PublicKey([u8; 97]);

impl P384PublicKey {
    /// From its coordinates, 48 bytes each.
    pub fn new(x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        if (x.len(), y.len()) != (48, 48) {
            return Err(CryptoError::Key("a P-384 coordinate is 48 bytes"));
        }
        let mut uncompressed = [4; 97];
        uncompressed.iter_mut().skip(1).zip(x.iter().chain(y)).for_each(|(to, from)| *to = *from);
        Ok(Self(uncompressed))
    }

    /// `0x04 || x || y`.
    pub fn uncompressed(&self) -> &[u8; 97] {
        &self.0
    }
}

impl fmt::Debug for P384PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P384PublicKey(..)")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ed25519PublicKey([u8; 32]);

impl Ed25519PublicKey {
    pub fn new(key: &[u8]) -> Result<Self, CryptoError> {
        key.try_into().map(Self).map_err(|_| CryptoError::Key("an Ed25519 public key is 32 bytes"))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Ed25519PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519PublicKey(..)")
    }
}

/// An RSA public key of 2048 to 8192 bits, big-endian numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct RsaPublicKey {
    n: Vec<u8>,
    e: Vec<u8>,
}

impl RsaPublicKey {
    /// From modulus and exponent, big-endian without leading zeros.
    pub fn new(n: &[u8], e: &[u8]) -> Result<Self, CryptoError> {
        if n.first().is_none_or(|b| *b == 0) || e.first().is_none_or(|b| *b == 0) {
            return Err(CryptoError::Key("RSA numbers are not empty and have no leading zero"));
        }
        if !(256..=1024).contains(&n.len()) || (n.len() == 256 && n.first().is_some_and(|b| *b < 0x80)) {
            return Err(CryptoError::Key("an RSA modulus has 2048 to 8192 bits"));
        }
        if e.len() > 4 || e == [1] {
            return Err(CryptoError::Key("an RSA exponent is greater than 1 and has at most 32 bits"));
        }
        Ok(Self { n: n.to_vec(), e: e.to_vec() })
    }

    /// The modulus.
    pub fn n(&self) -> &[u8] {
        &self.n
    }

    /// The exponent.
    pub fn e(&self) -> &[u8] {
        &self.e
    }
}

impl fmt::Debug for RsaPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RsaPublicKey(..)")
    }
}

pub struct P256SigningKey(backend::P256Signer);

impl fmt::Debug for P256SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P256SigningKey(..)")
    }
}

pub struct Ed25519SigningKey(backend::Ed25519Signer);

impl fmt::Debug for Ed25519SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519SigningKey(..)")
    }
}

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    backend::sha256(data)
}

/// SHA-512.
pub fn sha512(data: &[u8]) -> [u8; 64] {
    backend::sha512(data)
}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::portable_verify;
