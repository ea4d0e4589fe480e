//! [`crypto`](super) in pure Rust, for targets without a C compiler. RSA is in [`rsa`](super::rsa). Only HMAC can sign
//! here: a module verifies.

use ed25519_dalek::Signature as Ed25519Signature;
use hmac::{Hmac, KeyInit, Mac};
use p256::ecdsa::signature::Verifier;
use sha2::{Digest, Sha256, Sha512};

use super::{Algorithm, CryptoError};

pub(super) fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

pub(super) fn sha512(data: &[u8]) -> [u8; 64] {
    Sha512::digest(data).into()
}

pub(super) fn hmac_sha256(secret: &[u8], message: &[u8]) -> [u8; 32] {
    // RFC 2104: a key longer than the block is hashed, a shorter one padded; done here so that nothing is
    // left that could fail.
    let mut block = [0; 64];
    let hashed;
    let key = match secret.len() > block.len() {
        true => {
            hashed = sha256(secret);
            hashed.as_slice()
        }
        false => secret,
    };
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

pub(super) fn verify_p256(point: &[u8; 65], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(|_| CryptoError::Invalid)?;
    let signature = p256::ecdsa::Signature::from_slice(signature).map_err(|_| CryptoError::Invalid)?;
    key.verify(message, &signature).map_err(|_| CryptoError::Invalid)
}

/// Envoy verifies ES384 itself, so the module does without the code.
#[cfg(target_family = "wasm")]
pub(super) fn verify_p384(_point: &[u8; 97], _message: &[u8], _signature: &[u8]) -> Result<(), CryptoError> {
    Err(CryptoError::Unsupported(Algorithm::EcdsaP384Sha384))
}

#[cfg(not(target_family = "wasm"))]
pub(super) fn verify_p384(point: &[u8; 97], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(|_| CryptoError::Invalid)?;
    let signature = p384::ecdsa::Signature::from_slice(signature).map_err(|_| CryptoError::Invalid)?;
    key.verify(message, &signature).map_err(|_| CryptoError::Invalid)
}

pub(super) fn verify_ed25519(key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| CryptoError::Invalid)?;
    let signature = Ed25519Signature::from_slice(signature).map_err(|_| CryptoError::Invalid)?;
    key.verify_strict(message, &signature).map_err(|_| CryptoError::Invalid)
}

#[cfg_attr(
    not(target_family = "wasm"),
    allow(dead_code, reason = "compared with ring where both can verify")
)]
mod absent {
    use super::{Algorithm, CryptoError};

    /// Never made: a module does not sign with a private key.
    pub(in super::super) enum P256Signer {}

    impl P256Signer {
        pub(in super::super) fn from_pkcs8(_der: &[u8]) -> Result<Self, CryptoError> {
            Err(CryptoError::Unsupported(Algorithm::EcdsaP256Sha256))
        }

        pub(in super::super) fn public(&self) -> &[u8] {
            match *self {}
        }

        pub(in super::super) fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, CryptoError> {
            match *self {}
        }
    }

    /// Never made: a module does not sign with a private key.
    pub(in super::super) enum Ed25519Signer {}

    impl Ed25519Signer {
        pub(in super::super) fn from_pkcs8(_der: &[u8]) -> Result<Self, CryptoError> {
            Err(CryptoError::Unsupported(Algorithm::Ed25519))
        }

        pub(in super::super) fn public(&self) -> &[u8] {
            match *self {}
        }

        pub(in super::super) fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, CryptoError> {
            match *self {}
        }
    }
}

#[cfg_attr(
    not(target_family = "wasm"),
    allow(unused_imports, reason = "compared with ring where both can verify")
)]
pub(super) use absent::{Ed25519Signer, P256Signer};

pub(super) use super::rsa::{
    verify_pss_sha256 as verify_rsa_pss_sha256, verify_pss_sha512 as verify_rsa_pss_sha512,
    verify_v15_sha256 as verify_rsa_v15_sha256,
};
