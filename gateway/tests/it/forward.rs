//! What an upstream gets to see: a recording one, behind a real gateway.

use std::collections::BTreeMap;
use std::path::Path;

use crate::running::{Gateway, Recorder, SECRET, TLS, pki, serve};

async fn start(folder: &Path) -> Gateway {
    pki(folder);
    let upstream = Recorder::start(folder, "recorder").await.port;
    let policy = format!(
        r#"
upstreams:
  recorder: {{ addresses: ["127.0.0.1:{upstream}"], tls: {TLS} }}
clients:
  acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }}
filters: {{ headers: {{}} }}
routes:
  - {{ name: open, methods: [GET, POST], path: "/open/{{*rest}}", upstream: recorder }}
  - name: signed
    methods: [POST]
    path: /signed
    upstream: recorder
    filters: {{ signature: {{ signer: client }}, nonce: {{ max_skew_s: 0 }} }}
"#
    );
    serve(folder, &policy).await
}

#[tokio::test]
async fn the_upstream_sees_the_edges_word_and_never_a_clients() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path()).await;
    let (url, http) = (&gateway.url, &gateway.http);

    let forged = [
        "forwarded",
        "x-client-cert",
        "x-forwarded-client-cert",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-original-url",
        "x-real-ip",
        "x-rewrite-url",
        "x-tenant-id",
        "x-user-id",
        "x-torana-subject",
        "x-torana-tenant",
        "x-torana-vpa",
        "x-torana-device",
        "x-torana-anything",
        "authorization",
    ];
    let mut request = http.post(format!("{url}/open/a?b=c%20d")).body("the body");
    for name in forged {
        request = request.header(name, "forged");
    }
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-request-id"] {
        request = request.header(name, "forged");
    }
    let response = request.header("x-harmless", "kept").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let seen: BTreeMap<String, String> = response.json().await.unwrap();
    for name in forged {
        assert!(!seen.contains_key(name), "{name} came through: {seen:?}");
    }
    for (name, expected) in [
        (":path", "/open/a?b=c%20d"),
        (":body", "the body"),
        ("x-harmless", "kept"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", &request_id),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(expected), "{name}");
    }
    assert!(seen["traceparent"].starts_with("00-"), "{seen:?}");
}

#[tokio::test]
async fn a_partner_signs_with_its_own_key() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path()).await;
    engines::next_second().await;
    for (secret, keyid, nonce, expected) in [
        (SECRET, "acme-1", "nonce-0123456789-a", (200, "")),
        (SECRET, "acme-1", "nonce-0123456789-a", (401, "nonce_replayed")),
        (SECRET, "acme-2", "nonce-0123456789-b", (401, "signature_key_unknown")),
        ("another secret, also of 32 bytes", "acme-1", "nonce-0123456789-c", (401, "signature_invalid")),
    ] {
        let (status, code) = gateway.send_signed("/signed", (keyid, secret), nonce).await;
        assert_eq!((status, code.as_str()), expected, "{keyid} {nonce}");
    }
}
