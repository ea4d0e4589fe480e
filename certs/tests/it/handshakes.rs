//! Who gets through a TLS listener, over real loopback sockets.

use crate::pki::{Pki, get, listen};
use certs::{ClientAuth, Versions, client_config, server_config};

#[derive(Debug)]
enum Client {
    Anonymous,
    Known,
    OfAnotherCa,
}

#[tokio::test]
async fn a_listener_lets_in_whom_it_should() {
    let pki = Pki::new();
    let other = Pki::new();
    use Client::{Anonymous, Known, OfAnotherCa};
    use Versions::{Tls12And13, Tls13Only};

    let (off, optional, required) =
        (ClientAuth::Off, ClientAuth::Optional(pki.trust()), ClientAuth::Required(pki.trust()));
    let cases = [
        (&off, Anonymous, Tls13Only, Tls13Only, Some("nobody")),
        (&off, Anonymous, Tls12And13, Tls12And13, Some("nobody")),
        (&off, Known, Tls13Only, Tls13Only, Some("nobody")),
        (&optional, Anonymous, Tls12And13, Tls13Only, Some("nobody")),
        (&optional, Known, Tls12And13, Tls12And13, Some("CN=client.test")),
        (&optional, OfAnotherCa, Tls13Only, Tls13Only, None),
        (&required, Known, Tls13Only, Tls13Only, Some("CN=client.test")),
        (&required, Known, Tls12And13, Tls13Only, Some("CN=client.test")),
        (&required, Anonymous, Tls13Only, Tls13Only, None),
        (&required, Anonymous, Tls12And13, Tls12And13, None),
        (&required, OfAnotherCa, Tls13Only, Tls13Only, None),
    ];
    for (clients, client, server_speaks, client_speaks, expected) in cases {
        let tls = server_config(&pki.server, clients.clone(), server_speaks, &[b"h2", b"http/1.1"]).unwrap();
        let server = listen(tls).await;
        let id = match client {
            Anonymous => None,
            Known => Some(&pki.client),
            OfAnotherCa => Some(&other.client),
        };
        let tls = client_config(&pki.trust(), id, client_speaks).unwrap();
        let told = get(tls, server.port, "/who").await.ok();
        assert_eq!(told.as_deref(), expected, "{client:?} to {clients:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_believed() {
    let pki = Pki::new();
    let tls = server_config(&pki.server, ClientAuth::Off, Versions::Tls13Only, &[b"h2"]).unwrap();
    let server = listen(tls).await;
    let tls = client_config(&Pki::new().trust(), None, Versions::Tls13Only).unwrap();
    let error = get(tls, server.port, "/who").await.unwrap_err();
    assert!(error.contains("InvalidCertificate"), "{error}");
}

#[tokio::test]
async fn tls_1_2_is_refused_where_1_3_is_required() {
    let pki = Pki::new();
    let tls = server_config(&pki.server, ClientAuth::Off, Versions::Tls13Only, &[b"h2"]).unwrap();
    let server = listen(tls).await;
    let only_12 = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(pki.trust().roots())
        .with_no_client_auth();
    let error = get(only_12, server.port, "/who").await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn both_http_versions_are_served() {
    let pki = Pki::new();
    let tls =
        server_config(&pki.server, ClientAuth::Off, Versions::Tls13Only, &[b"h2", b"http/1.1"]).unwrap();
    let server = listen(tls).await;
    for (alpn, version) in [("h2", "HTTP/2.0"), ("http/1.1", "HTTP/1.1")] {
        let mut tls = client_config(&pki.trust(), None, Versions::Tls13Only).unwrap();
        tls.alpn_protocols = vec![alpn.into()];
        assert_eq!(get(tls, server.port, "/version").await.unwrap(), version);
    }
}
