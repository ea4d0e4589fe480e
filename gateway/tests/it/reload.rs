//! Another policy takes over while requests flow: whole, at once, and only if it can be served.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::running::{Gateway, Recorder, TLS, client, free_port, pki, serve, under_load, until};

/// Which policy decides shows in what the upstream gets and in what the client is told.
fn policy(recorder: &Recorder, number: u32) -> String {
    format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }} }}
filters: {{ headers: {{ content_security_policy: "report-to p{number}" }} }}
routes:
  - {{ name: it, methods: [GET], path: /it, rewrite: /p{number}, upstream: u }}
  - {{ name: held, methods: [GET], path: "/held-by-{number}", rewrite: /held, upstream: u }}
"#,
        recorder.port
    )
}

async fn started(first: impl FnOnce(&Recorder) -> String) -> (TempDir, Recorder, Gateway) {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let recorder = Recorder::start(folder.path(), "u").await;
    let gateway = serve(folder.path(), &first(&recorder)).await;
    (folder, recorder, gateway)
}

async fn taken(gateway: &Gateway, reloads: u64) {
    until("the policy takes over", async || gateway.admin("/config").await["reloads"] == reloads).await;
}

/// Waits until the policy is refused, and tells why.
async fn refused(gateway: &Gateway) -> String {
    until("the policy is refused", async || !gateway.admin("/config").await["refused"].is_null()).await;
    gateway.admin("/config").await["refused"]["mistakes"].to_string()
}

/// Whether the whole of one policy decided, and which.
async fn decided(http: &reqwest::Client, url: &str) -> Result<u32, String> {
    let answer = http.get(format!("{url}/it")).send().await.map_err(|error| format!("{error:?}"))?;
    let told = answer.headers().get("content-security-policy").map(|csp| csp.to_str().unwrap().to_owned());
    let status = answer.status();
    let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
    let body: serde_json::Value = serde_json::from_str(&text).map_err(|_| format!("{status} {text}"))?;
    let path = body[":path"].as_str().ok_or(format!("{status} {text}"))?.to_owned();
    match told.as_deref().and_then(|told| told.strip_prefix("report-to ")) {
        Some(told) if path == format!("/{told}") => Ok(told[1..].parse().unwrap()),
        other => Err(format!("half of two policies: {other:?} and {path}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_policies_take_over_under_load_and_no_request_fails() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let url = gateway.url.clone();
    let ask = move |http| {
        let url = url.clone();
        async move { decided(&http, &url).await }
    };
    let seen = under_load(folder.path(), ask, async {
        for number in 1..=10 {
            gateway.change(folder.path(), &policy(&recorder, number));
            taken(&gateway, u64::from(number)).await;
        }
    })
    .await;
    let failed: Vec<_> = seen.iter().filter_map(|seen| seen.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), seen.len(), failed.first());
    let policies: BTreeSet<u32> = seen.iter().flatten().copied().collect();
    println!("{} requests, decided by {} policies, none failed", seen.len(), policies.len());
    assert_eq!(policies.len(), 11, "each decided something");
    assert_eq!(gateway.metric("gateway_policy_reloads_total{outcome=\"taken\"}").await, 10.0);
}

#[tokio::test]
async fn what_cannot_be_served_changes_nothing_and_says_why() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let good = policy(&recorder, 0);
    let issuer = format!(
        r#"issuers: {{ away: {{ issuer: "https://away.test", audiences: [a], algorithms: [ES256], jwks: {{ url: "https://localhost:{}/", ca: "file:internal-ca.pem" }} }} }}"#,
        free_port()
    );
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = occupied.local_addr().unwrap();
    let (name, tls) = ("listeners:\n", r#"{ certificate: "file:edge.pem", key: "file:edge.key" }"#);
    let taken_address = format!("{name}  - {{ name: taken, address: \"{occupied}\", tls: {tls} }}\n");
    let admin = format!("admin: {{ address: \"127.0.0.1:{}\" }}", free_port());
    let with = |from: &str, to: &str| format!("{}{good}", gateway.head).replace(from, to);
    let admin_line = gateway.head.lines().find(|line| line.starts_with("admin")).unwrap();
    let cases = [
        (with("routes:", "rotues:"), "did you mean `routes`"),
        (with("upstream: u", "upstream: v"), "there is no upstream `v`"),
        (with("file:gateway.key", "file:nobody.key"), "nobody.key"),
        (with("routes:", "state: { limits_when_away: refuse }\nroutes:"), "`state` cannot change while"),
        (with(admin_line, &admin), "`admin` cannot change while"),
        (with("routes:", &format!("{issuer}\nroutes:")), "issuer `away` has no keys"),
        (with(name, &taken_address), "Address already in use"),
        ("\u{0}".to_owned(), "edge.yaml"),
        (String::new(), "edge.yaml"),
    ];
    for (position, (bad, why)) in cases.iter().enumerate() {
        let counted = gateway.metric("gateway_policy_reloads_total{outcome=\"refused\"}").await;
        assert_eq!(counted, position as f64, "each is counted once, before {why}");
        gateway.replace(folder.path(), bad);
        let told = refused(&gateway).await;
        assert!(told.contains(why), "{why}: {told}");
        assert_eq!(gateway.metric("gateway_policy_refused").await, 1.0);
        assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(0), "after {why}");
        gateway.change(folder.path(), &good);
        until("it is what serves again", async || gateway.admin("/config").await["refused"].is_null()).await;
        assert_eq!(gateway.metric("gateway_policy_refused").await, 0.0);
    }
    std::fs::remove_file(folder.path().join("edge.yaml")).unwrap();
    assert!(refused(&gateway).await.contains("No such file"));
    gateway.change(folder.path(), &policy(&recorder, 1));
    taken(&gateway, 1).await;
    assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(1));
}

