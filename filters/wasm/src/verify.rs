//! Signatures verified by Envoy's own cryptography, which is native, where it offers that.
//!
//! Envoy's foreign function `verify_signature` (since 1.30) takes the protobuf message
//! `envoy.source.extensions.common.wasm.VerifySignatureArguments` and answers `VerifySignatureResult`: keys are
//! SubjectPublicKeyInfo in DER (RFC 5280 section 4.1), ECDSA signatures DER (RFC 3279 section 2.2.3). What it
//! cannot do, HMAC, Ed25519 and RSASSA-PSS, this module does itself. Where the function is missing it does the rest too,
//! except ES384, which is then not verifiable.

use std::sync::atomic::{AtomicBool, Ordering};

use filters::crypto::{CryptoError, Local, RsaPublicKey, Verify, VerifyingKey};

/// What the data plane says to a call of one of its functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    Answer(Vec<u8>),
    /// It has no such function.
    Missing,
    Failed,
}

/// Calls a function of the data plane by name.
pub type Function = fn(&str, &[u8]) -> Foreign;

/// Verifies with the data plane's function, if it has it.
#[derive(Debug)]
pub struct ByHost {
    call: Function,
    missing: AtomicBool,
}

impl Default for ByHost {
    fn default() -> Self {
        #[cfg(target_family = "wasm")]
        let call = crate::proxy::foreign;
        #[cfg(not(target_family = "wasm"))]
        let call = |_: &str, _: &[u8]| Foreign::Missing;
        Self::calling(call)
    }
}

impl ByHost {
    fn calling(call: Function) -> Self {
        Self { call, missing: AtomicBool::new(false) }
    }
}

const FUNCTION: &str = "verify_signature";
const SHA256: &[u8] = b"sha256";
const SHA384: &[u8] = b"sha384";

impl Verify for ByHost {
    fn verify(&self, key: &VerifyingKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if self.missing.load(Ordering::Relaxed) {
            return Local.verify(key, message, signature);
        }
        let ecdsa = |bytes: usize| ecdsa_der(signature, bytes).ok_or(CryptoError::Invalid);
        let (hash, key_der, signature_der) = match key {
            VerifyingKey::EcdsaP256(point) => {
                (SHA256, spki_ec(&EC_PUBLIC_KEY_P256, point.uncompressed()), ecdsa(32)?)
            }
            VerifyingKey::EcdsaP384(point) => {
                (SHA384, spki_ec(&EC_PUBLIC_KEY_P384, point.uncompressed()), ecdsa(48)?)
            }
            VerifyingKey::RsaV15Sha256(rsa) => (SHA256, spki_rsa(rsa), signature.to_vec()),
            VerifyingKey::Hmac(_)
            | VerifyingKey::Ed25519(_)
            | VerifyingKey::RsaPssSha256(_)
            | VerifyingKey::RsaPssSha512(_) => {
                return Local.verify(key, message, signature);
            }
        };
        let mut arguments = Vec::with_capacity(64 + key_der.len() + signature_der.len() + message.len());
        for (number, bytes) in [(1, hash), (2, key_der.as_slice()), (3, &signature_der), (4, message)] {
            bytes_field(&mut arguments, number, bytes);
        }
        match (self.call)(FUNCTION, &arguments) {
            Foreign::Answer(answer) if holds(&answer) => Ok(()),
            Foreign::Answer(_) => Err(CryptoError::Invalid),
            Foreign::Missing => {
                self.missing.store(true, Ordering::Relaxed);
                Local.verify(key, message, signature)
            }
            Foreign::Failed => Local.verify(key, message, signature),
        }
    }
}

/// A length-delimited field of a protobuf message.
fn bytes_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length > 0x7f {
        message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).unwrap_or_default());
    message.extend_from_slice(bytes);
}

/// Whether the field 1, `result`, is true. Anything that is not understood is a no.
fn holds(answer: &[u8]) -> bool {
    // Field 1, a varint; its value is 1. Of a result that is true nothing else is set.
    answer == [0x08, 0x01]
}

/// An AlgorithmIdentifier (RFC 5480 section 2.1.1): `id-ecPublicKey` with `secp256r1`.
const EC_PUBLIC_KEY_P256: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];

/// The same with `secp384r1`.
const EC_PUBLIC_KEY_P384: [u8; 18] = [
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// The SubjectPublicKeyInfo of a point on a curve (RFC 5480 section 2).
fn spki_ec(algorithm: &[u8], point: &[u8]) -> Vec<u8> {
    let bits = [&[0], point].concat();
    tlv(SEQUENCE, &[algorithm, &tlv(BIT_STRING, &bits)].concat())
}

/// The SubjectPublicKeyInfo of an RSA key (RFC 3279 section 2.3.1).
fn spki_rsa(key: &RsaPublicKey) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let numbers = [integer(key.n()), integer(key.e())].concat();
    let mut bits = vec![0];
    bits.extend(tlv(SEQUENCE, &numbers));
    tlv(SEQUENCE, &[RSA_ENCRYPTION.as_slice(), &tlv(BIT_STRING, &bits)].concat())
}

