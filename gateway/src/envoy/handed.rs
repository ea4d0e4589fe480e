//! What a running Envoy is handed: the state service follows the files of the policy that Envoy was given last, accepts
//! or refuses what changes by the gateway's own rules, and puts into the copy that Envoy reads what was accepted.
//!
//! Also has open connections drained when somebody is no longer believed: Envoy asks a revocation list at handshakes only,
//! but a listener or a cluster that differs from the one before has the connections of that one drained, so each carries
//! a mark of whom it believes. And what was done is written down, for `certs`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use certs::report::Report;
use certs::{Client, Reader, Set, Trust, Watch};
use filters::policy::{At, Document};
use prometheus::IntGauge;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::secrets::Secrets;
use super::served::Served;
use super::{CLUSTERS, Folder, LISTENERS};
use crate::load::{self, Loaded, UpstreamFiles};
use crate::metrics::Metrics;

/// How long a command that configures Envoy may hold this up, before it is trouble.
const LOCKED_FOR: Duration = Duration::from_secs(2);
/// Between two looks. What Envoy is handed changes within two of them.
const LOOK: Duration = Duration::from_millis(250);

/// The folder of Envoy's configuration, and what is followed of it.
#[derive(Debug)]
pub(crate) struct Handed {
    out: PathBuf,
    following: ArcSwapOption<Following>,
    progress: Mutex<Progress>,
    /// 1 while nothing is in the way.
    gauge: IntGauge,
}

/// What was done last; whatever is to be done differs from it.
#[derive(Debug, Default)]
struct Progress {
    /// Of the policy that is followed.
    policy: Option<Stamp>,
    handed: Option<Vec<(u64, bool)>>,
    told: Option<Report>,
    /// What went wrong, so that it is logged once.
    trouble: Option<String>,
}

/// By what another policy shows: it is renamed into place.
type Stamp = (u64, i64, i64);

/// The policy that Envoy was given, as it was then, and where its references are relative to.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Given {
    pub(super) folder: PathBuf,
    pub(super) policy: String,
}

/// The files of one policy.
#[derive(Debug)]
pub(super) struct Following {
    watch: Arc<Watch>,
    pub(super) secrets: Secrets,
}

impl Handed {
    /// What is in `out`, once `gateway envoy --out` has written there.
    pub(crate) fn new(out: &Path, metrics: &Metrics) -> anyhow::Result<Self> {
        let (out, gauge) = (std::path::absolute(out)?, metrics.envoy_handed()?);
        Ok(Self { out, following: ArcSwapOption::empty(), progress: Mutex::default(), gauge })
    }

    /// Follows it until the future is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let handed = Arc::clone(&self);
            // A file system that hangs must not hold up those who serve.
            let look = tokio::task::spawn_blocking(move || handed.look(OffsetDateTime::now_utc()));
            if let Err(error) = look.await {
                tracing::error!(%error, "a look at Envoy's files ended badly");
            }
        }
    }

    /// Who follows the files now, for metrics.
    pub(crate) fn watch(&self) -> Option<Arc<Watch>> {
        self.following.load().as_ref().map(|following| Arc::clone(&following.watch))
    }

    /// What Envoy has been handed and what was refused; nothing before it was given a policy.
    pub(crate) fn report(&self) -> Report {
        self.following.load().as_ref().map(|following| following.report()).unwrap_or_default()
    }

    fn look(&self, now: OffsetDateTime) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let trouble = self.advance(&mut progress, now).err().map(|error| format!("{error:#}"));
        if let Some(error) = trouble.as_ref().filter(|_| trouble != progress.trouble) {
            tracing::error!(error, folder = %self.out.display(), "Envoy keeps what it has");
        }
        self.gauge.set(i64::from(trouble.is_none()));
        progress.trouble = trouble;
    }

    fn advance(&self, progress: &mut Progress, now: OffsetDateTime) -> anyhow::Result<()> {
        let folder = Folder(self.out.clone());
        let policy = stamp(&folder.given());
        anyhow::ensure!(
            policy.is_some(),
            "there is no policy of Envoy's to follow yet: write it with `gateway envoy --out`"
        );
        if policy != progress.policy {
            let following = Following::of(&folder.read_given()?)?;
            self.following.store(Some(Arc::new(following)));
            (progress.policy, progress.handed, progress.told) = (policy, None, None);
            tracing::info!(folder = %self.out.display(), "following the files of Envoy's policy");
        }
        let following = self.following.load();
        let Some(following) = following.as_ref() else { return Ok(()) };
        following.watch.look(now);
        let version = Some(following.secrets.version(now));
        if version != progress.handed {
            let _alone = folder.lock(LOCKED_FOR)?;
            // Another policy was written meanwhile: its files are handed over at the next look.
            if stamp(&folder.given()) != policy {
                return Ok(());
            }
            following.copy(&folder)?;
            following.mark(&folder, now)?;
            progress.handed = version;
        }
        let report = following.report();
        if progress.told.as_ref() != Some(&report) {
            folder.tell(&report)?;
            progress.told = Some(report);
        }
        Ok(())
    }
}