/// What was missing may come without the policy being written again.
#[tokio::test]
async fn what_is_refused_for_what_is_missing_is_tried_again() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let keys = folder.path().join("gateway.key");
    let wanted = policy(&recorder, 1).replace("file:gateway.key", "file:new.key");
    gateway.change(folder.path(), &wanted);
    assert!(refused(&gateway).await.contains("new.key"));
    std::fs::copy(&keys, folder.path().join("new.key")).unwrap();
    taken(&gateway, 1).await;
    assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(1));
}

/// The file has changed back, or what it names has: SIGHUP reads everything again at once.
#[tokio::test]
async fn sighup_reads_the_policy_again() {
    let (_folder, _recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    hang_up(&gateway);
    taken(&gateway, 1).await;
    assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(0));
}

fn hang_up(gateway: &Gateway) {
    let pid = gateway.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_request_under_way_stays_with_its_policy() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let held = tokio::spawn({
        let request = gateway.http.get(format!("{}/held-by-0", gateway.url)).send();
        async move { request.await.unwrap() }
    });
    until("it has arrived", async || recorder.seen() == 1).await;
    gateway.change(folder.path(), &policy(&recorder, 1));
    taken(&gateway, 1).await;
    assert_eq!(gateway.get("/held-by-0", &[]).await, (404, "route_not_found".to_owned()));
    recorder.release.notify_one();
    let answer = held.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-security-policy"], "report-to p0");
}

/// Another policy is no way to a full allowance.
#[tokio::test]
async fn what_is_remembered_outlives_the_policy() {
    let limited = |recorder: &Recorder, number| {
        let limit = "filters: { rate_limit: { limits: [{ name: one, by: ip, requests: 1, per_s: 3600 }] }";
        policy(recorder, number).replace("filters: {", &format!("{limit},"))
    };
    let (folder, recorder, gateway) = started(|recorder| limited(recorder, 0)).await;
    assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(0));
    assert_eq!(gateway.get("/it", &[]).await, (429, "rate_limited".to_owned()));
    gateway.change(folder.path(), &limited(&recorder, 1));
    taken(&gateway, 1).await;
    assert_eq!(gateway.get("/it", &[]).await, (429, "rate_limited".to_owned()));
}

#[tokio::test]
async fn listeners_come_and_go() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let other = free_port();
    let line = format!(
        "listeners:\n  - {{ name: other, address: \"127.0.0.1:{other}\", tls: {{ certificate: \"file:edge.pem\", \
         key: \"file:edge.key\" }} }}\n"
    );
    let both = format!("{}{}", gateway.head.replace("listeners:\n", &line), policy(&recorder, 1));
    gateway.replace(folder.path(), &both);
    taken(&gateway, 1).await;
    let url = format!("https://localhost:{other}");
    for url in [&gateway.url, &url] {
        assert_eq!(decided(&gateway.http, url).await, Ok(1));
    }
    gateway.change(folder.path(), &policy(&recorder, 2));
    taken(&gateway, 2).await;
    assert_eq!(decided(&gateway.http, &gateway.url).await, Ok(2));
    // Its open connection ends with the next answer, and there is no other.
    let last = gateway.http.get(format!("{url}/it")).send().await;
    assert!(last.is_err() || last.unwrap().headers().get("connection").is_some_and(|it| it == "close"));
    let nobody = client(folder.path(), None).get(format!("{url}/it")).send().await;
    assert!(nobody.unwrap_err().is_connect());
}