/// The DER form of `r || s`; `None` when they are not of that many bytes each.
fn ecdsa_der(signature: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(bytes)?;
    (s.len() == bytes).then(|| tlv(SEQUENCE, &[integer(r), integer(s)].concat()))
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// A number that is not negative, big-endian.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    let digits = bytes.get(start..).unwrap_or_default();
    let positive = if digits.first().is_some_and(|byte| *byte >= 0x80) { vec![0] } else { Vec::new() };
    tlv(INTEGER, &[positive.as_slice(), digits].concat())
}

/// DER with a definite length; contents have at most 65535 bytes here.
fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(contents.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut der = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    der.extend_from_slice(contents);
    der
}

#[cfg(test)]
mod tests {
    use filters::crypto::SigningKey;
    use ring::signature as native;

    use super::*;

    /// Envoy's function, as its source has it, over ring.
    fn envoy(function: &str, arguments: &[u8]) -> Foreign {
        assert_eq!(function, "verify_signature");
        let fields = fields(arguments);
        assert_eq!(fields[0], b"sha256");
        let algorithm: &dyn native::VerificationAlgorithm = match fields[1].len() {
            91 => &native::ECDSA_P256_SHA256_ASN1,
            _ => &native::RSA_PKCS1_2048_8192_SHA256,
        };
        // ring takes the key without its SubjectPublicKeyInfo.
        let key = if fields[1].len() == 91 { &fields[1][26..] } else { &fields[1][24..] };
        match native::UnparsedPublicKey::new(algorithm, key).verify(&fields[3], &fields[2]) {
            Ok(()) => Foreign::Answer(vec![8, 1]),
            Err(_) => Foreign::Answer(b"\x12\x16Failed to verify digest.".to_vec()),
        }
    }

    fn fields(mut message: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let [tag, rest @ ..] = message {
            assert_eq!(usize::from(*tag), (all.len() + 1) << 3 | 2);
            let (mut length, mut at) = (0usize, 0);
            loop {
                length |= usize::from(rest[at] & 0x7f) << (7 * at);
                at += 1;
                if rest[at - 1] < 0x80 {
                    break;
                }
            }
            all.push(rest[at..at + length].to_vec());
            message = &rest[at + length..];
        }
        all
    }

    fn key() -> SigningKey {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 =
            native::EcdsaKeyPair::generate_pkcs8(&native::ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        SigningKey::ecdsa_p256_pkcs8(pkcs8.as_ref()).unwrap()
    }

    #[test]
    fn signatures_hold_and_others_do_not() {
        // Many keys and signatures: numbers with leading zeros and high bits come among them.
        for length in (0..300).chain([5_000, 70_000]) {
            let (key, message) = (key(), vec![b'x'; length]);
            let (public, mut signature) = (key.verifying_key().unwrap(), key.sign(&message).unwrap());
            assert_eq!(ByHost::calling(envoy).verify(&public, &message, &signature), Ok(()));
            signature[40] ^= 1;
            assert_eq!(
                ByHost::calling(envoy).verify(&public, &message, &signature),
                Err(CryptoError::Invalid)
            );
            let short = &signature[..63];
            assert_eq!(ByHost::calling(envoy).verify(&public, &message, short), Err(CryptoError::Invalid));
        }
    }

    #[test]
    fn without_the_function_the_module_verifies_itself() {
        let (key, message) = (key(), b"message");
        let (public, signature) = (key.verifying_key().unwrap(), key.sign(message).unwrap());
        for answer in [|_: &str, _: &[u8]| Foreign::Missing, |_: &str, _: &[u8]| Foreign::Failed] {
            let verifier = ByHost::calling(answer);
            assert_eq!(verifier.verify(&public, message, &signature), Ok(()));
            assert_eq!(verifier.verify(&public, b"other", &signature), Err(CryptoError::Invalid));
        }
        let missing = ByHost::calling(|_, _| Foreign::Missing);
        let _ = missing.verify(&public, message, &signature);
        assert!(missing.missing.load(Ordering::Relaxed), "it is asked once");
    }

    #[test]
    fn what_is_not_plainly_a_yes_is_a_no() {
        for answer in [&[][..], &[8, 0], &[8], &[8, 2], &[8, 1, 0x12, 0], b"\x12\x01e", &[0xff; 9]] {
            assert!(!holds(answer), "{answer:?}");
        }
        assert!(holds(&[8, 1]));
    }

    #[test]
    fn der_numbers() {
        for (number, expected) in [
            (&[0u8, 0, 0][..], &[2u8, 1, 0][..]),
            (&[0, 1], &[2, 1, 1]),
            (&[0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0, 0x80, 1], &[2, 3, 0, 0x80, 1]),
        ] {
            assert_eq!(integer(number), expected);
        }
        assert_eq!(tlv(4, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(4, &[0; 300])[..4], [4, 0x82, 1, 44]);
    }
}
