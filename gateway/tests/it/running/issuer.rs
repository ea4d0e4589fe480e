//! Tokens for tests.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::crypto::{SigningKey, VerifyingKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// Tokens of an issuer whose key set is in the folder.
pub struct Issuer(SigningKey);

impl Issuer {
    pub fn new(folder: &Path) -> Self {
        let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_file(folder.join("issuer.key")).unwrap()
        else {
            panic!("not PKCS#8")
        };
        let key = SigningKey::ecdsa_p256_pkcs8(key.secret_pkcs8_der()).unwrap();
        let VerifyingKey::EcdsaP256(public) = key.verifying_key().unwrap() else { panic!("not P-256") };
        let (x, y) = public.uncompressed()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let jwks =
            json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "x": x, "y": y }] });
        std::fs::write(folder.join("jwks.json"), jwks.to_string()).unwrap();
        Self(key)
    }

    pub fn bearer(&self, user: &str, tenant: &str) -> String {
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
        let claims = json!({ "iss": "https://i", "aud": "a", "sub": user, "tenant": tenant, "exp": exp });
        let header = json!({ "alg": "ES256", "kid": "k", "typ": "JWT" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(input.as_bytes()).unwrap());
        format!("Bearer {input}.{signature}")
    }
}
