//! Certificates and keys: load, check, serve and inspect; the development PKI.
//!
//! Whatever in Torana speaks TLS gets its `rustls` configuration here, so that the
//! rules (which versions, which clients, what a usable key is) are written once.
//! This crate never logs or prints key material, and never falls back to a weaker
//! check: what cannot be verified is an error that names the file and the remedy.

pub mod client;
mod error;
mod identity;
mod inspect;
pub mod pki;
pub mod report;
pub mod serve;
mod tls;
mod trust;

pub use error::CertError;
pub use identity::{Identity, LiveIdentity, TlsFiles};
pub use inspect::{Facts, KeyFacts, San, inspect_key_pem, inspect_pem};
pub use tls::{ClientAuth, Versions, client_config, client_verifier, install_crypto_provider, server_config};
pub use trust::Trust;
