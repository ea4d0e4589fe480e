use std::fmt;
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use filters::signature::message::{SigningKey, VerifyingKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// A phone: its id and the ECDSA P-256 key that never leaves it.
pub struct Device {
    id: String,
    pkcs8: Vec<u8>,
    key: SigningKey,
}

impl Device {
    /// A device with a new key.
    pub fn generate(id: &str) -> anyhow::Result<Device> {
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let pkcs8 = pair.ok().context("no randomness for a device key")?;
        Device::from_pkcs8(id, pkcs8.as_ref())
    }

    /// The device whose key is in a PEM file (PKCS#8).
    pub fn load(id: &str, file: &Path) -> anyhow::Result<Device> {
        let der = PrivatePkcs8KeyDer::from_pem_file(file);
        let der = der.with_context(|| format!("cannot read the device key {}", file.display()))?;
        Device::from_pkcs8(id, der.secret_pkcs8_der())
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The private key as PEM (PKCS#8).
    pub fn pem(&self) -> String {
        let base64 = STANDARD.encode(&self.pkcs8);
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    /// The public key as a JWK (RFC 7517), for the token's `cnf` (RFC 7800).
    pub fn public_jwk(&self) -> anyhow::Result<Value> {
        jwk(&self.key)
    }

    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    fn from_pkcs8(id: &str, pkcs8: &[u8]) -> anyhow::Result<Device> {
        let key = SigningKey::ecdsa_p256_pkcs8(pkcs8)?;
        Ok(Device { id: id.to_owned(), pkcs8: pkcs8.to_vec(), key })
    }
}

/// The public half of an ECDSA P-256 key as a JWK.
pub(crate) fn jwk(key: &SigningKey) -> anyhow::Result<Value> {
    let VerifyingKey::EcdsaP256(public) = key.verifying_key()? else { bail!("not an ECDSA P-256 key") };
    let (x, y) = public.uncompressed()[1..].split_at(32);
    Ok(json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}))
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_device_is_the_same() {
        let device = Device::generate("phone-1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("device.pem");
        std::fs::write(&file, device.pem()).unwrap();
        let again = Device::load("phone-1", &file).unwrap();
        assert_eq!(device.public_jwk().unwrap(), again.public_jwk().unwrap());
        assert!(certs::inspect_key_pem(device.pem().as_bytes()).unwrap().is_some());
    }
}
