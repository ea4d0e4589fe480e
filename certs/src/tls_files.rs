use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::client::ClientLimits;
use crate::pki::Purpose;
use crate::{
    CertError, Certificates, Client, Clients, Identity, IdentityFiles, Issuer, Live, Must, Reader, ServerTls,
    Set, StaleCrl, Trust, TrustFiles, Versions, Watch, client_config,
};

/// Where a service finds its identity and whom it trusts; part of every service's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, unencrypted; mode 0600, or 0440 with a group of the service's own.
    pub key: PathBuf,
    /// PEM, the CAs that the other side's certificate must come from.
    pub ca: PathBuf,
    /// What those CAs have revoked: PEM, a list of each of them, or the one list in DER. Absent: nothing.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// What becomes of the other side while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
}

/// The same, watched.
#[derive(Debug, Clone)]
pub struct LiveTls {
    pub identity: Set<Identity>,
    pub trust: Set<Trust>,
}

impl TlsFiles {
    /// The same files, relative paths taken from `folder` (that of the configuration file).
    pub fn relative_to(&self, folder: &Path) -> TlsFiles {
        TlsFiles {
            certificate: folder.join(&self.certificate),
            key: folder.join(&self.key),
            ca: folder.join(&self.ca),
            crl: self.crl.as_ref().map(|crl| folder.join(crl)),
            stale_crl: self.stale_crl,
        }
    }

    /// Loads and checks certificate, key and CAs as they are now.
    ///
    /// # Errors
    /// Those of [`Identity::load`] and [`Trust::load`].
    pub fn load(&self) -> Result<(Identity, Trust), CertError> {
        Ok((Identity::load(&self.certificate, &self.key)?, Trust::load(&self.ca)?))
    }

    /// Loads and checks everything, and has `watch` follow it: as `NAME` and `NAME/ca`.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn watch(&self, watch: &Watch, name: &str, purpose: Purpose) -> Result<LiveTls, CertError> {
        let files = TrustFiles { ca: self.ca.clone(), crl: self.crl.clone(), stale: self.stale_crl };
        let trust = watch.trust(format!("{name}/ca"), files)?;
        let must = Must {
            purpose,
            names: Vec::new(),
            issuer: Issuer::AsBefore(trust.clone()),
            reader: Reader::Ours,
        };
        let files = IdentityFiles { certificate: self.certificate.clone(), key: self.key.clone() };
        Ok(LiveTls { identity: watch.identity(name.to_owned(), files, must)?, trust })
    }
}

impl LiveTls {
    /// Tells of a listener that serves with it ([`LiveTls::server`]).
    pub fn serves(&self, watch: &Watch, name: &str, address: SocketAddr) {
        let certificates = Certificates::one(self.identity.clone());
        watch.serves(name, address, certificates, Clients::Required(self.trust.clone()));
    }

    /// Tells of a way to another process that is taken with it.
    pub fn connects(&self, watch: &Watch, name: &str, server_name: Option<String>) {
        let (identity, trust) = (Some(self.identity.clone()), self.trust.clone());
        watch.connects(Client { name: name.to_owned(), server_name, identity, trust });
    }

    /// What a listener serves with that knows all its clients.
    ///
    /// # Errors
    /// [`CertError::Tls`] or [`CertError::Verifier`].
    pub fn server(
        &self,
        watch: &Watch,
        versions: Versions,
        alpn: &'static [&'static [u8]],
    ) -> Result<ServerTls, CertError> {
        let certificates = Certificates::one(self.identity.clone());
        ServerTls::new(watch, certificates, Clients::Required(self.trust.clone()), versions, alpn)
    }

    /// An HTTPS client that is made anew, with connections of its own, whenever what it presents or trusts changes.
    ///
    /// # Errors
    /// [`CertError::Tls`], [`CertError::Verifier`] or [`CertError::Client`].
    pub fn client(
        &self,
        watch: &Watch,
        versions: Versions,
        limits: ClientLimits,
    ) -> Result<Live<reqwest::Client>, CertError> {
        let LiveTls { identity, trust } = self.clone();
        watch.derive(&[&self.identity, &self.trust], move || {
            let tls = client_config(&trust.current(), Some(&identity.current()), versions)?;
            crate::client::https(tls, limits)
        })
    }
}
