//! `cargo dev`: checks that everything is there that the build needs, then builds and starts the stack.
//!
//! The build takes minutes, and without a C++ compiler, say, it would fail near its end. This names all that is missing
//! at once, with the command that installs it.

use std::env;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Something that the build needs.
struct Need {
    what: &'static str,
    why: &'static str,
    /// Any of these on the PATH is enough. None: see [`Need::is_there`].
    programs: &'static [&'static str],
    apt: &'static str,
    dnf: &'static str,
    brew: &'static str,
}

const NEEDS: [Need; 6] = [
    Need {
        what: "a C compiler",
        why: "ring, SQLite and mimalloc are C",
        programs: &["cc", "gcc", "clang"],
        apt: "build-essential",
        dnf: "gcc",
        brew: "",
    },
    Need {
        what: "a C++ compiler",
        why: "librdkafka's build asks for one",
        programs: &["c++", "g++", "clang++"],
        apt: "build-essential",
        dnf: "gcc-c++",
        brew: "",
    },
    Need {
        what: "make",
        why: "librdkafka is built with it",
        programs: &["make", "gmake"],
        apt: "build-essential",
        dnf: "make",
        brew: "make",
    },
    Need {
        what: "CMake",
        why: "zlib-ng, which Pingora links, is built with it",
        programs: &["cmake"],
        apt: "cmake",
        dnf: "cmake",
        brew: "cmake",
    },
    Need {
        what: "pkg-config",
        why: "it finds OpenSSL",
        programs: &["pkg-config", "pkgconf"],
        apt: "pkg-config",
        dnf: "pkgconf-pkg-config",
        brew: "pkgconf",
    },
    Need {
        what: "OpenSSL's headers",
        why: "librdkafka links OpenSSL for TLS to Kafka",
        programs: &[],
        apt: "libssl-dev",
        dnf: "openssl-devel",
        brew: "openssl@3",
    },
];

impl Need {
    fn is_there(&self) -> bool {
        match self.programs {
            [] => openssl_is_there(),
            programs => programs.iter().any(|program| is_on_path(program)),
        }
    }
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn openssl_is_there() -> bool {
    let by_variable = ["OPENSSL_DIR", "OPENSSL_INCLUDE_DIR"].iter().any(|name| env::var_os(name).is_some());
    let found = || Command::new("pkg-config").args(["--exists", "openssl"]).status();
    by_variable
        || Path::new("/usr/include/openssl/ssl.h").is_file()
        || found().is_ok_and(|status| status.success())
}

/// How this system installs packages.
enum Installer {
    Apt,
    Dnf,
    Brew,
    Unknown,
}

impl Installer {
    fn of_this_system() -> Self {
        if cfg!(target_os = "macos") {
            Self::Brew
        } else if is_on_path("apt-get") {
            Self::Apt
        } else if is_on_path("dnf") {
            Self::Dnf
        } else {
            Self::Unknown
        }
    }

    /// The one command that installs all of this, if this system is known.
    fn command(&self, missing: &[&Need]) -> Option<String> {
        let packages = |of: fn(&Need) -> &'static str| {
            let mut packages: Vec<&str> =
                missing.iter().map(|need| of(need)).filter(|name| !name.is_empty()).collect();
            packages.sort_unstable();
            packages.dedup();
            packages.join(" ")
        };
        match self {
            Self::Apt => Some(format!("apt-get update && apt-get install -y {}", packages(|need| need.apt))),
            Self::Dnf => Some(format!("dnf install -y {}", packages(|need| need.dnf))),
            Self::Brew => {
                // The compilers come with Apple's command line tools.
                let tools =
                    missing.iter().any(|need| need.brew.is_empty()).then_some("xcode-select --install");
                let packages = packages(|need| need.brew);
                let brew = (!packages.is_empty()).then(|| format!("brew install {packages}"));
                Some(tools.map(str::to_owned).into_iter().chain(brew).collect::<Vec<_>>().join(" && "))
            }
            Self::Unknown => None,
        }
    }
}

/// What is missing and how to install it.
fn complaint(missing: &[&Need], installer: &Installer) -> String {
    let mut text = String::from("Before the first build this machine needs:\n\n");
    for Need { what, why, .. } in missing {
        text.push_str(&format!("  {what:18} {why}\n"));
    }
    text.push_str(&match installer.command(missing) {
        Some(command) => format!("\nInstall it, as root or with sudo:\n\n  {command}\n"),
        None => "\nInstall it with your system's package manager.\n".to_owned(),
    });
    text
}

fn main() -> ExitCode {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !need.is_there()).collect();
    if !missing.is_empty() {
        let _ = write!(std::io::stderr(), "{}", complaint(&missing, &Installer::of_this_system()));
        return ExitCode::FAILURE;
    }
    // `cargo dev --once` and `cargo dev -- --once` mean the same.
    let arguments: Vec<OsString> = env::args_os().skip(1).skip_while(|argument| argument == "--").collect();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !stack_is_built() {
        let _ = writeln!(std::io::stderr(), "The first build compiles some 450 crates and takes minutes.");
    }
    let mut stack = Command::new(cargo);
    // By --bin and not by --package: then cargo resolves features for the whole workspace, and what is compiled here
    // serves the services too, which the stack builds next.
    stack.args(["run", "--bin", "stack", "--"]).args(arguments);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(dev::is_set_by_cargo_run) {
            stack.env_remove(name);
        }
    }
    let error = stack.exec();
    let _ = writeln!(std::io::stderr(), "cannot run cargo: {error}");
    ExitCode::FAILURE
}

fn stack_is_built() -> bool {
    env::current_exe().is_ok_and(|launcher| launcher.with_file_name("stack").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(whats: &[&str]) -> Vec<&'static Need> {
        NEEDS.iter().filter(|need| whats.contains(&need.what)).collect()
    }

    #[test]
    fn one_command_installs_all_that_is_missing() {
        let missing = needs(&["a C compiler", "a C++ compiler", "CMake", "OpenSSL's headers"]);
        for (installer, command) in [
            (Installer::Apt, "apt-get update && apt-get install -y build-essential cmake libssl-dev"),
            (Installer::Dnf, "dnf install -y cmake gcc gcc-c++ openssl-devel"),
            (Installer::Brew, "xcode-select --install && brew install cmake openssl@3"),
        ] {
            assert_eq!(installer.command(&missing).as_deref(), Some(command));
        }
        assert_eq!(Installer::Unknown.command(&missing), None);
        assert_eq!(Installer::Brew.command(&needs(&["make"])).as_deref(), Some("brew install make"));
    }

    #[test]
    fn everything_missing_is_named_at_once() {
        let text = complaint(&needs(&["make", "pkg-config"]), &Installer::Apt);
        let expected = "Before the first build this machine needs:\n\n  \
            make               librdkafka is built with it\n  \
            pkg-config         it finds OpenSSL\n\n\
            Install it, as root or with sudo:\n\n  \
            apt-get update && apt-get install -y build-essential pkg-config\n";
        assert_eq!(text, expected);
    }
}