impl Following {
    /// Reads and checks everything that a policy names.
    fn of(Given { folder, policy }: &Given) -> anyhow::Result<Self> {
        let wrong = |mistakes: Vec<_>| anyhow::anyhow!(load::told(&mistakes, Path::new("Envoy's policy")));
        let read = load::read_text(policy.clone(), folder.clone()).map_err(wrong)?;
        let loaded = load::load_file(read, Reader::Envoy).map_err(wrong)?;
        let state = loaded.state_client().map_err(wrong)?;
        Ok(Self::new(&loaded, state.as_ref()))
    }

    pub(super) fn new(loaded: &Loaded, state: Option<&UpstreamFiles>) -> Self {
        let (document, watch) = (loaded.policy.document(), Arc::clone(&loaded.watch));
        for (At { value: listener, .. }, files) in document.listeners.iter().zip(&loaded.listeners) {
            let (certificates, whom) = (files.certificates.clone(), files.clients.clone());
            watch.serves(&listener.name, listener.address, certificates, whom);
        }
        let upstreams = loaded.upstreams.iter().map(|(name, files)| {
            let tls = document.upstreams.get(name).and_then(|upstream| upstream.value.tls.tls());
            let server_name = tls.map(|tls| &tls.server_name);
            (format!("upstream/{name}"), server_name, files)
        });
        let of_state = state.map(|files| ("state/client".to_owned(), state_server(document), files));
        for (name, server_name, files) in upstreams.chain(of_state) {
            let Some(trust) = files.trust.clone() else { continue };
            let identity = files.identity.clone();
            let server_name = server_name.map(|name| name.value.clone());
            watch.connects(Client { name, server_name, identity, trust });
        }
        let secrets = Secrets::of(&loaded.listeners, loaded.upstreams.values().chain(state));
        Self { watch, secrets }
    }

    /// Puts what was accepted last into the copy.
    pub(super) fn copy(&self, folder: &Folder) -> anyhow::Result<()> {
        let is_named = |file: &str| {
            let secret = Path::new(file).with_extension("json");
            folder.secrets().join(secret).exists()
        };
        if Served::of(&folder.0).put(&self.secrets.files(), is_named)? {
            tracing::info!(folder = %folder.0.display(), "new files are handed to Envoy");
        }
        Ok(())
    }

    /// Marks listeners and clusters with whom they believe now: those that change are drained.
    fn mark(&self, folder: &Folder, now: OffsetDateTime) -> anyhow::Result<()> {
        for file in [CLUSTERS, LISTENERS] {
            let text = super::read(&folder.0, file);
            // Before the first configuration is written.
            if text.is_empty() {
                continue;
            }
            let mut written: Value = serde_json::from_str(&text).context(file)?;
            let mut changed = false;
            for resource in written["resources"].as_array_mut().into_iter().flatten() {
                let Some(mark) = resource.pointer_mut(MARK) else { continue };
                let Some(trust) = mark["of"].as_str().and_then(|name| self.secrets.trust(name)) else {
                    continue;
                };
                let now = marked(trust, now);
                if *mark != now {
                    let of = trust.name();
                    tracing::warn!(of, "others are believed than before: open connections are drained");
                    *mark = now;
                    changed = true;
                }
            }
            if changed {
                super::write(&folder.0, file, &format!("{written:#}\n"))?;
            }
        }
        Ok(())
    }

    pub(super) fn report(&self) -> Report {
        Report { service: "envoy".into(), ..self.watch.report() }
    }
}

/// Where the mark of a listener or a cluster is.
const MARK: &str = "/metadata/filter_metadata/torana";

/// As the metadata of who believes it.
pub(super) fn metadata(trust: &Set<Trust>, now: OffsetDateTime) -> Value {
    json!({ "filter_metadata": { "torana": marked(trust, now) } })
}

fn marked(trust: &Set<Trust>, now: OffsetDateTime) -> Value {
    json!({ "of": trust.name(), "mark": format!("{:016x}", trust.current().mark(now)) })
}

fn state_server(document: &Document) -> Option<&At<String>> {
    let service = document.state.service.as_ref()?;
    Some(&service.value.tls.as_ref()?.client.server_name)
}

fn stamp(file: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))
}
