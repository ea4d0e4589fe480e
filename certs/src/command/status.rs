//! `certs status`: what is really served, held against what the files and the processes say.

use std::io::Write;
use std::path::Path;

use certs::report::{self, Client, Key, KeyKind, Leaf, Listener, Reloads};
use clap::Args;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::fleet::Fleet;
use super::issue::first_of;
use super::probe::{self, Served};
use super::{Answer, Outcome, causes, left, minute};

/// Connect to every listener, and tell what is really served.
///
/// Each process is asked what it serves, presents and trusts; each listener is connected to over TLS; the files are
/// read. All three must say the same, nothing may be about to expire, and no change of files may have been refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  certs status --stack target/dev/stack.json
  certs status --admin http://127.0.0.1:9901 --admin http://127.0.0.1:9902 --expiring-days 21
  certs status --envoy /etc/envoy/torana/envoy.json --json

Exit status: 0 everything is as it should be, 1 something is not: each such line begins with `!`.")]
pub(super) struct Status {
    #[command(flatten)]
    fleet: Fleet,
    /// Complain about what ends within so many days.
    #[arg(long, default_value_t = 14)]
    expiring_days: u16,
    /// The files are on other hosts: don't compare with them.
    #[arg(long)]
    no_files: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Seen {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    problems: usize,
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Service {
    service: String,
    /// Where it was asked.
    source: String,
    listeners: Vec<SeenListener>,
    clients: Vec<SeenClient>,
    keys: Vec<SeenKey>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SeenListener {
    #[serde(flatten)]
    listener: Listener,
    /// What came over the wire.
    served: Option<Served>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SeenClient {
    #[serde(flatten)]
    client: Client,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SeenKey {
    #[serde(flatten)]
    key: Key,
    /// At least so old.
    age_s: Option<i64>,
    problems: Vec<String>,
}

impl Status {
    pub(super) async fn run(self, now: OffsetDateTime) -> anyhow::Result<Seen> {
        let mut services = Vec::new();
        for told in self.fleet.ask().await? {
            services.push(match told.report {
                Ok(report) => self.service(told.source, report, now).await,
                Err(problem) => Service {
                    service: "?".into(),
                    source: told.source,
                    listeners: Vec::new(),
                    clients: Vec::new(),
                    keys: Vec::new(),
                    problems: vec![problem],
                },
            });
        }
        let problems = services.iter().map(Service::count).sum();
        Ok(Seen { at: now, problems, services })
    }

    async fn service(&self, source: String, report: report::Report, now: OffsetDateTime) -> Service {
        let judge = Judge { now, until: now + Duration::days(self.expiring_days.into()) };
        let mut listeners = Vec::new();
        for listener in report.listeners {
            let served = probe::served(listener.address, name_of(&listener)).await;
            let file = self.file(&listener.certificate);
            let problems = judge.listener(&listener, served.as_ref().map_err(causes), file);
            listeners.push(SeenListener { listener, served: served.ok(), problems });
        }
        let clients = report.clients.into_iter().map(|client| {
            let file = client.certificate.as_deref().and_then(|file| self.file(file));
            SeenClient { problems: judge.client(&client, file), client }
        });
        let keys = report.keys.into_iter().map(|key| SeenKey {
            problems: judge.key(&key),
            age_s: key.not_before.or(key.first_seen).map(|at| (now - at).whole_seconds()),
            key,
        });
        Service {
            service: report.service,
            source,
            listeners,
            clients: clients.collect(),
            keys: keys.collect(),
            problems: Vec::new(),
        }
    }

    /// What is in a file now; none when files are not compared.
    fn file(&self, path: &Path) -> Option<Result<Leaf, String>> {
        let read = || first_of(&std::fs::read(path)?);
        (!self.no_files).then(|| {
            read()
                .map(|facts| Leaf::from(&facts))
                .map_err(|error| format!("{}: {}", path.display(), causes(&error)))
        })
    }
}

/// The name under which a listener's certificate is asked for.
pub(super) fn name_of(listener: &Listener) -> Option<&str> {
    listener.server_names.first().map(String::as_str)
}

/// What is wrong, in words that say what differs from what.
struct Judge {
    now: OffsetDateTime,
    /// What ends before this is about to.
    until: OffsetDateTime,
}

impl Judge {
    fn listener(
        &self,
        listener: &Listener,
        served: Result<&Served, String>,
        file: Option<Result<Leaf, String>>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        match served {
            Err(problem) => problems.push(problem),
            Ok(served) => {
                let (serial, says) = (&served.leaf.serial_hex, &listener.serving.serial_hex);
                if serial != says {
                    problems.push(format!("the process says that it serves {says}, and serves {serial}"));
                }
                self.file(serial, &served.leaf.spki_sha256, file, &mut problems);
                self.expiry(
                    "the certificate",
                    Some(served.leaf.not_before),
                    Some(served.leaf.not_after),
                    &mut problems,
                );
            }
        }
        self.expiry("the revocation list", None, listener.crl_next_update, &mut problems);
        refused(&listener.reloads, &mut problems);
        problems
    }

    fn client(&self, client: &Client, file: Option<Result<Leaf, String>>) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(leaf) = &client.serving {
            self.file(&leaf.serial_hex, &leaf.spki_sha256, file, &mut problems);
            self.expiry("the certificate", Some(leaf.not_before), Some(leaf.not_after), &mut problems);
        }
        for ca in &client.trusted {
            self.expiry(&ca.subject, None, Some(ca.not_after), &mut problems);
        }
        self.expiry("the revocation list", None, client.crl_next_update, &mut problems);
        refused(&client.reloads, &mut problems);
        problems
    }

    fn key(&self, key: &Key) -> Vec<String> {
        let mut problems = Vec::new();
        self.expiry("the key", None, key.not_after, &mut problems);
        if let Some(at) = key.next_rotation.filter(|at| *at < self.now) {
            problems.push(format!("its rotation was due at {}", minute(at)));
        }
        problems
    }

    fn file(&self, serial: &str, spki: &str, file: Option<Result<Leaf, String>>, problems: &mut Vec<String>) {
        match file {
            None => {}
            Some(Err(problem)) => problems.push(problem),
            Some(Ok(leaf)) if leaf.serial_hex != serial || leaf.spki_sha256 != spki => {
                problems.push(format!("the file has {}, in use is {serial}", leaf.serial_hex));
            }
            Some(Ok(_)) => {}
        }
    }

    fn expiry(
        &self,
        what: &str,
        not_before: Option<OffsetDateTime>,
        not_after: Option<OffsetDateTime>,
        problems: &mut Vec<String>,
    ) {
        if let Some(at) = not_before.filter(|at| *at > self.now) {
            problems.push(format!("{what} is not valid before {}", minute(at)));
        }
        match not_after {
            Some(at) if at < self.now => problems.push(format!("{what} expired at {}", minute(at))),
            Some(at) if at < self.until => problems.push(format!("{what} ends soon, at {}", minute(at))),
            _ => {}
        }
    }
}

/// Files that are there and not served.
fn refused(reloads: &Reloads, problems: &mut Vec<String>) {
    if let Some(failure) = &reloads.last_failure {
        problems.push(format!("new files were refused at {}: {}", minute(failure.at), failure.reason));
    }
}

impl Service {
    fn count(&self) -> usize {
        let listeners = self.listeners.iter().map(|one| one.problems.len());
        let clients = self.clients.iter().map(|one| one.problems.len());
        let keys = self.keys.iter().map(|one| one.problems.len());
        listeners.chain(clients).chain(keys).sum::<usize>() + self.problems.len()
    }
}

impl Answer for Seen {
    fn outcome(&self) -> Outcome {
        if self.problems == 0 { Outcome::Fine } else { Outcome::NotSo }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for service in &self.services {
            writeln!(out, "{} ({})", service.service, service.source)?;
            told(out, &service.problems)?;
            for SeenListener { listener, served, problems } in &service.listeners {
                let names = match listener.server_names.as_slice() {
                    [] => String::new(),
                    names => format!(" for {}", names.join(", ")),
                };
                let clients = match (&listener.client_ca, listener.requires_client) {
                    (None, _) => "",
                    (Some(_), false) => ", clients may show certificates",
                    (Some(_), true) => ", clients must show certificates",
                };
                writeln!(out, "  listener {} on {}{names}{clients}", listener.name, listener.address)?;
                if let Some(Served { leaf, protocol, cipher }) = served {
                    self.leaf(out, leaf)?;
                    let (protocol, cipher) = (protocol.as_deref(), cipher.as_deref());
                    writeln!(out, "    speaks  {} {}", protocol.unwrap_or("-"), cipher.unwrap_or("-"))?;
                }
                writeln!(out, "    file    {}", listener.certificate.display())?;
                list(out, listener.crl_next_update)?;
                told(out, problems)?;
            }
            for SeenClient { client, problems } in &service.clients {
                writeln!(
                    out,
                    "  client {} of {}",
                    client.name,
                    client.server_name.as_deref().unwrap_or("any name")
                )?;
                if let Some(leaf) = &client.serving {
                    self.leaf(out, leaf)?;
                }
                let trusted: Vec<&str> = client.trusted.iter().map(|ca| ca.subject.as_str()).collect();
                writeln!(out, "    trusts  {}", trusted.join(", "))?;
                list(out, client.crl_next_update)?;
                told(out, problems)?;
            }
            for SeenKey { key, age_s, problems } in &service.keys {
                let kind = match key.kind {
                    KeyKind::Hmac => "hmac",
                    KeyKind::Device => "device",
                    KeyKind::Jwks => "jwks",
                    KeyKind::Network => "network",
                    KeyKind::ApiKey => "api_key",
                };
                let age =
                    age_s.map(|age_s| format!(", at least {} h old", age_s / 3_600)).unwrap_or_default();
                let until = key.not_after.map(|at| format!(", until {}", minute(at))).unwrap_or_default();
                let next =
                    key.next_rotation.map(|at| format!(", next rotation {}", minute(at))).unwrap_or_default();
                writeln!(out, "  key {kind} {} {}{age}{until}{next}", key.owner, key.id)?;
                told(out, problems)?;
            }
        }
        match self.problems {
            0 => writeln!(out, "everything is served as the files say"),
            1 => writeln!(out, "1 thing is not as it should be"),
            many => writeln!(out, "{many} things are not as they should be"),
        }
    }
}

impl Seen {
    fn leaf(&self, out: &mut dyn Write, leaf: &Leaf) -> std::io::Result<()> {
        let names: Vec<String> = leaf.sans.iter().map(ToString::to_string).collect();
        writeln!(out, "    serial  {}", leaf.serial_hex)?;
        writeln!(out, "    names   {}", names.join(", "))?;
        writeln!(out, "    issuer  {}", leaf.issuer)?;
        let left = left(leaf.not_before, leaf.not_after, self.at);
        writeln!(out, "    until   {}, {left}", minute(leaf.not_after))
    }
}

/// Until when it is known who is revoked.
fn list(out: &mut dyn Write, next_update: Option<OffsetDateTime>) -> std::io::Result<()> {
    next_update.map_or(Ok(()), |at| writeln!(out, "    revoked known until {}", minute(at)))
}

fn told(out: &mut dyn Write, problems: &[String]) -> std::io::Result<()> {
    problems.iter().try_for_each(|problem| writeln!(out, "!   {problem}"))
}
