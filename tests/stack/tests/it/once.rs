//! The command itself: `cargo dev -- --once`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn one_payment_completes_and_no_process_is_left() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/e2e/once");
    let output =
        Command::new(env!("CARGO_BIN_EXE_stack")).args(["--once", "--dir"]).arg(&dir).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    // DEBITED may be missing: the network's news of the end can overtake that of the debit.
    let (pending, completed) = (told.find("PENDING"), told.find("COMPLETED"));
    assert!(pending.is_some() && pending < completed, "{told}");

    let file: Value = serde_json::from_slice(&std::fs::read(dir.join("stack.json")).unwrap()).unwrap();
    for (member, scheme) in [("edge_url", "https://"), ("ledger_url", "http://")] {
        assert!(file[member].as_str().unwrap().starts_with(scheme), "{file}");
    }
    for member in ["ca_file", "token_file", "device_key_file"] {
        let path = Path::new(file[member].as_str().unwrap());
        assert!(path.is_absolute() && path.is_file(), "{member} is {}", path.display());
    }
    let services = file["services"].as_array().unwrap();
    let names: Vec<_> = services.iter().map(|service| service["name"].as_str().unwrap()).collect();
    for name in ["edge", "txn-core", "npci-proxy", "npci-sim"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for service in services {
        assert!(service["url"].is_string() && service["admin_url"].is_string(), "{service}");
        let pid = service["pid"].as_u64().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{} still runs", service["name"]);
    }
}
