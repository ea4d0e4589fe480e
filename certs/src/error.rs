use std::path::{Path, PathBuf};

use time::OffsetDateTime;

/// Why a certificate, key or TLS configuration cannot be used.
///
/// Every variant names the file, the cause and what to do. None of them goes away by
/// trying again: the operator has to change a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    #[error("cannot read {}: {source}; check that the file exists and that this user may read it", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("{} is not a file; name a file, not a folder, a pipe or a device", path.display())]
    NotAFile { path: PathBuf },

    #[error("{} is larger than {most_bytes} bytes; no certificate, key or list that can be used is", path.display())]
    TooLarge { path: PathBuf, most_bytes: u64 },

    #[error("{} has mode {mode:o}: others may read this key, or its group may change it; set mode 0600, or 0440 with a group of the service's own (in a Kubernetes volume: `defaultMode: 0440` and `fsGroup`)", path.display())]
    LooseKey { path: PathBuf, mode: u32 },

    #[error("{} is not well-formed PEM: {reason}; copy the file again, in full", path.display())]
    BadPem { path: PathBuf, reason: String },

    #[error("{} holds no certificate; it needs at least one 'BEGIN CERTIFICATE' section, the leaf first", path.display())]
    NoCertificate { path: PathBuf },

    #[error("{} holds no private key; it needs one unencrypted 'BEGIN PRIVATE KEY' section (PKCS#8)", path.display())]
    NoKey { path: PathBuf },

    #[error("the two files are swapped: {} holds a private key, and {} holds a certificate; exchange them", certificate.display(), key.display())]
    Swapped { certificate: PathBuf, key: PathBuf },

    #[error("{} holds a private key where a certificate belongs; name the file of the certificate", path.display())]
    KeyForCertificate { path: PathBuf },

    #[error("{} holds a certificate where a private key belongs; name the file of the key", path.display())]
    CertificateForKey { path: PathBuf },

    #[error("the private key in {} is encrypted; decrypt it first (openssl pkcs8 -in FILE -out PLAIN) and protect the file with mode 0600", path.display())]
    EncryptedKey { path: PathBuf },

    #[error("certificate {position} in {} cannot be parsed: {reason}; issue it again", path.display())]
    BadCertificate { path: PathBuf, position: usize, reason: String },

    #[error("the private key in {} cannot be used: {reason}; use ECDSA P-256, Ed25519 or RSA of 2048 bits or more", path.display())]
    BadKey { path: PathBuf, reason: String },

    #[error("the private key in {} is of a kind that Envoy cannot use, Ed25519; issue the certificate with ECDSA P-256 or RSA", path.display())]
    NotForEnvoy { path: PathBuf },

    #[error("the private key in {} does not belong to the first certificate in {}; deploy the two files that were issued together", key.display(), certificate.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },

    #[error("the first certificate in {} ({subject}) is a CA; put the leaf first, then the CA that issued it", path.display())]
    LeafIsCa { path: PathBuf, subject: String },

    #[error("certificate {position} in {} ({subject}) did not issue the one before it, which names {issuer} as its issuer; order the chain leaf first, each followed by its issuer", path.display())]
    BrokenChain { path: PathBuf, position: usize, subject: String, issuer: String },

    #[error("{subject} in {} is not valid before {not_before}; check this machine's clock, or wait", path.display())]
    NotYetValid { path: PathBuf, subject: String, not_before: OffsetDateTime },

    #[error("{subject} in {} expired at {not_after}; issue a new certificate", path.display())]
    Expired { path: PathBuf, subject: String, not_after: OffsetDateTime },

    #[error("{subject} in {} is not a CA and cannot be trusted as a root; name the file of the CA that issues certificates", path.display())]
    NotACa { path: PathBuf, subject: String },

    #[error("{subject} in {} does not come from a CA that is trusted here, and what is in use does; trust its CA first, or take a certificate of a trusted one", path.display())]
    Untrusted { path: PathBuf, subject: String },

    #[error("{subject} in {} does not name {name}, which is served; issue it with that name too", path.display())]
    NameMissing { path: PathBuf, subject: String, name: String },

    #[error("{subject} in {} is not for {purpose} (extended key usage); issue it for that", path.display())]
    WrongPurpose { path: PathBuf, subject: String, purpose: &'static str },

    #[error("{} cannot be used as a revocation list: {reason}", path.display())]
    BadCrl { path: PathBuf, reason: String },

    #[error("{} cannot be used: {reason}", path.display())]
    Content { path: PathBuf, reason: String },

    #[error("no TLS configuration can be made from {what}: {source}")]
    Tls { what: String, source: rustls::Error },

    #[error("no client certificate verifier can be made: {source}")]
    Verifier { source: rustls::server::VerifierBuilderError },

    #[error("no HTTPS client can be made: {source}")]
    Client { source: reqwest::Error },

    #[error("{} is already there; pass --force to replace the whole PKI, which makes every certificate issued before it useless", path.display())]
    Exists { path: PathBuf },

    #[error("cannot write {}: {source}; check that the folder may be written to", path.display())]
    Unwritable { path: PathBuf, source: std::io::Error },

    #[error("the new {} cannot be given to user {user} and group {group}, whose the one before is ({source}): nothing was changed; run this as root or as that user", path.display())]
    NotOwned { path: PathBuf, user: u32, group: u32, source: std::io::Error },

    #[error("{} is a link, so somebody else fills this folder; let them renew it, then wait for it with `certs wait`", path.display())]
    FilledByOthers { path: PathBuf },

    #[error("cannot issue a certificate for {name}: {reason}")]
    Issue { name: String, reason: String },
}

