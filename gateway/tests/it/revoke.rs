//! `gateway revoke` and `/revocations` where no Redis is shared: each process of the policy on this host is told.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::running::{LOG, Recorder, TLS, free_port, pki, serve, until};

/// A state service that is killed when the test ends.
struct State(Child);

impl Drop for State {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn revoke(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let output = command.args(["revoke", "edge.yaml"]).args(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[tokio::test]
async fn every_process_of_the_policy_is_told() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await;
    let policy = format!(
        "upstreams: {{ u: {{ addresses: [\"127.0.0.1:{}\"], tls: {TLS} }} }}\n\
         state: {{ service: {{ socket: state.sock }} }}\n\
         tenants: {{ acme: {{ plan: gold }} }}\n\
         plans: {{ gold: {{}} }}\n\
         routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]\n",
        upstream.port
    );
    let gateway = serve(folder.path(), &policy).await;
    let (done, told) = revoke(folder.path(), &["--user", "u-1", "--tenant", "acme", "--for", "1h"]);
    assert!(
        done && told.contains("gateway: user u-1 of tenant acme: revoked, tokens issued until"),
        "{told}"
    );
    assert!(told.contains("state service: does not run") && !told.contains("note:"), "{told}");

    let mut state = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let state = state.args(["state", "edge.yaml"]).current_dir(folder.path()).stdout(Stdio::null()).spawn();
    let _state = State(state.unwrap());
    let socket = folder.path().join("state.sock");
    until("the socket is there", async || UnixStream::connect(&socket).await.is_ok()).await;
    let (done, told) = revoke(folder.path(), &["--token", "t-1"]);
    assert!(done && told.matches("token t-1: revoked, kept until").count() == 2, "{told}");
    let (done, told) = revoke(folder.path(), &["--list"]);
    assert!(
        done && told.matches("token t-1").count() == 2 && told.matches("user u-1").count() == 1,
        "{told}"
    );
    let (done, told) = revoke(folder.path(), &["--token", "t-1", "--undo"]);
    assert!(done && told.matches("token t-1: taken back").count() == 2, "{told}");

    // Neither is there (any more): it was never revoked for everybody, and `t-1` has just been taken back.
    for (arguments, expected) in [
        (&["--user", "u-1", "--undo"][..], "user u-1: was not revoked for every tenant, so nothing is taken"),
        (&["--token", "t-1", "--undo"], "token t-1: was not revoked for every tenant, so nothing is taken"),
        (&["--user", "u-1", "--tenant", "bank", "--undo"], "user u-1: was not revoked for tenant bank"),
    ] {
        let (done, told) = revoke(folder.path(), arguments);
        assert!(done && told.matches(expected).count() == 2, "{arguments:?}: {told}");
        let note = "note: the policy has no tenant `bank`";
        assert_eq!(told.contains(note), arguments.contains(&"bank"), "{arguments:?}: {told}");
    }

    for (arguments, expected) in [
        (&[][..], "name exactly one of"),
        (&["--token", "a", "--user", "b"], "name exactly one of"),
        (&["--token", "a", "--for", "soon"], "write 90s, 15m, 24h or 7d"),
        (&["--token", "a", "--for", "10"], "write 90s, 15m, 24h or 7d"),
        (&["--token", ""], "visible ASCII"),
        (&["--list", "--token", "a"], "cannot be used with"),
    ] {
        let (done, told) = revoke(folder.path(), arguments);
        assert!(!done && told.contains(expected), "{arguments:?}: {told}");
    }

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/revocations", gateway.admin);
    let listed: Value = http.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(listed["revocations"][0]["id"], "u-1");
    assert_eq!(listed["age_s"], 0.0);
    assert_eq!(http.delete(&url).send().await.unwrap().status(), 405);
    let answer = http.post(&url).json(&json!({ "session": "s-1" })).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = http.post(&url).header("user-agent", "identity/2").json(&json!({ "usr": "u" })).send().await;
    assert_eq!(answer.unwrap().status(), 400);

    // Who asked for what.
    let audited = || {
        let log = std::fs::read_to_string(folder.path().join(LOG)).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["target"] == "audit");
        let lines = lines.filter(|line| line["message"].as_str().unwrap().starts_with("revocation "));
        lines.filter(|line| line["message"] != "revocation taken back").collect::<Vec<_>>()
    };
    until("it is in the log", async || audited().iter().any(|line| line["agent"] == "identity/2")).await;
    let audited = audited();
    let asked = |id: &str| audited.iter().find(|line| line["id"] == id).unwrap();
    let word = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let user = asked("u-1");
    assert_eq!(word(user, "message"), "revocation asked for");
    assert_eq!((word(user, "kind"), word(user, "tenant")), ("user".to_owned(), "acme".to_owned()));
    assert_eq!((word(user, "credential"), user["status"].as_u64()), ("loopback".to_owned(), Some(200)));
    assert!(word(user, "from").starts_with("127.0.0.1:"), "{user}");
    assert!(word(user, "agent").starts_with("gateway revoke"), "{user}");
    assert_eq!(word(asked("s-1"), "agent"), "");
    let refused = audited.iter().find(|line| line["agent"] == "identity/2").unwrap();
    assert_eq!(
        (word(refused, "message"), refused["status"].as_u64()),
        ("revocation refused".to_owned(), Some(400))
    );

    assert!(gateway.metric("gateway_revocations ").await > 1.0);
    assert!(gateway.metric("gateway_revocations_age_seconds ").await.abs() < f64::EPSILON);
}

/// A process that runs, and was not told, is no success: its tokens go on.
#[tokio::test]
async fn a_process_that_was_not_told_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await;
    let policy = |service: &str| {
        format!(
            "upstreams: {{ u: {{ addresses: [\"127.0.0.1:{}\"], tls: {TLS} }} }}\n\
             state: {{ service: {service} }}\n\
             routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]\n",
            upstream.port
        )
    };
    let _gateway = serve(folder.path(), &policy("{ socket: state.sock }")).await;
    let file = folder.path().join("edge.yaml");
    let served = std::fs::read_to_string(&file).unwrap();

