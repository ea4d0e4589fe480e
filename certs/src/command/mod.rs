//! The commands. Each says what it did or found, as text or as JSON, and whether that is as it should be.

mod envoy;
mod fleet;
mod issue;
mod probe;
mod renew;
mod revoke;
mod rollover;
mod show;
mod status;
mod wait;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use certs::pki::{self, Authority};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

/// Certificates and keys of Torana: make them, put them in place, prove what is served.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  certs init target/dev/pki
  certs issue --ca pki/internal-ca.pem --name svc.torana.internal --days 30 --out pki/svc.pem
  certs rotate pki/edge.pem --ca pki/edge-ca.pem --stack target/dev/stack.json
  certs revoke --ca pki/partner-ca.pem pki/partner.pem --reason key-compromise
  certs status --stack target/dev/stack.json
  certs rollover begin --ca pki/internal-ca.pem --stack target/dev/stack.json

Exit status: 0 done, and proven where there is something to prove; 1 looked, and it is not as it should be: something
else is served, about to expire, refused, or not there in time; 2 could not be done: arguments, files, a CA's key."
)]
pub(crate) struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a development PKI: four CAs and an identity for every service.
    ///
    /// CAs are valid for ten years, leaves for 90 days; all keys are ECDSA P-256, unencrypted,
    /// mode 0600. Not for production: the CAs' keys lie beside their certificates.
    Init {
        /// Where to write it; created if need be.
        dir: PathBuf,
        /// Replace a PKI that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Tell what is in a PEM file: every certificate, and of a private key its pin only.
    ///
    /// Give a certificate and then its key: when the pins are the same, they belong together.
    Show {
        file: PathBuf,
    },
    Issue(issue::Issue),
    Renew(renew::Renew),
    Restore(renew::Restore),
    Rotate(wait::Rotate),
    Wait(wait::Wait),
    Revoke(revoke::Revoke),
    Status(status::Status),
    Rollover(rollover::Rollover),
}

/// A CA whose key is at hand.
#[derive(Debug, Clone, Args)]
struct CaFiles {
    /// The CA's certificate, PEM. Intermediates between it and its root follow it and are given to every leaf.
    #[arg(long)]
    ca: PathBuf,
    /// Its key; absent: beside the certificate, with the ending `key`.
    #[arg(long)]
    ca_key: Option<PathBuf>,
}

impl CaFiles {
    fn load(&self) -> Result<Authority, certs::CertError> {
        Authority::load(&self.ca, &self.key())
    }

    fn key(&self) -> PathBuf {
        self.ca_key.clone().unwrap_or_else(|| self.ca.with_extension("key"))
    }
}

/// Whether what was looked at is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    NotSo,
}

/// What a command has to say, for people and for programs.
trait Answer: Serialize {
    fn outcome(&self) -> Outcome {
        Outcome::Fine
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()>;
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    match answer(cli.command).and_then(|answer| answer(json)) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::NotSo) => ExitCode::from(1),
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(std::io::stderr(), "certs: {}", causes(&error));
            ExitCode::from(2)
        }
    }
}

/// What went wrong and why, on one line.
fn causes(error: &anyhow::Error) -> String {
    certs::causes(error.as_ref())
}

type Tell = Box<dyn FnOnce(bool) -> anyhow::Result<Outcome>>;

fn answer(command: Command) -> anyhow::Result<Tell> {
    let now = OffsetDateTime::now_utc();
    Ok(match command {
        Command::Init { dir, force } => tell(Written { files: pki::init(&dir, force)? }),
        Command::Show { file } => tell(show::show(file, now)?),
        Command::Issue(issue) => tell(issue.run(now)?),
        Command::Renew(renew) => tell(renew.run(now)?),
        Command::Restore(restore) => tell(restore.run()?),
        Command::Rotate(rotate) => tell(on_runtime(rotate.run(now))?),
        Command::Wait(wait) => tell(on_runtime(wait.run())?),
        Command::Revoke(revoke) => tell(revoke.run()?),
        Command::Status(status) => tell(on_runtime(status.run(now))?),
        Command::Rollover(rollover) => tell(on_runtime(rollover.run(now))?),
    })
}

fn tell(answer: impl Answer + 'static) -> Tell {
    Box::new(move |json| {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, &answer)?;
            writeln!(out)?;
        } else {
            answer.text(&mut out)?;
        }
        Ok(answer.outcome())
    })
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Files that were written.
#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
}

impl Answer for Written {
    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.files.iter().try_for_each(|path| writeln!(out, "{}", path.display()))
    }
}

fn minute(at: OffsetDateTime) -> String {
    at.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC")).unwrap_or_default()
}

/// How long something is valid, for people.
fn left(not_before: OffsetDateTime, not_after: OffsetDateTime, now: OffsetDateTime) -> String {
    let left = not_after - now;
    if now < not_before {
        "NOT YET VALID".into()
    } else if left.is_negative() {
        format!("EXPIRED {} days ago", -left.whole_days())
    } else if left.whole_days() > 0 {
        format!("{} days left", left.whole_days())
    } else {
        format!("{} hours left", left.whole_hours())
    }
}
