//! Certificates, CAs and lists that change under a running gateway: what new connections are made with, and which old
//! ones are never used again.

use std::path::Path;

use certs::Facts;
use certs::pki::crl::{self, Reason};
use certs::pki::{Authority, Leaf};
use time::Duration;

use crate::running::{Gateway, Recorder, TLS, client, pki, revoke, serve, serve_on, until};

/// The public key of RFC 7517 appendix A.1.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn policy(upstream: &Recorder) -> String {
    format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], outlier: {{ failures: 0 }}, tls: {TLS} }}
routes:
  - {{ name: all, methods: [GET], path: /things, upstream: u }}
"#,
        upstream.port
    )
}

/// What the upstream says of the connection that a request came on: its port, and the serial of its certificate.
async fn connection(gateway: &Gateway) -> Option<(String, String)> {
    let answer = gateway.http.get(format!("{}/things", gateway.url)).send().await.unwrap();
    if answer.status() != 200 {
        return None;
    }
    let seen: serde_json::Value = answer.json().await.unwrap();
    Some((seen[":peer"].as_str()?.to_owned(), seen[":serial"].as_str()?.to_owned()))
}

/// A connection that is used again. The edge lays one aside a moment after its answer.
async fn kept(gateway: &Gateway) -> (String, String) {
    let mut last = connection(gateway).await.unwrap();
    for _ in 0..100 {
        let next = connection(gateway).await.unwrap();
        if next == last {
            return next;
        }
        last = next;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("no connection is used again")
}

fn issue(folder: &Path, ca: &str, name: &str, names: &[&str]) -> String {
    let at = |ending: &str| folder.join(format!("{ca}.{ending}"));
    let issued = Authority::load(&at("pem"), &at("key")).unwrap().issue(&Leaf::new(name, names)).unwrap();
    issued.write(folder, name).unwrap();
    certs::inspect_pem(issued.certificate_pem.as_bytes()).unwrap().remove(0).serial_hex
}

#[tokio::test]
async fn a_connection_made_under_a_retired_trust_set_is_never_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await;
    let gateway = serve(folder.path(), &policy(&upstream)).await;
    let first = kept(&gateway).await;

    // Another certificate of ours, then another CA beside the old one: new connections.
    let serial = issue(folder.path(), "internal-ca", "gateway", &["gateway.torana.internal"]);
    until("the gateway's new certificate", async || connection(&gateway).await.unwrap().1 == serial).await;
    let second = kept(&gateway).await;
    assert_ne!(second.0, first.0);
    let (old, new) =
        (std::fs::read_to_string(at("internal-ca.pem")).unwrap(), Authority::create("new").unwrap());
    std::fs::write(at("internal-ca.pem"), old.clone() + new.certificate_pem()).unwrap();
    until("another connection", async || connection(&gateway).await.unwrap().0 != second.0).await;

    // The old CA is dropped while a connection to an upstream of it is idle. Nothing goes out on that any more.
    std::fs::write(at("internal-ca.pem"), new.certificate_pem()).unwrap();
    until("the old CA is dropped", async || connection(&gateway).await.is_none()).await;
    let before = upstream.seen();
    for _ in 0..20 {
        assert_eq!(connection(&gateway).await, None);
    }
    assert_eq!(upstream.seen(), before);

    std::fs::write(at("internal-ca.pem"), old).unwrap();
    until("it is trusted again", async || connection(&gateway).await.is_some()).await;
}

