//! A data plane under one case's policy: the binaries that users run, over the wire.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use engines::{Program, ports};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::answering::{Asked, Seen, tell_answer};
use crate::case::Named;
use crate::clock::Clock;
use crate::document::{FLAGS_READY_PATH, Places, READY_PATH, policy};
use crate::in_process::{InProcess, RUN_UP_MS};
use crate::mint::{AUTHORITY, Sent};
use crate::outcome::{Outcome, answer_fields};
use crate::upstream::Upstream;
use crate::wire::{Raw, bytes, exchange};
use crate::world::World;

/// Who decides over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    Envoy,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Gateway, Self::Envoy];

    /// The name in cases and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Envoy => "envoy",
        }
    }
}

/// The executables.
#[derive(Clone, Debug)]
pub struct Programs {
    pub gateway: PathBuf,
    pub envoy: PathBuf,
    pub module: PathBuf,
}

impl Programs {
    /// Those of the build that the running test is of.
    ///
    /// # Errors
    /// As of [`Programs::find`].
    pub fn beside_test() -> anyhow::Result<Self> {
        let test = std::env::current_exe()?;
        let profile = test.parent().and_then(Path::parent).context("a test lies in `deps`")?;
        let target = profile.parent().context("a profile lies in `target`")?;
        Self::find(profile.join("gateway"), target, &Kind::ALL)
    }

    /// What `cargo build`, `tests/run install` and `filters/wasm/build` have left under `target`.
    ///
    /// # Errors
    /// When one is missing: with the command that makes it.
    pub fn find(gateway: PathBuf, target: &Path, kinds: &[Kind]) -> anyhow::Result<Self> {
        let found =
            Self { gateway, envoy: target.join("envoy/envoy"), module: target.join("wasm/torana.wasm") };
        let mut needed = vec![(&found.gateway, "cargo build --bin gateway")];
        if kinds.contains(&Kind::Envoy) {
            needed.push((&found.envoy, "tests/run install"));
            needed.push((&found.module, "filters/wasm/build"));
        }
        for (file, how) in needed {
            anyhow::ensure!(file.exists(), "{} is missing; it comes from: {how}", file.display());
        }
        Ok(found)
    }
}

/// A data plane and what belongs to it, until dropped.
#[derive(Debug)]
pub struct Plane<'w> {
    world: &'w World,
    kind: Kind,
    places: Places,
    clock: Clock,
    folder: PathBuf,
    programs: Programs,
    children: Vec<Program>,
    state: Option<Program>,
    /// Requests that are in flight for as long as the plane lives.
    staying: JoinSet<()>,
}

/// Codes of what is refused until the data plane has what it decides with.
const NOT_YET: [&str; 3] = ["token_keys_unavailable", "token_revocations_unavailable", "feature_off"];
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

impl<'w> Plane<'w> {
    /// Starts one in a folder of its own and waits until it serves.
    ///
    /// # Errors
    /// When it does not: with the end of its log.
    pub async fn start(
        world: &'w World,
        programs: &Programs,
        kind: Kind,
        named: &Named,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let (v4, admin, state) = (ports::v4()?, ports::v4()?, ports::v4()?);
        let upstreams = [world.upstreams[0].address, world.upstreams[1].address];
        let introspection = world.introspection.address;
        let places = Places { listeners: [v4, ports::v6()?], admin, state, upstreams, introspection };
        let document = policy(named, &places, world.folder(), &world.keys, world.epoch_ms)?;
        let file = folder.join("policy.yaml");
        // On lines of its own, each thing, so that what is told of it can point there.
        std::fs::write(&file, format!("{document:#}"))?;
        let clock = Clock::new(&world.library, &folder.join("now"), world.epoch_ms - RUN_UP_MS)?;
        let mut plane = Self {
            world,
            kind,
            places,
            clock,
            folder: folder.to_owned(),
            programs: programs.clone(),
            children: Vec::new(),
            state: None,
            staying: JoinSet::new(),
        };
        match kind {
            Kind::Gateway => plane.spawn(Command::new(&programs.gateway).arg("serve").arg(&file))?,
            Kind::Envoy => {
                plane.start_state()?;
                let bootstrap = folder.join("envoy.json");
                let generated = Command::new(&programs.gateway)
                    .args([
                        "envoy".as_ref(),
                        file.as_os_str(),
                        "--module".as_ref(),
                        programs.module.as_os_str(),
                    ])
                    .output()?;
                if !generated.status.success() {
                    bail!("gateway envoy: {}", String::from_utf8_lossy(&generated.stderr));
                }
                std::fs::write(&bootstrap, generated.stdout)?;
                plane.spawn(Command::new(&programs.envoy).arg("-c").arg(&bootstrap).args([
                    "--concurrency",
                    "1",
                    "--log-level",
                    "warning",
                    "--disable-hot-restart",
                    "--file-flush-interval-msec",
                    "50",
                ]))?;
            }
        }
        plane.ready(named.case.flags_text().is_some()).await.with_context(|| plane.last_words())?;
        Ok(plane)
    }

