//! RSA signature verification in pure Rust (RFC 8017), for targets without a C compiler.
//!
//! Verification handles public values only, so its timing reveals nothing. The crate `rsa` is not used: its private-key
//! operations leak timing (RUSTSEC-2023-0071), and it is several times larger than what is needed here.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};

use super::portable::{sha256, sha512};
use super::{CryptoError, RsaPublicKey};

/// A hash function. The length of its result is fixed.
type Hash = fn(&[u8]) -> Vec<u8>;

/// The DER of a DigestInfo for SHA-256, up to the digest (RFC 8017 section 9.2, note 1).
const DIGEST_INFO_SHA256: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2.2). Compares the whole encoded message, padding included.
pub(super) fn verify_v15_sha256(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    let encoded = open(key, signature)?;
    let digest = [DIGEST_INFO_SHA256.as_slice(), &sha256(message)].concat();
    let padding = encoded.len().checked_sub(digest.len() + 3).ok_or(CryptoError::Invalid)?;
    let expected = [&[0, 1], vec![0xff; padding].as_slice(), &[0], &digest].concat();
    if encoded == expected { Ok(()) } else { Err(CryptoError::Invalid) }
}

/// RSASSA-PSS with SHA-256, and a salt as long as the hash (RFC 7518 section 3.5).
pub(super) fn verify_pss_sha256(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    verify_pss(key, message, signature, |data| sha256(data).to_vec())
}

/// RSASSA-PSS with SHA-512, and a salt as long as the hash (RFC 9421 section 3.3.1).
pub(super) fn verify_pss_sha512(
    key: &RsaPublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    verify_pss(key, message, signature, |data| sha512(data).to_vec())
}

fn verify_pss(key: &RsaPublicKey, message: &[u8], signature: &[u8], hash: Hash) -> Result<(), CryptoError> {
    let encoded = open(key, signature)?;
    match pss_holds(&encoded, modulus_bits(key), &hash(message), hash) {
        Some(true) => Ok(()),
        Some(false) | None => Err(CryptoError::Invalid),
    }
}

/// RSAVP1: `signature ^ e mod n`, as many bytes as the modulus has (RFC 8017 section 5.2.2).
fn open(key: &RsaPublicKey, signature: &[u8]) -> Result<Vec<u8>, CryptoError> {
    power(key, signature).ok_or(CryptoError::Invalid)
}

fn power(key: &RsaPublicKey, signature: &[u8]) -> Option<Vec<u8>> {
    let length = key.n.len();
    if signature.len() != length {
        return None;
    }
    let bits = u32::try_from(length.checked_mul(8)?).ok()?;
    let modulus = BoxedUint::from_be_slice(&key.n, bits).ok()?;
    let base = BoxedUint::from_be_slice(signature, bits).ok()?;
    if base >= modulus {
        return None;
    }
    let params = BoxedMontyParams::new_vartime(Odd::new(modulus).into_option()?);
    let base = BoxedMontyForm::new(base, &params);
    let mut power = BoxedMontyForm::one(&params);
    for bit in key.e.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1 == 1)) {
        power = power.square();
        if bit {
            power = power.mul(&base);
        }
    }
    // Whole limbs: what is beyond the modulus is zero.
    let bytes = power.retrieve().to_be_bytes();
    bytes.get(bytes.len().checked_sub(length)?..).map(<[u8]>::to_vec)
}

fn modulus_bits(key: &RsaPublicKey) -> usize {
    let unused = key.n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (key.n.len() * 8).saturating_sub(unused)
}

/// EMSA-PSS-VERIFY (RFC 8017 section 9.1.2). `None` when the lengths do not fit.
fn pss_holds(encoded: &[u8], modulus_bits: usize, digest: &[u8], hash: Hash) -> Option<bool> {
    let encoded_bits = modulus_bits.checked_sub(1)?;
    let length = encoded_bits.div_ceil(8);
    // The encoded message is one byte shorter than a modulus whose top byte is 1.
    let (above, encoded) = encoded.split_at_checked(encoded.len().checked_sub(length)?)?;
    let hash_length = digest.len();
    let (masked, rest) = encoded.split_at_checked(length.checked_sub(hash_length + 1)?)?;
    let (hashed, trailer) = rest.split_at_checked(hash_length)?;
    let unused_bits = u32::try_from(length * 8 - encoded_bits).ok()?;
    let kept = 0xff_u8.checked_shr(unused_bits)?;
    if above.iter().any(|byte| *byte != 0) || trailer != [0xbc] || masked.first()? & !kept != 0 {
        return Some(false);
    }
    let mut block: Vec<u8> =
        masked.iter().zip(mask(hashed, masked.len(), hash)).map(|(byte, mask)| byte ^ mask).collect();
    *block.first_mut()? &= kept;
    let (padding, salt) = block.split_at_checked(block.len().checked_sub(hash_length)?)?;
    let (one, zeros) = padding.split_last()?;
    if *one != 1 || zeros.iter().any(|byte| *byte != 0) {
        return Some(false);
    }
    Some(hash(&[&[0; 8], digest, salt].concat()) == hashed)
}

/// MGF1 (RFC 8017 appendix B.2.1), at least `length` bytes.
fn mask(seed: &[u8], length: usize, hash: Hash) -> Vec<u8> {
    let mut mask = Vec::new();
    for counter in 0u32.. {
        if mask.len() >= length {
            break;
        }
        mask.extend(hash(&[seed, &counter.to_be_bytes()].concat()));
    }
    mask
}
