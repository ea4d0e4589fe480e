//! Who receives the client's token.

use crate::running::issuer::Issuer;
use crate::running::{Recorder, TLS, pki, serve};

#[tokio::test]
async fn a_token_reaches_the_upstreams_that_ask_for_it() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let issuer = Issuer::new(folder.path());
    let port = Recorder::start(folder.path(), "recorder").await.port;
    let policy = format!(
        r#"
upstreams:
  verifies: {{ addresses: ["127.0.0.1:{port}"], tls: {TLS}, forward_authorization: true }}
  trusts: {{ addresses: ["127.0.0.1:{port}"], tls: {TLS} }}
issuers:
  main: {{ issuer: "https://i", audiences: [a], algorithms: [ES256], jwks: {{ file: "file:jwks.json" }} }}
filters: {{ jwt: {{ issuers: [main] }} }}
routes:
  - {{ name: verifies, methods: [GET], path: /verifies, upstream: verifies }}
  - {{ name: trusts, methods: [GET], path: /trusts, upstream: trusts }}
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    let token = issuer.bearer("user-1", "bank");
    for (path, expected) in [("/verifies", Some(token.as_str())), ("/trusts", None)] {
        let request = gateway.http.get(format!("{}{path}", gateway.url));
        let answer =
            request.header("authorization", &token).header("x-api-key", "forged").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let seen: std::collections::BTreeMap<String, String> = answer.json().await.unwrap();
        assert_eq!(seen.get("authorization").map(String::as_str), expected, "{path}");
        assert!(!seen.contains_key("x-api-key"), "{path}");
        assert_eq!(seen["x-torana-subject"], "user-1");
    }
}
