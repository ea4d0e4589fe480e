//! What all cases share: certificates, keys and the two upstreams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use certs::pki::{Authority, Leaf};
use certs::{ClientAuth, Identity, Trust, Versions};

use crate::clock::Library;
use crate::introspection::{CLIENT_SECRET, Introspection};
use crate::mint::{AUTHORITY, Keys, PARTNER_SECRET};
use crate::upstream::Upstream;

/// The surroundings of every case.
#[derive(Debug)]
pub struct World {
    folder: tempfile::TempDir,
    pub keys: Keys,
    pub library: Library,
    /// When every case begins.
    pub epoch_ms: u64,
    /// `u` and `v`.
    pub upstreams: [Upstream; 2],
    /// The issuer that is asked about tokens.
    pub introspection: Introspection,
    /// Trusts the edge, and has no certificate.
    pub client: Arc<rustls::ClientConfig>,
    /// The same with each certificate.
    clients: BTreeMap<&'static str, Arc<rustls::ClientConfig>>,
}

impl World {
    /// Makes the files and starts the upstreams.
    ///
    /// # Errors
    /// When a file cannot be written, or no port is free.
    pub async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        let authority = Authority::create("parity")?;
        std::fs::write(path.join("ca.pem"), authority.certificate_pem())?;
        authority.issue(&Leaf::new("edge", &[AUTHORITY]))?.write(path, "edge")?;
        authority.issue(&Leaf::new("upstream", &["upstream.test"]))?.write(path, "upstream")?;
        let keys = Keys::new()?;
        std::fs::write(path.join("jwks.json"), keys.jwks.to_string())?;
        keys.certificates.write(path)?;
        certs::file::write_secret(&path.join("partner-1.key"), std::str::from_utf8(PARTNER_SECRET)?)?;
        let trust = Trust::load(&path.join("ca.pem"))?;
        let tls = upstream_tls(path, &trust)?;
        certs::file::write_secret(&path.join("introspection.secret"), CLIENT_SECRET)?;
        authority.issue(&Leaf::new("localhost", &["localhost"]))?.write(path, "issuer")?;
        let identity = Identity::load(&path.join("issuer.pem"), &path.join("issuer.key"))?;
        let anybody = ClientAuth::Off;
        let issuer = certs::server_config(&identity, anybody, Versions::Tls12And13, &[b"http/1.1"])?;
        let introspection = Introspection::start(issuer).await?;
        let upstreams = [Upstream::start("u", Arc::clone(&tls)).await?, Upstream::start("v", tls).await?];
        let anybody = client(&trust, None)?;
        let mut clients = BTreeMap::new();
        for name in keys.certificates.names() {
            let file = |ending: &str| path.join(format!("client-{name}.{ending}"));
            let identity = Identity::load(&file("pem"), &file("key"))?;
            clients.insert(name, client(&trust, Some(&identity))?);
        }
        let library = Library::compile(path)?;
        let epoch_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() * 1_000;
        Ok(Self { keys, library, epoch_ms, upstreams, introspection, client: anybody, clients, folder })
    }

    /// Whoever shows that certificate, or none.
    ///
    /// # Errors
    /// When nobody has a certificate of that name.
    pub fn client(&self, certificate: Option<&str>) -> anyhow::Result<&Arc<rustls::ClientConfig>> {
        let Some(name) = certificate else { return Ok(&self.client) };
        self.clients.get(name).with_context(|| format!("there is no certificate `{name}`"))
    }

    /// What an upstream serves with.
    ///
    /// # Errors
    /// When its files are gone.
    pub fn upstream_tls(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        upstream_tls(self.folder(), &Trust::load(&self.folder().join("ca.pem"))?)
    }

    /// Where the files are that [`crate::document`] names.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder for one case.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn case_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

fn client(trust: &Trust, identity: Option<&Identity>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut client = certs::client_config(trust, identity, Versions::Tls12And13)?;
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

fn upstream_tls(folder: &Path, trust: &Trust) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let identity = Identity::load(&folder.join("upstream.pem"), &folder.join("upstream.key"))?;
    let required = ClientAuth::Required(trust.clone());
    Ok(certs::server_config(&identity, required, Versions::Tls12And13, &[b"http/1.1"])?)
}