    // It takes connections and says nothing that is HTTP.
    let nonsense = tokio::net::UnixListener::bind(folder.path().join("state.sock")).unwrap();
    let answering = tokio::spawn(async move { while nonsense.accept().await.is_ok() {} });
    let ask = async |arguments: &'static [&'static str]| {
        let folder = folder.path().to_owned();
        tokio::task::spawn_blocking(move || revoke(&folder, arguments)).await.unwrap()
    };
    for (arguments, expected) in [
        (&["--token", "t-1"][..], "gateway: token t-1: revoked, kept until"),
        (&["--list"], "gateway:\ntoken t-1: revoked, kept until"),
    ] {
        let (done, told) = ask(arguments).await;
        assert!(!done && told.contains(expected), "{arguments:?}: {told}");
        assert!(
            told.contains("not everybody took it") && told.contains("state service: no answer: "),
            "{arguments:?}: {told}"
        );
    }
    answering.abort();

    // Of its files for TLS some are not there.
    let port = free_port();
    let none = over_tls(port, TLS).replace("internal-ca.pem", "none.pem");
    std::fs::write(&file, served.replace("{ socket: state.sock }", &none)).unwrap();
    for (arguments, expected) in [
        (&["--token", "t-2"][..], "gateway: token t-2: revoked, kept until"),
        (&["--list"], "token t-2: revoked, kept until"),
    ] {
        let (done, told) = ask(arguments).await;
        assert!(!done && told.contains(expected), "{arguments:?}: {told}");
        assert!(
            told.contains("state service: not told: `state.service.tls.client`: "),
            "{arguments:?}: {told}"
        );
    }
    // Where it should be, somebody else is.
    std::fs::write(&file, served.replace("{ socket: state.sock }", &over_tls(port, TLS))).unwrap();
    let nonsense = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let answering = tokio::spawn(async move { while nonsense.accept().await.is_ok() {} });
    let (done, told) = ask(&["--token", "t-3"]).await;
    assert!(!done && told.contains("state service: no answer: "), "{told}");
    answering.abort();
}

/// A state service on TLS, at a port.
fn over_tls(port: u16, client: &str) -> String {
    format!(
        "{{ address: \"127.0.0.1:{port}\", tls: {{ certificate: \"file:txn-core.pem\", key: \"file:txn-core.key\", \
         client_ca: \"file:internal-ca.pem\", allowed_clients: [gateway.torana.internal], client: {client} }} }}"
    )
}

/// With the policy's own files, as Envoy's workers reach it.
#[tokio::test]
async fn a_state_service_on_tls_is_told_too() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let upstream = Recorder::start(folder.path(), "u").await;
    let port = free_port();
    let policy = |client: &str| {
        format!(
            "upstreams: {{ u: {{ addresses: [\"127.0.0.1:{}\"], tls: {TLS} }} }}\n\
             state: {{ service: {} }}\n\
             routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]\n",
            upstream.port,
            over_tls(port, client)
        )
    };
    let gateway = serve(folder.path(), &policy(TLS)).await;
    let (done, told) = revoke(folder.path(), &["--token", "t-0"]);
    assert!(done && told.contains("state service: does not run"), "{told}");
    let mut state = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let state = state.args(["state", "edge.yaml"]).current_dir(folder.path()).stdout(Stdio::null()).spawn();
    let _state = State(state.unwrap());
    until("it listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    let (done, told) = revoke(folder.path(), &["--token", "t-1"]);
    assert!(done && told.matches("token t-1: revoked, kept until").count() == 2, "{told}");
    let (done, told) = revoke(folder.path(), &["--list"]);
    assert!(
        done && told.matches("token t-1").count() == 2 && told.matches("token t-0").count() == 1,
        "{told}"
    );

    // One that it does not let in, and one that is not the service's.
    for (from, to) in [("gateway.", "txn-core."), ("server_name: txn-core", "server_name: other")] {
        let client = TLS.replace(&format!("file:{from}"), &format!("file:{to}")).replace(from, to);
        let other = gateway.head.clone() + &policy(&client);
        std::fs::write(folder.path().join("edge.yaml"), other).unwrap();
        let (done, told) = revoke(folder.path(), &["--token", "t-2"]);
        assert!(
            !done && told.contains("not everybody took it") && !told.contains("does not run"),
            "{to}: {told}"
        );
    }
}

#[test]
fn keys_are_printed_once_with_their_hash() {
    let new = |id: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_gateway")).args(["api-key", "new", id]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (done, told) = new("acme-1");
    let key =
        told.lines().find_map(|line| line.split_once("torana_")).map(|(_, rest)| format!("torana_{rest}"));
    let hash: String =
        filters::crypto::sha256(key.unwrap().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(done && told.contains(&format!("{{ id: acme-1, sha256: {hash} }}")), "{told}");
    assert_ne!(new("acme-1").1, told, "no two are alike");
    assert!(!new("a b").0);
}
