//! A whole Envoy configuration from a policy: what Envoy does natively, done by Envoy, and the module for the rest.
//!
//! Owns the translation and nothing else: routes are matched by the policy's own matcher in the module, which names
//! its choice in a field that Envoy's routes match on, so the two cannot disagree. Every bound of the policy arrives
//! in it, and nothing is left open: what the module cannot decide does not pass.

mod access_log;
mod clusters;
mod compression;
pub mod drain;
pub(crate) mod handed;
mod listener;
mod local_reply;
mod routes;
mod secrets;
mod served;

pub(crate) use self::local_reply::failure;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::Reader;
use certs::report::Report;
use filters::compiled::{Compiled, Secret};
use filters::policy::{Document, Reference};
use serde_json::{Value, json};
use time::OffsetDateTime;

use self::handed::{Following, Given};
use self::secrets::Delivery;
use self::served::Served;
use crate::load::{self, Loaded, UpstreamFiles};

/// What the configuration is made of besides the policy.
#[derive(Clone, Debug)]
pub struct Options {
    /// The module, as Envoy will find it.
    pub module: PathBuf,
}

/// The cluster that leads to the state service.
const STATE_CLUSTER: &str = "torana_state";
/// The field by which routes are told apart. The module sets it; nobody else can, and no upstream sees it.
const ROUTE_FIELD: &str = "x-torana-route";
/// The field by which a route's upstreams are told apart; as the one above.
const SHARE_FIELD: &str = "x-torana-share";
/// The field by which the module's refusals are told from Envoy's own answers.
const REFUSED_FIELD: &str = "x-torana-refused";
/// The field in which Envoy tells the module who is at the other end. It sets it on every request that does not come
/// from an internal address, and the listener knows no address to be internal.
const PEER_FIELD: &str = "x-envoy-external-address";
/// The field in which Envoy tells the module the client's certificate; whatever a client sends in it goes.
const CERTIFICATE_FIELD: &str = "x-forwarded-client-cert";
const LISTENERS: &str = "listeners.json";
const CLUSTERS: &str = "clusters.json";
/// How long the state service may hold up who writes a configuration.
const LOCKED_FOR: Duration = Duration::from_secs(10);
/// Tells an upstream that a request is a copy.
const MIRROR_FIELD: &str = "x-torana-mirror";

