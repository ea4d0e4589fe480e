//! A gateway and a state service on a real Redis: what `/readiness` says while Redis is impaired, and a password that is
//! rotated.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::running::{Gateway, LOG, Recorder, SECRET, TLS, free_port, pki, serve, until};

/// One route needs a nonce, the other does not.
async fn policy(folder: &Path, state: &str) -> String {
    let port = Recorder::start(folder, "u").await.port;
    format!(
        r#"
state: {{ redis: {{ url: "file:redis.url", timeout_ms: 2000 }}{state} }}
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], tls: {TLS} }} }}
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
routes:
  - {{ name: open, methods: [GET], path: /open, upstream: u }}
  - name: signed
    methods: [POST]
    path: /signed
    upstream: u
    filters: {{ signature: {{ signer: client }}, nonce: {{ max_skew_s: 0 }} }}
"#
    )
}

fn write_url(folder: &Path, url: &str) {
    certs::file::write_secret(&folder.join("redis.url"), url).unwrap();
}

async fn readiness(url: &str) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    match http.get(format!("{url}/readiness")).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap()),
        Err(_) => (0, Value::Null),
    }
}

/// Signed requests, each with a nonce of its own.
struct Signed<'g> {
    gateway: &'g Gateway,
    sent: std::sync::atomic::AtomicUsize,
}

impl<'g> Signed<'g> {
    fn at(gateway: &'g Gateway) -> Self {
        Self { gateway, sent: Default::default() }
    }

    async fn send(&self) -> (u16, String) {
        let number = self.sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let nonce = format!("nonce-0123456789-{number}");
        self.gateway.send_signed("/signed", ("acme-1", SECRET), &nonce).await
    }
}

/// Ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether each fault of Redis is told of, by whoever is ready, and whether it takes that out.
async fn faults_are_told(admin: &str, redis: &mut engines::Redis, takes_out: bool) {
    let expected = if takes_out { 503 } else { 200 };
    until("ready", async || readiness(admin).await.0 == 200).await;
    assert_eq!(readiness(admin).await.1["refused"], json!([]));

    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await.unwrap();
    let cause = "Redis may evict nonces: maxmemory-policy is allkeys-lru: set it to noeviction";
    let nonces = json!([{ "what": "nonces", "cause": cause, "routes": ["signed"] }]);
    until("told of eviction", async || {
        let (status, told) = readiness(admin).await;
        status == expected && told["refused"] == nonces
    })
    .await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await.unwrap();
    until("well again", async || readiness(admin).await.1["refused"] == json!([])).await;

    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    until("told of a full Redis", async || {
        let (status, told) = readiness(admin).await;
        status == expected
            && told["refused"][0]["cause"].as_str().is_some_and(|why| why.contains("full: OOM"))
    })
    .await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    until("well again", async || readiness(admin).await.1["refused"] == json!([])).await;

    redis.stop().await.unwrap();
    until("told of an outage", async || {
        let (status, told) = readiness(admin).await;
        let refused = &told["refused"];
        status == expected
            && refused[0]["what"] == "nonces"
            && refused[0]["cause"].as_str().is_some_and(|why| why.contains("Connection refused"))
            && refused[1]["what"] == "revoking"
    })
    .await;
    redis.resume().await.unwrap();
    until("nothing is refused", async || readiness(admin).await.1["refused"] == json!([])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_says_what_redis_makes_it_refuse() {
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let mut redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    write_url(folder.path(), &redis.url());
    for (field, takes_out) in [("", false), (", readiness_when_away: not_ready", true)] {
        let gateway = serve(folder.path(), &policy(folder.path(), field).await).await;
        faults_are_told(&gateway.admin, &mut redis, takes_out).await;

        let place = free_port();
        let service = format!("{field}, service: {{ address: \"127.0.0.1:{place}\" }}");
        let text = format!("{}{}", gateway.head, policy(folder.path(), &service).await);
        std::fs::write(folder.path().join("state.yaml"), text).unwrap();
        let service = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .args(["state", "state.yaml"])
            .current_dir(folder.path())
            .env("ACME_SECRET", SECRET)
            .stdout(Stdio::null())
            .spawn();
        let _service = Service(service.unwrap());
        faults_are_told(&format!("http://127.0.0.1:{place}"), &mut redis, takes_out).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonces_are_refused_by_the_gateway_while_redis_may_evict_them() {
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    write_url(folder.path(), &redis.url());
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await.unwrap();
    let gateway = serve(folder.path(), &policy(folder.path(), "").await).await;
    let signed = Signed::at(&gateway);
    let impaired = "gateway_redis_impaired{cause=\"eviction_policy\"}";
    until("it is known", async || gateway.metric(impaired).await > 0.0).await;
    for _ in 0..5 {
        assert_eq!(signed.send().await.0, 503);
    }
    assert_eq!(gateway.get("/open", &[]).await.0, 200);
    let log = std::fs::read_to_string(folder.path().join(LOG)).unwrap();
    let told = "maxmemory-policy is allkeys-lru: set it to noeviction";
    assert_eq!(log.lines().filter(|line| line.contains(told)).count(), 1, "{log}");
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await.unwrap();
    until("signed requests pass", async || signed.send().await.0 == 200).await;
    assert_eq!(gateway.metric(impaired).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_loses_no_request() {
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let user = ["--user", "edge", "on", ">one", "~*", "+@all"];
    let redis = engines::Redis::start_with(redis_folder.path(), &user).await.unwrap();
    let url = |password: &str| format!("redis://edge:{password}@{}/0", redis.address());
    write_url(folder.path(), &url("one"));
    let gateway = serve(folder.path(), &policy(folder.path(), "").await).await;
    let signed = Signed::at(&gateway);
    until("signed requests pass", async || signed.send().await.0 == 200).await;
    let connections = async || -> Vec<String> {
        let list: String = redis.ask(&["CLIENT", "LIST"]).await.unwrap();
        let ours = list.lines().filter(|line| line.contains("user=edge "));
        ours.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let mut before = connections().await;
    for (password, hang_up) in [("two", false), ("three", true)] {
        let _: String =
            redis.ask(&["ACL", "SETUSER", "edge", "resetpass", &format!(">{password}")]).await.unwrap();
        write_url(folder.path(), &url(password));
        if hang_up {
            let signal = Command::new("kill").args(["-HUP", &gateway.child.id().to_string()]).status();
            assert!(signal.unwrap().success());
        }
        let mut answers = Vec::new();
        until(password, async || {
            answers.push(signed.send().await);
            let now = connections().await;
            !now.is_empty() && now.iter().all(|connection| !before.contains(connection))
        })
        .await;
        assert!(answers.iter().all(|(status, _)| *status == 200), "{password}: {answers:?}");
        before = connections().await;
    }
    // The old connection is gone: what serves has the new password.
    assert_eq!(signed.send().await.0, 200);
}

/// Until the list of revoked tokens was read once, every token is refused, on every route.
#[tokio::test]
async fn a_redis_that_was_never_there_refuses_tokens() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    write_url(folder.path(), "redis://127.0.0.1:1/0");
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:1"], tls: {TLS} }} }}
state: {{ redis: {{ url: "file:redis.url", timeout_ms: 200 }} }}
routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    let told = async || {
        let (status, told) = readiness(&gateway.admin).await;
        let tokens = told["refused"].as_array()?.iter().find(|refused| refused["what"] == "tokens")?.clone();
        Some((status, tokens["cause"].as_str()?.to_owned()))
    };
    until("told of tokens", async || {
        told().await.is_some_and(|(status, cause)| status == 503 && cause.contains("Connection refused"))
    })
    .await;
}
