//! Certificates that clients show, and who has them signed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::pki::{Authority, Issued, Leaf, Purpose};
use filters::certificate::Certificate;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Every client's, by name.
const NAMES: [(&str, &[&str]); 6] = [
    ("acme", &["pay.acme.test", "spiffe://acme.test/pay", "ops@acme.test"]),
    // The same names with another key.
    ("acme-again", &["pay.acme.test", "spiffe://acme.test/pay", "ops@acme.test"]),
    ("other", &["pay.other.test"]),
    ("both", &["pay.acme.test", "pay.other.test"]),
    ("wildcard", &["*.acme.test"]),
    ("nobody", &["nobody.test", "10.0.0.1"]),
];

/// What clients can show.
pub struct Certificates {
    authority: Authority,
    issued: BTreeMap<&'static str, (Issued, Certificate)>,
}

impl Certificates {
    /// New ones.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let authority = Authority::create("parity clients")?;
        let mut issued = BTreeMap::new();
        for (name, names) in NAMES {
            let leaf = authority.issue(&Leaf { purpose: Purpose::Client, ..Leaf::new(name, names) })?;
            let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes())?;
            issued.insert(name, (leaf, Certificate::new(&der)));
        }
        Ok(Self { authority, issued })
    }

    /// The facts of one.
    ///
    /// # Errors
    /// When nobody has a certificate of that name.
    pub fn get(&self, name: &str) -> anyhow::Result<&Certificate> {
        let found = self.issued.get(name).with_context(|| format!("there is no certificate `{name}`"));
        found.map(|(_, certificate)| certificate)
    }

    /// The pin of its key, as a policy writes it.
    ///
    /// # Errors
    /// When nobody has a certificate of that name.
    pub fn pin(&self, name: &str) -> anyhow::Result<String> {
        let pin = self.get(name)?.spki_sha256().context("the certificate has no key")?;
        Ok(STANDARD.encode(pin))
    }

    /// Writes them all, `client-NAME.pem` and its key, and `clients.pem`, the CA.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::write(folder.join("clients.pem"), self.authority.certificate_pem())?;
        for (name, (issued, _)) in &self.issued {
            issued.write(folder, &format!("client-{name}"))?;
        }
        Ok(())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.issued.keys().copied()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.issued.keys()).finish()
    }
}
