//! Certificates and keys: load, follow, serve and inspect; the development PKI.
//!
//! Whatever in Torana speaks TLS gets its `rustls` configuration here, so that the
//! rules (which versions, which clients, what a usable key is) are written once. A process has one [`Watch`], which
//! follows the files and puts new ones into use without touching a connection; what it follows are [`Set`]s, what is
//! made of them are [`Live`] values: a listener's [`ServerTls`], an HTTPS client.
//! This crate never logs or prints key material, and never falls back to a weaker
//! check: what cannot be verified is an error that names the file and the remedy.

pub mod client;
mod crl;
mod error;
pub mod file;
mod guarded;
mod identity;
mod inspect;
mod live;
pub mod metrics;
mod nobody;
pub mod pki;
pub mod report;
pub mod serve;
mod server;
mod set;
mod system;
mod tls;
mod tls_files;
mod trust;
mod watch;

pub use crl::StaleCrl;
pub use error::{CertError, causes};
pub use identity::{Identity, IdentityFiles, Issuer, Must, Reader};
pub use inspect::{Facts, KeyFacts, San, inspect_key_pem, inspect_pem};
pub use live::{Live, Versioned};
pub use server::{Certificates, Clients, Guest, Named, ServerTls, Serving};
pub use set::{Bytes, Set, Subject};
pub use system::system_ca_file;
pub use tls::{ClientAuth, Versions, client_config, install_crypto_provider, server_config};
pub use tls_files::{LiveTls, TlsFiles};
pub use trust::{Anonymous, Trust, TrustFiles};
pub use watch::{Client, Watch};
