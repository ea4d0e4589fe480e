//! The development token issuer, until the authorization server exists. The edge knows it through its policy
//! alone.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use certs::Issuer::Any;
use certs::pki::Purpose;
use certs::serve::{Limits, serve, serve_admin};
use certs::{Certificates, Clients, IdentityFiles, Must, Reader, ServerTls, Versions, Watch};
use filters::signature::message::{SigningKey, VerifyingKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::device::jwk;
use crate::{Claims, Forgery};

/// `iss` of its tokens.
pub const ISSUER: &str = "https://issuer.torana.internal";
/// `aud` of its tokens.
pub const AUDIENCE: &str = "torana";

/// DER of a P-256 SubjectPublicKeyInfo up to the point (RFC 5480).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Serves its key set at `/.well-known/jwks.json` over HTTPS and mints tokens (ES256).
pub struct Issuer {
    key: SigningKey,
    kid: String,
    admin_url: String,
    servers: [JoinHandle<()>; 3],
}

impl Issuer {
    /// Listens on a loopback port with the identity `issuer` of the PKI.
    pub(crate) async fn start(pki: &Path, port: u16) -> anyhow::Result<Issuer> {
        let key = new_key()?;
        let kid = format!("dev-{}", uuid::Uuid::new_v4().simple());
        let mut public = jwk(&key)?;
        if let Value::Object(members) = &mut public {
            members.extend([
                ("kid".to_owned(), json!(kid)),
                ("alg".to_owned(), json!("ES256")),
                ("use".to_owned(), json!("sig")),
            ]);
        }
        let key_set = json!({"keys": [public]}).to_string();
        let app = Router::new().route(
            "/.well-known/jwks.json",
            get(|| async { ([("content-type", "application/jwk-set+json")], key_set) }),
        );

        let watch = Watch::new("issuer");
        let files = IdentityFiles { certificate: pki.join("issuer.pem"), key: pki.join("issuer.key") };
        let must = Must { purpose: Purpose::Server, names: Vec::new(), issuer: Any, reader: Reader::Ours };
        let certificates = Certificates::one(watch.identity("tls".to_owned(), files, must)?);
        const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
        let tls = ServerTls::new(&watch, certificates.clone(), Clients::Off, Versions::Tls13Only, ALPN)?;
        let bind = async |port: u16| {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
            listener.context("the development issuer cannot listen")
        };
        let (listener, admin) = (bind(port).await?, bind(0).await?);
        watch.serves("keys", listener.local_addr()?, certificates, Clients::Off);
        let admin_url = format!("http://{}", admin.local_addr()?);
        let told = Arc::clone(&watch);
        let of_operators =
            Router::new().route("/certificates", get(move || async move { Json(told.report()) }));
        let servers = [
            tokio::spawn(async move {
                let never = std::future::pending();
                if let Err(error) = serve(listener, tls, app, Limits::default(), never).await {
                    eprintln!("the development issuer stopped: {error}");
                }
            }),
            tokio::spawn(async move {
                if let Err(error) = serve_admin(admin, of_operators, std::future::pending()).await {
                    eprintln!("the development issuer's admin address stopped: {error}");
                }
            }),
            tokio::spawn(watch.run()),
        ];
        Ok(Issuer { key, kid, admin_url, servers })
    }

    /// Where it tells what it serves.
    pub(crate) fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// A token with these claims, properly signed.
    pub fn mint(&self, claims: &Claims) -> anyhow::Result<String> {
        self.signed(&self.kid, claims, &self.key)
    }

    /// A token with these claims that the edge must refuse.
    pub fn forge(&self, forgery: Forgery, claims: &Claims) -> anyhow::Result<String> {
        match forgery {
            Forgery::AlgNone => Ok(format!("{}.", unsigned(&json!({"alg": "none", "typ": "JWT"}), claims)?)),
            Forgery::Hs256WithPublicKey => {
                let header = json!({"alg": "HS256", "typ": "JWT", "kid": self.kid});
                let input = unsigned(&header, claims)?;
                let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.public_pem()?.as_bytes());
                let tag = ring::hmac::sign(&secret, input.as_bytes());
                Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag)))
            }
            Forgery::UnknownKid => self.signed("nobody-knows-this-key", claims, &self.key),
            Forgery::OtherKey => self.signed(&self.kid, claims, &new_key()?),
        }
    }

    fn signed(&self, kid: &str, claims: &Claims, key: &SigningKey) -> anyhow::Result<String> {
        let input = unsigned(&json!({"alg": "ES256", "typ": "JWT", "kid": kid}), claims)?;
        let signature = key.sign(input.as_bytes())?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn public_pem(&self) -> anyhow::Result<String> {
        let VerifyingKey::EcdsaP256(public) = self.key.verifying_key()? else {
            anyhow::bail!("not an ECDSA P-256 key")
        };
        let spki = [P256_SPKI.as_slice(), public.uncompressed()].concat();
        let base64 = STANDARD.encode(spki);
        let (first, second) = base64.split_at(64);
        Ok(format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n"))
    }
}

fn new_key() -> anyhow::Result<SigningKey> {
    let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let pkcs8 = pair.ok().context("no randomness for the issuer's key")?;
    Ok(SigningKey::ecdsa_p256_pkcs8(pkcs8.as_ref())?)
}

fn unsigned(header: &Value, claims: &Claims) -> anyhow::Result<String> {
    let encode = |json: Vec<u8>| URL_SAFE_NO_PAD.encode(json);
    Ok(format!("{}.{}", encode(serde_json::to_vec(header)?), encode(serde_json::to_vec(claims)?)))
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("kid", &self.kid).finish_non_exhaustive()
    }
}