#[tokio::test]
async fn an_upstream_whose_certificate_is_revoked_gets_no_request() {
    // Passed on by Pingora, and asked by the edge itself, which signs the whole answer.
    for filters in ["{}", "{ signing: { to_client: { key: acme-1 } } }"] {
        let folder = tempfile::tempdir().unwrap();
        pki(folder.path());
        let upstream = Recorder::start(folder.path(), "u").await;
        let tls = TLS.replace("server_name", r#"crl: "file:internal-ca.crl", server_name"#);
        let clients = r#"clients: { acme: { hmac_keys: [{ id: acme-1, secret: "env:ACME_SECRET" }] } }"#;
        let policy = policy(&upstream).replace(TLS, &tls);
        let gateway = serve(folder.path(), &format!("{clients}\nfilters: {filters}{policy}")).await;
        kept(&gateway).await;

        revoke(folder.path(), "internal-ca", "txn-core");
        until("the list is in use", async || connection(&gateway).await.is_none()).await;
        let before = upstream.seen();
        for _ in 0..20 {
            let answer = gateway.http.get(format!("{}/things", gateway.url)).send().await.unwrap();
            assert_eq!(answer.status(), 503);
        }
        assert_eq!(upstream.seen(), before, "{filters}");
    }
}

/// Keys of an issuer whose certificate is revoked are not believed: by a gateway that runs, from the next fetch on, and
/// by one that starts, which is never ready.
#[tokio::test]
async fn an_issuer_whose_certificate_is_revoked_is_not_asked_for_keys() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let at = |name: &str| folder.path().join(name);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = certs::Identity::load(&at("issuer.pem"), &at("issuer.key")).unwrap();
    let tls =
        certs::server_config(&identity, certs::ClientAuth::Off, certs::Versions::Tls13Only, &[]).unwrap();
    let app = axum::Router::new().route("/jwks", axum::routing::get(async || JWKS));
    tokio::spawn(certs::serve::serve(
        listener,
        tls,
        app,
        certs::serve::Limits::default(),
        std::future::pending(),
    ));
    let upstream = Recorder::start(folder.path(), "u").await;
    let policy = format!(
        r#"{}
issuers:
  main:
    issuer: "https://i"
    audiences: [a]
    algorithms: [ES256]
    jwks: {{ url: "https://localhost:{port}/jwks", ca: "file:internal-ca.pem", crl: "file:internal-ca.crl", refresh_s: 1 }}
"#,
        policy(&upstream)
    );
    let fetched =
        |outcome: &str| format!(r#"gateway_jwks_fetches_total{{issuer="main",outcome="{outcome}"}}"#);
    let running = serve(folder.path(), &policy).await;
    until("it has keys", async || running.metric(&fetched("ok")).await > 0.0).await;
    assert_eq!(running.metric(&fetched("error")).await, 0.0);

    revoke(folder.path(), "internal-ca", "issuer");
    until("the issuer is not believed", async || running.metric(&fetched("error")).await >= 2.0).await;
    let before = running.metric(&fetched("ok")).await;
    let fresh = serve(folder.path(), &policy).await;
    until("it has tried", async || fresh.metric(&fetched("error")).await >= 2.0).await;
    assert_eq!(fresh.metric(&fetched("ok")).await, 0.0);
    assert_eq!(running.metric(&fetched("ok")).await, before, "nor later");
    let ready = async |gateway: &Gateway| {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(format!("{}/readiness", gateway.admin)).send().await.unwrap().status().as_u16()
    };
    assert_eq!((ready(&running).await, ready(&fresh).await), (200, 503), "the last good keys serve on");
}

#[tokio::test]
async fn a_stale_list_refuses_the_upstream_unless_the_policy_allows_it() {
    for (word, served) in [("refuse", false), ("allow", true)] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        pki(folder.path());
        let ca = Authority::load(&at("internal-ca.pem"), &at("internal-ca.key")).unwrap();
        crl::revoke(&at("internal-ca.crl"), &ca, &[], Reason::Unspecified, Duration::minutes(-1)).unwrap();
        let upstream = Recorder::start(folder.path(), "u").await;
        let lists = format!(r#"crl: "file:internal-ca.crl", stale_crl: {word}, server_name"#);
        let policy = policy(&upstream).replace(TLS, &TLS.replace("server_name", &lists));
        let gateway = serve(folder.path(), &policy).await;
        assert_eq!((connection(&gateway).await.is_some(), upstream.seen() > 0), (served, served), "{word}");
        // A list of now mends it.
        crl::revoke(&at("internal-ca.crl"), &ca, &[], Reason::Unspecified, Duration::days(1)).unwrap();
        until("a fresh list", async || connection(&gateway).await.is_some()).await;
    }
}

#[tokio::test]
async fn names_choose_certificates_and_each_is_renewed_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    issue(folder.path(), "edge-ca", "shop", &["shop.test", "also.shop.test"]);
    let wild = issue(folder.path(), "edge-ca", "wild", &["*.wild.test"]);
    let upstream = Recorder::start(folder.path(), "u").await;
    let tls = r#"{ certificate: "file:edge.pem", key: "file:edge.key", ca: "file:edge-ca.pem", certificates: [
        { certificate: "file:shop.pem", key: "file:shop.key" },
        { certificate: "file:wild.pem", key: "file:wild.key", server_names: ["*.wild.test"] } ] }"#;
    let gateway = serve_on(folder.path(), tls, &policy(&upstream)).await;
    let subject = async |name: &str| gateway.shown(folder.path(), name).await.map(|facts| facts.subject);
    for (name, expected) in [
        ("localhost", "CN=edge.torana.test"),
        ("shop.test", "CN=shop"),
        ("also.shop.test", "CN=shop"),
        ("x.wild.test", "CN=wild"),
    ] {
        assert_eq!(subject(name).await.unwrap(), expected, "{name}");
    }
    assert!(subject("other.test").await.is_err(), "the default does not bear that name");

    let serial = issue(folder.path(), "edge-ca", "shop", &["also.shop.test", "shop.test", "more.shop.test"]);
    until("the shop's new certificate", async || {
        gateway.shown(folder.path(), "shop.test").await.unwrap().serial_hex == serial
    })
    .await;
    assert_eq!(subject("more.shop.test").await.unwrap(), "CN=shop", "its new name is served too");
    assert_eq!(gateway.shown(folder.path(), "x.wild.test").await.unwrap().serial_hex, wild);

    // Of a CA that the listener's certificates need not come from.
    issue(folder.path(), "partner-ca", "shop", &["also.shop.test", "shop.test", "more.shop.test"]);
    let line = r#"cert_reload_failures_total{name="listener/edge/1",reason="untrusted"}"#;
    until("another CA's certificate is refused", async || gateway.metric(line).await == 1.0).await;
    assert_eq!(gateway.shown(folder.path(), "shop.test").await.unwrap().serial_hex, serial);
}

