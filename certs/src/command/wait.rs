//! `certs rotate` and `certs wait`: a certificate is in place only when everybody who uses its file serves it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::report::Report;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use super::fleet::{Fleet, Told, same_file};
use super::issue::InPlace;
use super::renew::{Renew, leaf_in, serial_in};
use super::status::name_of;
use super::{Answer, Outcome, causes, probe};

const PAUSE: Duration = Duration::from_millis(100);

/// Renew a certificate, and wait until everybody who uses its file serves it.
///
/// Every process is asked who uses the file; each of its listeners is connected to until it shows the new serial, and
/// each client of others must say that it presents it. When one does not in time, the text says which and how to go
/// back; nothing is put back by itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  certs rotate pki/edge.pem --ca pki/edge-ca.pem --stack target/dev/stack.json
  certs rotate /etc/torana/txn-core.pem --ca /root/ca/internal.pem --days 30 \\
      --admin http://127.0.0.1:9901 --admin http://127.0.0.1:9902

Exit status: 0 everybody serves it; 1 somebody does not, or nobody uses the file; 2 it was not renewed.")]
pub(super) struct Rotate {
    #[command(flatten)]
    renew: Renew,
    #[command(flatten)]
    waiting: Waiting,
}

/// Wait until everybody who uses a certificate's file serves what is in it: for a pair that others have put there.
///
/// cert-manager, Vault's agent and an administrator with `mv` are just as good as `certs rotate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  certs wait /etc/tls/edge/tls.crt --admin http://127.0.0.1:9901     # a mounted Kubernetes secret
  certs wait pki/edge.pem --stack target/dev/stack.json --timeout-s 5")]
pub(super) struct Wait {
    certificate: PathBuf,
    #[command(flatten)]
    waiting: Waiting,
}

/// Whom to wait for, and how long.
#[derive(Debug, Clone, Args)]
pub(super) struct Waiting {
    #[command(flatten)]
    pub(super) fleet: Fleet,
    /// Seconds after which it has failed.
    #[arg(long, default_value_t = 30)]
    pub(super) timeout_s: u16,
}

/// Who serves a file's certificate.
#[derive(Debug, Serialize)]
pub(super) struct Waited {
    certificate: PathBuf,
    serial_hex: String,
    /// Milliseconds until everybody did, or until this gave up.
    waited_ms: u128,
    pub(super) users: Vec<User>,
    /// Processes that could not be asked.
    silent: Vec<String>,
    /// What to do when it failed.
    hint: Option<String>,
}

/// A listener or a client that uses the file.
#[derive(Debug, Clone, Serialize)]
pub(super) struct User {
    service: String,
    /// `listener public`, `client txn-core`.
    part: String,
    pub(super) proven: bool,
    /// What it serves, or why that is not known.
    found: String,
}

#[derive(Serialize)]
pub(super) struct Rotated {
    #[serde(flatten)]
    placed: InPlace,
    #[serde(flatten)]
    waited: Waited,
}

impl Rotate {
    pub(super) async fn run(self, now: OffsetDateTime) -> anyhow::Result<Rotated> {
        // Who cannot be asked now could not be asked afterwards: better not to begin.
        let told = self.waiting.fleet.ask().await?;
        let silent = told.iter().filter_map(|told| told.report.as_ref().err()).next();
        anyhow::ensure!(silent.is_none(), "nothing was changed: {}", silent.map_or("", String::as_str));
        let placed = self.renew.run(now)?;
        let waited = self.waiting.until_served(&self.renew.certificate).await?;
        Ok(Rotated { placed, waited })
    }
}

impl Wait {
    pub(super) async fn run(self) -> anyhow::Result<Waited> {
        self.waiting.until_served(&self.certificate).await
    }
}

impl Waiting {
    /// Asks again and again until everybody who uses the file serves what is in it, or the time is up.
    pub(super) async fn until_served(&self, certificate: &Path) -> anyhow::Result<Waited> {
        leaf_in(certificate)?;
        let began = Instant::now();
        loop {
            let serial = serial_in(certificate).context("the file went away")?;
            let told = self.fleet.ask().await?;
            let mut users = Vec::new();
            let mut silent = Vec::new();
            for Told { source, report } in &told {
                match report {
                    Ok(report) => users.extend(users_of(report, certificate, &serial).await),
                    Err(problem) => silent.push(format!("{source}: {problem}")),
                }
            }
            let proven = silent.is_empty() && !users.is_empty() && users.iter().all(|user| user.proven);
            if proven || began.elapsed() >= Duration::from_secs(self.timeout_s.into()) {
                return Ok(Waited {
                    hint: (!proven).then(|| hint(certificate, &users)),
                    certificate: certificate.into(),
                    serial_hex: serial,
                    waited_ms: began.elapsed().as_millis(),
                    users,
                    silent,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn users_of(report: &Report, certificate: &Path, serial: &str) -> Vec<User> {
    let mut users = Vec::new();
    for listener in report.listeners.iter().filter(|one| same_file(&one.certificate, certificate)) {
        let served = probe::served(listener.address, name_of(listener)).await;
        let found = served.map_or_else(|error| causes(&error), |served| served.leaf.serial_hex);
        let refused = listener.reloads.last_failure.as_ref().map(|failure| format!("; {}", failure.reason));
        users.push(User {
            service: report.service.clone(),
            part: format!("listener {} on {}", listener.name, listener.address),
            proven: found == serial && refused.is_none(),
            found: found + &refused.unwrap_or_default(),
        });
    }
    let uses = |file: &Option<PathBuf>| file.as_deref().is_some_and(|file| same_file(file, certificate));
    for client in report.clients.iter().filter(|one| uses(&one.certificate)) {
        let found = client.serving.as_ref().map_or("nothing", |leaf| &leaf.serial_hex);
        let refused = client.reloads.last_failure.as_ref().map(|failure| format!("; {}", failure.reason));
        users.push(User {
            service: report.service.clone(),
            part: format!("client {}", client.name),
            proven: found == serial && refused.is_none(),
            found: found.to_owned() + &refused.unwrap_or_default(),
        });
    }
    users
}

fn hint(certificate: &Path, users: &[User]) -> String {
    if users.is_empty() {
        return "nobody who was asked uses this file; compare the paths in `certs status`".into();
    }
    let file = certificate.display();
    format!(
        "who serves another serial goes on with the pair before, which {file} no longer has. Its log and `certs \
         status` say why it refused the new one; `certs restore {file}` puts the old pair back"
    )
}

impl Waited {
    pub(super) fn proven(&self) -> bool {
        self.hint.is_none()
    }
}

impl Answer for Waited {
    fn outcome(&self) -> Outcome {
        if self.proven() { Outcome::Fine } else { Outcome::NotSo }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for User { service, part, proven, found } in &self.users {
            let mark = if *proven { ' ' } else { '!' };
            writeln!(out, "{mark} {service} {part}: {found}")?;
        }
        self.silent.iter().try_for_each(|silent| writeln!(out, "! {silent}"))?;
        match &self.hint {
            None => writeln!(out, "everybody serves {} after {} ms", self.serial_hex, self.waited_ms),
            Some(hint) => {
                writeln!(out, "{} is not served by everybody after {} ms", self.serial_hex, self.waited_ms)?;
                writeln!(out, "{hint}")
            }
        }
    }
}

impl Answer for Rotated {
    fn outcome(&self) -> Outcome {
        self.waited.outcome()
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.placed.text(out)?;
        self.waited.text(out)
    }
}