/// A listener that asks for certificates from now on has no use for connections without one.
#[tokio::test]
async fn a_listener_whose_clients_must_show_certificates_lets_the_others_go() {
    let (folder, recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let required =
        r#"key: "file:edge.key", client_certificates: { ca: "file:partner-ca.pem", required: true }"#;
    let asks = gateway.head.replace(r#"key: "file:edge.key""#, required);
    let anonymous = client(folder.path(), None);
    assert_eq!(decided(&anonymous, &gateway.url).await, Ok(0));
    gateway.replace(folder.path(), &format!("{asks}{}", policy(&recorder, 1)));
    taken(&gateway, 1).await;
    // At most one more answer on the connection that was open, and no other connection.
    let _ = decided(&anonymous, &gateway.url).await;
    until("nobody comes without one", async || decided(&anonymous, &gateway.url).await.is_err()).await;
    let partner = client(folder.path(), Some("partner"));
    assert_eq!(decided(&partner, &gateway.url).await, Ok(1));

    // And one whose CA is no longer believed loses its connection at once.
    let other = asks.replace("file:partner-ca.pem", "file:internal-ca.pem");
    gateway.replace(folder.path(), &format!("{other}{}", policy(&recorder, 2)));
    taken(&gateway, 2).await;
    assert!(decided(&partner, &gateway.url).await.is_err());
    let service = client(folder.path(), Some("gateway"));
    assert_eq!(decided(&service, &gateway.url).await, Ok(2));
}

/// What `check` would say, the gateway says too.
#[tokio::test]
async fn config_tells_what_serves() {
    let (folder, _recorder, gateway) = started(|recorder| policy(recorder, 0)).await;
    let config = gateway.admin("/config").await;
    let digest =
        std::process::Command::new("sha256sum").arg(folder.path().join("edge.yaml")).output().unwrap();
    let version = config["version"].as_str().unwrap();
    assert!(String::from_utf8(digest.stdout).unwrap().starts_with(version), "{version}");
    assert_eq!(config["routes"], serde_json::json!(["it", "held"]));
    assert_eq!(config["file"], "edge.yaml");
    assert!(config["warnings"].to_string().contains("anybody may call it"), "{config}");
    assert!(Path::new(config["file"].as_str().unwrap()).is_relative());
}

/// A window that grows must not let in what was taken, and forgotten, by the narrow one.
#[tokio::test]
async fn what_was_signed_before_a_window_grew_may_have_been_taken() {
    let signed = |recorder: &Recorder, number, window_s| {
        let client = "clients: { acme: { hmac_keys: [{ id: acme-1, secret: 'env:ACME_SECRET' }] } }";
        let route = format!(
            "  - {{ name: once, methods: [POST], path: /once, upstream: u, filters: {{ signature: {{ signer: client }}, \
             nonce: {{ window_s: {window_s}, max_skew_s: 0 }} }} }}"
        );
        format!("{client}{}{route}\n", policy(recorder, number))
    };
    let (folder, recorder, gateway) = started(|recorder| signed(recorder, 0, 5)).await;
    let key = ("acme-1", crate::running::SECRET);
    engines::next_second().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(gateway.send_signed_at("/once", key, "a-nonce-of-22-letters-1", now).await.0, 200);
    // Longer, and still so under the policy after that.
    for (number, window_s) in [(1, 300), (2, 300)] {
        gateway.change(folder.path(), &signed(&recorder, number, window_s));
        taken(&gateway, u64::from(number)).await;
        until("the narrow window is over", async || nanoseconds() / 1_000_000_000 > u128::from(now) + 5)
            .await;
        let too_old = (401, "created_before_start".to_owned());
        for nonce in ["a-nonce-of-22-letters-1", "a-nonce-of-22-letters-2"] {
            assert_eq!(gateway.send_signed_at("/once", key, nonce, now).await, too_old, "{nonce}");
        }
    }
    until("what is signed from now on counts", async || {
        gateway.send_signed("/once", key, &format!("nonce-{:032}", nanoseconds())).await.0 == 200
    })
    .await;
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}
