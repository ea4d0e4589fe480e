//! The CAs that the operating system trusts.

use std::path::{Path, PathBuf};

/// Where distributions keep them, PEM: Debian and its like, Fedora and its like, openSUSE, Alpine and macOS.
const FILES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file of the CAs that this system trusts: the one that `SSL_CERT_FILE` names, otherwise the distribution's. Where
/// there is none, the usual place of one, so that the error of reading it names the missing file.
pub fn system_ca_file() -> PathBuf {
    match std::env::var_os("SSL_CERT_FILE").filter(|name| !name.is_empty()) {
        Some(named) => PathBuf::from(named),
        None => PathBuf::from(FILES.into_iter().find(|file| Path::new(file).is_file()).unwrap_or(FILES[0])),
    }
}