/// A bootstrap with everything in it, JSON, which Envoy reads as it does YAML. Certificates are read when Envoy starts,
/// and never again: [`folder`] has them followed.
///
/// # Errors
/// When the policy cannot be read, or has no `state.service`: all mistakes, one a line.
pub fn bootstrap(file: &Path, options: &Options) -> anyhow::Result<String> {
    let source = Source::read(file, options, Delivery::Files)?;
    let document = source.document();
    let listeners = source.listeners()?;
    let clusters = source.clusters()?;
    let whole = json!({
        "node": { "id": "torana", "cluster": "torana-edge" },
        "admin": { "address": socket(document.admin.address) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
        "overload_manager": overload(document),
        "application_log_config": access_log::of_envoy(),
    });
    Ok(format!("{whole:#}\n"))
}

/// The same in files: listeners and clusters, which Envoy watches, so that rewriting them changes the policy of a
/// running Envoy without a dropped connection; a secret for each certificate and each set of CAs; and a copy of their
/// files, which the state service keeps up to date, and Envoy watches.
///
/// # Errors
/// As of [`bootstrap`], and when a file cannot be written.
pub fn folder(file: &Path, options: &Options, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let out = std::path::absolute(out)?;
    let place = Folder(out.clone());
    let _alone = place.lock(LOCKED_FOR)?;
    let source = Source::read(file, options, Delivery::Secrets(place.secrets()))?;
    let document = source.document();
    let typed = |kind: &str, resources: Vec<Value>| {
        let resources: Vec<Value> = resources
            .into_iter()
            .map(|mut resource| {
                resource["@type"] = json!(format!("type.googleapis.com/envoy.config.{kind}"));
                resource
            })
            .collect();
        json!({ "resources": resources })
    };
    let watched = |name: &str| {
        json!({
            "resource_api_version": "V3",
            "path_config_source": { "path": out.join(name), "watched_directory": { "path": out } },
        })
    };
    let bootstrap = json!({
        "node": { "id": "torana", "cluster": "torana-edge" },
        "admin": { "address": socket(document.admin.address) },
        "dynamic_resources": { "lds_config": watched(LISTENERS), "cds_config": watched(CLUSTERS) },
        "overload_manager": overload(document),
        "application_log_config": access_log::of_envoy(),
    });
    // Clusters before listeners: a listener must find the clusters that it names. Those of the listeners before stay
    // for as long as connections may serve by them.
    let (mut clusters, listeners) = (source.clusters()?, source.listeners()?);
    let following = Following::new(&source.loaded, source.state.as_ref());
    let folder_of_secrets = place.secrets();
    let before = [CLUSTERS, LISTENERS].map(|name| read(&out, name));
    clusters.extend(retired(&out, &clusters));
    let text = |value: &Value| format!("{value:#}\n");
    let mut written = Vec::new();
    // Before Envoy hears of them.
    following.copy(&place)?;
    std::fs::create_dir_all(&folder_of_secrets).with_context(|| folder_of_secrets.display().to_string())?;
    for (name, secret) in &following.secrets.documents(&Served::of(&out)) {
        written.push(write(&folder_of_secrets, &format!("{name}.json"), &text(secret))?);
    }
    let files = [
        (CLUSTERS, text(&typed("cluster.v3.Cluster", clusters))),
        (LISTENERS, text(&typed("listener.v3.Listener", listeners))),
        ("envoy.json", text(&bootstrap)),
    ];
    for (name, text) in &files {
        written.push(write(&out, name, text)?);
    }
    // What neither this policy nor the one before names is nobody's.
    let named = before.iter().chain(files.iter().map(|(_, text)| text)).map(String::as_str);
    let named: Vec<&str> = named.collect();
    for entry in std::fs::read_dir(&folder_of_secrets)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !named.iter().any(|text| text.contains(name.as_ref())) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    place.tell(&following.report())?;
    // Last: the state service follows it from now on.
    place.give(&Given { folder: source.loaded.folder, policy: source.text })?;
    Ok(written)
}

/// The folder of a configuration, with what the gateway keeps there for itself and for `certs` in `gateway/`.
struct Folder(PathBuf);

impl Folder {
    fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    fn own(&self) -> PathBuf {
        self.0.join("gateway")
    }

    /// The policy that Envoy was given.
    fn given(&self) -> PathBuf {
        self.own().join("policy.json")
    }

    fn read_given(&self) -> anyhow::Result<Given> {
        let path = self.given();
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    fn give(&self, given: &Given) -> anyhow::Result<()> {
        write(&self.own(), "policy.json", &serde_json::to_string(given)?).map(drop)
    }

    /// Writes down what Envoy has been handed.
    fn tell(&self, report: &Report) -> anyhow::Result<()> {
        write(&self.own(), "report.json", &serde_json::to_string_pretty(report)?).map(drop)
    }

    /// Two processes write here: a command that configures Envoy, and the state service.
    fn lock(&self, within: Duration) -> anyhow::Result<std::fs::File> {
        served::private(&self.own())?;
        let path = self.own().join("lock");
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < within => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
    }
}

/// A file as it was written here before; nothing when it was not.
fn read(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap_or_default()
}

/// The clusters of the policy that is about to be replaced which the new one does not have: those that the listeners
/// of now name. Nothing when there are none, or what is there was not written here.
fn retired(out: &Path, new: &[Value]) -> Vec<Value> {
    let listeners = read(out, LISTENERS);
    let clusters: Value = serde_json::from_str(&read(out, CLUSTERS)).unwrap_or_default();
    let name = |cluster: &Value| cluster["name"].as_str().map(str::to_owned);
    let known: Vec<String> = new.iter().filter_map(name).collect();
    let all = clusters["resources"].as_array().cloned().unwrap_or_default();
    let named = |cluster: &Value| {
        name(cluster).is_some_and(|name| !known.contains(&name) && listeners.contains(&format!("\"{name}\"")))
    };
    all.into_iter().filter(named).collect()
}

/// Writes a file in place of another, whole, readable by its owner alone.
fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let (path, new) = (folder.join(name), folder.join(format!(".{name}.new")));
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| new.display().to_string())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// A policy and everything that it names.
struct Source {
    text: String,
    loaded: Loaded,
    /// What Envoy shows the state service and believes of it; none where that has no TLS.
    state: Option<UpstreamFiles>,
    /// How Envoy gets certificates and CAs.
    delivery: Delivery,
    /// The document as the module reads it.
    compiled: Compiled,
    /// Variables that Envoy passes on to the module.
    variables: Vec<String>,
    module: PathBuf,
    now: OffsetDateTime,
}

impl Source {
    fn read(file: &Path, options: &Options, delivery: Delivery) -> anyhow::Result<Self> {
        let name = file.to_string_lossy();
        let mistaken = |mistakes: Vec<filters::policy::Mistake>| anyhow::anyhow!(load::told(&mistakes, file));
        // Envoy may be started anywhere, so what the policy names must be found from anywhere.
        let read = load::read(&std::path::absolute(file)?).map_err(mistaken)?;
        let beyond = read.policy.beyond_envoy();
        if !beyond.is_empty() {
            return Err(mistaken(beyond));
        }
        let text = read.text.clone();
        let loaded = load::load_file(read, Reader::Envoy).map_err(mistaken)?;
        let state = loaded.state_client().map_err(mistaken)?;
        let document = loaded.policy.document();
        anyhow::ensure!(
            document.state.service.is_some(),
            "{name}: Envoy's workers share nonces, limits and keys through the state service, so the policy must say \
             where it is: `state: {{ service: {{ address: \"127.0.0.1:7070\" }} }}`"
        );
        let tells_secrets =
            document.state.service.as_ref().is_some_and(|service| service.value.knows_its_clients());
        let mut secrets = std::collections::BTreeMap::new();
        let mut variables = Vec::new();
        for reference in document.client_secrets() {
            let secret = match reference {
                Reference::Env(name) => {
                    variables.push(name.clone());
                    Secret::Env(name.clone())
                }
                // Told while Envoy runs, and again when it changes; and the configuration is no secret.
                Reference::File(_) if tells_secrets => Secret::Service,
                Reference::File(_) => {
                    let bytes = load::secret(&loaded.folder, reference).map_err(anyhow::Error::msg)?;
                    Secret::inline(&bytes)
                }
            };
            secrets.insert(reference.to_string(), secret);
        }
        variables.sort_unstable();
        variables.dedup();
        let policy = loaded.policy.compiled()?;
        let compiled = Compiled {
            policy,
            secrets,
            state_cluster: STATE_CLUSTER.to_owned(),
            peer_field: Some(PEER_FIELD.to_owned()),
            certificate_field: Some(CERTIFICATE_FIELD.to_owned()),
        };
        let module = std::path::absolute(&options.module)?;
        let now = OffsetDateTime::now_utc();
        Ok(Self { text, loaded, state, delivery, compiled, variables, module, now })
    }

    fn document(&self) -> &Document {
        self.loaded.policy.document()
    }
}

/// Whether the configuration holds secrets, for whoever prints it.
///
/// # Errors
/// When the policy cannot be read.
pub fn holds_secrets(file: &Path, options: &Options) -> anyhow::Result<bool> {
    let source = Source::read(file, options, Delivery::Files)?;
    Ok(source.compiled.secrets.values().any(|secret| matches!(secret, Secret::Inline(_))))
}

fn socket(address: std::net::SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

/// A number of milliseconds as protobuf's JSON has durations.
fn ms(ms: u64) -> String {
    format!("{}.{:03}s", ms / 1_000, ms % 1_000)
}

/// Bounds of the whole process.
fn overload(document: &Document) -> Value {
    let connections: u64 =
        document.listeners.iter().map(|listener| u64::from(listener.value.max_connections)).sum();
    json!({
        "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": connections,
            },
        }],
    })
}
