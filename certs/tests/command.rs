//! The `certs` command, as an operator runs it.

#![allow(clippy::unwrap_used, reason = "test code: a failure here is a failed test")]

use std::process::{Command, Output};

fn certs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certs")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_pki_is_made_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let made = certs(&["init", dir]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("/edge.pem"));

    let again = certs(&["init", dir]);
    assert!(!again.status.success() && text(&again.stderr).contains("--force"), "{}", text(&again.stderr));
    assert!(certs(&["init", dir, "--force"]).status.success());

    let shown = certs(&["show", &format!("{dir}/edge.pem")]);
    let shown = text(&shown.stdout);
    for part in ["CN=edge.torana.test", "DNS:localhost, IP:127.0.0.1, IP:::1", "89 days left", "sha256/"] {
        assert!(shown.contains(part), "{part} in:\n{shown}");
    }

    let certificate = certs(&["show", "--json", &format!("{dir}/psp.pem")]);
    let key = certs(&["show", "--json", &format!("{dir}/psp.key")]);
    let secret = std::fs::read_to_string(format!("{dir}/psp.key")).unwrap();
    assert!(!text(&key.stdout).contains(secret.lines().nth(1).unwrap()));
    let certificate: serde_json::Value = serde_json::from_slice(&certificate.stdout).unwrap();
    let key: serde_json::Value = serde_json::from_slice(&key.stdout).unwrap();
    assert_eq!(certificate["certificates"][0]["spki_sha256"], key["key"]["spki_sha256"]);
    assert_eq!(certificate["certificates"][0]["days_left"], 89);
}

#[test]
fn what_cannot_be_shown_is_named() {
    let missing = certs(&["show", "/nowhere/edge.pem"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("/nowhere/edge.pem"));
}
