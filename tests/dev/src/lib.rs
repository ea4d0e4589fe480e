//! What the launcher and the stack share.

/// Whether cargo sets this environment variable for the process that it runs.
///
/// To another cargo it would look like a changed environment: build scripts (ring's asks for `CARGO_MANIFEST_DIR`) would
/// run again, and half of the dependencies be compiled again.
pub fn is_set_by_cargo_run(name: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    name == "OUT_DIR" || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cargo_run_adds_is_removed() {
        assert!(is_set_by_cargo_run("CARGO_MANIFEST_DIR") && is_set_by_cargo_run("CARGO_PKG_VERSION"));
        assert!(!is_set_by_cargo_run("CARGO_HOME") && !is_set_by_cargo_run("CARGO_TARGET_DIR"));
    }
}
