//! Another policy takes over from the one that a state service runs with: whole, at once, and only if it can be served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use filters::policy::{FlagFile, Issuer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::running::{LOG, SECRET, audited, pki, until};

/// A state service on a socket, which is told the clients' secrets.
struct State {
    child: Child,
    folder: TempDir,
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    etag: String,
    body: Value,
    text: String,
}

fn jwks(kid: &str) -> Value {
    json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    }] })
}

/// An issuer whose keys are in a file that is called like its first key.
fn issuer(kid: &str) -> Value {
    json!({
        "issuer": format!("https://{kid}"), "audiences": ["a"], "algorithms": ["ES256"],
        "jwks": { "file": format!("file:{kid}.json"), "unknown_kid_refresh_s": 3_600 },
    })
}

/// One whose keys nobody can fetch.
fn away() -> Value {
    json!({
        "issuer": "https://away", "audiences": ["a"], "algorithms": ["ES256"],
        "jwks": { "url": "https://127.0.0.1:1/keys" },
    })
}

fn known_as(issuer: &Value) -> String {
    serde_json::from_value::<Issuer>(issuer.clone()).unwrap().known_as()
}

/// A policy with these parts on top of what every policy needs.
fn policy(parts: &Value) -> Value {
    let tls = json!({
        "server_name": "txn-core.torana.internal", "ca": "file:internal-ca.pem",
        "certificate": "file:gateway.pem", "key": "file:gateway.key",
    });
    let mut policy = json!({
        "listeners": [{
            "name": "edge", "address": "127.0.0.1:1",
            "tls": { "certificate": "file:edge.pem", "key": "file:edge.key" },
        }],
        "admin": { "address": "127.0.0.1:2" },
        "state": { "service": { "socket": "state.sock" } },
        "upstreams": { "u": { "addresses": ["127.0.0.1:3"], "tls": tls } },
        "routes": [{ "name": "r", "methods": ["GET"], "path": "/", "upstream": "u" }],
    });
    for (name, part) in parts.as_object().unwrap() {
        policy[name] = part.clone();
    }
    policy
}

/// With everybody's certificates.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    folder
}