    /// Starts the state service.
    ///
    /// # Errors
    /// When its program is not there.
    pub fn start_state(&mut self) -> anyhow::Result<()> {
        let policy = self.folder.join("policy.yaml");
        let mut command = Command::new(&self.programs.gateway);
        self.state = Some(self.run(command.arg("state").arg(policy))?);
        Ok(())
    }

    /// Kills the state service.
    pub fn stop_state(&mut self) {
        self.state = None;
    }

    /// Where the state service listens.
    pub fn state_address(&self) -> std::net::SocketAddr {
        self.places.state
    }

    /// Where operators look.
    pub fn admin(&self) -> std::net::SocketAddr {
        self.places.admin
    }

    /// Where clients with IPv4 addresses connect.
    pub fn address(&self) -> std::net::SocketAddr {
        self.places.listeners[0]
    }

    fn spawn(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let child = self.run(command)?;
        self.children.push(child);
        Ok(())
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<Program> {
        Program::spawn(self.kind.name(), command.envs(self.clock.variables()), &self.log())
    }

    /// What its processes write.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The end of what its processes wrote.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}:\n{}", self.kind.name(), lines[lines.len().saturating_sub(8)..].join("\n"))
    }

    /// Waits until it serves and has its keys.
    async fn ready(&mut self, has_flags: bool) -> anyhow::Result<()> {
        self.answers(READY_PATH).await?;
        if has_flags { self.answers(FLAGS_READY_PATH).await } else { Ok(()) }
    }

    async fn answers(&mut self, path: &str) -> anyhow::Result<()> {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\nauthorization: Bearer e30.e30.AAAA\r\n\r\n");
        let began = Instant::now();
        let mut last = "it does not listen".to_owned();
        while began.elapsed() < READY_WITHIN {
            self.children.iter_mut().try_for_each(Program::check)?;
            let from = [127, 0, 0, 1].into();
            let both =
                [(self.places.listeners[0], from), (self.places.listeners[1], self.places.listeners[1].ip())];
            let mut served = 0;
            for (to, from) in both {
                match exchange(to, from, &self.world.client, request.as_bytes()).await {
                    Ok(Some(raw)) if !NOT_YET.contains(&raw.code().as_str()) && raw.status != 500 => {
                        served += 1
                    }
                    Ok(Some(raw)) => last = format!("{} {}", raw.status, raw.code()),
                    Ok(None) => last = "it closes connections".to_owned(),
                    Err(why) => last = format!("{why:#}"),
                }
            }
            if served == both.len() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("it is not ready: {last}")
    }

    /// Moves the clock.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn at(&self, now_ms: u64) -> anyhow::Result<()> {
        self.clock.set(now_ms)
    }

