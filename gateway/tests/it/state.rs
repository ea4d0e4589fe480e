//! `gateway state` over the wire: what Envoy's workers ask of it, and what it refuses.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::running::{SECRET, TLS, free_port, pki, revoke, until};

/// A state service that is killed when the test ends.
struct State(Child);

impl Drop for State {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn start(folder: &Path, service: &str, max_entries: usize) -> State {
    std::fs::write(folder.join("jwks.json"), JWKS).unwrap();
    let policy = format!(
        r#"
listeners:
  - {{ name: edge, address: "127.0.0.1:1", tls: {{ certificate: "file:edge.pem", key: "file:edge.key" }} }}
admin: {{ address: "127.0.0.1:2" }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:3"], tls: {TLS} }} }}
issuers: {{ main: {{ issuer: "https://i", audiences: [a], algorithms: [ES256], jwks: {{ file: "file:jwks.json", unknown_kid_refresh_s: 3600 }} }} }}
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
state: {{ memory: {{ max_entries: {max_entries} }}, service: {service} }}
routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]
"#
    );
    std::fs::write(folder.join("state.yaml"), policy).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["state", "state.yaml"])
        .current_dir(folder)
        .env("ACME_SECRET", SECRET)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    State(child)
}

fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn remember(key: &str, made_s: i64) -> Value {
    json!({ "remember": { "key": key, "ttl_ms": 60_000, "made_s": made_s, "ahead_s": 0 } })
}

