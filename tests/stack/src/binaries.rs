use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::Service;

/// Where the services' executables are, freshly built.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Builds the services in the profile that this process was built in. Cargo's own progress
    /// goes to standard error; when nothing has changed it takes a moment.
    ///
    /// No package is named, so cargo resolves features for the whole workspace, as the alias
    /// `cargo dev` does: what was compiled for this process serves the services too.
    ///
    /// # Errors
    /// When cargo cannot be run or the build fails.
    pub async fn build() -> anyhow::Result<Binaries> {
        let folder = profile_folder(&std::env::current_exe()?)?;
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = tokio::process::Command::new(cargo);
        command.current_dir(workspace()).args(["build", "--profile", profile]).kill_on_drop(true);
        for service in Service::ALL {
            command.args(["--bin", service.name()]);
        }
        // What cargo sets for the process that it runs would look like a changed environment to
        // build scripts (ring's asks for CARGO_MANIFEST_DIR), and half the world be built again.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(set_by_cargo_run) {
                command.env_remove(name);
            }
        }
        let status = command.status().await.context("cannot run cargo")?;
        if !status.success() {
            bail!("the services do not build ({status}); see cargo's messages above");
        }
        Ok(Binaries { folder })
    }

    #[cfg(test)]
    pub(crate) fn of_folder(folder: &Path) -> Binaries {
        Binaries { folder: folder.to_owned() }
    }

    pub(crate) fn of(&self, service: Service) -> PathBuf {
        self.folder.join(service.name())
    }
}

/// The checkout that this crate was built in.
pub(crate) fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// `target/PROFILE`, from `target/PROFILE/stack` or `target/PROFILE/deps/e2e-…`.
fn profile_folder(executable: &Path) -> anyhow::Result<PathBuf> {
    let folder = executable.parent().context("this executable lies in no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}

fn set_by_cargo_run(name: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    name == "OUT_DIR" || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_lie_beside_this_one() {
        for (executable, folder) in [
            ("/w/target/debug/stack", "/w/target/debug"),
            ("/w/target/debug/deps/e2e-0f0f", "/w/target/debug"),
            ("/w/target/release/stack", "/w/target/release"),
        ] {
            assert_eq!(profile_folder(Path::new(executable)).unwrap(), Path::new(folder));
        }
    }

    #[test]
    fn only_what_cargo_run_adds_is_removed() {
        assert!(set_by_cargo_run("CARGO_MANIFEST_DIR") && set_by_cargo_run("CARGO_PKG_VERSION"));
        assert!(!set_by_cargo_run("CARGO_HOME") && !set_by_cargo_run("CARGO_TARGET_DIR"));
    }
}
