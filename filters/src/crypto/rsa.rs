//! RSA signature verification in pure Rust (RFC 8017), for targets without a C compiler.
//!
//! Verification handles public values only, so its timing reveals nothing. The crate `rsa` is not used: its private-key
//! operations leak timing (RUSTSEC-2023-0071). `crypto-bigint` is not used for its size: most of it is fast multiplication
//! of long numbers, and one Montgomery multiplication is enough to verify.

use std::cmp::Ordering;

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
    if signature.len() != key.n.len() || signature >= key.n.as_slice() {
        return None;
    }
    let field = Montgomery::new(&key.n)?;
    let base = field.enter(limbs(signature));
    let mut power = base.clone();
    let bits = key.e.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1 == 1));
    for bit in bits.skip_while(|bit| !bit).skip(1) {
        power = field.multiply(&power, &power);
        if bit {
            power = field.multiply(&power, &base);
        }
    }
    let bytes: Vec<u8> = field.leave(&power).iter().rev().flat_map(|limb| limb.to_be_bytes()).collect();
    // Whole limbs: what is beyond the modulus is zero.
    bytes.get(bytes.len().checked_sub(key.n.len())?..).map(<[u8]>::to_vec)
}

/// Limbs of a big-endian number, the lowest first.
fn limbs(bytes: &[u8]) -> Vec<u32> {
    bytes.rchunks(4).map(|chunk| chunk.iter().fold(0, |limb, byte| limb << 8 | u32::from(*byte))).collect()
}

/// Arithmetic modulo an odd number. Numbers are as many limbs as the modulus has, the lowest first, and are multiplied in
/// Montgomery form: `a` stands for `a * R`, where `R` is `2 ^ 32` to the number of limbs.
struct Montgomery {
    modulus: Vec<u32>,
    /// `-1 / modulus`, modulo `2 ^ 32`.
    inverse: u32,
}

impl Montgomery {
    /// Of a big-endian modulus; `None` when it is even.
    fn new(modulus: &[u8]) -> Option<Self> {
        let modulus = limbs(modulus);
        let lowest = *modulus.first().filter(|limb| *limb & 1 == 1)?;
        // Newton: an odd number is its own inverse modulo 8, and each step doubles the bits that are right.
        let inverse = (0..4)
            .fold(lowest, |inverse, _| inverse.wrapping_mul(2u32.wrapping_sub(lowest.wrapping_mul(inverse))));
        Some(Self { modulus, inverse: inverse.wrapping_neg() })
    }

    /// The Montgomery form of a number below the modulus.
    fn enter(&self, mut number: Vec<u32>) -> Vec<u32> {
        for _ in 0..self.modulus.len() * 32 {
            let mut carry = 0;
            for limb in &mut number {
                let next = *limb >> 31;
                *limb = *limb << 1 | carry;
                carry = next;
            }
            self.reduce(&mut number, carry);
        }
        number
    }

    /// The number of a Montgomery form.
    fn leave(&self, form: &[u32]) -> Vec<u32> {
        let mut one = vec![0; self.modulus.len()];
        one.iter_mut().take(1).for_each(|limb| *limb = 1);
        self.multiply(form, &one)
    }

    /// The product of two forms.
    fn multiply(&self, a: &[u32], b: &[u32]) -> Vec<u32> {
        let mut sum = vec![0; self.modulus.len()];
        let mut above = 0;
        for limb in a {
            let carry = add_product(&mut sum, *limb, b);
            let (top, overflow) = carry.overflowing_add(above);
            let lowest = sum.first().copied().unwrap_or_default();
            // Makes the lowest limb zero, which is then shifted out.
            let carry = add_product(&mut sum, lowest.wrapping_mul(self.inverse), &self.modulus);
            let (top, again) = top.overflowing_add(carry);
            above = u32::from(overflow) + u32::from(again);
            sum.rotate_left(1);
            sum.iter_mut().next_back().into_iter().for_each(|limb| *limb = top);
        }
        self.reduce(&mut sum, above);
        sum
    }

    /// Brings a number below twice the modulus below it; `above` is the limb above its highest.
    fn reduce(&self, number: &mut [u32], above: u32) {
        if above == 0 && number.iter().rev().cmp(self.modulus.iter().rev()) == Ordering::Less {
            return;
        }
        let mut borrows = false;
        for (limb, modulus) in number.iter_mut().zip(&self.modulus) {
            let (less, first) = limb.overflowing_sub(*modulus);
            let (less, second) = less.overflowing_sub(u32::from(borrows));
            *limb = less;
            borrows = first | second;
        }
    }
}

/// Adds `factor * number` to `sum`, and returns what is carried out of it.
fn add_product(sum: &mut [u32], factor: u32, number: &[u32]) -> u32 {
    let mut carry = 0;
    for (limb, other) in sum.iter_mut().zip(number) {
        let next = u64::from(*limb) + u64::from(factor) * u64::from(*other) + u64::from(carry);
        *limb = next as u32;
        carry = (next >> 32) as u32;
    }
    carry
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
