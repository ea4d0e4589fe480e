//! Both backends are held to the same answers, and every key to its own algorithm.

use proptest::prelude::*;

use super::*;

fn p256() -> SigningKey {
    let rng = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let der = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &rng).expect("a key");
    SigningKey::ecdsa_p256_pkcs8(der.as_ref()).expect("a fresh key")
}

fn ed25519() -> SigningKey {
    let der =
        ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).expect("a key");
    SigningKey::ed25519_pkcs8(der.as_ref()).expect("a fresh key")
}

pub(crate) fn portable_verify(
    key: &VerifyingKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    match key {
        VerifyingKey::Hmac(key) => match equal(&portable::hmac_sha256(&key.0, message), signature) {
            true => Ok(()),
            false => Err(CryptoError::Invalid),
        },
        VerifyingKey::EcdsaP256(key) => portable::verify_p256(&key.0, message, signature),
        VerifyingKey::Ed25519(key) => portable::verify_ed25519(&key.0, message, signature),
        VerifyingKey::EcdsaP384(key) => portable::verify_p384(&key.0, message, signature),
        VerifyingKey::RsaPssSha256(key) => portable::verify_rsa_pss_sha256(key, message, signature),
        VerifyingKey::RsaPssSha512(key) => portable::verify_rsa_pss_sha512(key, message, signature),
        VerifyingKey::RsaV15Sha256(key) => portable::verify_rsa_v15_sha256(key, message, signature),
    }
}

/// Both backends agree on the signature, and on its refusal once any one bit of it is another.
fn check(key: &SigningKey, message: &[u8], bit: usize) {
    let verifying = key.verifying_key().expect("a verifying key");
    let mut signature = key.sign(message).expect("a signature");
    assert_eq!(Local.verify(&verifying, message, &signature), Ok(()));
    assert_eq!(portable_verify(&verifying, message, &signature), Ok(()));
    let at = bit % (signature.len() * 8);
    signature[at / 8] ^= 1 << (at % 8);
    assert_eq!(Local.verify(&verifying, message, &signature), Err(CryptoError::Invalid), "bit {at}");
    assert_eq!(portable_verify(&verifying, message, &signature), Err(CryptoError::Invalid), "bit {at}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_signed_verifies_and_a_flipped_bit_does_not(
        message in proptest::collection::vec(any::<u8>(), 0..300),
        secret in proptest::collection::vec(any::<u8>(), 32..200),
        bit in any::<usize>(),
    ) {
        check(&SigningKey::hmac(&secret).expect("long enough"), &message, bit);
        check(&p256(), &message, bit);
        check(&ed25519(), &message, bit);
        prop_assert_eq!(native::sha256(&message), portable::sha256(&message));
        prop_assert_eq!(native::sha512(&message), portable::sha512(&message));
    }

    #[test]
    fn no_bytes_make_a_key_or_a_verification_panic(
        key in proptest::collection::vec(any::<u8>(), 0..70),
        message in proptest::collection::vec(any::<u8>(), 0..70),
        signature in proptest::collection::vec(any::<u8>(), 0..70),
    ) {
        let keys = [VerifyingKey::hmac(&key), VerifyingKey::ecdsa_p256(&key), VerifyingKey::ed25519(&key)];
        for key in keys.iter().flatten() {
            prop_assert!(Local.verify(key, &message, &signature).is_err());
            prop_assert!(portable_verify(key, &message, &signature).is_err());
        }
        prop_assert!(SigningKey::ecdsa_p256_pkcs8(&key).is_err());
        prop_assert!(SigningKey::ed25519_pkcs8(&key).is_err());
    }
}

#[test]
fn weak_or_malformed_keys_are_refused() {
    assert!(HmacKey::new(&[7; 31]).is_err());
    assert!(HmacKey::new(&[7; 32]).is_ok());
    assert!(P256PublicKey::new(&[4; 33]).is_err());
    assert!(P256PublicKey::new(&[2; 65]).is_err());
    assert!(Ed25519PublicKey::new(&[0; 31]).is_err());
    assert!(RsaPublicKey::new(&[0xff; 128], &[1, 0, 1]).is_err(), "1024 bits");
    assert!(RsaPublicKey::new(&[0xff; 256], &[1]).is_err(), "exponent 1 accepts anything");
    assert!(RsaPublicKey::new(&[0xff; 256], &[1, 0, 1]).is_ok());
}

#[test]
fn secrets_are_not_printed() {
    let key = SigningKey::hmac(b"0123456789abcdef0123456789abcdef").expect("long enough");
    assert_eq!(format!("{key:?}"), "Hmac(HmacKey(..))");
}