    /// Sends one request, or bytes that are none.
    ///
    /// # Errors
    /// When there is no answer, or none that can be understood.
    pub async fn decide(&self, sent: &Sent, raw: Option<&str>) -> anyhow::Result<Outcome> {
        let bytes = raw.map_or_else(|| bytes(sent), |raw| raw.as_bytes().to_vec());
        let (to, from) = match sent.peer.to_canonical() {
            peer if peer.is_ipv4() => (self.places.listeners[0], peer),
            peer if peer.is_loopback() => (self.places.listeners[1], peer),
            peer => (self.places.listeners[1], peer),
        };
        let answer = exchange(to, from, self.world.client(sent.certificate.as_deref())?, &bytes).await?;
        // A state that is away remembers nothing that could be counted.
        let entries = self.entries().await.ok();
        let Some(answer) = answer else {
            let answer = answer_fields([]);
            return Ok(Outcome {
                verdict: "closed".into(),
                upstream: None,
                served_by: None,
                answer,
                entries,
            });
        };
        let mut fields =
            answer_fields(answer.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
        if answer.status == 200 {
            let body = answer.plain()?;
            let seen: Seen = serde_json::from_slice(&body).context("not the upstream's answer")?;
            anyhow::ensure!(seen.body == sent.body, "the upstream got another body");
            let upstream = seen.told(&sent.method);
            let to = [&sent.target, &seen.target].map(|target| Asked { method: &sent.method, target });
            tell_answer(&mut fields, answer.status, &answer.fields, &body, to);
            let served_by = Some(seen.upstream);
            return Ok(Outcome {
                verdict: "pass".into(),
                upstream: Some(upstream),
                served_by,
                answer: fields,
                entries,
            });
        }
        let verdict = format!("{} {}", answer.status, answer.code());
        Ok(Outcome { verdict, upstream: None, served_by: None, answer: fields, entries })
    }

    /// Revokes something, and waits until it counts.
    ///
    /// # Errors
    /// When it is not taken, or does not come to count.
    pub async fn revoke(&self, wanted: &serde_json::Map<String, Value>) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let address = match self.kind {
            Kind::Gateway => self.places.admin,
            Kind::Envoy => self.places.state,
        };
        let asked = async |outcome: &str| {
            let line = format!("gateway_revocation_pulls_total{{outcome=\"{outcome}\"}} ");
            self.metric(&line).await.unwrap_or(0)
        };
        let told = asked("told").await;
        let answer = http.post(format!("http://{address}/revocations")).json(wanted).send().await?;
        let status = answer.status();
        anyhow::ensure!(status.is_success(), "{status}: {}", answer.text().await?);
        match self.kind {
            Kind::Gateway => return Ok(()),
            Kind::Envoy => {}
        }
        // The worker asks again only when it has taken what it was told.
        let began = Instant::now();
        let mut unchanged = None;
        while began.elapsed() < READY_WITHIN {
            match (asked("told").await > told, unchanged) {
                (true, None) => unchanged = Some(asked("unchanged").await),
                (true, Some(before)) if asked("unchanged").await > before => return Ok(()),
                (true, Some(_)) | (false, _) => {}
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("Envoy does not ask what is revoked")
    }

    /// Sends a request that its upstream keeps, and waits until it is there.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn stay(&mut self, sent: &Sent) -> anyhow::Result<()> {
        let tls = Arc::clone(self.world.client(sent.certificate.as_deref())?);
        let (to, from, bytes) = (self.places.listeners[0], sent.peer.to_canonical(), bytes(sent));
        let kept = || self.world.upstreams.iter().map(Upstream::kept).sum::<usize>();
        let before = kept();
        self.staying.spawn(async move {
            let _ = exchange(to, from, &tls, &bytes).await;
        });
        let began = Instant::now();
        while kept() == before {
            anyhow::ensure!(began.elapsed() < READY_WITHIN, "the request did not reach its upstream");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// How many things the state remembers.
    async fn entries(&self) -> anyhow::Result<usize> {
        self.metric("gateway_state_entries ").await
    }

    /// What the gateway, or the state service, counts under a name.
    ///
    /// # Errors
    /// When it counts nothing under that name.
    pub async fn metric(&self, metric: &str) -> anyhow::Result<usize> {
        let address = match self.kind {
            Kind::Gateway => self.places.admin,
            Kind::Envoy => self.places.state,
        };
        let text = reqwest::Client::builder().no_proxy().build()?;
        let text = text.get(format!("http://{address}/metrics")).send().await?.text().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(metric));
        Ok(line.with_context(|| format!("there is no {metric}"))?.trim().parse()?)
    }
}

impl Raw {
    /// The body as it was before it was compressed.
    ///
    /// # Errors
    /// When it is not what its field says.
    pub fn plain(&self) -> anyhow::Result<Vec<u8>> {
        let coding = self.fields.iter().find(|(name, _)| name == "content-encoding");
        match coding.map(|(_, value)| value.as_slice()) {
            None => Ok(self.body.clone()),
            Some(b"gzip") => {
                let mut plain = Vec::new();
                // Not the first member alone: what stands behind it would be an error that nobody saw.
                flate2::read::MultiGzDecoder::new(self.body.as_slice()).read_to_end(&mut plain)?;
                Ok(plain)
            }
            Some(other) => bail!("the answer is coded {}", other.escape_ascii()),
        }
    }

    /// The problem's code, `-` when the answer is none.
    pub fn code(&self) -> String {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        problem["code"].as_str().unwrap_or("-").to_owned()
    }
}

/// The same case, decided in process: what the others must agree with.
///
/// # Errors
/// When the policy is refused.
pub fn reference<'w>(world: &'w World, named: &Named) -> anyhow::Result<InProcess<'w>> {
    InProcess::new(named, &world.keys, world.epoch_ms)
}
