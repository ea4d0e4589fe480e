//! Who may ask the admin address what, and what becomes of output that cannot be written.

use std::process::{Command, Stdio};

use reqwest::Method;
use tempfile::TempDir;

use crate::running::{TLS, pki, serve};

#[tokio::test]
async fn pages_and_unknown_names_are_refused() {
    let folder = TempDir::new().unwrap();
    pki(folder.path());
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:1"], tls: {TLS} }} }}
routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let rebound = ("host", "rebound.example:9901");
    for (method, path, field, expected) in [
        (Method::GET, "/config", None, 200),
        (Method::HEAD, "/config", None, 200),
        (Method::GET, "/config", Some(("host", "localhost")), 200),
        (Method::GET, "/config", Some(rebound), 421),
        (Method::GET, "/revocations", Some(rebound), 421),
        (Method::POST, "/revocations", Some(rebound), 421),
        (Method::POST, "/revocations", Some(("origin", "https://page.example")), 403),
        (Method::POST, "/ofrep/v1/evaluate/flags", Some(("origin", "null")), 403),
        (Method::GET, "/config", Some(("sec-fetch-site", "cross-site")), 403),
        (Method::GET, "/config", Some(("sec-fetch-site", "none")), 200),
        (Method::GET, "/health", Some(rebound), 200),
        (Method::GET, "/readiness", Some(rebound), 200),
        (Method::GET, "/metrics", Some(rebound), 200),
        (Method::POST, "/config", None, 405),
        (Method::DELETE, "/metrics", None, 405),
        (Method::POST, "/nothing", None, 404),
    ] {
        let request = http.request(method.clone(), format!("{}{path}", gateway.admin));
        let request = field.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let status = request.send().await.unwrap().status();
        assert_eq!(status, expected, "{method} {path} {field:?}");
    }
}

#[test]
fn a_command_whose_output_cannot_be_written_fails() {
    for arguments in [&["schema"][..], &["api-key", "new", "a"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        let output = command.args(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains("No space left on device"), "{arguments:?}: {told}");
    }
}
