//! Feature flags over the wire: a file that changes counts without another policy, one that cannot be meant changes
//! nothing, every change is a line of the audit, and what flags say is counted and told.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::running::{LOG, Recorder, TLS, audited, pki, serve, under_load, until};

fn flags(open: &str, core: &Value) -> Value {
    let flag = |variant: &str| json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": variant });
    let mut new_core = flag("off");
    new_core["targeting"] = core.clone();
    json!({ "flags": { "open": flag(open), "new-core": new_core } })
}

fn put(folder: &Path, text: &str) {
    std::fs::write(folder.join("flags.json.new"), text).unwrap();
    std::fs::rename(folder.join("flags.json.new"), folder.join("flags.json")).unwrap();
}

const ROUTES: &str = r#"
flags: { file: "file:flags.json", fields: { app: x-app-version } }
routes:
  - name: refunds
    methods: [GET]
    path: /refunds
    upstream: u
    filters: { feature: { when: [{ flag: open, is: ["on"] }] } }
  - name: shared
    methods: [GET]
    path: /shared
    flag: new-core
    upstreams: [{ upstream: u, variant: "off" }, { upstream: v, variant: "on" }]
  - name: both
    methods: [GET]
    path: /both
    flag: new-core
    upstreams: [{ upstream: u, variant: "off" }, { upstream: v, variant: "on" }]
    filters: { feature: { when: [{ flag: open, is: ["on"] }] } }
"#;

fn policy(u: &Recorder, v: &Recorder) -> String {
    format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  v: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
{ROUTES}"#,
        u.port, v.port
    )
}