impl State {
    /// Starts one, and waits until it is ready.
    async fn start(folder: TempDir, parts: &Value) -> Self {
        for kid in ["one", "two"] {
            std::fs::write(folder.path().join(format!("{kid}.json")), jwks(kid).to_string()).unwrap();
        }
        for name in ["acme", "late"] {
            certs::file::write_secret(&folder.path().join(format!("{name}.key")), SECRET).unwrap();
        }
        std::fs::write(folder.path().join("state.yaml"), policy(parts).to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .args(["state", "state.yaml"])
            .current_dir(folder.path())
            .stdout(std::fs::File::create(folder.path().join(LOG)).unwrap())
            .spawn()
            .unwrap();
        let state = Self { child, folder };
        until("the state service is ready", async || {
            UnixStream::connect(state.socket()).await.is_ok() && state.get("/readiness").await.status == 200
        })
        .await;
        state
    }

    fn socket(&self) -> PathBuf {
        self.path("state.sock")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn change(&self, text: &str) {
        std::fs::write(self.path("state.yaml.new"), text).unwrap();
        std::fs::rename(self.path("state.yaml.new"), self.path("state.yaml")).unwrap();
    }

    async fn get(&self, path: &str) -> Answer {
        ask(&self.socket(), "GET", path, "", "").await
    }

    async fn taken(&self, reloads: u64) {
        until("the policy takes over", async || self.get("/config").await.body["reloads"] == reloads).await;
    }

    /// Waits until the policy is refused for that.
    async fn refused(&self, why: &str) {
        let mut last = String::new();
        for _ in 0..400 {
            last = self.get("/config").await.body["refused"].to_string();
            if last.contains(why) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("refused for {last}, not for {why}");
    }

    /// The id of the key that is told of each issuer, by what it is known as.
    async fn kids(&self) -> BTreeMap<String, String> {
        let told = self.get("/v1/keys").await.body;
        let told = told["issuers"].as_object().unwrap().iter();
        told.map(|(known_as, jwks)| {
            (known_as.clone(), jwks["jwks"]["keys"][0]["kid"].as_str().unwrap().to_owned())
        })
        .collect()
    }
}

async fn ask(socket: &Path, method: &str, path: &str, etag: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-none-match: {etag}\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap_or_default().to_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, etag, body: serde_json::from_str(text).unwrap_or_default(), text: text.to_owned() }
}

#[tokio::test]
async fn everything_of_another_policy_counts_at_once() {
    let folder = folder();
    let flags = |default: &str| {
        json!({ "flags": { "open": {
            "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": default,
        } } })
    };
    std::fs::write(folder.path().join("first.json"), flags("off").to_string()).unwrap();
    std::fs::write(folder.path().join("second.json"), flags("on").to_string()).unwrap();
    let client = |name: &str| json!({ "hmac_keys": [{ "id": format!("{name}-1"), "secret": format!("file:{name}.key") }] });
    let parts = |issuers: Value, clients: Value, tenants: Value, flags: &str| {
        json!({
            "issuers": issuers, "clients": clients, "tenants": tenants,
            "flags": { "file": format!("file:{flags}.json") },
        })
    };
    let flags_known_as = |name: &str| {
        let file = json!({ "file": format!("file:{name}.json") });
        format!("/v1/flags/{}", serde_json::from_value::<FlagFile>(file).unwrap().known_as())
    };
    let first =
        parts(json!({ "main": issuer("one") }), json!({ "acme": client("acme") }), json!({}), "first");
    let state = State::start(folder, &first).await;
    assert_eq!(state.kids().await, BTreeMap::from([(known_as(&issuer("one")), "one".to_owned())]));
    let secrets = state.get("/v1/client-keys").await;
    assert_eq!(secrets.body["secrets"].as_object().unwrap().len(), 1);
    let unchanged = ask(&state.socket(), "GET", "/v1/client-keys", &secrets.etag, "").await;
    assert_eq!(unchanged.status, 304);
    assert_eq!(state.get(&flags_known_as("first")).await.body, flags("off"));
    assert_eq!(state.get(&flags_known_as("second")).await.status, 404);

    // The name of one issuer is another one's now, who is known as another still.
    let issuers = json!({ "main": issuer("two"), "renamed": issuer("one") });
    let clients = json!({ "acme": client("acme"), "late": client("late") });
    state.change(&policy(&parts(issuers, clients, json!({ "globex": {} }), "second")).to_string());
    state.taken(1).await;
    let both = ["one", "two"].map(|kid| (known_as(&issuer(kid)), kid.to_owned()));
    assert_eq!(state.kids().await, BTreeMap::from(both));
    let more = ask(&state.socket(), "GET", "/v1/client-keys", &secrets.etag, "").await;
    assert_eq!((more.status, more.body["secrets"].as_object().unwrap().len()), (200, 2));
    assert!(state.get("/usage").await.body["tenants"]["globex"].is_object());
    assert_eq!(state.get(&flags_known_as("second")).await.body, flags("on"));
    assert_eq!(state.get(&flags_known_as("first")).await.status, 404, "another policy's file");
    let open = &state.get("/flags").await.body["flags"]["open"];
    assert_eq!((&open["defaultVariant"], open.get("said")), (&json!("on"), None), "Envoy counts");
    let certificates = state.get("/certificates").await.text;
    assert!(certificates.contains("late-1") && certificates.contains("renamed"), "{certificates}");
    let metrics = state.get("/metrics").await.text;
    assert!(metrics.contains(r#"gateway_policy_reloads_total{outcome="taken"} 1"#), "{metrics}");
}

/// Flags of a policy that is refused were never in use, and those of one that has none are in use no more.
#[tokio::test]
async fn what_another_policy_changes_of_flags_is_told_when_it_takes_over() {
    let folder = folder();
    for name in ["first", "second"] {
        let flag = json!({ "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" });
        let flags = json!({ "flags": { name: flag } });
        std::fs::write(folder.path().join(format!("{name}.json")), flags.to_string()).unwrap();
    }
    let of = |name: &str| json!({ "file": format!("file:{name}.json") });
    let state = State::start(folder, &json!({ "flags": of("first") })).await;
    let told = || {
        let lines = audited(state.folder.path()).into_iter();
        lines.map(|line| format!("{} {}", line["message"], line["flag"])).collect::<Vec<_>>()
    };
    let mut expected = vec![r#""flags in use" null"#];
    until("the flags are told", async || told() == expected).await;
    let refused = json!({ "flags": of("second"), "issuers": { "main": away() } });
    state.change(&policy(&refused).to_string());
    state.refused("issuer `main` has no keys").await;
    assert_eq!(told(), expected);
    for (parts, reloads, changes) in [
        (json!({}), 1, &[r#""flag removed" "first""#][..]),
        (json!({ "flags": of("second") }), 2, &[r#""flag added" "second""#]),
    ] {
        state.change(&policy(&parts).to_string());
        state.taken(reloads).await;
        expected.extend(changes);
        until("what it changes is told", async || told().len() >= expected.len()).await;
        assert_eq!(told(), expected);
    }
}

/// What is remembered is nobody's policy's.
#[tokio::test]
async fn what_is_remembered_stays() {
    let state = State::start(folder(), &json!({})).await;
    let made_s = time::OffsetDateTime::now_utc().unix_timestamp() + 2;
    let nonce = json!([{ "remember": { "key": "n", "ttl_ms": 600_000, "made_s": made_s, "ahead_s": 0 } }])
        .to_string();
    let remember = async || ask(&state.socket(), "POST", "/v1/state", "", &nonce).await.text;
    assert_eq!(remember().await, r#"["remembered"]"#);
    let revoked = Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["revoke", "state.yaml", "--user", "u-1", "--tenant", "acme"])
        .current_dir(state.folder.path())
        .output()
        .unwrap();
    let listed = async || state.get("/revocations").await.text.contains("u-1");
    assert!(listed().await, "{revoked:?}");
    state.change(&policy(&json!({ "tenants": { "globex": {} } })).to_string());
    state.taken(1).await;
    assert_eq!(remember().await, r#"["seen"]"#);
    assert!(listed().await);
}

#[tokio::test]
async fn a_policy_that_cannot_be_served_changes_nothing() {
    let state = State::start(folder(), &json!({ "issuers": { "main": issuer("one") } })).await;
    let config = state.get("/config").await.body;
    assert_eq!((&config["routes"], &config["file"]), (&json!(["r"]), &json!("state.yaml")));
    let with = |parts: Value| policy(&parts).to_string();
    let admin = json!({ "issuers": { "main": issuer("one") }, "admin": { "address": "127.0.0.1:9" } });
    let elsewhere =
        json!({ "issuers": { "main": issuer("one") }, "state": { "service": { "socket": "other.sock" } } });
    for (text, why) in [
        ("listeners: [".to_owned(), "state.yaml:"),
        (with(json!({ "isuers": {} })), "isuers"),
        (with(json!({ "issuers": { "main": away() } })), "issuer `main` has no keys"),
        (with(json!({ "issuers": { "main": issuer("three") } })), "issuer `main`: cannot read three.json: "),
        (
            with(json!({ "clients": { "a": { "hmac_keys": [{ "id": "a-1", "secret": "file:gone" }] } } })),
            "gone",
        ),
        (with(admin), "`admin` cannot change while the state service runs: restart it"),
        (with(elsewhere), "`state` cannot change while the state service runs: restart it"),
    ] {
        state.change(&text);
        state.refused(why).await;
        let now = state.get("/config").await.body;
        assert_eq!((&now["version"], &now["reloads"]), (&config["version"], &json!(0)), "{why}");
        assert_eq!(state.kids().await.into_values().collect::<Vec<_>>(), ["one"], "{why}");
        assert!(state.get("/metrics").await.text.contains("gateway_policy_refused 1"), "{why}");
    }
    state.change(&with(json!({ "issuers": { "main": issuer("one") } })));
    until("all is well again", async || state.get("/config").await.body["refused"].is_null()).await;
    assert_eq!(state.get("/config").await.body["reloads"], 0);
}

/// What the file names has changed, the file has not: SIGHUP reads everything again.
#[tokio::test]
async fn sighup_reads_the_policy_again() {
    let state = State::start(folder(), &json!({})).await;
    let pid = state.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    state.taken(1).await;
}

/// A question under way is answered as the policy says that it was asked under.
#[tokio::test]
async fn a_question_under_way_stays_with_its_policy() {
    let folder = folder();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/ask", listener.local_addr().unwrap().port());
    let at = |name: &str| folder.path().join(name);
    let identity = certs::Identity::load(&at("edge.pem"), &at("edge.key")).unwrap();
    let tls =
        certs::server_config(&identity, certs::ClientAuth::Off, certs::Versions::Tls13Only, &[b"http/1.1"])
            .unwrap();
    let (arrived, answer) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (came, goes) = (Arc::clone(&arrived), Arc::clone(&answer));
    let app = Router::new().route(
        "/ask",
        post(async move || {
            came.notify_one();
            goes.notified().await;
            Json(json!({ "active": true, "sub": "u-1" }))
        }),
    );
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    certs::file::write_secret(&at("asked.secret"), "secret").unwrap();
    let asked = json!({
        "issuer": "https://asked", "audiences": ["a"],
        "introspection": {
            "url": url, "ca": "file:edge-ca.pem", "client_id": "edge", "client_secret": "file:asked.secret",
            "timeout_ms": 60_000,
        },
    });
    let state = State::start(folder, &json!({ "issuers": { "main": asked } })).await;
    let question = json!({ "issuer": known_as(&asked), "token": "opaque" }).to_string();
    let socket = state.socket();
    let under_way = tokio::spawn({
        let question = question.clone();
        async move { ask(&socket, "POST", "/v1/introspect", "", &question).await }
    });
    arrived.notified().await;
    state.change(&policy(&json!({ "issuers": { "main": issuer("one") } })).to_string());
    state.taken(1).await;
    let nobody = ask(&state.socket(), "POST", "/v1/introspect", "", &question).await;
    assert_eq!((nobody.status, &nobody.body["code"]), (503, &json!("introspection_unavailable")));
    answer.notify_one();
    let told = under_way.await.unwrap();
    assert_eq!(told.status, 200);
    assert!(told.body["claims"].as_str().unwrap().contains("u-1"), "{told:?}");
}
