//! What the command says when it cannot start.

use std::{path::Path, process::Command};

/// The one line on standard error.
fn refused(config: &Path) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_npci-proxy")).arg("--config").arg(config).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("npci-proxy: "), "{said}");
    said
}

#[test]
fn the_cause_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    // The example with addresses that are free, but for its key files, which are not there.
    let example = include_str!("../../config.example.yaml")
        .replace("127.0.0.1:9403", "127.0.0.1:0")
        .replace("127.0.0.1:9443", "127.0.0.1:0")
        .replace("0.0.0.0:8443", "127.0.0.1:0");
    let no_keys = written("no-keys.yaml", &example);
    let in_use = written("in-use.yaml", &example.replacen("127.0.0.1:0", &taken, 1));
    let mistake = written("mistake.yaml", "admin: 1");
    for (config, cause) in [
        (folder.path().join("nonexistent").as_path(), "No such file"),
        (&no_keys, "No such file"),
        (&in_use, "in use"),
        (&mistake, "mistake.yaml"),
    ] {
        let said = refused(config);
        assert_eq!(said.matches(cause).count(), 1, "{said}");
    }
}
