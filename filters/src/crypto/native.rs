//! [`crypto`](super) over ring.

use ring::rand::SystemRandom;
use ring::signature::{self as rs, KeyPair};

use super::{CryptoError, RsaPublicKey};

pub(super) fn sha256(data: &[u8]) -> [u8; 32] {
    fixed(ring::digest::digest(&ring::digest::SHA256, data).as_ref())
}

pub(super) fn sha512(data: &[u8]) -> [u8; 64] {
    fixed(ring::digest::digest(&ring::digest::SHA512, data).as_ref())
}

pub(super) fn hmac_sha256(secret: &[u8], message: &[u8]) -> [u8; 32] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    fixed(ring::hmac::sign(&key, message).as_ref())
}

pub(super) fn verify_p256(point: &[u8; 65], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    rs::UnparsedPublicKey::new(&rs::ECDSA_P256_SHA256_FIXED, point)
        .verify(message, signature)
        .map_err(|_| CryptoError::Invalid)
}

pub(super) fn verify_ed25519(key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    rs::UnparsedPublicKey::new(&rs::ED25519, key).verify(message, signature).map_err(|_| CryptoError::Invalid)
}

pub(super) fn verify_p384(point: &[u8; 97], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    rs::UnparsedPublicKey::new(&rs::ECDSA_P384_SHA384_FIXED, point)
        .verify(message, signature)
        .map_err(|_| CryptoError::Invalid)
}

pub(super) fn verify_rsa_v15_sha256(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    verify_rsa(&rs::RSA_PKCS1_2048_8192_SHA256, key, message, signature)
}

pub(super) fn verify_rsa_pss_sha256(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    verify_rsa(&rs::RSA_PSS_2048_8192_SHA256, key, message, signature)
}

pub(super) fn verify_rsa_pss_sha512(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    verify_rsa(&rs::RSA_PSS_2048_8192_SHA512, key, message, signature)
}

fn verify_rsa(
    algorithm: &'static rs::RsaParameters,
    RsaPublicKey { n, e }: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    rs::RsaPublicKeyComponents { n, e }
        .verify(algorithm, message, signature)
        .map_err(|_| CryptoError::Invalid)
}

pub(super) struct P256Signer(rs::EcdsaKeyPair);

impl P256Signer {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, CryptoError> {
        rs::EcdsaKeyPair::from_pkcs8(&rs::ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
            .map(Self)
            .map_err(|_| CryptoError::Key("not a P-256 key in PKCS#8"))
    }

    pub(super) fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| CryptoError::Signing)
    }
}

pub(super) struct Ed25519Signer(rs::Ed25519KeyPair);

impl Ed25519Signer {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, CryptoError> {
        // "Maybe unchecked": a key without its public half is taken too; a half that is there is checked.
        rs::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(Self)
            .map_err(|_| CryptoError::Key("not an Ed25519 key in PKCS#8"))
    }

    pub(super) fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}