#[tokio::test]
async fn a_stale_list_refuses_those_with_certificates_and_nobody_else() {
    for (word, let_in) in [("refuse", false), ("allow", true)] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        pki(folder.path());
        let ca = Authority::load(&at("partner-ca.pem"), &at("partner-ca.key")).unwrap();
        crl::revoke(&at("partner-ca.crl"), &ca, &[], Reason::Unspecified, Duration::minutes(-1)).unwrap();
        let upstream = Recorder::start(folder.path(), "u").await;
        let tls = format!(
            r#"{{ certificate: "file:edge.pem", key: "file:edge.key", client_certificates: {{
                ca: "file:partner-ca.pem", crl: "file:partner-ca.crl", stale_crl: {word} }} }}"#
        );
        let gateway = serve_on(folder.path(), &tls, &policy(&upstream)).await;
        assert!(connection(&gateway).await.is_some(), "without a certificate");
        let partner = client(folder.path(), Some("partner"));
        let answer = partner.get(format!("{}/things", gateway.url)).send().await;
        assert_eq!(answer.is_ok(), let_in, "{word}: {answer:?}");
        assert!(
            gateway.metric(r#"certs_expiry_seconds{kind="crl",name="listener/edge/clients"}"#).await < 0.0
        );
        // A list of now mends it.
        crl::revoke(&at("partner-ca.crl"), &ca, &[], Reason::Unspecified, Duration::days(1)).unwrap();
        until("a fresh list", async || {
            client(folder.path(), Some("partner")).get(format!("{}/things", gateway.url)).send().await.is_ok()
        })
        .await;
    }
}

impl Gateway {
    /// The certificate that whoever asks for this name is shown, and believes.
    async fn shown(&self, folder: &Path, name: &str) -> anyhow::Result<Facts> {
        let trust = certs::Trust::load(&folder.join("edge-ca.pem"))?;
        let tls = certs::client_config(&trust, None, certs::Versions::Tls12And13)?;
        let address = self.url.replace("https://localhost", "127.0.0.1");
        let stream = tokio::net::TcpStream::connect(address).await?;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
        let stream = connector.connect(name.to_owned().try_into()?, stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Facts::from_der(&chain[0]).map_err(anyhow::Error::msg)
    }
}

/// Of an API key it is told which one is held, since when and until when, and no more of its hash than tells that.
#[tokio::test]
async fn what_is_held_of_clients_is_told() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await;
    let (first, second) = ("2c26b46b".to_owned() + &"0".repeat(56), "fcde2b2e".to_owned() + &"1".repeat(56));
    let clients = |second: &str| {
        format!(
            "clients:\n  kiosk:\n    hmac_keys: [{{ id: kiosk-1, secret: \"env:ACME_SECRET\" }}]\n    api_keys:\n      \
             - {{ id: kiosk-1, sha256: {first}, not_after: 2999-06-30T00:00:00Z }}\n      \
             - {{ id: kiosk-2, sha256: {second}, not_before: 2999-06-01T00:00:00Z }}\n\
             filters: {{}}{}",
            policy(&upstream)
        )
    };
    let gateway = serve(folder.path(), &clients(&second)).await;
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let told = async || {
        let answer = plain.get(format!("{}/certificates", gateway.admin)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        assert!(!text.contains(&"0".repeat(20)) && !text.contains(&"1".repeat(20)), "{text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["keys"].clone()
    };
    let keys = told().await;
    let of = |keys: &serde_json::Value, field: &str| -> Vec<String> {
        keys.as_array().unwrap().iter().map(|key| key[field].as_str().unwrap_or("-").to_owned()).collect()
    };
    assert_eq!(of(&keys, "kind"), ["hmac", "api_key", "api_key"]);
    assert_eq!(of(&keys, "owner"), ["kiosk"; 3]);
    assert_eq!(of(&keys, "id"), ["kiosk-1", "kiosk-1 (sha256 2c26b46b)", "kiosk-2 (sha256 fcde2b2e)"]);
    assert_eq!(of(&keys, "not_before"), ["-", "-", "2999-06-01T00:00:00Z"]);
    assert_eq!(of(&keys, "not_after"), ["-", "2999-06-30T00:00:00Z", "-"]);
    assert_eq!(of(&keys, "next_rotation"), ["-", "2999-06-01T00:00:00Z", "-"]);

    // With another policy the one that stays is as old as it was, and the one that is another is new.
    let next = gateway.head.clone() + &clients(&second.replace("fcde", "abcd"));
    std::fs::write(folder.path().join("edge.yaml"), next).unwrap();
    until("the other policy serves", async || of(&told().await, "id")[2] == "kiosk-2 (sha256 abcd2b2e)")
        .await;
    let (before, after) = (of(&keys, "first_seen"), of(&told().await, "first_seen"));
    assert_eq!(after[..2], before[..2]);
    assert_ne!(after[2], before[2]);
}