/// An error and its causes on one line, each cause once: some errors name theirs in their own text.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl CertError {
    /// The file that it is about, if there is one and no other.
    pub fn path(&self) -> Option<&Path> {
        match self {
            CertError::Unreadable { path, .. }
            | CertError::NotAFile { path }
            | CertError::TooLarge { path, .. }
            | CertError::LooseKey { path, .. }
            | CertError::BadPem { path, .. }
            | CertError::NoCertificate { path }
            | CertError::NoKey { path }
            | CertError::KeyForCertificate { path }
            | CertError::CertificateForKey { path }
            | CertError::EncryptedKey { path }
            | CertError::BadCertificate { path, .. }
            | CertError::BadKey { path, .. }
            | CertError::NotForEnvoy { path }
            | CertError::LeafIsCa { path, .. }
            | CertError::BrokenChain { path, .. }
            | CertError::NotYetValid { path, .. }
            | CertError::Expired { path, .. }
            | CertError::NotACa { path, .. }
            | CertError::Untrusted { path, .. }
            | CertError::NameMissing { path, .. }
            | CertError::WrongPurpose { path, .. }
            | CertError::BadCrl { path, .. }
            | CertError::Content { path, .. }
            | CertError::Exists { path }
            | CertError::Unwritable { path, .. }
            | CertError::NotOwned { path, .. }
            | CertError::FilledByOthers { path } => Some(path),
            CertError::KeyMismatch { .. }
            | CertError::Swapped { .. }
            | CertError::Tls { .. }
            | CertError::Verifier { .. }
            | CertError::Client { .. }
            | CertError::Issue { .. } => None,
        }
    }

    /// A word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            CertError::Unreadable { .. } => "unreadable",
            CertError::NotAFile { .. } => "not_a_file",
            CertError::TooLarge { .. } => "too_large",
            CertError::LooseKey { .. } => "loose_key",
            CertError::BadPem { .. } => "bad_pem",
            CertError::NoCertificate { .. }
            | CertError::KeyForCertificate { .. }
            | CertError::Swapped { .. } => "no_certificate",
            CertError::NoKey { .. } | CertError::CertificateForKey { .. } => "no_key",
            CertError::EncryptedKey { .. } => "encrypted_key",
            CertError::BadCertificate { .. } => "bad_certificate",
            CertError::BadKey { .. } => "bad_key",
            CertError::NotForEnvoy { .. } => "not_for_envoy",
            CertError::KeyMismatch { .. } => "key_mismatch",
            CertError::LeafIsCa { .. } => "leaf_is_ca",
            CertError::BrokenChain { .. } => "broken_chain",
            CertError::NotYetValid { .. } => "not_yet_valid",
            CertError::Expired { .. } => "expired",
            CertError::NotACa { .. } => "not_a_ca",
            CertError::Untrusted { .. } => "untrusted",
            CertError::NameMissing { .. } => "name_missing",
            CertError::WrongPurpose { .. } => "wrong_purpose",
            CertError::BadCrl { .. } => "bad_crl",
            CertError::Content { .. } => "bad_content",
            CertError::Tls { .. } | CertError::Verifier { .. } | CertError::Client { .. } => "tls",
            CertError::Exists { .. }
            | CertError::Unwritable { .. }
            | CertError::NotOwned { .. }
            | CertError::FilledByOthers { .. }
            | CertError::Issue { .. } => "issuing",
        }
    }
}
