//! A process as the command sees one: a TLS listener, a client, and an admin address that tells of both. It follows
//! its files, reading them at each connection and question, or never does.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::{Json, Router, routing};
use certs::inspect_pem;
use certs::report::{Client, Key, KeyKind, Leaf, Listener, Reloads, Report};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What becomes of new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    Followed,
    ReadOnce,
    /// The certificate is read once; the admin address says otherwise.
    LiedAbout,
}

#[derive(Clone, Debug)]
pub struct Fake {
    pub certificate: PathBuf,
    pub client_ca: PathBuf,
    pub crl: PathBuf,
    pub files: Files,
    pub key: Option<Key>,
}

impl Fake {
    /// A process on the identity `name` of a PKI, which believes the internal CA's clients.
    pub fn new(pki: &Path, name: &str, files: Files) -> Fake {
        Fake {
            certificate: pki.join(format!("{name}.pem")),
            client_ca: pki.join("internal-ca.pem"),
            crl: pki.join("internal-ca.crl"),
            files,
            key: None,
        }
    }

    /// Starts it on the test's runtime; gives its admin address.
    pub async fn start(self) -> String {
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tls.local_addr().unwrap();
        tokio::spawn(self.clone().listen(tls));
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", admin.local_addr().unwrap());
        let first = self.report(address);
        let app = Router::new().route(
            "/certificates",
            routing::get(move || async move {
                let followed = self.files != Files::ReadOnce;
                Json(if followed { self.report(address) } else { first.clone() })
            }),
        );
        tokio::spawn(async move { axum::serve(admin, app).await.unwrap() });
        url
    }

    async fn listen(self, tls: TcpListener) {
        let first = self.config();
        loop {
            let (stream, _) = tls.accept().await.unwrap();
            let config = if self.files == Files::Followed { self.config() } else { Arc::clone(&first) };
            tokio::spawn(async move {
                let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
                let mut some = [0; 1024];
                if stream.read(&mut some).await? > 0 {
                    stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
                }
                stream.shutdown().await
            });
        }
    }

    fn config(&self) -> Arc<rustls::ServerConfig> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(&self.client_ca).unwrap() {
            roots.add(root.unwrap()).unwrap();
        }
        let lists = match CertificateRevocationListDer::pem_file_iter(&self.crl) {
            Ok(lists) => lists.map(Result::unwrap).collect(),
            Err(_) => Vec::new(),
        };
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).with_crls(lists).build().unwrap();
        let chain = CertificateDer::pem_file_iter(&self.certificate).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(self.certificate.with_extension("key")).unwrap();
        let config = rustls::ServerConfig::builder().with_client_cert_verifier(clients);
        Arc::new(config.with_single_cert(chain, key).unwrap())
    }

    fn report(&self, address: SocketAddr) -> Report {
        let facts = |path: &Path| -> Vec<Leaf> {
            inspect_pem(&std::fs::read(path).unwrap()).unwrap().iter().map(Leaf::from).collect()
        };
        let reloads =
            Reloads { last_reload: OffsetDateTime::now_utc(), last_failure: None, reload_failures: 0 };
        let serving = facts(&self.certificate).remove(0);
        Report {
            service: "fake".into(),
            listeners: vec![Listener {
                name: "inside".into(),
                address,
                server_names: vec!["localhost".into()],
                certificate: self.certificate.clone(),
                client_ca: Some(self.client_ca.clone()),
                crl: self.crl.exists().then(|| self.crl.clone()),
                crl_next_update: certs::pki::crl::next_update(&self.crl).unwrap(),
                requires_client: true,
                serving: serving.clone(),
                reloads: reloads.clone(),
            }],
            clients: vec![Client {
                name: "other".into(),
                server_name: Some("other.torana.internal".into()),
                certificate: Some(self.certificate.clone()),
                ca: Some(self.client_ca.clone()),
                crl: None,
                crl_next_update: None,
                serving: Some(serving),
                trusted: facts(&self.client_ca),
                reloads,
            }],
            keys: self.key.clone().into_iter().collect(),
        }
    }
}

/// A shared secret with an end.
pub fn hmac_key(not_after: OffsetDateTime, next_rotation: OffsetDateTime) -> Key {
    Key {
        kind: KeyKind::Hmac,
        owner: "partner".into(),
        id: "partner-1".into(),
        not_before: None,
        not_after: Some(not_after),
        first_seen: Some(OffsetDateTime::now_utc()),
        next_rotation: Some(next_rotation),
    }
}
