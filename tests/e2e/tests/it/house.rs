//! The house plan, held to: who may depend on whom, and the layout of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Dependencies point inward. What stands on the left may use what stands on the right, and nothing else of
/// ours. What lies under `tests/` may use anything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("certs", &[]),
    ("filters", &[]),
    ("filters-wasm", &["filters"]),
    ("gateway", &["certs", "filters", "logging"]),
    ("logging", &[]),
    // For message signatures (RFC 9421): the network's door signs and verifies with the edge's own code.
    ("npci-proxy", &["certs", "filters", "logging"]),
    ("txn-core", &["certs", "logging"]),
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn dependencies_point_inward() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let manifest = package["manifest_path"].as_str().unwrap();
        if manifest.contains("/tests/") {
            continue;
        }
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("{name} has no place in the house plan"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"] == "dev";
            assert!(
                for_tests || !ours.contains(to) || allowed.contains(&to),
                "{name} must not depend on {to}"
            );
        }
    }
}

/// A dependency that tests want with more features than the services do is compiled twice, and so is all that
/// depends on it: two minutes of a first build.
#[test]
fn tests_and_services_share_every_dependency() {
    let features = |edges: &str| -> BTreeSet<String> {
        let listed = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--workspace",
                "--offline",
                "--edges",
                edges,
                "--prefix",
                "none",
                "--format",
                "{p} [{f}]",
            ])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap();
        listed.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    };
    let (services, tests) = (features("normal,build"), features("normal,build,dev"));
    let twice: Vec<_> = services.difference(&tests).collect();
    assert!(twice.is_empty(), "with other features for tests (ask for them in tests/engines too): {twice:?}");
}

#[test]
fn every_top_level_entry_has_a_place() {
    let expected: BTreeSet<&str> = [
        ".cargo",
        ".ci",
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "certs",
        "clippy.toml",
        "docs",
        "envoy",
        "filters",
        "gateway",
        "npci-proxy",
        "rustfmt.toml",
        "tests",
        "txn-core",
    ]
    .into();
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let found: BTreeSet<&str> = listed.lines().filter_map(|path| path.split('/').next()).collect();
    let strange: Vec<_> = found.difference(&expected).collect();
    assert!(strange.is_empty(), "not in the house plan: {strange:?}");
}