/// The status and the body of `POST /v1/state`.
async fn ask(http: &reqwest::Client, url: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let answer = http.post(format!("{url}/v1/state")).body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn until_ready(http: &reqwest::Client, url: &str) {
    until("the state service is ready", async || {
        matches!(http.get(format!("{url}/readiness")).send().await, Ok(answer) if answer.status() == 200)
    })
    .await;
}

/// A state service on loopback, ready.
struct Plain {
    http: reqwest::Client,
    url: String,
    _state: State,
    folder: tempfile::TempDir,
}

impl Plain {
    async fn start(max_entries: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki(folder.path());
        let port = free_port();
        let state = start(folder.path(), &format!("{{ address: \"127.0.0.1:{port}\" }}"), max_entries);
        let (http, url) =
            (reqwest::Client::builder().no_proxy().build().unwrap(), format!("http://127.0.0.1:{port}"));
        until_ready(&http, &url).await;
        Self { http, url, _state: state, folder }
    }
}

#[tokio::test]
async fn batches_run_whole_or_not_at_all_and_nonsense_is_refused() {
    let Plain { http, url, .. } = &Plain::start(4).await;
    let later = now_s() + 2;
    let take =
        json!({ "take": { "key": "t", "rate": { "requests": 1, "per_ms": 60_000, "burst": 1 }, "cost": 1 } });
    let hold = json!({ "hold": { "key": "h", "most": 1, "lease_ms": 60_000 } });
    for (batch, status, expected) in [
        (json!([]), 200, "[]"),
        (
            json!([take, remember("a", later)]),
            200,
            r#"[{"taken":{"remaining":0,"reset_ms":60000}},"remembered"]"#,
        ),
        (json!([remember("a", later)]), 200, r#"["seen"]"#),
        // Refused as a whole: `b` is not remembered.
        (json!([remember("b", later), take]), 200, "exhausted"),
        (json!([remember("b", later)]), 200, r#"["remembered"]"#),
        (json!([remember("old", now_s() - 3_600)]), 200, r#"["too_old"]"#),
        (json!([hold]), 200, "held"),
        (json!([hold]), 507, "state_full"),
        (json!([remember("d", later), remember("e", later)]), 507, "state_full"),
        (json!({}), 400, "batch_malformed"),
        (json!([{ "forget": { "key": "a" } }]), 400, "batch_malformed"),
        (
            json!([{ "take": { "key": "t", "rate": { "requests": 0, "per_ms": 1, "burst": 1 }, "cost": 1 } }]),
            400,
            "batch_malformed",
        ),
        (Value::Array((0..65).map(|n| remember(&n.to_string(), later)).collect()), 400, "batch_too_long"),
    ] {
        let (got, body) = ask(http, url, batch.to_string()).await;
        assert_eq!(got, status, "{batch}: {body}");
        assert!(body.to_string().contains(expected), "{batch}: {body}");
    }
    assert_eq!(ask(http, url, "not JSON").await.0, 400);
    // A page in a browser can have it sent, without being asked first.
    let of_page = http.post(format!("{url}/v1/state")).header("origin", "https://page.example");
    let of_page =
        of_page.header("content-type", "text/plain").body(json!([remember("page", later)]).to_string());
    assert_eq!(of_page.send().await.unwrap().status(), 403);
    let (_, remembered) = ask(http, url, json!([take]).to_string()).await;
    assert!(remembered.to_string().contains("exhausted"), "{remembered}");
    let large = http.post(format!("{url}/v1/state")).body("x".repeat(70_000)).send().await.unwrap();
    assert_eq!(large.status(), 413);
    let metrics = http.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("gateway_state_entries 4"), "{metrics}");
    assert!(metrics.contains(r#"gateway_state_batches_total{outcome="state_full"} 2"#), "{metrics}");
}

#[tokio::test]
async fn of_many_who_send_one_nonce_one_wins() {
    let Plain { http, url, .. } = &Plain::start(100).await;
    let batch = json!([remember("nonce", now_s() + 2)]).to_string();
    let mut asked = JoinSet::new();
    for _ in 0..64 {
        let (http, url, batch) = (http.clone(), url.clone(), batch.clone());
        asked.spawn(async move { ask(&http, &url, batch).await.1.to_string() });
    }
    let answers = asked.join_all().await;
    let won = answers.iter().filter(|answer| *answer == r#"["remembered"]"#).count();
    let lost = answers.iter().filter(|answer| *answer == r#"["seen"]"#).count();
    assert_eq!((won, lost), (1, 63));
}

#[tokio::test]
async fn keys_are_told_once_and_fetched_anew_at_a_bounded_rate() {
    let Plain { http, url, folder, .. } = &Plain::start(100).await;
    let told = http.get(format!("{url}/v1/keys")).send().await.unwrap();
    let tag = told.headers()["etag"].to_str().unwrap().to_owned();
    let keys: Value = told.json().await.unwrap();
    // By what the issuer is known as, not by the policy's name of it.
    let issuers = keys["issuers"].as_object().unwrap();
    let (known_as, published) = issuers.iter().next().unwrap();
    assert_eq!((issuers.len(), &published["jwks"]["keys"][0]["kid"]), (1, &json!("k1")));
    assert_ne!(known_as, "main");
    let again = http.get(format!("{url}/v1/keys")).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    let refresh = async |issuer: &str| {
        let answer =
            http.post(format!("{url}/v1/keys/refresh")).body(issuer.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, current) = refresh(known_as).await;
    assert_eq!((status, &current), (200, &keys), "the file is unchanged");
    // Another file, at once, so that no other reader sees half of it.
    let file = folder.path().join("jwks.json");
    std::fs::write(folder.path().join("next"), "none").unwrap();
    std::fs::rename(folder.path().join("next"), &file).unwrap();
    let mut waits = Vec::new();
    for _ in 0..2 {
        let (status, told) = refresh(known_as).await;
        assert_eq!((status, &told["issuers"]), (200, &keys["issuers"]), "the good keys serve");
        waits.push(told["retry_after_s"].as_u64().unwrap());
    }
    assert!(waits.iter().all(|wait| (3_500..=3_600).contains(wait)), "{waits:?}");
    for nobody in ["main", ""] {
        let (status, told) = refresh(nobody).await;
        assert_eq!((status, &told["code"]), (404, &json!("issuer_unknown")));
    }
}

#[tokio::test]
async fn off_loopback_clients_show_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let port = free_port();
    let service = format!(
        "{{ address: \"127.0.0.1:{port}\", tls: {{ certificate: \"file:txn-core.pem\", key: \"file:txn-core.key\", \
         client_ca: \"file:internal-ca.pem\", crl: \"file:internal-ca.crl\", \
         allowed_clients: [gateway.torana.internal], client: {TLS} }} }}"
    );
    let _state = start(folder.path(), &service, 100);
    let trust = certs::Trust::load(&folder.path().join("internal-ca.pem")).unwrap();
    let identity =
        certs::Identity::load(&folder.path().join("gateway.pem"), &folder.path().join("gateway.key"))
            .unwrap();
    // Of the same CA, and not Envoy's.
    let other =
        certs::Identity::load(&folder.path().join("txn-core.pem"), &folder.path().join("txn-core.key"))
            .unwrap();
    let client = |identity: Option<&certs::Identity>| {
        let tls = certs::client_config(&trust, identity, certs::Versions::Tls12And13).unwrap();
        let at = ([127, 0, 0, 1], port).into();
        let limits = certs::client::ClientLimits::default();
        certs::client::https_to(tls, limits, "txn-core.torana.internal", at).unwrap()
    };
    let url = format!("https://txn-core.torana.internal:{port}");
    let known = client(Some(&identity));
    until_ready(&known, &url).await;
    assert_eq!(ask(&known, &url, "[]").await.0, 200);
    assert!(client(None).get(format!("{url}/v1/keys")).send().await.is_err(), "a stranger was answered");
    let other = client(Some(&other));
    for (path, known_gets, other_gets) in [
        ("/v1/client-keys", 200, 403),
        ("/v1/keys", 200, 403),
        ("/certificates", 200, 403),
        ("/usage", 200, 403),
        ("/config", 200, 403),
        ("/health", 200, 200),
        ("/readiness", 200, 200),
        ("/metrics", 200, 200),
    ] {
        for (client, expected) in [(&known, known_gets), (&other, other_gets)] {
            let answer = client.get(format!("{url}{path}")).send().await.unwrap();
            assert_eq!(answer.status(), expected, "{path}");
        }
    }
    for (path, body) in [("/v1/state", "[]"), ("/v1/keys/refresh", "main")] {
        let answer = other.post(format!("{url}{path}")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        let told: Value = answer.json().await.unwrap();
        assert_eq!(told["code"], "client_not_allowed");
    }

    revoke(folder.path(), "internal-ca", "gateway");
    until("a revoked client is refused", async || {
        client(Some(&identity)).get(format!("{url}/health")).send().await.is_err()
    })
    .await;
    assert!(known.get(format!("{url}/health")).send().await.is_err(), "its connections are closed");
    assert_eq!(other.get(format!("{url}/health")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_socket_is_its_owners_alone_and_one_process_serves_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let path = folder.path().join("state.sock");
    let first = start(folder.path(), "{ socket: state.sock }", 100);
    until("the socket is there", async || UnixStream::connect(&path).await.is_ok()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // A second one does not take it over; one that a killed process left is replaced.
    let mut second = start(folder.path(), "{ socket: state.sock }", 100);
    assert!(!second.0.wait().unwrap().success());
    assert!(UnixStream::connect(&path).await.is_ok(), "the first one serves on");
    drop(first);
    assert!(path.exists(), "a killed process leaves its socket");
    let _third = start(folder.path(), "{ socket: state.sock }", 100);
    until("the socket is served again", async || UnixStream::connect(&path).await.is_ok()).await;
    std::fs::write(folder.path().join("file"), "").unwrap();
    let mut fourth = start(folder.path(), "{ socket: file }", 100);
    assert!(!fourth.0.wait().unwrap().success(), "a file that is no socket was replaced");
    tokio::time::sleep(Duration::from_millis(1)).await;
}
