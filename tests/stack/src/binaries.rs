use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::process::CommandLine;
use crate::{Edge, Service};

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
        for program in ["npci-sim", "txn-core", "npci-proxy", "gateway", "certs"] {
            command.args(["--bin", program]);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(dev::is_set_by_cargo_run) {
                command.env_remove(name);
            }
        }
        let status = command.status().await.context("cannot run cargo")?;
        if !status.success() {
            bail!("the services do not build ({status}); see cargo's messages above");
        }
        Ok(Binaries { folder })
    }

    /// Where the services' programs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How a service is started on its configuration. Envoy runs on one that is made of the policy now.
    ///
    /// # Errors
    /// When Envoy or its module is not there, or the policy cannot be turned into its configuration.
    pub(crate) fn command(&self, service: Service, edge: Edge, config: &Path) -> anyhow::Result<CommandLine> {
        let gateway = self.folder.join("gateway");
        let on_config = |program: &str, first: &str| CommandLine {
            program: self.folder.join(program),
            arguments: vec![first.into(), config.into()],
        };
        Ok(match (service, edge) {
            (Service::NpciSim, _) => on_config("npci-sim", "--config"),
            (Service::TxnCore, _) => on_config("txn-core", "--config"),
            (Service::NpciProxy, _) => on_config("npci-proxy", "--config"),
            (Service::State, _) => {
                // Envoy's configuration is written when Envoy is started, after this.
                let mut command = on_config("gateway", "state");
                command.arguments.extend(["--envoy".into(), envoy_folder(config).into()]);
                command
            }
            (Service::Edge, Edge::Gateway) => {
                let mut command = on_config("gateway", "serve");
                // No load balancer is in front.
                command.arguments.extend(["--drain-delay-s", "0"].map(OsString::from));
                command
            }
            (Service::Edge, Edge::Envoy) => {
                let (envoy, module) = envoy()?;
                let folder = envoy_folder(config);
                let made = std::process::Command::new(&gateway)
                    .arg("envoy")
                    .arg(config)
                    .arg("--module")
                    .arg(module)
                    .arg("--out")
                    .arg(&folder)
                    .output()
                    .with_context(|| format!("cannot start {}", gateway.display()))?;
                if !made.status.success() {
                    bail!("gateway envoy: {}", String::from_utf8_lossy(&made.stderr));
                }
                let mut arguments: Vec<OsString> = vec!["-c".into(), folder.join("envoy.json").into()];
                let more = ["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"];
                // Connections of a policy before end soon.
                arguments
                    .extend(["--drain-time-s", "2", "--drain-strategy", "immediate"].map(OsString::from));
                // Its access log would wait ten seconds for company.
                arguments.extend(["--file-flush-interval-msec", "50"].map(OsString::from));
                arguments.extend(more.map(OsString::from));
                CommandLine { program: envoy, arguments }
            }
        })
    }
}

/// Where the files of Envoy's configuration are, beside the policy that they are made of.
pub(crate) fn envoy_folder(policy: &Path) -> PathBuf {
    policy.with_file_name("envoy")
}

/// Envoy and the module.
fn envoy() -> anyhow::Result<(PathBuf, PathBuf)> {
    let target = workspace().join("target");
    let (envoy, module) = (target.join("envoy/envoy"), target.join("wasm/torana.wasm"));
    for (file, how) in [(&envoy, "tests/run install"), (&module, "filters/wasm/build")] {
        anyhow::ensure!(file.exists(), "{} is missing; run {how}", file.display());
    }
    Ok((envoy, module))
}

/// The checkout that this crate was built in.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// `target/PROFILE`, from `target/PROFILE/stack` or `target/PROFILE/deps/e2e-…`.
fn profile_folder(executable: &Path) -> anyhow::Result<PathBuf> {
    let folder = executable.parent().context("this executable lies in no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
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
}
