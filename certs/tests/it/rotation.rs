//! Files replaced beside a listener and a client that use them, over real loopback sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::pki::{Server, get_url, listen};
use certs::client::ClientLimits;
use certs::pki::crl::{self, Reason};
use certs::pki::{Authority, Leaf, Purpose};
use certs::{
    Certificates, Clients, Facts, IdentityFiles, Issuer, Live, Must, Named, Reader, ServerTls, StaleCrl,
    TlsFiles, Trust, Versions, Watch, client_config,
};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use time::ext::NumericalDuration as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const H1: &[&[u8]] = &[b"http/1.1"];

/// A CA, two identities of it, a list of what it has revoked, and who follows all that.
struct House {
    dir: TempDir,
    ca: Authority,
    watch: Arc<Watch>,
}

impl House {
    fn new() -> House {
        certs::install_crypto_provider();
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::create("test CA").unwrap());
        std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        let house = House { dir, ca, watch: Watch::new("test") };
        house.revoke(&[], 1.days());
        house.issue("server");
        house.issue("client");
        tokio::spawn(Arc::clone(&house.watch).run());
        house
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Gives the serial.
    fn issue(&self, name: &str) -> String {
        let host = format!("{name}.test");
        let issued = self.ca.issue(&Leaf::new(name, &[&host, "localhost"])).unwrap();
        issued.write(self.dir(), name).unwrap();
        certs::inspect_pem(issued.certificate_pem.as_bytes()).unwrap().remove(0).serial_hex
    }

    fn revoke(&self, serials: &[&str], valid: time::Duration) {
        let bytes = |serial: &&str| -> Vec<u8> {
            (0..serial.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&serial[at..at + 2], 16).unwrap())
                .collect()
        };
        let serials: Vec<_> = serials.iter().map(bytes).collect();
        crl::revoke(&self.dir().join("ca.crl"), &self.ca, &serials, Reason::KeyCompromise, valid).unwrap();
    }

    fn files(&self, name: &str, stale_crl: StaleCrl) -> TlsFiles {
        let at = |file: String| self.dir().join(file);
        TlsFiles {
            certificate: at(format!("{name}.pem")),
            key: at(format!("{name}.key")),
            ca: at("ca.pem".into()),
            crl: Some(at("ca.crl".into())),
            stale_crl,
        }
    }

    async fn serve(&self, stale_crl: StaleCrl) -> Server {
        let live = self.files("server", stale_crl).watch(&self.watch, "server", Purpose::Server).unwrap();
        listen(live.server(&self.watch, Versions::Tls13Only, &[b"h2", b"http/1.1"]).unwrap()).await
    }

    fn client(&self) -> Live<reqwest::Client> {
        let files = TlsFiles { crl: None, ..self.files("client", StaleCrl::Refuse) };
        let live = files.watch(&self.watch, "client", Purpose::Client).unwrap();
        live.client(&self.watch, Versions::Tls13Only, ClientLimits::default()).unwrap()
    }

    /// A connection by hand, as `client` is at this moment.
    async fn connect(&self, port: u16, name: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_as("client", port, name).await
    }

    async fn connect_as(
        &self,
        who: &str,
        port: u16,
        name: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let trust = Trust::load(&self.dir().join("ca.pem")).unwrap();
        let at = |ending: &str| self.dir().join(format!("{who}.{ending}"));
        let identity = certs::Identity::load(&at("pem"), &at("key")).unwrap();
        let mut tls = client_config(&trust, Some(&identity), Versions::Tls13Only).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(name).unwrap(), stream).await
    }
}

/// One request on a connection that stays open; the answer's body.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other(format!("no answer: {answer:?}")))
}

fn served_serial(stream: &TlsStream<TcpStream>) -> String {
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    Facts::from_der(&chain[0]).unwrap().serial_hex
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}: it did not come to pass"));
}