#[tokio::test]
async fn flags_change_while_the_gateway_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki(folder);
    let (u, v) = (Recorder::start(folder, "u").await, Recorder::start(folder, "v").await);
    let by_app = json!({ "if": [{ "sem_ver": [{ "var": "app" }, ">=", "2.0.0"] }, "on"] });
    put(folder, &flags("off", &by_app).to_string());
    let gateway = serve(folder, &policy(&u, &v)).await;

    assert_eq!(gateway.get("/refunds", &[]).await, (404, "route_not_found".to_owned()));
    assert_eq!(gateway.get("/shared", &[("x-app-version", "2.1.0")]).await, (200, "v".to_owned()));
    assert_eq!(gateway.get("/shared", &[("x-app-version", "1.9.0")]).await, (200, "u".to_owned()));

    put(folder, &flags("on", &by_app).to_string());
    until("the flag opens the route", async || gateway.get("/refunds", &[]).await.0 == 200).await;
    let lines = audited(folder);
    let changed = lines.iter().find(|line| line["message"] == "flag changed").unwrap();
    let told = ["flag", "default_before", "default", "changed", "state"].map(|name| &changed[name]);
    assert_eq!(told, ["open", "off", "on", "defaultVariant", "ENABLED"]);
    assert_eq!(lines.iter().filter(|line| line["message"] == "flag changed").count(), 1, "{lines:?}");

    // What cannot be meant changes nothing, and says why.
    for (text, expected) in [
        ("{", "it ends too early"),
        (r#"{ "flags": {} }"#, "the policy counts on it: there is no flag `open`"),
        (&flags("on", &json!({ "iff": [] })).to_string(), "there is no operator `iff`; did you mean `if`?"),
        (&flags("maybe", &by_app).to_string(), "there is no variant `maybe`"),
    ] {
        put(folder, text);
        until("the refusal is told", async || {
            let told = gateway.admin("/flags").await;
            told["reloads"]["last_failure"]["reason"].as_str().is_some_and(|why| why.contains(expected))
        })
        .await;
        assert_eq!(gateway.get("/refunds", &[]).await.0, 200, "{expected}");
    }
    put(folder, &flags("on", &json!("on")).to_string());
    until("good flags count again", async || gateway.get("/shared", &[]).await == (200, "v".to_owned()))
        .await;

    let told = gateway.admin("/flags").await;
    assert_eq!(told["reloads"]["last_failure"], Value::Null);
    let new_core = &told["flags"]["new-core"];
    assert_eq!((&new_core["state"], &new_core["targeting"]), (&json!("ENABLED"), &json!(true)));
    assert!(new_core["said"]["off"].as_u64().unwrap() >= 1 && new_core["said"]["on"].as_u64().unwrap() >= 2);
    let on =
        gateway.metric(r#"gateway_flag_evaluations_total{flag="open",reason="STATIC",variant="off"}"#).await;
    assert!(on >= 1.0, "{on}");
    let log = std::fs::read_to_string(folder.join(LOG)).unwrap();
    assert!(
        log.contains(r#""feature_flags":"new-core=on""#) && log.contains(r#""experiment":"new-core=on""#)
    );
}

/// A policy that is refused changes no flag, whatever file it names; one that has none takes them all away.
#[tokio::test]
async fn what_another_policy_changes_is_told_when_it_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki(folder);
    let (u, v) = (Recorder::start(folder, "u").await, Recorder::start(folder, "v").await);
    put(folder, &flags("off", &json!("on")).to_string());
    let mut other = flags("on", &json!("on"));
    other["flags"]["late"] = other["flags"]["open"].clone();
    std::fs::write(folder.join("other.json"), other.to_string()).unwrap();
    let first = policy(&u, &v);
    let second = first.replace("flags.json", "other.json");
    let without_flags = format!(
        "{}routes: [{{ name: r, methods: [GET], path: /r, upstream: u }}]",
        first.split("flags:").next().unwrap()
    );
    let gateway = serve(folder, &first).await;
    let told = || {
        let lines = audited(folder).into_iter();
        lines.map(|line| format!("{} {}", line["message"], line["flag"])).collect::<Vec<_>>()
    };
    until("the flags are told", async || !told().is_empty()).await;
    let mut expected = vec![r#""flags in use" null"#];
    assert_eq!(told(), expected);

    // It has all that it names but one address, which somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one_more = format!(
        r#"  - {{ name: more, address: "{}", tls: {{ certificate: "file:edge.pem", key: "file:edge.key" }} }}"#,
        taken.local_addr().unwrap()
    );
    let head = gateway.head.replace("admin:", &format!("{one_more}\nadmin:"));
    gateway.replace(folder, &format!("{head}{second}"));
    until("the policy is refused", async || gateway.admin("/config").await["refused"].is_object()).await;
    assert_eq!(told(), expected);

    for (policy, reloads, changes) in [
        (&second, 1, &[r#""flag added" "late""#, r#""flag changed" "open""#][..]),
        (
            &without_flags,
            2,
            &[r#""flag removed" "late""#, r#""flag removed" "new-core""#, r#""flag removed" "open""#],
        ),
        (&first, 3, &[r#""flag added" "new-core""#, r#""flag added" "open""#]),
    ] {
        gateway.change(folder, policy);
        until("the policy takes over", async || gateway.admin("/config").await["reloads"] == reloads).await;
        expected.extend(changes);
        until("what it changes is told", async || told().len() >= expected.len()).await;
        assert_eq!(told(), expected);
    }
    // Later changes of the file are told once, by the policy that serves.
    put(folder, &flags("on", &json!("on")).to_string());
    expected.push(r#""flag changed" "open""#);
    until("the change is told", async || told().len() >= expected.len()).await;
    assert_eq!(told(), expected);
}

/// Both flags change together: who finds the route open is served by the upstream that the other one says then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_files_of_flags_are_taken_under_load_and_no_request_sees_half_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki(folder);
    let (u, v) = (Recorder::start(folder, "u").await, Recorder::start(folder, "v").await);
    let both = |variant: &str| flags(variant, &json!({ "if": [true, variant] })).to_string();
    put(folder, &both("off"));
    let gateway = serve(folder, &policy(&u, &v)).await;
    let url = format!("{}/both", gateway.url);
    let ask = move |http: reqwest::Client| {
        let asked = http.get(&url).send();
        async move {
            let answer = asked.await.map_err(|error| error.to_string())?;
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((status, body[":name"].as_str().unwrap_or_default().to_owned()))
        }
    };
    let told = under_load(folder, ask, async {
        for number in 1..=10 {
            put(folder, &both(if number % 2 == 1 { "on" } else { "off" }));
            let expected = if number % 2 == 1 { 200 } else { 404 };
            until("the file is taken", async || gateway.get("/both", &[]).await.0 == expected).await;
        }
    })
    .await;
    let mut count = BTreeMap::new();
    told.into_iter().for_each(|told| *count.entry(told).or_insert(0) += 1);
    println!("{count:?}");
    let whole = [Ok((200, "v".to_owned())), Ok((404, String::new()))];
    assert!(count.keys().eq(&whole), "{count:?}");
}

/// What other services ask, by OpenFeature's protocol.
#[tokio::test]
async fn flags_are_told_to_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki(folder);
    let (u, v) = (Recorder::start(folder, "u").await, Recorder::start(folder, "v").await);
    let mut all = flags("on", &json!({ "if": [{ "==": [{ "var": "targetingKey" }, "alice"] }, "on"] }));
    all["flags"]["dark"] = json!({ "state": "DISABLED", "variants": { "on": 1 }, "defaultVariant": "on" });
    all["flags"]["upi:refunds/new"] = all["flags"]["open"].clone();
    all["flags"]["wrong"] = json!({ "state": "ENABLED", "variants": { "on": 1 }, "targeting": "nowhere" });
    put(folder, &all.to_string());
    let gateway = serve(folder, &policy(&u, &v)).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |path: &str, body: &str| {
        let url = format!("{}/ofrep/v1/evaluate/flags{path}", gateway.admin);
        let answer = http.post(url).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for (path, body, status, expected) in [
        (
            "/new-core",
            r#"{"context":{"targetingKey":"alice"}}"#,
            200,
            json!({
                "key": "new-core", "reason": "TARGETING_MATCH", "variant": "on", "value": true, "metadata": {},
            }),
        ),
        (
            "/new-core",
            r#"{"context":{"targetingKey":"bob"}}"#,
            200,
            json!({
                "key": "new-core", "reason": "DEFAULT", "variant": "off", "value": false, "metadata": {},
            }),
        ),
        (
            "/upi%3Arefunds%2fnew",
            "{}",
            200,
            json!({
                "key": "upi:refunds/new", "reason": "STATIC", "variant": "on", "value": true, "metadata": {},
            }),
        ),
        (
            "/dark",
            "{}",
            404,
            json!({
                "key": "dark", "errorCode": "FLAG_NOT_FOUND", "errorDetails": "there is no such flag in use",
            }),
        ),
        (
            "/wrong",
            "{}",
            400,
            json!({
                "key": "wrong", "errorCode": "GENERAL", "errorDetails": "its targeting says no variant of it",
            }),
        ),
        (
            "/open",
            "no JSON",
            400,
            json!({
                "key": "open", "errorCode": "INVALID_CONTEXT",
                "errorDetails": "send JSON: {\"context\": {\"targetingKey\": \"u-1\"}}",
            }),
        ),
    ] {
        assert_eq!(ask(path, body).await, (status, expected), "{path} {body}");
    }
    let (status, told) = ask("", r#"{"context":{}}"#).await;
    assert_eq!((status, told["flags"].as_array().unwrap().len()), (200, 5));
    let url = format!("{}/ofrep/v1/evaluate/flagsx", gateway.admin);
    let elsewhere = http.post(url).body("{}").send().await.unwrap();
    assert_eq!(elsewhere.status().as_u16(), 404);
    assert!(elsewhere.text().await.unwrap().contains(" /flags, /ofrep/v1/evaluate/flags,"));
    assert_eq!(gateway.metric(r#"gateway_flag_evaluations_total{flag="open""#).await, 0.0);
}

/// `check` looks into the file, and `explain` says what flags say.
#[tokio::test]
async fn a_policy_and_its_flags_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki(folder);
    let (u, v) = (Recorder::start(folder, "u").await, Recorder::start(folder, "v").await);
    put(folder, &flags("off", &json!("on")).to_string());
    let gateway = serve(folder, &policy(&u, &v)).await;
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gateway")).args(arguments).current_dir(folder).output();
        let output = output.unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (good, told) = run(&["check", "edge.yaml"]);
    assert!(good && told.contains("route shared -> u for off, v for on of flag new-core"), "{told}");
    std::fs::write(folder.join("request.http"), "GET /shared HTTP/1.1\r\nhost: edge\r\n\r\n").unwrap();
    let (_, told) = run(&["explain", "edge.yaml", "request.http"]);
    assert!(told.contains("flag new-core: on (TARGETING_MATCH)"), "{told}");
    assert!(told.contains("=> goes to v, as flag new-core says"), "{told}");
    std::fs::write(folder.join("request.http"), "GET /refunds HTTP/1.1\r\nhost: edge\r\n\r\n").unwrap();
    let (good, told) = run(&["explain", "edge.yaml", "request.http"]);
    assert!(
        !good && told.contains("flag open: off (STATIC)") && told.contains("=> 404 route_not_found"),
        "{told}"
    );

    for (text, expected) in [
        (r#"{ "flags": {} }"#.to_owned(), "there is no flag `open`"),
        (flags("off", &json!("on")).to_string().replace("new-core", "newcore"), "did you mean `newcore`?"),
        (
            flags("off", &json!("on")).to_string().replace(r#""off":false"#, r#""of":false"#),
            "did you mean `of`?",
        ),
        ("{".to_owned(), "it ends too early"),
    ] {
        put(folder, &text);
        let (good, told) = run(&["check", "edge.yaml"]);
        assert!(!good && told.contains(expected), "{text}: {told}");
    }
    std::fs::remove_file(folder.join("flags.json")).unwrap();
    let (good, told) = run(&["check", "edge.yaml"]);
    assert!(!good && told.contains("flags.json"), "{told}");
    drop(gateway);
}
