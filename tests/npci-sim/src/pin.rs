//! The credential block: a PIN encrypted on the payer's device for the payer's bank.
//!
//! `credBlock = base64(version 1 ‖ ephemeral P-256 point, uncompressed ‖ nonce ‖ AES-256-GCM box)`, the key
//! by HKDF-SHA256 from the ECDH secret, with both public points as info. Inside the box: the PIN and what it
//! was given for, so that a block cannot authorise another payment. It is the shape of the real thing
//! (encrypted on the device for the bank, opaque to everybody between), not its format, which is not public.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use p256::{PublicKey, SecretKey, elliptic_curve::sec1::ToSec1Point};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};

const VERSION: u8 = 1;
const POINT: usize = 65;

/// A bank's key pair for PINs.
pub struct BankKey {
    secret: SecretKey,
    point: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    #[error("not a public key of a bank (base64 of an uncompressed P-256 point)")]
    PublicKey,
    #[error("the credential block was not made for this bank, or was changed")]
    Block,
    #[error("the system has no randomness")]
    Randomness,
}

/// What a PIN is given for: who pays whom how much. The device knows no more than that at this point.
pub fn binding(payer_vpa: &str, payee_vpa: &str, amount: &str) -> String {
    format!("{}|{}|{amount}", payer_vpa.to_ascii_lowercase(), payee_vpa.to_ascii_lowercase())
}

/// What the device does: `bank_public` as the admin address's `/keys` gives it, `binding` from [`binding`].
pub fn encrypt(bank_public: &str, pin: &str, binding: &str) -> Result<String, PinError> {
    let point = STANDARD.decode(bank_public).map_err(|_| PinError::PublicKey)?;
    let bank = PublicKey::from_sec1_bytes(&point).map_err(|_| PinError::PublicKey)?;
    let ephemeral = BankKey::generate()?;
    let key = ephemeral.shared_with(&bank, &ephemeral.point, &point).ok_or(PinError::PublicKey)?;
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| PinError::Randomness)?;
    let mut sealed = format!("{pin}|{binding}").into_bytes();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .map_err(|_| PinError::PublicKey)?;
    let block = [&[VERSION][..], &ephemeral.point, &nonce, &sealed].concat();
    Ok(STANDARD.encode(block))
}

impl BankKey {
    pub fn generate() -> Result<BankKey, PinError> {
        let random = SystemRandom::new();
        // A random scalar is out of range once in 2^32 draws.
        for _ in 0..8 {
            let mut bytes = [0; 32];
            random.fill(&mut bytes).map_err(|_| PinError::Randomness)?;
            if let Ok(secret) = SecretKey::from_slice(&bytes) {
                let point = secret.public_key().to_sec1_point(false).as_bytes().to_vec();
                return Ok(BankKey { secret, point });
            }
        }
        Err(PinError::Randomness)
    }

    /// For [`encrypt`]: base64 of the uncompressed point.
    pub fn public(&self) -> String {
        STANDARD.encode(&self.point)
    }

    /// The PIN in the block, if the block was made for this bank and for this binding.
    pub fn open(&self, block: &str, binding: &str) -> Result<String, PinError> {
        let block = STANDARD.decode(block).map_err(|_| PinError::Block)?;
        let rest = block.strip_prefix(&[VERSION]).ok_or(PinError::Block)?;
        let (point, rest) = rest.split_at_checked(POINT).ok_or(PinError::Block)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(PinError::Block)?;
        let device = PublicKey::from_sec1_bytes(point).map_err(|_| PinError::Block)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| PinError::Block)?;
        let key = self.shared_with(&device, point, &self.point).ok_or(PinError::Block)?;
        let mut sealed = sealed.to_vec();
        let opened = key.open_in_place(nonce, Aad::empty(), &mut sealed).map_err(|_| PinError::Block)?;
        let opened = std::str::from_utf8(opened).map_err(|_| PinError::Block)?;
        let (pin, bound_to) = opened.split_once('|').ok_or(PinError::Block)?;
        if bound_to == binding { Ok(pin.to_owned()) } else { Err(PinError::Block) }
    }

    fn shared_with(&self, other: &PublicKey, device_point: &[u8], bank_point: &[u8]) -> Option<LessSafeKey> {
        let shared = p256::ecdh::diffie_hellman(self.secret.to_nonzero_scalar(), other.as_affine());
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"npci-sim pin 1");
        let info = [device_point, bank_point];
        let secret = salt.extract(shared.raw_secret_bytes());
        let key: UnboundKey = secret.expand(&info, &AES_256_GCM).ok()?.into();
        Some(LessSafeKey::new(key))
    }
}

impl std::fmt::Debug for BankKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BankKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bank_reads_the_pin_and_only_for_this_payment() {
        let (bank, other) = (BankKey::generate().unwrap(), BankKey::generate().unwrap());
        let bound = binding("Alice@torana", "bob@torana", "1.00");
        let block = encrypt(&bank.public(), "1234", &bound).unwrap();
        assert_ne!(block, encrypt(&bank.public(), "1234", &bound).unwrap());
        assert_eq!(bank.open(&block, &bound).as_deref(), Ok("1234"));
        assert_eq!(other.open(&block, &bound), Err(PinError::Block));
        assert_eq!(bank.open(&block, &binding("alice@torana", "bob@torana", "2.00")), Err(PinError::Block));
        let bytes = STANDARD.decode(&block).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(bank.open(&STANDARD.encode(&changed), &bound).is_err(), "byte {index}");
            assert!(bank.open(&STANDARD.encode(&bytes[..index]), &bound).is_err(), "cut at {index}");
        }
        assert_eq!(encrypt("AAAA", "1234", &bound), Err(PinError::PublicKey));
    }
}