#[tokio::test]
async fn both_sides_are_renewed_and_nobody_notices() {
    let house = House::new();
    let server = house.serve(StaleCrl::Refuse).await;
    let client = house.client();
    let mut kept = house.connect(server.port, "localhost").await.unwrap();
    for _ in 0..3 {
        let (serial, before) = (house.issue("server"), client.generation());
        house.issue("client");
        until("the new server certificate", async || {
            served_serial(&house.connect(server.port, "localhost").await.unwrap()) == serial
        })
        .await;
        until("the new client", async || client.generation() > before).await;
        assert_eq!(get_url(&client.current(), server.port, "/who").await.unwrap(), "CN=client");
        assert_eq!(ask(&mut kept, "/who").await.unwrap(), "CN=client", "the old connection is untouched");
    }
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_its_connections_end() {
    let house = House::new();
    let server = house.serve(StaleCrl::Refuse).await;
    let revoked = house.issue("lost");
    let connect = async || house.connect_as("lost", server.port, "localhost").await.unwrap();
    let (mut idle, mut busy) = (connect().await, connect().await);
    assert_eq!(ask(&mut idle, "/who").await.unwrap(), "CN=lost");
    let in_flight = tokio::spawn(async move { ask(&mut busy, "/hour").await });
    let mut other = house.connect(server.port, "localhost").await.unwrap();

    house.revoke(&[&revoked], 1.days());

    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "an idle connection is closed");
    let ended = timeout(Duration::from_secs(5), in_flight).await.expect("so is one with a request in flight");
    assert!(ended.unwrap().is_err());
    assert_eq!(ask(&mut other, "/who").await.unwrap(), "CN=client", "another client's is not");
    let refused = match house.connect_as("lost", server.port, "localhost").await {
        Ok(mut stream) => ask(&mut stream, "/who").await,
        Err(error) => Err(error),
    };
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("CertificateRevoked"), "{told}");
}

#[tokio::test]
async fn a_client_of_a_retired_ca_is_refused_and_its_connections_end() {
    let house = House::new();
    let server = house.serve(StaleCrl::Refuse).await;
    let mut open = house.connect(server.port, "localhost").await.unwrap();
    assert_eq!(ask(&mut open, "/who").await.unwrap(), "CN=client");

    let new = Authority::create("another CA").unwrap();
    crl::revoke(&house.dir().join("ca.crl"), &new, &[], Reason::Unspecified, 1.days()).unwrap();
    let old = house.dir().join("old.pem");
    std::fs::rename(house.dir().join("ca.pem"), &old).unwrap();
    std::fs::write(house.dir().join("ca.pem"), new.certificate_pem()).unwrap();

    let mut rest = Vec::new();
    assert!(timeout(Duration::from_secs(5), open.read_to_end(&mut rest)).await.is_ok());
    std::fs::rename(old, house.dir().join("ca.pem")).unwrap();
}

#[tokio::test]
async fn a_stale_list_is_handled_as_configured() {
    for (stale_crl, let_in) in [(StaleCrl::Refuse, false), (StaleCrl::Allow, true)] {
        let house = House::new();
        house.revoke(&[], -1.minutes());
        let server = house.serve(stale_crl).await;
        let told = match house.connect(server.port, "localhost").await {
            Ok(mut stream) => ask(&mut stream, "/who").await,
            Err(error) => Err(error),
        };
        assert_eq!(told.is_ok(), let_in, "{stale_crl:?}: {told:?}");
    }
}

#[tokio::test]
async fn a_name_has_its_certificate_and_every_other_the_default() {
    let house = House::new();
    let watch = &house.watch;
    let identity = |name: &str, names: &[&str]| {
        let issued = house.ca.issue(&Leaf::new(name, names)).unwrap();
        let [certificate, key] = issued.write(house.dir(), name).unwrap();
        let must =
            Must { purpose: Purpose::Server, names: Vec::new(), issuer: Issuer::Any, reader: Reader::Ours };
        watch.identity(name.into(), IdentityFiles { certificate, key }, must).unwrap()
    };
    let certificates = Certificates {
        default: identity("default", &["localhost", "a.test", "deep.x.wild.test"]),
        others: vec![
            Named { names: Vec::new(), identity: identity("a", &["A.test", "also-a.test"]) },
            Named { names: vec!["*.wild.test".into()], identity: identity("wild", &["*.wild.test"]) },
        ],
    };
    let server = ServerTls::new(watch, certificates, Clients::Off, Versions::Tls13Only, H1).unwrap();
    let server = listen(server).await;
    for (name, expected) in [
        ("localhost", "CN=default"),
        ("a.test", "CN=a"),
        ("also-a.test", "CN=a"),
        ("x.wild.test", "CN=wild"),
        ("deep.x.wild.test", "CN=default"),
    ] {
        let stream = house.connect(server.port, name).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(Facts::from_der(&chain[0]).unwrap().subject, expected, "{name}");
    }
}
